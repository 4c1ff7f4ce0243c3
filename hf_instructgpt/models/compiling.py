"""Decoder layers compiled by `torch.compile`, where a model measures or is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import InputError

# Graphs that are kept. A layer has one per kind of pass (with gradients or without, with padding or without) for the
# first shape, and one for all other shapes; then there are kinds of layers and models. What is beyond is not compiled.
MAX_GRAPHS = 64


class CompiledLayers:
    """The decoder layers of models, compiled inside [`switched`] and plain elsewhere.

    Sampling, whose cache grows with each token, would compile a graph per layer. Compiled layers are the same modules,
    so weights keep their names; layers that are alike share graphs, also of two models.
    """

    def __init__(self, models: Sequence[nn.Module], *, backend: str, mode: str | None):
        run = torch.compile(
            _run_layer, backend=backend, mode=mode, isolate_recompiles=True, recompile_limit=MAX_GRAPHS
        )
        self.forwards = [(layer, partial(run, layer)) for model in models for layer in decoder_layers(model)]
        self.is_on = False

    @contextmanager
    def switched(self, is_on: bool = True) -> Iterator[None]:
        """Inside, the layers' forward passes are compiled ones, or plain ones; then again as before."""
        before = self.is_on
        self._switch(is_on)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, is_on: bool) -> None:
        for layer, forward in self.forwards:
            if is_on:
                layer.forward = forward
            else:
                vars(layer).pop("forward", None)
        self.is_on = is_on


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """A model's layers, without those that another library wraps."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if "forward" not in vars(layer)]


def _run_layer(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def check_compiler(*, backend: str, mode: str | None, device: torch.device) -> None:
    """Refuse a backend that cannot compile on this machine: it compiles a small function."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2

    try:
        torch.compile(double, backend=backend, mode=mode)(torch.zeros(8, device=device))
    except Exception as error:  # of any backend
        reason = " ".join(str(error).split("\n\n")[0].split())  # then come torch's hints for developers
        raise InputError(
            f"`torch_compile`: the backend {backend!r} (mode {mode!r}) cannot compile on this machine: {reason}. "
            "Inductor needs a C++ compiler on a CPU (such as g++, or what CXX names) and Triton on a GPU. Install it, "
            "choose another `torch_compile_backend`, or leave `torch_compile` out."
        ) from error
