"""Exponential moving average of the policy's weights (Ouyang et al. 2022, appendix C.4)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import InputError


class PolicyEMA(TrainerCallback):
    """`average = decay * average + (1 - decay) * weights` after every optimizer step.

    Args:
        policy (`nn.Module`): Its trainable parameters are averaged; they must be float32, since the small steps of an
            average are lost in half precision.
        decay (`float`): 0.992 in the paper.
    """

    def __init__(self, policy: nn.Module, *, decay: float):
        self.policy, self.decay = policy, decay
        params = [p for p in policy.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in params):
            raise InputError(
                "`ema_decay` needs weights in float32: load the policy in float32 and set `bf16=True` for speed."
            )
        self.params = params
        self.average: list[torch.Tensor] = []
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the weights as they are."""
        self.average = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs) -> None:
        for average, p in zip(self.average, self.params, strict=True):
            average.lerp_(p.to(average), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The policy with the average in the place of its weights."""
        self._exchange()
        try:
            yield self.policy
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for i, p in enumerate(self.params):
            weights = p.detach().clone()
            p.copy_(self.average[i])
            self.average[i] = weights
