"""The maths of PPO as pure functions on tensors: torch only, one job each.

Shapes: **B** batch, **R** response tokens, **V** vocabulary. Every ``mask`` is boolean, `True` on real response tokens
(the end-of-text token included). What is behind the mask never reaches a result, not even a NaN. Padding is a suffix
of each row, so a mask is a prefix of `True`, as [`response_mask`] makes it; GAE and the token rewards rely on that.

Log-probs, KL and entropy are in nats. Shapes must match exactly: what would broadcast, such as `(B, R)` against
`(B, 1)`, is a ValueError.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Stiennon et al.
2020 (arXiv 2009.01325), Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155).
"""

import math

import torch

# From here on the logits are the largest tensor there is, and copies of them cost more than a loop over rows.
LARGE_VOCABULARY = 8192
# At most so many logits of a head are made at a time (32 MB in float32), on a GPU eight times as many: it needs more
# rows to be busy.
TILE = 2**23
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


def head_logprobs(
    hidden: torch.Tensor,
    *,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """[`token_logprobs`] `(B, R)` of a linear head, given what it reads, hidden states `(B, R, H)`; 0 behind the mask.

    `log softmax((weight hidden + bias) / temperature)[token]`, `weight` `(V, H)`, `bias` `(V,)`. No tensor has
    `B * R * V` numbers, neither here nor in the backward pass, and nothing behind the mask is multiplied.
    """
    check_shapes(**{"hidden[..., 0]": hidden[..., 0], "token_ids": token_ids, "mask": mask})
    # The shape of a product decides how it rounds. This one's follows from the batch's shape alone, so that a token
    # has the same log-prob in a rollout and in its first update, whatever tokens are beside it.
    most = max(TILE * (1 if hidden.device.type == "cpu" else 8) // len(weight), 1)
    size = -(-mask.numel() // -(-mask.numel() // most))
    hidden, token_ids = hidden[mask], token_ids[mask]
    missing = -len(hidden) % size
    logprobs = _HeadLogprobs.apply(
        torch.nn.functional.pad(hidden, (0, 0, 0, missing)),
        weight,
        bias,
        torch.nn.functional.pad(token_ids, (0, missing)).unsqueeze(-1),
        temperature,
        size,
        torch.is_grad_enabled() and hidden.requires_grad,
    )
    logprobs = logprobs[: len(hidden)].float()
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs)


class _HeadLogprobs(torch.autograd.Function):
    """[`head_logprobs`] `(N,)` of states `(N, H)` and ids `(N, 1)`, `size` tokens at a time; `size` divides N.

    With `d = onehot(token) - p`, the gradient for a hidden state, `d W / T`, is made in the forward pass, from logits
    that are there. That for the weight, `sum_n g_n d_n h_n^T / T`, needs the loss's `g`: the backward pass makes the
    logits again, of all tokens and a part of the vocabulary. So no product is a sum of rounded ones, and there is one
    more than with all logits kept, or none if the head is frozen. One tile is overwritten again and again: on a CPU,
    new memory costs as much as the product.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, token_ids, temperature: float, size: int, needs_slopes: bool):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, head, shift = (x if x is None else x.to(dtype) for x in (hidden, weight, bias))
        tile = _Tile(size * len(weight), states)
        slopes = torch.empty_like(states) if needs_slopes else None
        normalizers = torch.empty_like(token_ids, dtype=tile.wide.dtype)
        logprobs = torch.empty_like(normalizers)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(states), size):
                part = slice(start, start + size)
                logits, ids = tile.logits(states[part], head, shift, temperature), token_ids[part]
                chosen, top = logits.gather(-1, ids), logits.amax(-1, keepdim=True)
                total = logits.sub_(top).exp_().sum(-1, keepdim=True)
                normalizers[part] = top + total.log()
                logprobs[part] = chosen - normalizers[part]
                if needs_slopes:
                    logits.div_(-total).scatter_add_(-1, ids, torch.ones_like(total))
                    torch.mm(tile.narrowed(logits), head, out=slopes[part])
        ctx.save_for_backward(hidden, weight, bias, token_ids, normalizers, slopes)
        ctx.temperature, ctx.size, ctx.dtype = temperature, size, dtype
        return logprobs.squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        hidden, weight, bias, token_ids, normalizers, slopes = ctx.saved_tensors
        grad = grad.unsqueeze(-1) / ctx.temperature
        grad_hidden = None if slopes is None else (grad * slopes).to(hidden.dtype)
        grad_weight, grad_bias = (
            torch.empty_like(x) if needed else None
            for x, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        if grad_weight is None and grad_bias is None:
            return grad_hidden, *[None] * 6
        states, tile = hidden.to(ctx.dtype), _Tile(ctx.size * len(weight), hidden.to(ctx.dtype))
        width = max(ctx.size * len(weight) // max(len(hidden), 1), 1)
        for start in range(0, len(weight), width):
            part = slice(start, start + width)
            head, shift = (x if x is None else x[part].to(ctx.dtype) for x in (weight, None if bias is None else bias))
            d = tile.logits(states, head, shift, ctx.temperature).sub_(normalizers).exp_().mul_(-grad)
            places = token_ids - start
            inside = (places >= 0) & (places < len(head))
            d.scatter_add_(-1, places.clamp(0, len(head) - 1), torch.where(inside, grad, 0))
            if grad_weight is not None and grad_weight.dtype == ctx.dtype:
                torch.mm(tile.narrowed(d).t(), states, out=grad_weight[part])
            elif grad_weight is not None:
                grad_weight[part] = tile.narrowed(d).t() @ states
            if grad_bias is not None:
                grad_bias[part] = d.sum(0)
        return grad_hidden, grad_weight, grad_bias, *[None] * 4


class _Tile:
    """Memory for at most `size` logits, in the type of `states` and at least float32."""

    def __init__(self, size: int, states: torch.Tensor):
        self.narrow = states.new_empty(size)
        wide = torch.promote_types(states.dtype, torch.float32)
        self.wide = self.narrow if wide == states.dtype else states.new_empty(size, dtype=wide)

    def logits(self, states, head, shift, temperature: float) -> torch.Tensor:
        """`(head states + shift) / temperature` `(n, v)`, rounded to the type of the states before the division."""
        narrow, wide = (x[: len(states) * len(head)].view(len(states), len(head)) for x in (self.narrow, self.wide))
        if shift is None:
            torch.mm(states, head.t(), out=narrow)
        else:
            torch.addmm(shift, states, head.t(), out=narrow)
        return wide.copy_(narrow).div_(temperature)

    def narrowed(self, wide: torch.Tensor) -> torch.Tensor:
        """Numbers in the wide memory, in the type of the states."""
        return self.narrow[: wide.numel()].view(wide.shape).copy_(wide)


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


def combine_scores(
    terms: torch.Tensor,
    *,
    given: torch.Tensor,
    weights: torch.Tensor,
    aggregation: str = "sum",
    uncertainty_coef: float = 0.0,
) -> torch.Tensor:
    """Scores `(B,)` from the terms `(B, F)` of F reward functions that are given and finite; 0 where none is.

    "sum": `sum_f weight_f * score_f`; "mean": the same divided by `sum_f weight_f`; "min": `min_f score_f`, without
    weights (Coste et al. 2023, arXiv 2310.02743: worst-case optimisation). Each less `uncertainty_coef` times their
    [`score_disagreement`] (the same paper's uncertainty-weighted optimisation takes the variance instead).
    """
    check_shapes(terms=terms, given=given)
    given = given & terms.isfinite()
    if aggregation == "min":
        lowest = torch.where(given, terms, torch.inf).amin(-1)
        scores = torch.where(given.any(-1), lowest, 0)
    else:
        scores = torch.where(given, terms, 0).mv(weights)
    if aggregation == "mean":
        scores = torch.where(given.any(-1), scores / given.to(weights.dtype).mv(weights), 0)
    if uncertainty_coef == 0.0:
        return scores
    return scores - uncertainty_coef * score_disagreement(terms, given=given)


def combine_token_scores(
    token_terms: torch.Tensor, *, given: torch.Tensor, weights: torch.Tensor, aggregation: str = "sum"
) -> torch.Tensor:
    """Token scores `(B, R)` from those of F reward functions, `(B, R, F)`, that are given, `(B, F)`, and finite.

    "sum": `s_t = sum_f weight_f * s_tf`; "mean": the same divided by `sum_f weight_f`. Both are linear, so the sum
    over the tokens is what [`combine_scores`] makes of the sums. 0 where no function gave anything.
    """
    check_shapes(**{"token_terms[:, 0]": token_terms[:, 0], "given": given})
    given = given & token_terms.isfinite().all(1)
    scores = torch.where(given.unsqueeze(1), token_terms, 0) @ weights
    if aggregation == "mean":
        total = (given.to(weights.dtype) @ weights).unsqueeze(-1)
        scores = torch.where(given.any(-1, keepdim=True), scores / total, 0)
    return scores


def score_disagreement(terms: torch.Tensor, *, given: torch.Tensor) -> torch.Tensor:
    """Standard deviation `(B,)` of the terms `(B, F)` that are given and finite, `sqrt(mean_f (s_f - mean s)^2)`.

    0 where fewer than two are.
    """
    check_shapes(terms=terms, given=given)
    given = given & terms.isfinite()
    count = given.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(given, terms, 0).sum(-1, keepdim=True) / count
    return (torch.where(given, terms - mean, 0).square().sum(-1) / count.squeeze(-1)).sqrt()


def score_scale(sums: torch.Tensor) -> float:
    """Standard deviation of scores, `sqrt(E[x^2] - E[x]^2)`, from their count, sum and sum of squares `(3,)`, float64.

    1 while they do not vary. Dividing by it keeps signs and zero (Engstrom et al. 2020, arXiv 2005.12729, scale
    returns the same way).
    """
    count, total, squares = sums.tolist()
    variance = squares / count - (total / count) ** 2 if count else 0.0
    return variance**0.5 if variance > 1e-12 else 1.0


def on_last_token(scores: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
    """Scores `(B,)` on the last real token of each response, `(B, R)`; a response without any real token gets none.

    The score lands on the end-of-text token itself, not on the padding after it.
    """
    check_shapes(**{"scores": scores, "mask[:, 0]": mask[:, 0]})
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.where(last, scores.unsqueeze(-1), 0)


def clip_totals(token_scores: torch.Tensor, *, bound: float) -> torch.Tensor:
    """Token scores `(B, R)`, each response's multiplied by one factor so that their sum is within `[-bound, bound]`.

    `s_t * min(1, bound / |sum_t s_t|)`: signs and proportions stay.
    """
    return token_scores * (bound / token_scores.sum(-1, keepdim=True).abs()).clamp(max=1)


def token_rewards(scores: torch.Tensor, *, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Reward `(B, R)` of each token: its part of the score, minus the KL penalty.

    `r_t = s_t - kl_coef * kl_t`. Scores `(B,)` are a response's, `s_t = [t is last] * score` (Ouyang et al. 2022,
    section 3.5; Stiennon et al. 2020, section 3.4); scores `(B, R)` are those of tokens, `s_t`. `kl_coef` is in reward
    units per nat.
    """
    check_shapes(kl=kl, mask=mask)
    scores = on_last_token(scores, mask=mask) if scores.dim() == 1 else scores
    check_shapes(scores=scores, mask=mask)
    return torch.where(mask, -kl_coef * kl, 0) + torch.where(mask, scores, 0)


def policy_loss(
    logprobs: torch.Tensor,
    *,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped objective for each token, negated (Schulman et al. 2017, eq. 7).

    `-min(ratio * A, clip(ratio, 1 - cliprange, 1 + cliprange_high) * A)` with `ratio = exp(logprob - old_logprob)`;
    `cliprange_high` is by default `cliprange` (a larger one is "clip-higher", Yu et al. 2025, arXiv 2503.14476,
    section 3.1). Where the advantage is negative, `dual_clip` c > 1 makes the objective at least `c * A` (Ye et al.
    2020, arXiv 1912.09729, eq. 5): at ratios above c the token has no gradient.
    Returns the loss `(B, R)` and where clipping took the gradient away. Behind the mask the caller puts equal
    log-probs (ratio 1) and drops the result.

    The log-ratio is clamped to `MAX_LOG_RATIO` before `exp`, because an infinite ratio turns the gradient of a clipped
    token, 0, into NaN. A clamped token has no gradient, as in verl. With a positive advantage the objective gives none
    there either. With a negative one it would give at least `exp(20)` times an ordinary token's, and that token would
    be the whole update. A sampled token gets there only if its old probability was below 2e-9: its old log-prob is
    then hardly the sampler's.
    """
    check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=MAX_LOG_RATIO))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange if cliprange_high is None else cliprange_high))
    loss, is_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is None:
        return loss, is_clipped
    most = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
    return torch.minimum(loss, most), is_clipped | (loss > most)


def aggregation_weights(
    mask: torch.Tensor, *, aggregation: str, num_tokens: torch.Tensor, num_responses: torch.Tensor, max_length: int
) -> torch.Tensor:
    """Weights `(B, 1)` of responses with which `sum(weight * token loss) / num_tokens` is the aggregated loss.

    "token": 1, the mean over tokens. "response": `num_tokens / (num_responses * length)`, the mean over each
    response's tokens, then over responses. "fixed_length": `num_tokens / (num_responses * max_length)`, the sum over
    a constant, so that a token counts the same in every response of every mini-batch (Dr. GRPO, Liu et al. 2025,
    arXiv 2503.20783). The counts are of the mini-batch that the rows of `mask` `(B, R)` are a part of.
    """
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    if aggregation == "token":
        return torch.ones_like(lengths)
    if aggregation == "fixed_length":
        lengths = torch.full_like(lengths, max_length)
    return num_tokens / (num_responses.clamp(min=1) * lengths)


def importance_weights(
    logprobs: torch.Tensor, *, sampled: torch.Tensor, mask: torch.Tensor, cap: float, mode: str = "token_truncate"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `(B, R)` of tokens that were sampled from `mu` in the place of `pi`, and where the cap cut them.

    From log-probs `(B, R)` of both. "token": `w = pi(token) / mu(token)`, with which a mean over tokens of `mu` is one
    over tokens of `pi` in the same states; the states, and what follows, stay those of `mu`. "sequence": `w` is the
    product of these over the response, with which a mean over responses of `mu` is one over responses of `pi`.
    The cap bounds the variance: "_truncate" is `min(w, cap)` (Ionides 2008, "Truncated importance sampling"), "_mask"
    is `w`, or 0 where `w > cap`.
    """
    check_shapes(logprobs=logprobs, sampled=sampled, mask=mask)
    log_ratio = torch.where(mask, logprobs - sampled, 0)
    if mode.startswith("sequence"):
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    return torch.where(ratio > cap, 0.0 if mode.endswith("mask") else cap, ratio), ratio > cap


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


def pair_loss(differences: torch.Tensor, *, label_noise: float = 0.0) -> torch.Tensor:
    """Negative log-likelihood of preferred pairs `(M,)`, by the differences of their scores, better less worse.

    `-log((1 - e) sigmoid(d) + e sigmoid(-d))` with the share `e` of labels that are wrong (Christiano et al. 2017,
    section 2.2.3); without noise Ouyang et al. 2022, eq. 1. It is at most `-log e`.
    """
    right = torch.nn.functional.logsigmoid(differences)
    if label_noise == 0.0:
        return -right
    wrong = torch.nn.functional.logsigmoid(-differences)
    return -torch.logaddexp(right + math.log1p(-label_noise), wrong + math.log(label_noise))
