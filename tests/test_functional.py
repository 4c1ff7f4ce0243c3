"""The maths of PPO: numbers by hand on a 2x3 batch, an independent oracle of loops, equivalences, invariances."""

import math
import random
import statistics

import pytest
import torch

from hf_instructgpt.functional import (
    aggregation_weights,
    combine_scores,
    ends_with_stop,
    full_kl,
    kl_estimate,
    policy_loss,
    response_mask,
    score_disagreement,
    score_scale,
    token_logprobs,
    token_rewards,
    value_loss,
)
from hf_instructgpt.ppo.advantages import (
    advantages_and_returns,
    explained_variance,
    generalized_advantage_estimation,
    group_advantages,
    group_scale,
    masked_whiten,
    whitening,
)
from hf_instructgpt.ppo.config import PPOConfig

NAN, INF = math.nan, math.inf
# The 2x3 batch: the first response has two real tokens, the second three.
MASK = torch.tensor([[True, True, False], [True, True, True]])


def same(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.tensor(expected), **({"atol": 1e-6, "rtol": 1e-5} | kwargs))


# ---- Masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([9], [[1, 1, 0], [1, 1, 1]]),  # the first stop token is kept, the second response has none
        ([9, 5], [[1, 0, 0], [1, 1, 0]]),  # whichever comes first
        ([], [[1, 1, 1], [1, 1, 1]]),
        ([0], [[1, 1, 1], [1, 1, 1]]),  # id 0 is an id like any other: here it is the last token
    ],
)
def test_response_mask(stop, expected):
    ids = torch.tensor([[5, 9, 0], [7, 5, 8]])
    assert response_mask(ids, stop_token_ids=stop).tolist() == torch.tensor(expected).bool().tolist()


def test_a_stop_token_on_the_first_and_the_last_place():
    ids = torch.tensor([[9, 9, 9], [7, 5, 9]])
    assert response_mask(ids, stop_token_ids=[9]).tolist() == [[True, False, False], [True, True, True]]


def test_stop_token_zero_ends_a_response():
    assert response_mask(torch.tensor([[3, 0, 0]]), stop_token_ids=[0]).tolist() == [[True, True, False]]


def test_a_response_mask_has_no_hole():
    ids = torch.randint(6, (500, 8), generator=torch.Generator().manual_seed(0))
    mask = response_mask(ids, stop_token_ids=[0, 3])
    assert mask[:, 0].all() and not mask.all()
    assert (mask.long().diff(dim=-1) <= 0).all()  # once False, False to the end


@pytest.mark.parametrize(
    ("stop", "expected"), [([9], [True, False]), ([8, 9], [True, True]), ([0], [False, False]), ([], [False, False])]
)
def test_ends_with_stop_looks_at_real_tokens_only(stop, expected):
    # The 0 of the first row stands behind the mask.
    ids = torch.tensor([[5, 9, 0], [7, 5, 8]])
    assert ends_with_stop(ids, mask=MASK, stop_token_ids=stop).tolist() == expected


# ---- Log-probs ---------------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand():
    # Two tokens whose logits differ by log 3: probabilities 3/4 and 1/4.
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(3.0)], [0.0, 0.0]]])
    expected = [[math.log(0.75), math.log(0.25), math.log(0.5)]]
    same(token_logprobs(logits, token_ids=torch.tensor([[0, 0, 1]])), expected)


def test_temperature_divides_the_logits():
    # At temperature 1/2 the odds 3 become 9.
    logits = torch.tensor([[[math.log(3.0), 0.0]]])
    same(token_logprobs(logits, token_ids=torch.tensor([[0]]), temperature=0.5), [[math.log(0.9)]])


def test_bf16_logits_are_worked_out_in_float32():
    logits = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    actual = token_logprobs(logits, token_ids=ids, temperature=0.7)
    assert actual.dtype == torch.float32
    exact = (logits.double() / 0.7).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(actual.double(), exact, atol=1e-5, rtol=0)


