"""Frozen models whose weights are on the device only while they compute."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from torch import nn

ALIGNMENT = 64  # bytes; the widest number has 16


class Offload:
    """A model's weights, kept in RAM or in a file, and the device on which they compute.

    accelerate's hooks do this for every forward, and leave a model without weights in between. Here a phase of many
    forwards brings the weights once, nothing is copied back (they are frozen), tied weights stay tied, and outside of
    the phase the model is an ordinary one on the CPU.
    """

    def __init__(self, model: nn.Module, *, device: torch.device, folder: str | Path | None = None):
        self.device = device
        self.tensors = [*model.parameters(), *model.buffers()]
        self.memory: mmap.mmap | None = None
        self.kept = [x.detach().cpu() for x in self.tensors]
        if folder is not None:
            self._write(Path(folder))
        self.put_away()

    def __deepcopy__(self, memo: dict) -> None:
        return None  # a copy of the model is an ordinary model

    def _write(self, folder: Path) -> None:
        """Let a file without a name, which goes with the process however that ends, hold the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            places = [_append(file, x) for x in self.kept]
            file.flush()
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.kept = [
            torch.frombuffer(self.memory, dtype=x.dtype, count=x.numel(), offset=place).view(x.shape)
            if x.numel()
            else x
            for x, place in zip(self.kept, places, strict=True)
        ]

    def bring(self) -> None:
        """Copy the weights to the device, where that is not the CPU."""
        for x, kept in zip(self.tensors, self.kept, strict=True):
            x.data = kept.to(self.device)

    def put_away(self) -> None:
        """Leave the device; of a file, release the memory of its pages."""
        for x, kept in zip(self.tensors, self.kept, strict=True):
            x.data = kept
        if self.memory is not None and hasattr(self.memory, "madvise"):  # not on Windows
            self.memory.madvise(mmap.MADV_DONTNEED)


def _append(file: BinaryIO, x: torch.Tensor) -> int:
    """Write a tensor's bytes and return where they begin."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    place = file.tell()
    file.write(x.contiguous().flatten().view(torch.uint8).numpy().data)
    return place


def offload(model: nn.Module, *, device: torch.device, folder: str | Path | None = None) -> None:
    """Keep a frozen model's weights in RAM, or in a file in `folder`, except inside [`on_device`]."""
    model._offload = Offload(model, device=device, folder=folder)


@contextmanager
def on_device(model: nn.Module | None) -> Iterator[None]:
    """Inside, an off-loaded model is on its device; any other is left alone."""
    away = vars(model).get("_offload") if model is not None else None
    if away is None:
        yield
        return
    away.bring()
    try:
        yield
    finally:
        away.put_away()
