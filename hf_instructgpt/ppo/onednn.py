"""Linear layers through oneDNN, for processors on which PyTorch's own choice, MKL, multiplies slowly."""

import platform
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# oneDNN prepares each shape anew, and batches of text have many: rows are filled up to a multiple of the larger one
# that is not above them.
ROW_MULTIPLES = (128, 8)
CPUINFO = Path("/proc/cpuinfo")


def is_available() -> bool:
    """Whether this PyTorch has oneDNN's linear operator, which is private."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def mkl_is_slow() -> bool:
    """Whether float32 products go through MKL on a processor of AMD, for which it takes a slow path."""
    name = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else platform.processor()
    return torch.backends.mkl.is_available() and "AuthenticAMD" in name


def use_onednn(model: nn.Module) -> None:
    """Turn a model's linear layers, and GPT-2's transposed ones, into ones that multiply through oneDNN, in place."""
    for module in model.modules():
        kind = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}.get(type(module))
        if kind is not None:
            module.__class__ = kind


class OneDNNLinear(nn.Linear):
    """`x W^T + b`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _takes(x, self.weight):
            return super().forward(x)
        return _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


class OneDNNConv1D(Conv1D):
    """`x W + b`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _takes(x, self.weight):
            return super().forward(x)
        return _Linear.apply(x.reshape(-1, x.shape[-1]), self.weight.t(), self.bias).view(*x.shape[:-1], -1)


def _takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether these are float32 on a CPU: other types go through oneDNN anyway."""
    is_plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    return is_plain and not torch.is_autocast_enabled("cpu")


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + b` of `(N, I)` and `(O, I)`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _with_rows(x: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of zeros behind `(N, I)`, so that there are `count`."""
    return x if len(x) == count else nn.functional.pad(x, (0, 0, 0, count - len(x)))


class _Linear(torch.autograd.Function):
    """`y = x W^T + b`, so `dx = dy W`, `dW = dy^T x` and `db = sum dy`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        multiple = next((m for m in ROW_MULTIPLES if m <= len(x)), 1)
        filled = _with_rows(x, len(x) + -len(x) % multiple)
        ctx.save_for_backward(filled, weight)
        return _product(filled, weight, bias)[: len(x)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        filled = _with_rows(grad, len(x))
        return (
            _product(filled, weight.t())[: len(grad)] if needs_x else None,
            _product(filled.t(), x.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )
