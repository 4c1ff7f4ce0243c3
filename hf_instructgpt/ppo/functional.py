"""The maths of PPO as pure functions on tensors: torch only, one job each.

Shapes: **B** batch, **R** response tokens, **V** vocabulary. Every ``mask`` is boolean, `True` on real response tokens
(the end-of-text token included), and what stands behind it never reaches a result, NaN and inf included.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Stiennon et al.
2020 (arXiv 2009.01325), Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155).
"""

from collections.abc import Callable

import torch

# From here on the logits are the largest tensor there is, and copies of them cost more than a loop over rows.
LARGE_VOCABULARY = 8192


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64, on the CPU where the device has no float64 (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def response_mask(response_ids: torch.Tensor, *, stop_token_ids: list[int]) -> torch.Tensor:
    """Real tokens of sampled responses: everything up to and including the first stop token.

    Args:
        response_ids (`torch.Tensor` of shape `(B, R)`): Sampled ids, filled with anything after the first stop token.
        stop_token_ids (`list[int]`): Ids that end a response. Empty: nothing does.

    Returns:
        `torch.Tensor` of shape `(B, R)`, boolean.
    """
    is_stop = torch.isin(response_ids, torch.tensor(stop_token_ids, device=response_ids.device, dtype=torch.long))
    stops_before = is_stop.long().cumsum(-1) - is_stop.long()
    return stops_before == 0


def ends_with_stop(response_ids: torch.Tensor, *, mask: torch.Tensor, stop_token_ids: list[int]) -> torch.Tensor:
    """Whether each response ended by itself, with a stop token, rather than being cut off: `(B,)`, boolean."""
    stop = torch.tensor(stop_token_ids, device=response_ids.device, dtype=torch.long)
    return (torch.isin(response_ids, stop) & mask).any(-1)


def token_logprobs(logits: torch.Tensor, *, token_ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probability of each token under the distribution it was sampled from, in float32.

    `log softmax(logits / temperature)[token]`.

    Args:
        logits (`torch.Tensor` of shape `(B, R, V)`): Logits that predict `token_ids`.
        token_ids (`torch.Tensor` of shape `(B, R)`): The tokens.
        temperature (`float`): Sampling temperature.

    Returns:
        `torch.Tensor` of shape `(B, R)`, nats.
    """
    if logits.shape[-1] >= LARGE_VOCABULARY:
        return _LargeVocabularyLogprobs.apply(logits, token_ids, temperature)
    logits = logits.float() / temperature
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


class _LargeVocabularyLogprobs(torch.autograd.Function):
    """[`token_logprobs`] with one tensor as large as the logits, their gradient, where autograd would keep several.

    `d log p_k / d logits_v = ([v = k] - p_v) / temperature`. Row by row, so that what is in float32 stays small.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, token_ids: torch.Tensor, temperature: float) -> torch.Tensor:
        normalizers = torch.stack([(row.float() / temperature).logsumexp(-1) for row in logits])
        chosen = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1).float() / temperature
        ctx.save_for_backward(logits, token_ids, normalizers)
        ctx.temperature = temperature
        return chosen - normalizers

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, token_ids, normalizers = ctx.saved_tensors
        grad = grad / ctx.temperature
        result = torch.empty_like(logits)
        for row, out, z, g in zip(logits, result, normalizers, grad, strict=True):
            out.copy_((row.float() / ctx.temperature).sub_(z.unsqueeze(-1)).exp_().mul_(-g.unsqueeze(-1)))
        result.scatter_add_(-1, token_ids.unsqueeze(-1), grad.unsqueeze(-1).to(result.dtype))
        return result, None, None


def token_entropy(logits: torch.Tensor, *, temperature: float = 1.0) -> torch.Tensor:
    """Entropy of the distribution each token is sampled from, `-sum_v p_v log p_v`, in float32.

    Args:
        logits (`torch.Tensor` of shape `(B, R, V)`): Logits that predict the tokens.
        temperature (`float`): Sampling temperature.

    Returns:
        `torch.Tensor` of shape `(B, R)`, nats.
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    # A token that cannot be sampled adds nothing: 0, not 0 times minus infinity.
    return -(logprobs.exp() * torch.where(logprobs.isfinite(), logprobs, 0)).sum(-1)


def kl_estimate(logprobs: torch.Tensor, *, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimate of `KL(pi || pi_ref)` at each token sampled from `pi` (Schulman's note "Approximating KL", 2020).

    With `x = log pi - log pi_ref`: k1 is `x` (unbiased, noisy, can be negative), k2 is `x^2 / 2` (biased, its gradient
    is the KL's), k3 is `exp(-x) - 1 + x` (unbiased, never negative).

    Args:
        logprobs, ref_logprobs (`torch.Tensor` of shape `(B, R)`): Log-probs of the sampled tokens, nats.
        estimator (`str`): "k1", "k2" or "k3".

    Returns:
        `torch.Tensor` of shape `(B, R)`, nats.
    """
    x = logprobs - ref_logprobs
    return {"k1": lambda: x, "k2": lambda: x.square() / 2, "k3": lambda: torch.exp(-x) - 1 + x}[estimator]()


def full_kl(logits: torch.Tensor, *, ref_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`KL(pi || pi_ref)` at each token over the whole vocabulary, `sum_v p_v (log p_v - log q_v)`, in float32.

    Args:
        logits, ref_logits (`torch.Tensor` of shape `(B, R, V)`): Logits of the policy and of the reference.
        temperature (`float`): Sampling temperature of both.

    Returns:
        `torch.Tensor` of shape `(B, R)`, nats.
    """
    logprobs, ref_logprobs = ((x.float() / temperature).log_softmax(-1) for x in (logits, ref_logits))
    return (logprobs.exp() * torch.where(logprobs.isfinite(), logprobs - ref_logprobs, 0)).sum(-1)


def adapted_kl_coef(kl_coef: float, *, kl: float, target: float, horizon: int, num_responses: int) -> float:
    """The KL coefficient after a rollout, moved towards a target KL (Ziegler et al. 2019, section 2.2).

    `kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_responses / horizon)`.

    Args:
        kl_coef (`float`): The coefficient so far. kl (`float`): Mean KL of the rollout, nats a response.
        target (`float`): Wanted KL, nats a response. horizon (`int`): Responses over which it adapts.
        num_responses (`int`): Responses of the rollout.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)


def combine_scores(terms: torch.Tensor, *, given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the reward functions' scores, `sum_f weight_f * score_f`, over those that gave a finite one.

    Args:
        terms (`torch.Tensor` of shape `(B, F)`): Scores.
        given (`torch.Tensor` of shape `(B, F)`): Where there is one.
        weights (`torch.Tensor` of shape `(F,)`): Weights.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return torch.where(given & terms.isfinite(), terms, 0) @ weights


def score_scale(sums: torch.Tensor) -> float:
    """Standard deviation of all scores so far, from their count, sum and sum of squares; 1 while they do not vary.

    `sqrt(E[x^2] - E[x]^2)`. Scores divided by it keep their sign and their zero (so are returns scaled in Engstrom et
    al. 2020, arXiv 2005.12729).

    Args:
        sums (`torch.Tensor` of shape `(3,)`): Count, sum, sum of squares, float64.
    """
    count, total, squares = sums.tolist()
    variance = squares / count - (total / count) ** 2 if count else 0.0
    return variance**0.5 if variance > 1e-12 else 1.0


def masked_whiten(
    values: torch.Tensor, *, mask: torch.Tensor, global_sum: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 over the real tokens of all processes.

    `(x - mean) / sqrt(var + 1e-8)` with the population variance; a single token becomes 0.

    Args:
        values (`torch.Tensor` of shape `(B, R)`): What to whiten.
        mask (`torch.Tensor` of shape `(B, R)`): Real tokens.
        global_sum (`Callable`): Sum of a tensor over all processes; the identity for one process.

    Returns:
        `torch.Tensor` of shape `(B, R)`, 0 behind the mask.
    """
    values = torch.where(mask, values, 0)
    count, total = global_sum(torch.stack([mask.sum().to(values), values.sum()]))
    mean = total / count.clamp(min=1)
    centred = torch.where(mask, values - mean, 0)
    variance = global_sum(centred.square().sum()) / count.clamp(min=1)
    return centred * torch.rsqrt(variance + 1e-8)


def token_rewards(scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Reward of each token: minus the KL penalty everywhere, plus the score on the last real token.

    `r_t = -kl_coef * kl_t + [t is last] * score` (Ouyang et al. 2022, section 3.5; Stiennon et al. 2020, section 3.4).
    The score lands on the end-of-text token itself (not on the padding after it); a response without any real token
    gets none.

    Args:
        scores (`torch.Tensor` of shape `(B,)`): One score a response.
        kl (`torch.Tensor` of shape `(B, R)`): Estimate of the KL to the reference at each token, nats.
        mask (`torch.Tensor` of shape `(B, R)`): Real tokens.
        kl_coef (`float`): Reward units a nat.

    Returns:
        `torch.Tensor` of shape `(B, R)`, 0 behind the mask.
    """
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.where(mask, -kl_coef * kl, 0) + torch.where(last, scores.unsqueeze(-1), 0)


def generalized_advantage_estimation(
    rewards: torch.Tensor, *, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and value targets by GAE (Schulman et al. 2016, eq. 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, `G_t = A_t + V_t`. Every response
    ends after its last real token: the value there is 0, cut-off responses included (the paper's bandit episode).

    Args:
        rewards (`torch.Tensor` of shape `(B, R)`): Rewards after each token.
        values (`torch.Tensor` of shape `(B, R)`): Critic's value of the state before each token.
        mask (`torch.Tensor` of shape `(B, R)`): Real tokens.
        gamma (`float`): Discount. lam (`float`): GAE's lambda.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, R)`: advantages and returns, 0 behind the mask.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Behind the mask rewards and values are 0, and so are delta and the advantage: nothing to undo there.
        advantage = delta + gamma * lam * advantage
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages, torch.where(mask, advantages + values, 0)


def policy_loss(
    logprobs: torch.Tensor, *, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped objective for each token, negated (Schulman et al. 2017, eq. 7).

    `-min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A)` with `ratio = exp(logprob - old_logprob)`.

    Args:
        logprobs, old_logprobs, advantages (`torch.Tensor` of shape `(B, R)`): Log-probs in nats; behind the mask the
            caller puts equal numbers (ratio 1) and drops the result.
        cliprange (`float`): Half-width of the interval.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, R)`: the loss and, boolean, where clipping took the gradient away.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_loss(
    values: torch.Tensor, *, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the critic for each token, its step from the old value clipped.

    `0.5 * max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)`: the form of OpenAI's RLHF code (Ziegler et al. 2019,
    arXiv 1909.08593).

    Args:
        values, old_values, returns (`torch.Tensor` of shape `(B, R)`): In units of reward.
        cliprange_value (`float`): Half-width of the interval, in units of reward.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, R)`: the loss and, boolean, where clipping took the gradient away.
    """
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped, clipped = (values - returns).square(), (clipped_values - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped
