"""A device that needs no hardware: tensors in the CPU's memory that say they are on `mps:0`, and are treated so.

A CPU lets everything through that an accelerator refuses. Under [`fake_device`] Trainer and accelerate put their
tensors on `mps:0`, where three things fail: an operation on tensors of both devices (as on CUDA and on MPS), float64
(as on MPS) and a conversion to NumPy. The numbers are those of the CPU.

What a test itself computes, by a model too, may mix devices. The backward pass and other threads are not looked at.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from transformers import TrainingArguments

import hf_instructgpt

DEVICE = torch.device("mps:0")
TESTS, PACKAGE = Path(__file__).parent, Path(hf_instructgpt.__file__).parent
Tensor = torch.Tensor
# These take tensors of both devices.
MIXING = {torch.tensor, torch.as_tensor, Tensor.copy_, Tensor.to, Tensor.data.__set__, Tensor.__deepcopy__}
MIXING |= {torch._has_compatible_shallow_copy_type}
# These take no number of the CPU (a tensor without dimensions) beside tensors of the device; all others do.
STRICT = {torch.cat, torch.stack, torch.equal, Tensor.equal}


class FakeDevice(TorchFunctionMode):
    """Knows which memory is the device's: views share it, whoever makes them."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}

    def has(self, x: Tensor) -> bool:
        """Whether a tensor is on the device."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            return self.has(torch._C._functorch.get_unwrapped(x))
        storage = self.storages.get(x.untyped_storage()._cdata)
        return storage is not None and not storage.expired()

    def take(self, x: Tensor) -> Tensor:
        """Note that a tensor is on the device."""
        if x.dtype == torch.float64 and not _called_by_a_test():
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        if len(self.storages) > 50_000:
            self.storages = {key: ref for key, ref in self.storages.items() if not ref.expired()}
        storage = x.untyped_storage()
        self.storages[storage._cdata] = StorageWeakRef(storage)
        return x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return DEVICE if self.has(args[0]) else func(*args)
        is_attribute = func.__name__ == "__get__" and func != Tensor.grad.__get__
        if is_attribute or func.__name__ in ("device", "_parse_to"):  # they read what Module.to is given
            return func(*args, **kwargs)
        tensors = [x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in tensors if self.has(x)]
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")
        if here and len(here) < len(tensors):
            self.check(func, args, tensors)
        place = _asked_place(func, args, kwargs)
        result = func(*map(_on_cpu, args), **{name: _on_cpu(x) for name, x in kwargs.items()})

        def placed(x: Tensor) -> Tensor:
            is_an_inputs = any(_share(x, y) for y in tensors)
            if place is None:
                return x if is_an_inputs or not here else self.take(x)
            on_device = self.has(place) if isinstance(place, Tensor) else _is_fake(place)
            x = x.clone() if is_an_inputs and on_device != self.has(x) else x
            return self.take(x) if on_device else x

        return _pytree.tree_map_only(Tensor, placed, result)

    def check(self, func, args: tuple, tensors: list[Tensor]) -> None:
        """Raise where PyTorch would: a tensor is on the CPU, and the operation does not take it from there."""
        others = [x for x in tensors if x.device.type == "cpu" and not self.has(x)]
        if func in MIXING or _in_backward() or _called_by_a_test():
            return
        name, own = func.__name__, args[0] if isinstance(args[0], Tensor) else None
        is_own = own is not None and self.has(own)
        if is_own and name in ("__getitem__", "__setitem__"):
            indices = [x for x in _pytree.tree_leaves(args[1]) if isinstance(x, Tensor)]
            # Indices may be on the CPU; what is put there may be so if it is a number, or the place is a slice.
            others = [x for x in others if indices and args[2:] and x is args[2]]
        is_changed = name == "__setitem__" or name.startswith("__i") or (name[-1] == "_" and name[-2] != "_")
        takes_numbers = (is_own or own is None or not is_changed) and func not in STRICT
        found = [x for x in others if x.dim() > 0 or not takes_numbers]
        if found:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"({name}, a tensor of shape {tuple(found[0].shape)} is on the CPU)"
            )


def _asked_place(func, args: tuple, kwargs: dict) -> str | torch.device | Tensor | None:
    """Where a call asks for its result to be, as a device or as another tensor's place."""
    if kwargs.get("device") is not None:
        return kwargs["device"]
    copies_values = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
    if func is Tensor.cpu or copies_values:
        return "cpu"
    if func is Tensor.to:
        return next((x for x in args[1:] if isinstance(x, str | torch.device | Tensor)), None)
    return None


def _is_fake(x) -> bool:
    return isinstance(x, str | torch.device) and str(x).partition(":")[0] == DEVICE.type


def _on_cpu(x):
    return "cpu" if _is_fake(x) else x


def _share(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are in the same memory."""
    if torch._C._functorch.is_functorch_wrapped_tensor(x) or torch._C._functorch.is_functorch_wrapped_tensor(y):
        return False
    return x.untyped_storage()._cdata == y.untyped_storage()._cdata


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _called_by_a_test() -> bool:
    """Whether a test asks for a computation itself, by a model perhaps, rather than by the package."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE) and not file.is_relative_to(PACKAGE / "char_gpt"):
            return False
        if file.is_relative_to(TESTS) and file != Path(__file__):
            return True
        frame = frame.f_back
    return False


@contextmanager
def fake_device() -> Iterator[FakeDevice]:
    """Everything that asks Trainer or accelerate for its device gets the fake one, `use_cpu` or not."""
    load = torch.load

    def load_on_cpu(*args, map_location=None, **kwargs):
        return load(*args, map_location=_on_cpu(map_location), **kwargs)

    place = property(lambda self: DEVICE, lambda self, device: None)
    with pytest.MonkeyPatch.context() as patch, FakeDevice() as mode:
        patch.setattr(PartialState, "device", place, raising=False)
        patch.setattr(AcceleratorState, "device", place, raising=False)
        patch.setattr(TrainingArguments, "device", property(lambda self: self._setup_devices and DEVICE))
        patch.setattr(torch, "load", load_on_cpu)
        patch.setattr(torch.testing, "assert_close", partial(torch.testing.assert_close, check_device=False))
        patch.setattr(torch, "Event", MagicMock())  # `generate` waits for one, on MPS
        patch.setattr(torch.mps, "get_rng_state", lambda device=DEVICE: torch.get_rng_state())
        patch.setattr(torch.mps, "set_rng_state", lambda state, device=DEVICE: None)
        try:
            yield mode
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # it was given no device to keep
