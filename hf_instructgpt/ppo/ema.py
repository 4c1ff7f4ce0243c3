"""Exponential moving average of the policy's weights (Ouyang et al. 2022, appendix C.4)."""

import torch
from torch import nn
from transformers import TrainerCallback

from ..errors import InputError
from ..models.shards import gathered, stored


class PolicyEMA(TrainerCallback):
    """`average = decay * average + (1 - decay) * weights` of the trainable weights, after every optimizer step.

    With FSDP2 and ZeRO-3 each process averages its own shards. (torch's `AveragedModel` copies the whole model, frozen
    weights included, and knows no shards.)
    """

    def __init__(self, policy: nn.Module, *, decay: float):
        self.policy, self.decay = policy, decay
        if any(p.dtype != torch.float32 for p in self.params):  # in half precision small steps are rounded away
            raise InputError(
                "`ema_decay` needs weights in float32: load the policy in float32 and set `bf16=True` for speed."
            )
        self.average: list[torch.Tensor] = []

    @property
    def params(self) -> list[nn.Parameter]:
        """Those that are averaged. FSDP2 puts others in their place when training begins."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the weights as they are."""
        self.average = [stored(p).detach().clone() for p in self.params]

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not self.average:
            self.reset()

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs) -> None:
        for average, p in zip(self.average, self.params, strict=True):
            average.lerp_(stored(p).to(average), 1 - self.decay)

    @torch.no_grad()
    def whole(self) -> dict[str, torch.Tensor]:
        """The average by the names in the policy's `state_dict`; all processes gather its shards together."""
        if not self.average:
            self.reset()
        by_param = {id(p): gathered(p, x) for p, x in zip(self.params, self.average, strict=True)}
        return {
            name: by_param[id(p)] for name, p in self.policy.state_dict(keep_vars=True).items() if id(p) in by_param
        }

    def shards(self) -> list[torch.Tensor]:
        """What this process holds of the average."""
        return [x.to_local() if hasattr(x, "to_local") else x for x in self.average]
