"""Bugs that PPO implementations have shipped and that no other file here covers; `mutants.py` puts each back in."""

import math

import pytest
import torch
from test_ppo_trainer import EOS, PROMPTS, assert_equal, logged, make, policy, reward_model

from hf_instructgpt.functional import token_logprobs
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.ppo.rollout import MicroBatch
from hf_instructgpt.sampling.generate import engine_responses, sampling_config
from hf_instructgpt.scoring.reward_models import reward_model_scores


def zero(completions, **_):
    return [0.0] * len(completions)


def policy_that_likes(tokens, **config):
    """A policy that samples these tokens about as often as its end of text."""
    model = policy(**config)
    with torch.no_grad():
        model.lm_head.bias[tokens] += 3.0
    return model


# ---- Ends ----------------------------------------------------------------------------------------------------------


def test_every_stop_token_is_an_end_the_id_zero_too(tmp_path):
    stop = {0, 5, EOS}
    options = {"stop_token_ids": [5, 0], "missing_eos_penalty": 2.5, "max_completion_length": 4}
    trainer = make(tmp_path, policy_that_likes([0, 5]), zero, **options)
    rollout = trainer._roll_out(list(PROMPTS) * 8, num_generations=1)
    lasts = []
    for ids, mask, score in zip(rollout.response_ids, rollout.response_mask, rollout.scores, strict=True):
        *before, last = ids[mask].tolist()
        assert not stop & set(before)
        assert last in stop or len(before) == 3
        assert score == (0.0 if last in stop else -2.5)
        lasts.append(last)
    assert stop < set(lasts)  # each of the three, and responses without any


@pytest.mark.parametrize("pad", [0, EOS])
def test_a_response_cut_short_without_a_stop_token_ends_where_its_tokens_do(pad):
    class Engine:
        def generate(self, prompt_ids, *, generation_config):
            return [[7, 8], [7, 8, 9, 6], [7, EOS]]

    model, tokenizer = policy(), type("Tokenizer", (), {"pad_token_id": pad, "eos_token_id": EOS})
    config = sampling_config(model, tokenizer, max_new_tokens=4)
    _, mask = engine_responses(Engine(), [[1]] * 3, generation_config=config, device=torch.device("cpu"))
    assert mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


# ---- Sampling ------------------------------------------------------------------------------------------------------


def test_two_seeds_sample_different_responses_and_one_seed_the_same(tmp_path):
    first, again, other = (
        make(tmp_path, seed=seed)._roll_out(list(PROMPTS), num_generations=1).response_ids.tolist()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_tokens_that_no_text_can_carry_stay_as_they_were_sampled(tmp_path):
    handed_on = []

    def reward(completion_ids, **_):
        handed_on.extend(completion_ids)
        return [0.0] * len(completion_ids)

    model, rewarder = policy_that_likes([0, 67]), reward_model()
    trainer = make(tmp_path, model, [reward, rewarder], kl_coef=0.0)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=2)
    prompts, responses = (
        [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]
        for ids, masks in (rollout.sequences[:2], rollout.sequences[2:])
    )
    assert {0, 67} < {token for row in responses for token in row}  # <pad> and <unk>
    assert handed_on == responses
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(rollout.scores, reward_model_scores(rewarder, rows, batch_size=4))
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        batch = [torch.tensor([ids]) for ids in (prompt, [True] * len(prompt), response, [True] * len(response))]
        alone = response_logprobs(model.eval(), *batch)[0]
        torch.testing.assert_close(rollout.old_logprobs[i, : len(response)], alone, atol=1e-5, rtol=0)


# ---- The loss and what is logged of it -----------------------------------------------------------------------------


def loss_of(trainer, rollout, logits, values):
    """Loss, gradients and metrics of a rollout as one micro-batch, given what the models say."""
    logits, values = logits.clone().requires_grad_(), values.clone().requires_grad_()
    trainer.metrics.sums.clear()
    trainer.guard.begin_update()
    inputs = MicroBatch(rollout, rollout.response_mask.sum(), rollout.kept.sum())
    logprobs = token_logprobs(logits, token_ids=rollout.response_ids)
    loss = trainer.compute_loss(lambda *_, **__: (logprobs, values, None, logits), inputs)
    loss.backward()
    sums = {name: torch.stack(numbers).sum(0) for name, numbers in trainer.metrics.sums.items()}
    return loss.item(), logits.grad, values.grad, {name: (x / n).item() for name, (x, n) in sums.items()}


@pytest.mark.parametrize("garbage", [100.0, float("inf"), float("nan")])
def test_what_stands_behind_the_mask_reaches_no_loss_no_gradient_and_no_metric(tmp_path, garbage):
    trainer = make(tmp_path, reward_funcs=reward_model(), entropy_coef=0.1)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    mask = rollout.response_mask
    assert not mask.all()
    rollout.old_logprobs = torch.where(mask, rollout.old_logprobs - 0.1, 0)  # a ratio that is not 1
    logits, values = torch.randn(*mask.shape, 68), torch.randn(mask.shape)
    loss, logits_grad, values_grad, metrics = loss_of(trainer, rollout, logits, values)
    assert {"policy_loss", "value_loss", "entropy", "approx_kl", "ratio"} < metrics.keys()
    logits[~mask], values[~mask] = garbage, garbage
    actual, *grads, other_metrics = loss_of(trainer, rollout, logits, values)
    assert actual == loss
    assert grads[0][mask].equal(logits_grad[mask]) and grads[1].equal(values_grad)
    assert other_metrics == metrics


def test_metrics_are_means_over_real_tokens(tmp_path):
    trainer = make(tmp_path)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    mask = rollout.response_mask
    assert not mask.all()
    # The update finds every token half as probable as the rollout did, out of 68 that are all the same to it.
    rollout.old_logprobs = torch.where(mask, math.log(2 / 68), 0)
    metrics = loss_of(trainer, rollout, torch.zeros(*mask.shape, 68), rollout.values)[-1]
    assert metrics["ratio"] == pytest.approx(0.5)
    assert metrics["approx_kl"] == pytest.approx(0.5 - 1 + math.log(2))
    half_squares = 0.5 * (rollout.values - rollout.returns)[mask].square()
    assert metrics["value_loss"] == pytest.approx(half_squares.mean().item())
    worse = rollout.advantages[mask] < 0
    assert metrics["clip_fraction"] == pytest.approx(worse.float().mean().item())


def test_clamped_tokens_are_counted_and_leave_every_gradient_finite(tmp_path):
    trainer = make(tmp_path)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    mask = rollout.response_mask
    expected = rollout.old_logprobs.clone()
    rollout.old_logprobs[0, 0] = -100.0  # of a token that the update finds 68 times less probable than certain
    rollout.advantages = rollout.advantages.abs()
    logits = torch.zeros(*mask.shape, 68)
    loss, grad, _, metrics = loss_of(trainer, rollout, logits, rollout.values)
    assert math.isfinite(loss) and grad.isfinite().all() and grad[0, 0].eq(0).all()
    assert metrics["ratio_clamp_fraction"] == pytest.approx(1 / mask.sum().item())
    log_ratio = (-math.log(68) - expected)[mask]
    log_ratio[0] = 20.0  # the row's first real token
    assert metrics["ratio"] == pytest.approx(log_ratio.exp().mean().item())
    assert metrics["approx_kl"] == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item())


def test_values_are_pulled_to_the_returns(tmp_path):
    trainer = make(tmp_path, reward_funcs=reward_model(), vf_coef=0.3, cliprange_value=100.0)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    mask, returns = rollout.response_mask, rollout.returns
    assert not returns.equal(rollout.rewards)
    values = torch.randn(mask.shape)
    gradient = loss_of(trainer, rollout, torch.randn(*mask.shape, 68), values)[2]
    # d/dV of 0.3 * 1/2 (V - G)^2 over the number of tokens
    torch.testing.assert_close(gradient, torch.where(mask, 0.3 * (values - returns), 0) / mask.sum())


def test_nothing_in_a_rollout_carries_a_gradient(tmp_path):
    trainer = make(tmp_path, reward_funcs=reward_model())
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert [name for name, tensor in rollout.state_dict().items() if tensor.requires_grad] == []


def test_a_step_without_a_real_token_has_a_loss_of_zero_and_a_gradient_of_zero(tmp_path):
    trainer = make(tmp_path, reward_funcs=lambda completions, **_: [None] * len(completions), entropy_coef=0.1)
    inputs = trainer._prepare_inputs(list(PROMPTS)[:4])
    assert not inputs.rollout.response_mask.any()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.eq(0).all() for p in trainer.model.parameters())


@pytest.mark.parametrize(("accumulation", "mini_batches"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_metrics_do_not_depend_on_how_a_rollout_is_divided(tmp_path, accumulation, mini_batches):
    split = {"gradient_accumulation_steps": accumulation, "num_mini_batches": mini_batches}
    trainer = make(tmp_path, **split, per_device_train_batch_size=2, learning_rate=0.0, num_ppo_epochs=1)
    trainer.train()
    rollouts = -(-len(PROMPTS) // (2 * accumulation * mini_batches))
    assert trainer.state.global_step == 3 * rollouts * mini_batches  # three passes over the prompts
    for name, expected in (("ratio", 1.0), ("approx_kl", 0.0), ("clip_fraction", 0.0)):
        assert logged(trainer, name) == pytest.approx([expected] * trainer.state.global_step, abs=1e-6)


# ---- Reward models -------------------------------------------------------------------------------------------------


def test_a_saved_reward_model_scores_as_it_did(tmp_path):
    original = reward_model().eval()
    original.save_pretrained(tmp_path / "reward")
    trainer = make(tmp_path / "out", reward_funcs=str(tmp_path / "reward"))
    rows = [[1, 2, 3], [4], [5, 6, EOS]]
    scores = reward_model_scores(original, rows, batch_size=2)
    assert scores.std() > 0.01
    assert reward_model_scores(trainer.reward_funcs[0], rows, batch_size=2).equal(scores)
    assert_equal(trainer.reward_funcs[0].state_dict(), original.state_dict())
