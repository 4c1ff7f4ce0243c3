"""Advantages and returns: by GAE with a critic, or the response's reward itself; whitening."""

from collections.abc import Callable

import torch

from ..functional import check_shapes
from .config import PPOConfig


def advantages_and_returns(
    rewards: torch.Tensor,
    *,
    values: torch.Tensor,
    mask: torch.Tensor,
    kept: torch.Tensor,
    num_generations: int,
    args: PPOConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns `(B, R)` as `advantage_estimator` says; rows of one prompt stand side by side.

    `"gae"` needs a critic. With `"reward"` every token has the sum of its response's rewards, with
    `subtract_group_mean` less the mean over the prompt's kept responses.
    """
    if args.advantage_estimator == "gae":
        return generalized_advantage_estimation(rewards, values=values, mask=mask, gamma=args.gamma, lam=args.lam)
    totals = rewards.sum(-1).view(-1, num_generations)
    if args.subtract_group_mean and num_generations > 1:
        count = kept.view_as(totals).sum(-1, keepdim=True).clamp(min=1)
        totals = totals - totals.sum(-1, keepdim=True) / count
    advantages = torch.where(mask, totals.view(-1, 1), 0)
    return advantages, advantages


def generalized_advantage_estimation(
    rewards: torch.Tensor, *, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and value targets by GAE (Schulman et al. 2016, eq. 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, `G_t = A_t + V_t`. Every response
    ends after its last real token: the value there is 0, cut-off responses included (the paper's bandit episode).
    `values` are those of the state before each token. Advantages and returns are 0 behind the mask.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Behind the mask rewards and values are 0, and so are delta and the advantage.
        advantage = delta + gamma * lam * advantage
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages, torch.where(mask, advantages + values, 0)


def whitening(
    values: torch.Tensor, *, mask: torch.Tensor, global_sum: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale `1 / sqrt(var + 1e-8)` of the real tokens of all processes, with the population variance.

    `global_sum` is the sum of a tensor over all processes; the identity for one.
    """
    check_shapes(values=values, mask=mask)
    values = torch.where(mask, values, 0)
    count, total = global_sum(torch.stack([mask.sum().to(values), values.sum()]))
    mean = total / count.clamp(min=1)
    centred = torch.where(mask, values - mean, 0)
    variance = global_sum(centred.square().sum()) / count.clamp(min=1)
    return mean, torch.rsqrt(variance + 1e-8)


def masked_whiten(
    values: torch.Tensor,
    *,
    mask: torch.Tensor,
    shift_mean: bool = True,
    global_sum: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """Values `(B, R)` scaled to variance 1, and with `shift_mean` shifted to mean 0, over the real tokens.

    `(x - mean) / sqrt(var + 1e-8)`, plus the mean unless `shift_mean`; a single token becomes 0. See [`whitening`].
    """
    mean, scale = whitening(values, mask=mask, global_sum=global_sum)
    whitened = (values - mean) * scale
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0)