# ---- Whitening ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [0.0, 1e6, NAN, INF, -INF])
def test_masked_whiten_by_hand(garbage):
    # Real tokens 1, 3, 1, 3, 2: mean 2, population variance 4/5.
    values = torch.tensor([[1.0, 3.0, garbage], [1.0, 3.0, 2.0]])
    unit = 1 / math.sqrt(0.8)
    same(masked_whiten(values, mask=MASK), [[-unit, unit, 0.0], [-unit, unit, 0.0]])


def test_masked_whiten_of_one_token_and_of_none_is_zero():
    values = torch.tensor([[5.0, NAN, 7.0]])
    assert masked_whiten(values, mask=torch.tensor([[True, False, False]])).tolist() == [[0, 0, 0]]
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert masked_whiten(values, mask=nothing).tolist() == [[0, 0, 0]]
    mean, scale = whitening(values, mask=nothing)
    assert mean == 0 and scale.isfinite()


def test_masked_whiten_over_processes_is_whitening_of_the_whole():
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    whole = masked_whiten(values, mask=mask)
    # The sums a reduce over two processes would give, in the order in which the function asks for them.
    real = values[mask]
    sums = [torch.stack([mask.sum().float(), real.sum()]), (real - real.mean()).square().sum()]
    for half in (slice(0, 2), slice(2, 4)):
        answers = iter(sums)
        part = masked_whiten(values[half], mask=mask[half], global_sum=lambda x, answers=answers: next(answers))
        torch.testing.assert_close(part, whole[half])


# ---- Rewards -----------------------------------------------------------------------------------------------------


def test_token_rewards_by_hand():
    kl = torch.tensor([[0.5, -1.0, NAN], [1.0, 2.0, 3.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), kl=kl, mask=MASK, kl_coef=0.1)
    # Score on the last real token: index 1 in the first row (with end-of-text), index 2 in the second (without).
    same(rewards, [[-0.05, 10.1, 0.0], [-0.1, -0.2, 19.7]])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_the_score_lands_on_the_last_real_token(length):
    mask = torch.arange(4)[None] < length
    rewards = token_rewards(torch.tensor([7.0]), kl=torch.where(mask, 0.0, INF), mask=mask, kl_coef=0.3)
    assert rewards.tolist() == [[7.0 * (t == length - 1) for t in range(4)]]


# ---- GAE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [0.0, 99.0, NAN, INF])
def test_gae_by_hand(garbage):
    rewards = torch.tensor([[1.0, 2.0, garbage], [0.0, 0.0, 4.0]])
    values = torch.tensor([[0.5, 1.0, garbage], [1.0, 2.0, 3.0]])
    advantages, returns = generalized_advantage_estimation(rewards, values=values, mask=MASK, gamma=0.5, lam=0.5)
    # Row 1: A_1 = 2 - 1 = 1; A_0 = (1 + .5 * 1 - .5) + .25 * 1 = 1.25.
    # Row 2: A_2 = 4 - 3 = 1; A_1 = (0 + .5 * 3 - 2) + .25 * 1 = -.25; A_0 = (0 + .5 * 2 - 1) + .25 * -.25 = -.0625.
    same(advantages, [[1.25, 1.0, 0.0], [-0.0625, -0.25, 1.0]])
    same(returns, [[1.75, 2.0, 0.0], [0.9375, 1.75, 4.0]])


def test_gae_at_lambda_one_is_reward_to_go_minus_value():
    rewards, values = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)).unbind()
    advantages, returns = generalized_advantage_estimation(rewards, values=values, mask=MASK, gamma=1.0, lam=1.0)
    to_go = torch.where(MASK, rewards, 0).flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(advantages, torch.where(MASK, to_go - values, 0))
    torch.testing.assert_close(returns, torch.where(MASK, to_go, 0))


def test_gae_at_lambda_zero_is_the_one_step_error():
    rewards, values = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)).unbind()
    advantages, _ = generalized_advantage_estimation(rewards, values=values, mask=MASK, gamma=0.9, lam=0.0)
    following = torch.where(MASK, values, 0)[:, 1:]
    delta = rewards + 0.9 * torch.nn.functional.pad(following, (0, 1)) - values
    torch.testing.assert_close(advantages, torch.where(MASK, delta, 0))


