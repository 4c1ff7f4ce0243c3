"""The maths of PPO as pure functions on tensors: torch only, one job each.

Shapes: **B** batch, **R** response tokens, **V** vocabulary. Every ``mask`` is boolean, `True` on real response tokens
(the end-of-text token included). What is behind the mask never reaches a result, not even a NaN. Padding is a suffix
of each row, so a mask is a prefix of `True`, as [`response_mask`] makes it; GAE and the token rewards rely on that.

Log-probs, KL and entropy are in nats. Shapes must match exactly: what would broadcast, such as `(B, R)` against
`(B, 1)`, is a ValueError.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Stiennon et al.
2020 (arXiv 2009.01325), Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155).
"""

import torch

# From here on the logits are the largest tensor there is, and copies of them cost more than a loop over rows.
LARGE_VOCABULARY = 8192
# Log-ratios are clamped to it before `exp`, so that no ratio is above 4.9e8. Nats; verl's bound.
MAX_LOG_RATIO = 20.0


def check_shapes(**tensors: torch.Tensor) -> None:
    """Raise a ValueError that names the arguments if their shapes differ."""
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = ", ".join(f"`{name}` {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"these must have one shape: {shapes}.")


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64, on the CPU where the device has no float64 (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def response_mask(response_ids: torch.Tensor, *, stop_token_ids: list[int]) -> torch.Tensor:
    """Real tokens `(B, R)` of sampled ids `(B, R)`: everything up to and including the first stop token."""
    is_stop = torch.isin(response_ids, torch.tensor(stop_token_ids, device=response_ids.device, dtype=torch.long))
    stops_before = is_stop.long().cumsum(-1) - is_stop.long()
    return stops_before == 0


def ends_with_stop(response_ids: torch.Tensor, *, mask: torch.Tensor, stop_token_ids: list[int]) -> torch.Tensor:
    """Whether each response `(B,)` ended with a stop token, rather than being cut off at the maximum length."""
    check_shapes(response_ids=response_ids, mask=mask)
    stop = torch.tensor(stop_token_ids, device=response_ids.device, dtype=torch.long)
    return (torch.isin(response_ids, stop) & mask).any(-1)


def token_logprobs(logits: torch.Tensor, *, token_ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs `(B, R)` of tokens under the distribution they were sampled from, given logits `(B, R, V)`; float32.

    `log softmax(logits / temperature)[token]`. (TRL's `selective_log_softmax` works in the type of its logits.)
    """
    check_shapes(**{"logits[..., 0]": logits[..., 0], "token_ids": token_ids})
    if logits.shape[-1] >= LARGE_VOCABULARY:
        return _LargeVocabularyLogprobs.apply(logits, token_ids, temperature)
    logits = logits.float() / temperature
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


class _LargeVocabularyLogprobs(torch.autograd.Function):
    """[`token_logprobs`] that keeps one tensor the size of the logits, their gradient, where autograd keeps several.

    `d log p_k / d logits_v = ([v = k] - p_v) / temperature`, row by row, so that float32 copies stay small.
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
    """Entropy `(B, R)` of the distributions given by logits `(B, R, V)`, `-sum_v p_v log p_v`, in float32."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    # A token that cannot be sampled adds 0, not 0 times minus infinity.
    return -(logprobs.exp() * torch.where(logprobs.isfinite(), logprobs, 0)).sum(-1)


def kl_estimate(logprobs: torch.Tensor, *, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimate `(B, R)` of `KL(pi || pi_ref)` at each token sampled from `pi` (Schulman, "Approximating KL", 2020).

    With `x = log pi - log pi_ref`: k1 is `x` (unbiased, noisy, can be negative), k2 is `x^2 / 2` (biased, its gradient
    is the KL's), k3 is `exp(-x) - 1 + x` (unbiased, never negative).

    Beyond `c = MAX_LOG_RATIO` the estimates are bounded; `kl_is_clamped` tells where. k2 continues as a line,
    `c |x| - c^2 / 2` (Huber's loss): its gradient is `x` clamped to `[-c, c]` and still pulls the policy back. k3 is
    that of `max(x, -c)`, without a gradient below: `pi` samples such a token with a probability of at most `exp(-c)`,
    2e-9, so the two log-probs contradict each other, and its gradient would outweigh all others. In a reward, where
    k3 is at most `exp(c)`, such a token still outweighs its rollout: watch how many are clamped.
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if estimator == "k2":
        return torch.nn.functional.huber_loss(logprobs, ref_logprobs, reduction="none", delta=MAX_LOG_RATIO)
    x = logprobs - ref_logprobs
    if estimator == "k1":
        return x
    x = x.clamp(min=-MAX_LOG_RATIO)
    return torch.exp(-x) - 1 + x


def kl_is_clamped(log_ratio: torch.Tensor, *, estimator: str) -> torch.Tensor:
    """Where [`kl_estimate`] by "k2" or "k3" clamps the log-ratio to the reference."""
    return (log_ratio.abs() if estimator == "k2" else -log_ratio) > MAX_LOG_RATIO


def full_kl(logits: torch.Tensor, *, ref_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Exact `KL(pi || pi_ref)` `(B, R)` of logits `(B, R, V)`, `sum_v p_v (log p_v - log q_v)`, in float32."""
    check_shapes(logits=logits, ref_logits=ref_logits)
    logprobs, ref_logprobs = ((x.float() / temperature).log_softmax(-1) for x in (logits, ref_logits))
    return (logprobs.exp() * torch.where(logprobs.isfinite(), logprobs - ref_logprobs, 0)).sum(-1)


def adapted_kl_coef(kl_coef: float, *, kl: float, target: float, horizon: int, num_responses: int) -> float:
    """The KL coefficient after a rollout, moved towards a target KL (Ziegler et al. 2019, section 2.2).

    `kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_responses / horizon)`; KL in nats per response.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)


def combine_scores(terms: torch.Tensor, *, given: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores `(B,)`: `sum_f weight_f * score_f` over the terms `(B, F)` that are given and finite."""
    check_shapes(terms=terms, given=given)
    return torch.where(given & terms.isfinite(), terms, 0).mv(weights)


def score_scale(sums: torch.Tensor) -> float:
    """Standard deviation of scores, `sqrt(E[x^2] - E[x]^2)`, from their count, sum and sum of squares `(3,)`, float64.

    1 while they do not vary. Dividing by it keeps signs and zero (Engstrom et al. 2020, arXiv 2005.12729, scale
    returns the same way).
    """
    count, total, squares = sums.tolist()
    variance = squares / count - (total / count) ** 2 if count else 0.0
    return variance**0.5 if variance > 1e-12 else 1.0


def token_rewards(scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Reward `(B, R)` of each token: minus the KL penalty, plus the response's score `(B,)` on the last real token.

    `r_t = -kl_coef * kl_t + [t is last] * score` (Ouyang et al. 2022, section 3.5; Stiennon et al. 2020, section 3.4).
    The score lands on the end-of-text token itself, not on the padding after it. A response without any real token
    gets none. `kl_coef` is in reward units per nat.
    """
    check_shapes(kl=kl, mask=mask)
    check_shapes(**{"scores": scores, "mask[:, 0]": mask[:, 0]})
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.where(mask, -kl_coef * kl, 0) + torch.where(last, scores.unsqueeze(-1), 0)


def policy_loss(
    logprobs: torch.Tensor, *, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped objective for each token, negated (Schulman et al. 2017, eq. 7).

    `-min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange) * A)` with `ratio = exp(logprob - old_logprob)`.
    Returns the loss `(B, R)` and where clipping took the gradient away. Behind the mask the caller puts equal
    log-probs (ratio 1) and drops the result.

    The log-ratio is clamped to `MAX_LOG_RATIO` before `exp`, because an infinite ratio turns the gradient of a clipped
    token, 0, into NaN. A clamped token has no gradient, as in verl. With a positive advantage the objective gives none
    there either. With a negative one it would give at least `exp(20)` times an ordinary token's, and that token would
    be the whole update; dual-clip PPO (Ye et al. 2020, arXiv 1912.09729) stops that at a ratio of 3 already. A sampled
    token gets there only if its old probability was below 2e-9: its old log-prob is then hardly the sampler's.
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_loss(
    values: torch.Tensor, *, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the critic for each token, its step from the old value clipped.

    `0.5 * max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2)`: the form of OpenAI's RLHF code (Ziegler et al. 2019,
    arXiv 1909.08593). Returns the loss `(B, R)` and where clipping took the gradient away.
    """
    check_shapes(values=values, old_values=old_values, returns=returns)
    clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    unclipped, clipped = (values - returns).square(), (clipped_values - returns).square()
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped
