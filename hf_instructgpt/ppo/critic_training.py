"""What is done for the critic besides its loss: warm-up, normalised values, a gradient clip of its own."""

from collections.abc import Callable

import torch
from transformers import TrainerCallback

from ..functional import in_float64, score_scale
from .advantages import explained_variance
from .config import PPOConfig
from .critic import ValueModel
from .rollout import Rollout


class CriticTraining(TrainerCallback):
    """The critic's training and its state between rollouts; each method is called on all processes.

    `global_sum` is the sum of a tensor over all processes.
    """

    def __init__(self, args: PPOConfig, global_sum: Callable[[torch.Tensor], torch.Tensor]):
        self.args, self.global_sum = args, global_sum
        self.return_sums = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
        self.begin_warmup()
        self.clipped: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def begin_warmup(self) -> None:
        """Forget how the critic did in an earlier training."""
        self.best, self.num_without_best = float("-inf"), 0  # explained variance; rollouts since

    def begin_rollout(self, rollout: Rollout, critic: ValueModel | None) -> torch.Tensor:
        """Look at a new training rollout, whose values are of the critic as it was before.

        Returns its explained variance `(1,)`, `(0,)` where there is none.
        """
        if critic is None:
            return torch.zeros(0)
        returns, mask = rollout.returns, rollout.response_mask
        explained = explained_variance(rollout.values, returns, mask=mask, global_sum=self.global_sum)
        if not (self._warmup_has_ended or explained.isnan()):
            is_best = explained.item() > self.best
            self.best = max(explained.item(), self.best)
            self.num_without_best = 0 if is_best else self.num_without_best + 1
        if self.args.normalize_values:
            x = in_float64(returns[mask]).cpu()
            sums = torch.stack([x.new_tensor(len(x)), x.sum(), x.square().sum()])
            self.return_sums += self.global_sum(sums)
            mean = (self.return_sums[1] / self.return_sums[0].clamp(min=1)).item()
            critic.rescale(mean=mean, std=score_scale(self.return_sums))
        return explained[~explained.isnan()].view(-1)

    @property
    def _warmup_has_ended(self) -> bool:
        patience = self.args.critic_warmup_patience
        return patience is not None and self.num_without_best >= patience

    def is_warming_up(self, step: int) -> bool:
        """Whether optimizer step `step` trains only the critic."""
        return step < self.args.critic_warmup_steps and not self._warmup_has_ended

    def clip(self, critic: ValueModel | None) -> None:
        """Clip the critic's complete gradient, and keep it from the joint clip of Trainer until right before the step.

        After that clip Trainer calls `on_pre_optimizer_step`, and the optimizer.
        """
        max_norm = self.args.critic_max_grad_norm
        if max_norm is None:
            return
        params = [p for p in critic.parameters() if p.grad is not None]
        if max_norm > 0:
            torch.nn.utils.clip_grad_norm_(params, max_norm)
        self.clipped = [(p, p.grad) for p in params]
        for p in params:
            p.grad = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        for p, grad in self.clipped:
            p.grad = grad
        self.clipped = []

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return {"return_sums": self.return_sums, "best": self.best, "num_without_best": self.num_without_best}

    def load_state_dict(self, state: dict) -> None:
        self.return_sums = state["return_sums"]
        self.best, self.num_without_best = state["best"], state["num_without_best"]