def decoupled(rewards, *, values, mask, **options):
    """Advantages and returns by `advantages_and_returns` with these options."""
    args = PPOConfig(output_dir="x", use_cpu=True, **options)
    kept = mask.any(-1)
    return advantages_and_returns(rewards, values=values, mask=mask, kept=kept, num_generations=1, args=args)


def test_lambdas_of_policy_and_critic_apart_by_hand():
    rewards = torch.tensor([[1.0, 2.0, NAN], [0.0, 0.0, 4.0]])
    values = torch.tensor([[0.5, 1.0, NAN], [1.0, 2.0, 3.0]])
    batch, plain = {"values": values, "mask": MASK}, {"gamma": 0.5, "lam": 0.5}
    advantages, returns = decoupled(rewards, **batch, **plain, critic_lam=1.0)
    same(advantages, [[1.25, 1.0, 0.0], [-0.0625, -0.25, 1.0]])  # as in `test_gae_by_hand`
    same(returns, [[2.0, 2.0, 0.0], [1.0, 2.0, 4.0]])  # 1 + .5 * 2; discounted rewards to go, whatever the values
    # Alpha 1: lambda 1 - 1/2 for the first response of two tokens, 1 - 1/3 for the second of three.
    advantages, returns = decoupled(rewards, **batch, **plain, length_adaptive_lam=1.0)
    # Row 2: A_2 = 1; A_1 = -.5 + 1/3 * 1; A_0 = 0 + 1/3 * A_1.
    same(advantages, [[1.25, 1.0, 0.0], [-1 / 18, -1 / 6, 1.0]])
    same(returns, [[1.75, 2.0, 0.0], [0.9375, 1.75, 4.0]])  # the critic's at `lam`
    # Alpha 0.4: 1 - 1 / 0.8 would be below 0, and 1 - 1 / 1.2 is 1/6.
    advantages, returns = decoupled(rewards, **batch, **plain, length_adaptive_lam=0.4, critic_lam=1.0)
    same(advantages, [[1.0, 1.0, 0.0], [-5 / 12 / 12, -5 / 12, 1.0]])  # delta_0 = 1 + .5 - .5; A_1 = -.5 + 1/12
    same(returns, [[2.0, 2.0, 0.0], [1.0, 2.0, 4.0]])


def test_a_response_without_a_real_token_has_a_lambda():
    mask = torch.tensor([[False, False], [True, True]])
    advantages, _ = decoupled(torch.ones(2, 2), values=torch.zeros(2, 2), mask=mask, length_adaptive_lam=1.0)
    same(advantages, [[0.0, 0.0], [1.5, 1.0]])


@pytest.mark.parametrize("garbage", [0.0, 1e6, NAN])
def test_explained_variance_by_hand(garbage):
    returns = torch.tensor([[1.0, 3.0, garbage], [2.0, 4.0, 5.0]])  # mean 3, variance (4 + 0 + 1 + 1 + 4) / 5 = 2
    values = torch.tensor([[1.0, 2.0, garbage], [1.0, 4.0, 7.0]])  # errors 0, 1, 1, 0, -2: mean 0, variance 6/5
    assert explained_variance(values, returns, mask=MASK).item() == pytest.approx(0.4)
    assert explained_variance(values + 10, returns, mask=MASK).item() == pytest.approx(0.4)
    assert explained_variance(returns - 7, returns, mask=MASK).item() == 1.0
    assert explained_variance(torch.full((2, 3), 9.0), returns, mask=MASK).item() == 0.0
    assert explained_variance(-returns, returns, mask=MASK).item() == pytest.approx(-3.0)  # twice as large: 1 - 4
    assert explained_variance(values, torch.ones(2, 3), mask=MASK).isnan()
    assert explained_variance(values, returns, mask=torch.zeros_like(MASK)).isnan()


def test_explained_variance_of_numbers_far_from_zero_is_that_of_their_differences():
    returns = 30000 + torch.tensor([[1.0, 3.0, 0.0], [2.0, 4.0, 5.0]])
    values = 30000 + torch.tensor([[1.0, 2.0, 0.0], [1.0, 4.0, 7.0]])
    assert explained_variance(values, returns, mask=MASK).item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Groups 1, 4, 7 of mean 4; 5, 9 and one that is not kept; 8 alone.
        ("reward", [[-3.0, 0.0, 3.0], [-2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),
        # Less the mean of the others: 1 - 5.5, 4 - 4, 7 - 2.5; 5 - 9, 9 - 5.
        ("rloo", [[-4.5, 0.0, 4.5], [-4.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),
        # Sample deviations sqrt(18 / 2) = 3 and sqrt(8 / 1).
        ("grpo", [[-3 / 3.0001, 0.0, 3 / 3.0001], [-2 / (8**0.5 + 1e-4), 2 / (8**0.5 + 1e-4), 0.0], [0.0, 0.0, 0.0]]),
    ],
)
@pytest.mark.parametrize("garbage", [0.0, 99.0, NAN])
def test_advantages_of_groups_by_hand(estimator, expected, garbage):
    totals = torch.tensor([[1.0, 4.0, 7.0], [5.0, 9.0, garbage], [garbage, 8.0, garbage]])
    kept = torch.tensor([[True, True, True], [True, True, False], [False, True, False]])
    same(group_advantages(totals, kept=kept, estimator=estimator), expected)
    same(group_scale(totals, kept=kept), [[1 / 3.0001], [1 / (8**0.5 + 1e-4)], [1e4]], rtol=1e-4)


def test_advantages_of_equal_responses_are_zero():
    totals, kept = torch.full((1, 4), 2.5), torch.ones(1, 4, dtype=torch.bool)
    for estimator in ("reward", "rloo", "grpo"):
        assert group_advantages(totals, kept=kept, estimator=estimator).tolist() == [[0.0] * 4]
        large = torch.full((1, 7), 1e6 + 0.1)  # their mean in float32 is another number
        assert group_advantages(large, kept=large > 0, estimator=estimator).tolist() == [[0.0] * 7]


# ---- Losses ------------------------------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    ratio = torch.tensor([[1.5, 0.5, 1.0], [1.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]])
    logprobs = ratio.log().requires_grad_()
    loss, clipped = policy_loss(logprobs, old_logprobs=torch.zeros(2, 3), advantages=advantages, cliprange=0.2)
    # -min(ratio * A, clip(ratio, .8, 1.2) * A)
    same(loss, [[-2.4, -1.0, -2.0], [3.0, 1.6, 2.2]])
    assert clipped.tolist() == [[True, False, False], [False, True, False]]
    loss.sum().backward()
    # d loss / d logprob = -ratio * A where it is not clipped, 0 where it is.
    same(logprobs.grad, [[0.0, -1.0, -2.0], [3.0, 0.0, 2.2]])


def test_an_upper_bound_of_its_own_by_hand():
    ratio = torch.tensor([[1.25, 1.5, 0.7], [1.25, 1.5, 0.7]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]])
    logprobs = ratio.log().requires_grad_()
    zeros = torch.zeros(2, 3)
    loss, clipped = policy_loss(
        logprobs, old_logprobs=zeros, advantages=advantages, cliprange=0.2, cliprange_high=0.28
    )
    # -min(ratio * A, clip(ratio, .8, 1.28) * A): a ratio of 1.25 is not clipped any more, one of .7 still is.
    same(loss, [[-2.5, -2.56, -1.4], [2.5, 3.0, 1.6]])
    assert clipped.tolist() == [[False, True, False], [False, False, True]]
    loss.sum().backward()
    same(logprobs.grad, [[-2.5, 0.0, -1.4], [2.5, 3.0, 0.0]])


def test_dual_clip_by_hand():
    ratio = torch.tensor([[4.0, 2.5, 0.5], [4.0, 2.5, 0.5]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]])
    logprobs = ratio.log().requires_grad_()
    loss, clipped = policy_loss(
        logprobs, old_logprobs=torch.zeros(2, 3), advantages=advantages, cliprange=0.2, dual_clip=3.0
    )
    # Positive advantages as without it. Negative ones: the objective max(min(ratio * A, clip * A), 3 * A), A = -2.
    same(loss, [[-2.4, -2.4, -1.0], [6.0, 5.0, 1.6]])
    assert clipped.tolist() == [[True, True, False], [True, False, True]]
    loss.sum().backward()
    same(logprobs.grad, [[0.0, 0.0, -1.0], [0.0, 5.0, 0.0]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Losses 1, 2 of a response of two tokens, 3, 4, 5 of one of three, none of one that is not kept.
        ("token", 15 / 5),
        ("response", (3 / 2 + 12 / 3) / 2),
        ("fixed_length", 15 / (2 * 6)),
    ],
)
def test_losses_are_aggregated_by_hand(aggregation, expected):
    losses = torch.tensor([[1.0, 2.0, NAN], [3.0, 4.0, 5.0], [NAN, NAN, NAN]])
    mask = losses.isfinite()
    counts = {"num_tokens": torch.tensor(5), "num_responses": torch.tensor(2)}
    weights = aggregation_weights(mask, aggregation=aggregation, **counts, max_length=6)
    assert weights.shape == (3, 1) and weights.isfinite().all()
    assert (torch.where(mask, weights * losses, 0).sum() / 5).item() == pytest.approx(expected)
    nothing = {name: torch.tensor(0) for name in counts}
    empty = aggregation_weights(torch.zeros(1, 3, dtype=torch.bool), aggregation=aggregation, **nothing, max_length=6)
    assert empty.isfinite().all()


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    torch.manual_seed(0)
    logits, ids, advantages = torch.randn(2, 3, 5), torch.randint(5, (2, 3)), torch.randn(2, 3)

    def gradient(loss_of):
        leaf = logits.clone().requires_grad_()
        loss_of(token_logprobs(leaf, token_ids=ids)).sum().backward()
        return leaf.grad

    old = token_logprobs(logits, token_ids=ids)
    ppo = gradient(lambda x: policy_loss(x, old_logprobs=old, advantages=advantages, cliprange=0.2)[0])
    reinforce = gradient(lambda x: -advantages * x)
    torch.testing.assert_close(ppo, reinforce)


def test_value_loss_by_hand():
    old = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    values = torch.tensor([[1.0, 1.0, 0.1], [0.0, 3.0, 1.0]], requires_grad=True)
    returns = torch.tensor([[2.0, 0.0, 1.0], [2.0, 1.0, 5.0]])
    loss, clipped = value_loss(values, old_values=old, returns=returns, cliprange_value=0.5)
    # Clipped values .5, .5, .1 and .5, 1.5, 1: the larger of the two errors counts.
    same(loss, [[1.125, 0.5, 0.405], [2.0, 2.0, 8.0]])
    assert clipped.tolist() == [[True, False, False], [False, False, False]]
    loss.sum().backward()
    same(values.grad, [[0.0, 1.0, -0.9], [-2.0, 2.0, -4.0]])


def policy_gradient(log_ratio, advantage):
    logprobs = torch.tensor([[log_ratio]], requires_grad=True)
    loss, _ = policy_loss(
        logprobs, old_logprobs=torch.zeros(1, 1), advantages=torch.tensor([[advantage]]), cliprange=0.2
    )
    loss.backward()
    return loss.item(), logprobs.grad.item()


def test_a_ratio_past_all_bounds_has_a_finite_loss_and_no_gradient():
    assert policy_gradient(100.0, 2.0) == (pytest.approx(-2.4), 0.0)  # clipped, as at any ratio above 1.2
    assert policy_gradient(100.0, -2.0) == (pytest.approx(2 * math.exp(20), rel=1e-6), 0.0)
    assert policy_gradient(-100.0, -2.0) == (pytest.approx(1.6), 0.0)  # clipped
    assert policy_gradient(-100.0, 2.0) == (pytest.approx(0.0, abs=1e-30), pytest.approx(0.0, abs=1e-30))
    # The last one that is not clamped is still pulled down.
    assert policy_gradient(20.0, -2.0)[1] == pytest.approx(2 * math.exp(20), rel=1e-6)


def test_clamping_changes_no_bit_of_a_usual_ratio():
    old = -30 * torch.rand(50, 40, generator=torch.Generator().manual_seed(0))
    new = old + torch.linspace(-19.99, 19.99, 2000).view(50, 40)
    advantages = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))

    def bits(loss_of):
        leaf = new.clone().requires_grad_()
        loss = loss_of(leaf)
        loss.sum().backward()
        return loss.detach(), leaf.grad

    def clipped_objective(x):
        ratio = torch.exp(x - old)
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))

    plain = {"k2": lambda x: (x - old).square() / 2, "k3": lambda x: torch.exp(-(x - old)) - 1 + (x - old)}
    pairs = [(clipped_objective, lambda x: policy_loss(x, old_logprobs=old, advantages=advantages, cliprange=0.2)[0])]
    for name, formula in plain.items():
        pairs.append((formula, lambda x, name=name: kl_estimate(x, ref_logprobs=old, estimator=name)))
    for formula, ours in pairs:
        for expected, actual in zip(bits(formula), bits(ours), strict=True):
            assert actual.equal(expected)


# ---- Shapes ------------------------------------------------------------------------------------------------------

LOGITS = torch.zeros(2, 3, 5)
IDS = torch.zeros(2, 3, dtype=torch.long)
X = torch.zeros(2, 3)
CALLS = {
    "ends_with_stop": lambda x: ends_with_stop(IDS, mask=x.bool(), stop_token_ids=[0]),
    "token_logprobs": lambda x: token_logprobs(LOGITS, token_ids=x.long()),
    "kl_estimate": lambda x: kl_estimate(X, ref_logprobs=x, estimator="k1"),
    "full_kl": lambda x: full_kl(LOGITS, ref_logits=x.unsqueeze(-1).expand(*x.shape, 5)),
    "combine_scores": lambda x: combine_scores(X, given=x.bool(), weights=torch.ones(3)),
    "score_disagreement": lambda x: score_disagreement(X, given=x.bool()),
    "masked_whiten": lambda x: masked_whiten(X, mask=x.bool()),
    "token_rewards": lambda x: token_rewards(X[:, 0], kl=x, mask=MASK, kl_coef=0.1),
    "gae": lambda x: generalized_advantage_estimation(x, values=X, mask=MASK, gamma=1.0, lam=0.95),
    "explained_variance": lambda x: explained_variance(x, X, mask=MASK),
    "gae, mask": lambda x: generalized_advantage_estimation(X, values=X, mask=x.bool(), gamma=1.0, lam=0.95),
    "group_advantages": lambda x: group_advantages(X, kept=x.bool(), estimator="rloo"),
    "policy_loss": lambda x: policy_loss(X, old_logprobs=X, advantages=x, cliprange=0.2),
    "value_loss": lambda x: value_loss(X, old_values=X, returns=x, cliprange_value=0.2),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_would_broadcast_is_refused(name):
    CALLS[name](torch.zeros(2, 3))
    for shape in ((2, 1), (1, 3), (3,), (2, 2)):
        with pytest.raises(ValueError, match="must have one shape"):
            CALLS[name](torch.zeros(shape))


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"`values` \(2, 1\), `mask` \(2, 3\)"):
        masked_whiten(torch.zeros(2, 1), mask=MASK)
    with pytest.raises(ValueError, match=r"`scores` \(2, 1\), `mask` \(2, 3\)"):
        token_rewards(torch.zeros(2, 1), kl=X, mask=MASK, kl_coef=0.1)


# ---- The whole rollout against an oracle of loops in float64 -------------------------------------------------------


