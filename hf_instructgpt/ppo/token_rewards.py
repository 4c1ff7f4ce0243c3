"""From a response's score to the reward of each token: scaling, clipping, the KL penalty and its coefficient."""

import torch
from accelerate import Accelerator

from ..functional import adapted_kl_coef, score_scale, token_rewards
from .advantages import masked_whiten
from .config import PPOConfig
from .metrics import sum_over_processes
from .rollout import Rollout


class TokenRewards:
    """Rewards of tokens, and their state between rollouts: the KL coefficient and running sums of scores."""

    def __init__(self, args: PPOConfig, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.kl_coef = args.kl_coef
        self.score_sums = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares

    def adapt(self, rollout: Rollout | None) -> None:
        """Move the KL coefficient by the last rollout's KL."""
        if self.args.kl_target is None or rollout is None:
            return
        sums = torch.stack([rollout.kl_penalty.sum(), rollout.kept.sum().float()])
        kl, num_responses = sum_over_processes(sums, self.accelerator).tolist()
        self.kl_coef = adapted_kl_coef(
            self.kl_coef,
            kl=kl / max(num_responses, 1),
            target=self.args.kl_target,
            horizon=self.args.kl_horizon,
            num_responses=int(num_responses),
        )

    def compute(
        self, scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor, kept: torch.Tensor, is_training: bool
    ) -> torch.Tensor:
        """Rewards `(B, R)` from scores and whether they are kept, `(B,)`, and the penalised KL `(B, R)`."""
        args, scores = self.args, torch.where(kept, scores, 0)
        if args.scale_scores and is_training:
            x, count = scores.cpu().double(), torch.tensor(kept.sum().item(), dtype=torch.float64)
            sums = torch.stack([count, x.sum(), x.square().sum()])
            self.score_sums += sum_over_processes(sums, self.accelerator)
        rewards = self.before_whitening(scores, kl=kl, mask=mask)
        if not args.whiten_rewards:
            return rewards
        return masked_whiten(
            rewards, mask=mask, shift_mean=False, global_sum=lambda x: sum_over_processes(x, self.accelerator)
        )

    @property
    def kl_coef_in_reward(self) -> float:
        """The KL coefficient of the rewards; 0 where the KL is in the loss."""
        return self.kl_coef if self.args.kl_penalty_in == "reward" else 0.0

    def rewarded(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(B,)` as they enter the rewards: scaled by those so far, and clipped."""
        if self.args.scale_scores:
            scores = scores / score_scale(self.score_sums)
        clip = self.args.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def before_whitening(self, scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards `(B, R)` before `whiten_rewards`, from scores of kept responses, 0 for the others."""
        return token_rewards(self.rewarded(scores), kl=kl, mask=mask, kl_coef=self.kl_coef_in_reward)
