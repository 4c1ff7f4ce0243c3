"""Advantages and returns: by GAE with a critic, or by a response's reward and its group; whitening."""

from collections.abc import Callable

import torch

from ..functional import check_shapes, in_float64
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

    `"gae"` needs a critic; its returns may have a lambda of their own. Otherwise every token has its response's
    advantage: with `"reward"` the sum of its rewards, or a [`group_advantages`] of it.
    """
    if args.has_critic:
        given = {"values": values, "mask": mask, "gamma": args.gamma}
        advantages, returns = generalized_advantage_estimation(rewards, **given, lam=policy_lam(mask, args=args))
        if args.returns_lam is not None:
            _, returns = generalized_advantage_estimation(rewards, **given, lam=args.returns_lam)
        return advantages, returns
    totals, estimator = rewards.sum(-1).view(-1, num_generations), args.advantage_estimator
    if estimator != "reward" or args.subtract_group_mean:
        totals = group_advantages(totals, kept=kept.view_as(totals), estimator=estimator)
    advantages = torch.where(mask, totals.view(-1, 1), 0)
    return advantages, advantages


def policy_lam(mask: torch.Tensor, *, args: PPOConfig) -> float | torch.Tensor:
    """Lambda of the policy's advantages: `lam`, or with `length_adaptive_lam` one per response `(B,)`, in float64.

    `max(0, 1 - 1 / (alpha * l))` with the response's length `l` in tokens (VAPO, Yue et al. 2025, arXiv 2504.05118):
    the weights `lam^k` of the errors sum up to `alpha * l` at most, a share of the response whatever its length.
    """
    if args.length_adaptive_lam is None:
        return args.lam
    lengths = in_float64(mask.sum(-1)).clamp(min=1)
    return (1 - 1 / (args.length_adaptive_lam * lengths)).clamp(min=0)


def group_advantages(totals: torch.Tensor, *, kept: torch.Tensor, estimator: str) -> torch.Tensor:
    """Advantages `(G, N)` from the summed rewards `(G, N)` of N responses to each of G prompts; 0 where not kept.

    "reward": less the mean of the group's kept responses. "rloo": less the mean of its other kept responses
    (Ahmadian et al. 2024, arXiv 2402.14740). "grpo": less the group's mean, times [`group_scale`] (Shao et al. 2024,
    arXiv 2402.03300, section 4.1.2). The only kept response of a group has the advantage 0.
    """
    check_shapes(totals=totals, kept=kept)
    count = kept.sum(-1, keepdim=True)
    exact = in_float64(torch.where(kept, totals, 0))  # rounding would tell large, equal rewards apart
    mean = exact.sum(-1, keepdim=True) / count.to(exact.device).clamp(min=1)
    advantages = torch.where(kept, (exact - mean).to(totals), 0)
    if estimator == "rloo":  # R - mean of the others = (R - mean of all) * n / (n - 1)
        return advantages * count / (count - 1).clamp(min=1)
    return advantages * group_scale(totals, kept=kept) if estimator == "grpo" else advantages


def group_scale(totals: torch.Tensor, *, kept: torch.Tensor) -> torch.Tensor:
    """GRPO's scale `(G, 1)` of each group, `1 / (std + 1e-4)`, of the kept ones of its summed rewards `(G, N)`.

    `std` is the sample standard deviation, over n - 1; it and the 1e-4, which the paper leaves open, are TRL's.
    """
    squares = group_advantages(totals, kept=kept, estimator="reward").square().sum(-1, keepdim=True)
    return 1 / ((squares / (kept.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt() + 1e-4)


def generalized_advantage_estimation(
    rewards: torch.Tensor, *, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and value targets by GAE (Schulman et al. 2016, eq. 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, `G_t = A_t + V_t`. Every response
    ends after its last real token: the value there is 0, cut-off responses included (the paper's bandit episode).
    `values` are those of the state before each token, and `lam` may differ by response, `(B,)`. Advantages and returns
    are 0 behind the mask.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    lam = lam.to(values) if isinstance(lam, torch.Tensor) else lam
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


def explained_variance(
    values: torch.Tensor,
    returns: torch.Tensor,
    *,
    mask: torch.Tensor,
    global_sum: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> torch.Tensor:
    """How much of the variance of returns the critic predicts, a scalar in float64: `1 - Var(G - V) / Var(G)`.

    Over the real tokens of all processes: 1 if values are the returns up to a constant, 0 for constant values, below
    0 if they are worse than a constant; NaN if returns do not vary. Returns at a lambda below 1 contain values
    themselves, which raises it; at `critic_lam=1` it is that of the rewards to go. `global_sum` as in [`whitening`].
    """
    check_shapes(values=values, returns=returns, mask=mask)
    x = torch.stack([in_float64(errors[mask]) for errors in (returns - values, returns)])
    count = global_sum(in_float64(mask.sum()))
    means = global_sum(x.sum(-1, keepdim=True)) / count
    unexplained, variance = global_sum((x - means).square().sum(-1)) / count
    return torch.where(variance > 0, 1 - unexplained / variance, torch.nan)


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