def oracle(case):
    """Rewards, advantages, returns, whitened advantages and the mean losses, from the papers, number by number."""
    lengths, old, ref, new = case["lengths"], case["old"], case["ref"], case["new"]
    scores = []
    for terms in case["terms"]:
        weighted = sum(w * s for w, s in zip(case["weights"], terms, strict=True))
        by = {"sum": weighted, "mean": weighted / sum(case["weights"]), "min": sorted(terms)[0]}
        middle = sum(terms) / len(terms)
        spread = math.sqrt(sum((s - middle) ** 2 for s in terms) / len(terms))
        scores.append(by[case["aggregation"]] - case["uncertainty"] * spread)
    values, new_values = case["values"], case["new_values"]
    rewards, advantages, returns = [], [], []
    for i, n in enumerate(lengths):
        row = [-case["beta"] * (old[i][t] - ref[i][t]) for t in range(n)]
        row[-1] += scores[i]
        rewards.append(row)
        delta = [row[t] + case["gamma"] * (values[i][t + 1] if t + 1 < n else 0.0) - values[i][t] for t in range(n)]
        # Schulman et al. 2016, eq. 16: the sum itself rather than the recursion.
        adaptive = max(0.0, 1 - 1 / (case["alpha"] * n)) if case["alpha"] else case["lam"]  # VAPO
        own = case["lam"] if case["critic_lam"] is None else case["critic_lam"]  # VC-PPO
        for lam, sums in ((adaptive, advantages), (own, returns)):
            decay = case["gamma"] * lam
            sums.append([sum(decay ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)])
        returns[-1] = [a + v for a, v in zip(returns[-1], values[i], strict=False)]
    flat = [a for row in advantages for a in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat) + 1e-8)
    whitened = [[(a - mean) / deviation for a in row] for row in advantages]
    targets = [g for row in returns for g in row]
    errors = [g - v for row, guessed in zip(returns, values, strict=True) for g, v in zip(row, guessed, strict=False)]
    spreads = [sum((x - sum(xs) / len(xs)) ** 2 for x in xs) / len(xs) for xs in (errors, targets)]
    unit = math.sqrt(spreads[1])  # PopArt: values and returns in standard deviations, less the mean of returns
    middle = sum(targets) / len(targets)
    normal = [[(x - middle) / unit for x in row] for row in returns]
    values, new_values = ([[(x - middle) / unit for x in row] for row in rows] for rows in (values, new_values))
    policy = value = 0.0
    for i, n in enumerate(lengths):
        for t in range(n):
            ratio = math.exp(new[i][t] - old[i][t])
            bounded = min(max(ratio, 1 - case["clip"]), 1 + (case["high"] or case["clip"]))
            objective = min(ratio * whitened[i][t], bounded * whitened[i][t])
            if whitened[i][t] < 0 and case["dual"] is not None:
                objective = max(objective, case["dual"] * whitened[i][t])
            weight = {"token": 1 / len(flat), "response": 1 / n / len(lengths), "fixed_length": 1 / 6 / len(lengths)}
            policy -= weight[case["mean"]] * objective
            near = min(max(new_values[i][t], values[i][t] - case["clip"]), values[i][t] + case["clip"])
            value += 0.5 * max((new_values[i][t] - normal[i][t]) ** 2, (near - normal[i][t]) ** 2)
    explained = 1 - spreads[0] / spreads[1]
    return rewards, advantages, returns, whitened, policy, value / len(flat), explained


@pytest.mark.parametrize("seed", range(3))
def test_advantages_of_groups_equal_the_oracle(seed):
    rng = random.Random(seed)
    totals = [[rng.gauss(0, 2) for _ in range(5)] for _ in range(4)]
    kept = [[rng.random() < 0.7 for _ in range(5)] for _ in range(4)]
    for estimator in ("rloo", "grpo"):
        actual = group_advantages(
            torch.tensor(totals, dtype=torch.double), kept=torch.tensor(kept), estimator=estimator
        )
        for row, numbers, is_kept in zip(actual.tolist(), totals, kept, strict=True):
            group = [x for x, k in zip(numbers, is_kept, strict=True) if k]
            for i, advantage in enumerate(row):
                others = [x for j, x in enumerate(numbers) if is_kept[j] and j != i]
                if not is_kept[i] or not others:
                    expected = 0.0
                elif estimator == "rloo":
                    expected = numbers[i] - statistics.mean(others)
                else:
                    expected = (numbers[i] - statistics.mean(group)) / (statistics.stdev(group) + 1e-4)
                assert advantage == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_whole_rollout_equals_the_oracle(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 6) for _ in range(5)]
    width = 6
    case = {name: [[rng.gauss(0, 1) for _ in range(width)] for _ in lengths] for name in ("values", "new_values")}
    case |= {name: [[rng.gauss(-2, 0.3) for _ in range(width)] for _ in lengths] for name in ("old", "ref", "new")}
    case |= {"lengths": lengths, "terms": [[rng.gauss(0, 2) for _ in range(3)] for _ in lengths]}
    case |= {"weights": [0.5 + rng.random() for _ in range(3)], "uncertainty": rng.random()}
    case |= {"aggregation": ("sum", "mean", "min")[seed % 3]}
    case |= {"beta": rng.random(), "gamma": rng.random(), "lam": rng.random(), "clip": 0.2}
    case |= {"critic_lam": (None, 1.0, rng.random())[seed % 3], "alpha": (None, 0.4, 2.0)[(seed + 1) % 3]}
    case |= {"high": (None, 0.3)[seed % 2], "dual": (None, 1.1)[seed // 2 % 2]}
    case |= {"mean": ("token", "response", "fixed_length")[seed % 3]}

    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ids = torch.where(torch.arange(width)[None] == torch.tensor(lengths)[:, None] - 1, 9, 5)
    assert response_mask(ids, stop_token_ids=[9]).equal(mask)
    old, ref, new, values, new_values = (
        torch.where(mask, torch.tensor(case[name], dtype=torch.double), NAN)
        for name in ("old", "ref", "new", "values", "new_values")
    )
    terms, by_reward = (torch.tensor(case[name], dtype=torch.double) for name in ("terms", "weights"))
    how = {"aggregation": case["aggregation"], "uncertainty_coef": case["uncertainty"]}
    scores = combine_scores(terms, given=torch.ones_like(terms, dtype=torch.bool), weights=by_reward, **how)
    rewards = token_rewards(scores, kl=old - ref, mask=mask, kl_coef=case["beta"])
    lambdas = {"lam": case["lam"], "critic_lam": case["critic_lam"], "length_adaptive_lam": case["alpha"]}
    advantages, returns = decoupled(rewards, values=values, mask=mask, gamma=case["gamma"], **lambdas)
    whitened = masked_whiten(advantages, mask=mask)
    clips = {"cliprange": case["clip"], "cliprange_high": case["high"], "dual_clip": case["dual"]}
    policy, _ = policy_loss(new, old_logprobs=old, advantages=whitened, **clips)
    counts = {"num_tokens": mask.sum(), "num_responses": torch.tensor(len(lengths))}
    weights = aggregation_weights(mask, aggregation=case["mean"], **counts, max_length=width)
    unit = score_scale(torch.stack([mask.sum().double(), returns.sum(), returns.square().sum()]))
    value, _ = value_loss(
        new_values / unit, old_values=values / unit, returns=returns / unit, cliprange_value=case["clip"]
    )

    *tensors, policy_mean, value_mean, explained = oracle(case)
    assert explained_variance(values, returns, mask=mask).item() == pytest.approx(explained, abs=1e-9)
    for actual, expected in zip((rewards, advantages, returns, whitened), tensors, strict=True):
        assert actual[~mask].eq(0).all()
        for row, length, numbers in zip(actual, lengths, expected, strict=True):
            assert row[:length].tolist() == pytest.approx(numbers, abs=1e-9)
    policy = torch.where(mask, weights * policy, 0).sum() / mask.sum()
    assert policy.item() == pytest.approx(policy_mean, abs=1e-9 if case["mean"] == "token" else 1e-6)
    assert value[mask].mean().item() == pytest.approx(value_mean, abs=1e-9)
