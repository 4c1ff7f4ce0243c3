"""From what reward functions gave responses to the reward of each token: weights, scales, clipping, the KL penalty."""

import torch
from accelerate import Accelerator

from ..errors import InputError
from ..functional import (
    adapted_kl_coef,
    clip_totals,
    combine_scores,
    combine_token_scores,
    on_last_token,
    score_scale,
    token_rewards,
)
from ..scoring.reward_models import Scored
from .advantages import masked_whiten
from .config import PPOConfig
from .metrics import sum_over_processes
from .rollout import Rollout


class TokenRewards:
    """Rewards of tokens, and their state between rollouts: the KL coefficient and running sums of scores."""

    def __init__(self, args: PPOConfig, accelerator: Accelerator, *, weights: list[float]):
        self.args, self.accelerator = args, accelerator
        self.weights = torch.tensor(weights, dtype=torch.float32)
        self.kl_coef = args.kl_coef
        # Count, sum and sum of squares: of the scores, and of each reward function's own, (F, 3).
        self.score_sums = torch.zeros(3, dtype=torch.float64)
        self.term_sums = torch.zeros(len(weights), 3, dtype=torch.float64)

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

    def place(
        self, scored: Scored, *, penalties: torch.Tensor, mask: torch.Tensor, kept: torch.Tensor, is_training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores `(B,)` as they are logged, and `(B, R)` where they fall, as they enter the rewards.

        `penalties` `(B,)` are subtracted on the last token. Both are 0 for responses that are not `kept` `(B,)`, which
        have no real token left in `mask` `(B, R)`.
        """
        args = self.args
        scores, placed = self._combined(scored, penalties, mask)
        if args.normalize_rewards:
            if is_training:
                self.term_sums += self._sums(scored.terms, scored.given & kept.cpu().unsqueeze(-1))
            scales = torch.tensor([score_scale(sums) for sums in self.term_sums])
            _, placed = self._combined(scored.divided_by(scales), penalties, mask)
        if args.scale_scores:
            if is_training:
                self.score_sums += self._sums(placed.sum(-1), kept)
            placed = placed / score_scale(self.score_sums)
        placed = placed if args.score_clip is None else clip_totals(placed, bound=args.score_clip)
        return torch.where(kept, scores, 0), placed

    def _combined(
        self, scored: Scored, penalties: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The reward functions' scores as one, `(B,)`, and where it falls, `(B, R)`."""
        args = self.args
        how = {"given": scored.given, "weights": self.weights, "aggregation": args.reward_aggregation}
        scores = combine_scores(scored.terms, uncertainty_coef=args.reward_uncertainty_coef, **how)
        scores = scores.to(mask.device) - penalties
        if scored.token_terms is None:
            return scores, on_last_token(scores, mask=mask)
        if args.reward_aggregation == "min" or args.reward_uncertainty_coef:
            option = "reward_aggregation='min'" if args.reward_aggregation == "min" else "reward_uncertainty_coef"
            raise InputError(
                f"`{option}` compares the scores of complete responses, and a reward function gave rewards to tokens "
                "or spans: let each function return one number per response, or leave the option out."
            )
        placed = combine_token_scores(scored.token_terms, **how).to(mask.device)
        placed = torch.nn.functional.pad(placed, (0, mask.shape[1] - placed.shape[1]))
        return scores, torch.where(mask, placed, 0) - on_last_token(penalties, mask=mask)

    def _sums(self, scores: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Count, sum and sum of squares of the given scores of all processes, on the CPU, in the last dimension."""
        x, given = torch.where(given, scores, 0).cpu().double(), given.cpu().double()
        return sum_over_processes(torch.stack([given.sum(0), x.sum(0), x.square().sum(0)], dim=-1), self.accelerator)

    def compute(self, token_scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards `(B, R)` from the scores of tokens and the penalised KL, `(B, R)` each."""
        rewards = self.before_whitening(token_scores, kl=kl, mask=mask)
        if not self.args.whiten_rewards:
            return rewards
        return masked_whiten(
            rewards, mask=mask, shift_mean=False, global_sum=lambda x: sum_over_processes(x, self.accelerator)
        )

    @property
    def kl_coef_in_reward(self) -> float:
        """The KL coefficient of the rewards; 0 where the KL is in the loss."""
        return self.kl_coef if self.args.kl_penalty_in == "reward" else 0.0

    def before_whitening(self, token_scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Rewards `(B, R)` before `whiten_rewards`."""
        return token_rewards(token_scores, kl=kl, mask=mask, kl_coef=self.kl_coef_in_reward)
