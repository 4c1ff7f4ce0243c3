"""What stands beside PPO's own update: a shared trunk, warm-up, pretraining text, EMA, scaled scores, NaN guards."""

import json
import math
import os
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from test_ppo_trainer import (
    EOS,
    PROMPTS,
    TOKENIZER,
    assert_equal,
    gpt2,
    lengths,
    llama,
    logged,
    make,
    policy,
    reward_model,
    weights,
)
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, TrainerCallback

from hf_instructgpt.data.pretraining_text import PretrainingText
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import combine_scores, score_disagreement, score_scale
from hf_instructgpt.ppo import measure
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import ActorCritic, ValueModel, load_value_model
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.stages.arguments import PPOArguments
from hf_instructgpt.stages.compare_policies import load_rewards

TEXT = Dataset.from_dict({"text": ["abc", "defgh", "ij", "klmno", "pq"]})


def gradients(trainer):
    """The gradient of the first step, before it is clipped or dropped."""
    seen = []

    class Snapshot(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            named = trainer.model.named_parameters()
            seen.append({name: None if p.grad is None else p.grad.clone() for name, p in named})

    trainer.add_callback(Snapshot())
    trainer.train()
    return seen


def experts(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
    ids = {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None}
    config = Qwen3MoeConfig(**sizes, **ids, num_experts_per_tok=2, initializer_range=0.2, **options)
    return Qwen3MoeForCausalLM(config)


# ---- A critic on the policy's trunk --------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [policy, gpt2, llama])
def test_a_shared_critic_s_values_are_its_head_on_the_policy_s_last_hidden_state(build):
    model = build().eval()
    critic = ValueModel(None, hidden_size=16)
    torch.nn.init.normal_(critic.value_head.weight)
    prompt, response = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[4, 3], [2, 0]])
    masks = prompt.ne(0), response.ne(0)
    _, values, _, logits = ActorCritic(model, critic)(prompt, masks[0], response, masks[1])
    own = ActorCritic(model, ValueModel(model.base_model))
    own.value_model.value_head = critic.value_head
    _, expected, _, expected_logits = own(prompt, masks[0], response, masks[1])
    assert logits.equal(expected_logits)
    torch.testing.assert_close(values, expected)


def test_a_shared_critic_trains_the_trunk_and_reloads_on_its_own(tmp_path):
    trainer = make(tmp_path, value_model="shared", max_steps=3)
    before = weights(trainer.model)
    trainer.train()
    assert [name for name, tensor in trainer.model.state_dict().items() if tensor.equal(before[name])] == []
    assert {name for name in before if not name.startswith("policy.")} == {
        "value_model.value_head.weight",
        "value_model.value_head.bias",
    }
    trainer.save_model()
    critic = load_value_model(tmp_path / "value_model")
    assert critic.value_head.weight.equal(trainer.model.value_model.value_head.weight)
    assert_equal(critic.backbone.state_dict(), trainer.model.policy.base_model.state_dict())
    assert load_value_model(tmp_path).value_head.weight.equal(critic.value_head.weight)  # by the policy's folder
    (tmp_path / "value_model" / "value_head.safetensors").unlink()
    with pytest.raises(InputError, match="holds no critic"):
        load_value_model(tmp_path)


def test_the_value_loss_of_a_shared_critic_reaches_the_trunk(tmp_path):
    options = {"value_model": "shared", "kl_coef": 0.0, "max_steps": 2, "max_grad_norm": 0.0}
    steps, without = (gradients(make(tmp_path, vf_coef=weight, **options)) for weight in (0.5, 0.0))
    # The head is 0 at first, so the trunk feels the values from the second step on only.
    assert steps[0]["policy.lm_head.weight"].equal(without[0]["policy.lm_head.weight"])
    name = "policy.model.layers.0.fc1.weight"
    assert not torch.allclose(steps[1][name], without[1][name], rtol=1e-2)


# ---- Critic warm-up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_model", [None, "shared"])
def test_in_the_warm_up_the_critic_alone_moves(tmp_path, value_model):
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append(weights(trainer.model))

    options = {"critic_warmup_steps": 3, "weight_decay": 0.1, "max_steps": 4, "value_model": value_model}
    trainer = make(tmp_path, callbacks=[Snapshot()], **options)
    start = weights(trainer.model)
    trainer.train()
    for before, after, frozen in zip([start, *snapshots], snapshots, [True, True, True, False], strict=False):
        same = {name: tensor.equal(after[name]) for name, tensor in before.items()}
        assert all(value == frozen for name, value in same.items() if name.startswith("policy."))
        assert not any(value for name, value in same.items() if "value_head" in name)


# ---- PPO-ptx -------------------------------------------------------------------------------------------------------


def test_pretraining_rows_come_in_permutations_that_follow_from_the_seed():
    text = PretrainingText(TEXT, tokenizer=TOKENIZER, max_length=4, seed=3)
    rows = text.rows(0, 10)
    ids = [tuple(row) for row in rows]
    assert sorted(ids[:5]) == sorted(ids[5:]) and ids[:5] != ids[5:]
    assert text.rows(3, 4) == rows[3:7]  # across the end of a pass
    assert sorted(map(len, rows[:5])) == [3, 3, 4, 4, 4]  # cut at four tokens, the end-of-text token included
    order = torch.randperm(5, generator=torch.Generator().manual_seed(3)).tolist()
    assert rows[0] == TOKENIZER(TEXT["text"][order[0]] + "<eos>")["input_ids"][:4]


def test_the_pretraining_gradient_is_that_of_the_mean_cross_entropy(tmp_path):
    """PPO's own gradient plus `ptx_coef` times the gradient of the mean over the texts' tokens, worked out alone."""
    options = {"kl_coef": 0.0, "max_steps": 1, "vf_coef": 0.0, "max_grad_norm": 0.0}
    plain = gradients(make(tmp_path, **options))[0]
    mixed = gradients(make(tmp_path, ptx_dataset=TEXT, ptx_coef=0.7, ptx_ratio=1.0, **options))[0]
    model, total, count = policy(dropout=0.0), 0.0, 0
    rows = PretrainingText(TEXT, tokenizer=TOKENIZER, max_length=50, seed=42).rows(0, 4)
    for ids in rows:
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        total = total - logprobs[torch.arange(len(ids) - 1), ids[1:]].sum()
        count += len(ids) - 1
    (0.7 * total / count).backward()
    for name, p in model.named_parameters():
        expected = plain[f"policy.{name}"] + p.grad
        torch.testing.assert_close(mixed[f"policy.{name}"], expected, atol=1e-6, rtol=1e-4)


def test_the_pretraining_gradient_does_not_depend_on_the_split_into_micro_batches(tmp_path):
    results = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        trainer = make(tmp_path, ptx_dataset=TEXT, ptx_coef=2.0, ptx_ratio=2.0, max_steps=1, **options)
        before = weights(trainer.model)
        trainer.train()
        results.append({name: tensor - before[name] for name, tensor in trainer.model.state_dict().items()})
    for moved in results[1:]:
        for name, tensor in moved.items():
            torch.testing.assert_close(tensor, results[0][name], rtol=1e-3, atol=1e-7)


def test_each_step_has_text_of_its_own_so_many_rows_a_response(tmp_path, monkeypatch):
    taken, rows = [], PretrainingText.rows
    monkeypatch.setattr(PretrainingText, "rows", lambda self, *args: taken.append(args) or rows(self, *args))
    options = {"per_device_train_batch_size": 2, "num_mini_batches": 2, "num_ppo_epochs": 2, "max_steps": 6}
    make(tmp_path, ptx_dataset=TEXT, ptx_coef=1.0, ptx_ratio=8.0, **options).train()
    assert taken == [(16 * step, 16) for step in range(6)]  # eight rows for each of a mini-batch's two responses


def test_pretraining_text_is_learned_beside_the_reward(tmp_path):
    losses = {}
    for coefficient in (0.0, 1.0):
        extra = {"ptx_dataset": TEXT, "ptx_coef": coefficient} if coefficient else {}
        trainer = make(tmp_path, policy(eos_bias=0.0), max_steps=40, **extra)
        trainer.train()
        model = trainer.model.policy.eval()
        ids = torch.tensor([TOKENIZER("defgh<eos>")["input_ids"]])
        losses[coefficient] = model(input_ids=ids, labels=ids).loss.item()
        assert logged(trainer, "score")[-1] > logged(trainer, "score")[0] or logged(trainer, "score")[0] == 6.0
    assert logged(trainer, "ptx_loss")[-1] < 0.5 * logged(trainer, "ptx_loss")[0]
    assert losses[1.0] < 0.5 * losses[0.0]


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [[{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]]},
        {"prompt": ["ab"], "completion": ["cd"]},
    ],
)
def test_pretraining_text_may_have_the_columns_of_demonstrations(columns):
    row = PretrainingText(Dataset.from_dict(columns), tokenizer=TOKENIZER, max_length=50, seed=0).rows(0, 1)[0]
    text = TOKENIZER.decode(row)
    assert "ab" in text and "cd" in text and row[-1] == EOS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ptx_dataset": TEXT}, "both a `ptx_dataset` and a `ptx_coef`"),
        ({"ptx_coef": 1.0}, "both a `ptx_dataset` and a `ptx_coef`"),
        ({"ptx_dataset": Dataset.from_dict({"body": ["a"]}), "ptx_coef": 1.0}, "`ptx_dataset`.*body"),
        ({"ptx_dataset": TEXT.select([]), "ptx_coef": 1.0}, "`ptx_dataset`: there are no rows"),
    ],
)
def test_pretraining_text_that_does_not_fit_is_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, **arguments)


# ---- EMA -----------------------------------------------------------------------------------------------------------


def test_the_average_is_the_decayed_sum_of_all_weights_and_saved_beside_them(tmp_path):
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append(weights(trainer.model.policy))

    trainer = make(tmp_path, ema_decay=0.75, max_steps=3, callbacks=[Snapshot()])
    start = weights(trainer.model.policy)
    trainer.train()
    trainer.save_model()
    average = AutoModelForCausalLM.from_pretrained(tmp_path / "ema").state_dict()
    for name, tensor in average.items():
        first, second, third = (snapshot[name] for snapshot in snapshots)
        # 0.75 * (0.75 * (0.75 * start + 0.25 * first) + 0.25 * second) + 0.25 * third
        expected = 0.421875 * start[name] + 0.140625 * first + 0.1875 * second + 0.25 * third
        torch.testing.assert_close(tensor, expected)
    # Saving it leaves the policy as it is.
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict(), snapshots[-1])
    assert_equal(trainer.model.policy.state_dict(), snapshots[-1])


def test_an_average_needs_float32(tmp_path):
    with pytest.raises(InputError, match="`ema_decay` needs weights in float32"):
        make(tmp_path, policy().double(), ema_decay=0.9)


# ---- The router's loss of a mixture of experts ---------------------------------------------------------------------


def test_the_router_s_loss_is_added_with_the_model_s_coefficient_by_hand(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make(tmp_path, experts(output_router_logits=True, router_aux_loss_coef=0.5), **options)
    model = trainer.model.train()
    rows, total = [dict(row) for row in list(PROMPTS)[:4]], 0.0
    for _ in range(2):
        inputs = trainer._prepare_inputs(rows)
        batch, num_tokens = inputs.rollout, inputs.num_tokens
        with_loss = trainer.compute_loss(model, inputs)
        model.config.output_router_logits = False
        without = trainer.compute_loss(model, inputs)
        model.config.output_router_logits = True
        ids = torch.cat([batch.prompt_ids, batch.response_ids], 1)
        mask = torch.cat([batch.prompt_mask, batch.response_mask], 1)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        outputs = model.policy(ids, attention_mask=mask.long(), position_ids=positions, output_router_logits=True)
        # Each token goes to 2 of 4 experts: 4 times the sum over experts of the tokens' share times their probability.
        probs = torch.cat([logits[mask.flatten()] for logits in outputs.router_logits]).softmax(-1)
        chosen = torch.nn.functional.one_hot(probs.topk(2).indices, 4).sum(1).float()
        by_hand = 4 * (chosen.mean(0) * probs.mean(0)).sum()
        expected = 0.5 * by_hand * batch.response_mask.sum() / num_tokens
        torch.testing.assert_close(with_loss - without, expected, atol=1e-5, rtol=1e-5)
        total += expected.item()
    assert total > 0.5  # evenly used experts give 2


# ---- Scores: several functions, scaled -----------------------------------------------------------------------------


def test_weights_may_be_whole_numbers(tmp_path):
    trainer = make(tmp_path, reward_funcs=[lengths, lengths], reward_weights=[1, 2])
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert rollout.scores.equal(3.0 * rollout.response_mask.sum(-1))


def test_scores_are_combined_by_hand():
    terms = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, math.nan], [math.inf, 5.0]])
    given = torch.tensor([[True, True], [False, True], [True, True], [True, True]])
    assert combine_scores(terms, given=given, weights=torch.tensor([2.0, -1.0])).tolist() == [-8.0, -20.0, 6.0, -5.0]


TERMS = torch.tensor([[1.0, 3.0, 8.0], [2.0, 20.0, 0.0], [3.0, math.nan, 5.0], [7.0, 7.0, 7.0], [4.0, 4.0, 4.0]])
GIVEN = torch.tensor([[True] * 3, [True, False, False], [True] * 3, [False] * 3, [True] * 3])


def test_scores_of_an_ensemble_are_combined_by_hand():
    """Weights 1, 2, 1. Of 1, 3, 8: mean 15 / 4, lowest 1; of 3, 5 (the NaN is left out): mean 8 / 2; of 2 alone: 2."""
    weights = torch.tensor([1.0, 2.0, 1.0])
    mean = combine_scores(TERMS, given=GIVEN, weights=weights, aggregation="mean")
    assert mean.tolist() == [3.75, 2.0, 4.0, 0.0, 4.0]
    lowest = combine_scores(TERMS, given=GIVEN, weights=weights, aggregation="min")
    assert lowest.tolist() == [1.0, 2.0, 3.0, 0.0, 4.0]


def test_disagreement_is_the_standard_deviation_of_the_scores_that_are_given():
    """1, 3, 8: mean 4, variance (9 + 1 + 16) / 3; 3, 5: mean 4, variance (1 + 1) / 2; one, none, equal ones: 0."""
    spread = score_disagreement(TERMS, given=GIVEN)
    assert spread.tolist() == pytest.approx([(26 / 3) ** 0.5, 0.0, 1.0, 0.0, 0.0])
    less = combine_scores(TERMS, given=GIVEN, weights=torch.ones(3), aggregation="min", uncertainty_coef=0.5)
    assert less.tolist() == pytest.approx([1 - 0.5 * (26 / 3) ** 0.5, 2.0, 2.5, 0.0, 4.0])


def test_ppo_and_its_evaluation_optimise_and_log_the_same_combined_score(tmp_path):
    """Scores 1 and 4: mean 2.5, disagreement 1.5; 1 alone where the second function gives none: 1, disagreement 0."""

    how = {"reward_aggregation": "mean", "reward_uncertainty_coef": 2.0}
    trainer = make(tmp_path, reward_funcs=[ones, fours], max_steps=2, kl_coef=0.0, eval_dataset=PROMPTS.take(4), **how)
    trainer.train()
    expected = (3 * (2.5 - 2.0 * 1.5) + 1.0) / 4
    assert logged(trainer, "score") == logged(trainer, "reward") == pytest.approx([expected])
    assert logged(trainer, "score_disagreement") == pytest.approx([3 * 1.5 / 4])
    evaluated = trainer.evaluate()
    assert evaluated["eval_score_disagreement"] == pytest.approx(3 * 1.5 / 4)
    args = PPOArguments(reward_funcs=["test_ppo_extras.ones", "test_ppo_extras.fours"])
    rewards = load_rewards(args, trainer.args, trainer.card_model(), trainer.processing_class)
    samples = Samples([{"prompt": "a"}] * 4, [[1]] * 4, [[3]] * 4, ["x"] * 4, [True] * 4)
    scores, terms = rewards.score(samples, trainer.processing_class)
    assert scores == pytest.approx([-0.5] * 3 + [1.0]) and terms == {"ones": [1.0] * 4, "fours": [4.0] * 3 + [None]}


def ones(completions, **_):
    return [1.0] * len(completions)


def fours(completions, **_):
    return [4.0] * (len(completions) - 1) + [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_uncertainty_coef": 1.0}, "`reward_uncertainty_coef=1` needs two or more `reward_funcs`"),
        ({"reward_aggregation": "min"}, "`reward_aggregation='min'` needs two or more `reward_funcs`"),
        ({"reward_aggregation": "max"}, "`reward_aggregation` must be one of sum, mean, min, not 'max'"),
        ({"reward_uncertainty_coef": -1.0}, "`reward_uncertainty_coef` must be 0 or more"),
        ({"reward_aggregation": "min", "reward_weights": [1.0]}, "`reward_weights` has no effect"),
        ({"reward_aggregation": "mean", "reward_weights": [1.0, 0.0]}, r"needs `reward_weights` above 0, not \[1"),
    ],
)
def test_options_of_an_ensemble_that_make_no_sense_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_the_scale_is_the_standard_deviation_of_all_scores():
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    sums = torch.tensor([4.0, 16.0, 84.0], dtype=torch.float64)
    assert score_scale(sums) == pytest.approx(5**0.5)
    assert score_scale(torch.zeros(3, dtype=torch.float64)) == 1.0
    assert score_scale(torch.tensor([2.0, 6.0, 18.0], dtype=torch.float64)) == 1.0  # 3 and 3


def test_scores_are_scaled_by_the_deviation_of_all_rollouts_so_far_and_logged_as_they_are(tmp_path):
    numbers = iter([[1.0, 3.0, 5.0, 7.0], [8.0, 8.0, 8.0, 8.0], [1.0, 1.0, 1.0, 1.0]])
    trainer = make(tmp_path, reward_funcs=lambda **_: next(numbers), scale_scores=True, kl_coef=0.0)
    rows = list(PROMPTS)[:4]
    first = trainer._roll_out(rows, num_generations=1, is_training=True)
    torch.testing.assert_close(first.rewards.sum(-1), torch.tensor([1.0, 3.0, 5.0, 7.0]) / 5**0.5)
    assert first.scores.tolist() == [1.0, 3.0, 5.0, 7.0]
    second = trainer._roll_out(rows, num_generations=1, is_training=True)
    # 1, 3, 5, 7, 8, 8, 8, 8: mean 6, mean square 42.5
    torch.testing.assert_close(second.rewards.sum(-1), torch.full((4,), 8 / 6.5**0.5))
    trainer._roll_out(rows, num_generations=1)  # an evaluation teaches it nothing
    assert trainer.token_rewards.score_sums.tolist() == [8.0, 48.0, 340.0]


def test_each_reward_function_s_own_mean_is_logged(tmp_path):
    def ones(completions, **_):
        return [1.0, None, 3.0, None][: len(completions)]

    trainer = make(tmp_path, reward_funcs=[ones, lengths, ones], reward_weights=[1.0, 0.0, 1.0], max_steps=1)
    trainer.train()
    assert logged(trainer, "scores/ones") == logged(trainer, "scores/ones_2") == [2.0]
    assert logged(trainer, "scores/lengths") == logged(trainer, "completion_length")


# ---- NaN and inf ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_function_s_nan_is_named_or_its_response_left_out(tmp_path, bad):
    def broken(completions, **_):
        return [bad, 2.0, 4.0, 6.0][: len(completions)]

    with pytest.raises(FloatingPointError, match="scores of broken in 1 of 4 rows"):
        make(tmp_path, reward_funcs=[lengths, broken], max_steps=1).train()
    trainer = make(tmp_path, reward_funcs=broken, on_nonfinite="skip", max_steps=2)
    trainer.train()
    assert trainer._rollout.kept.tolist() == trainer._rollout.response_mask.any(-1).tolist()
    assert trainer._rollout.kept.tolist() == [False, True, True, True]
    assert logged(trainer, "score") == [4.0] and logged(trainer, "dropped_samples") == [0.25]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("part", ["log-probs", "reference's log-probs", "values"])
def test_a_nan_in_what_is_measured_is_named_and_its_row_left_out(tmp_path, monkeypatch, part):
    measure_batch = measure._measure_batch

    def broken(actor_critic, ref_model, batch, *options):
        tensors = [tensor.clone() for tensor in measure_batch(actor_critic, ref_model, batch, *options)]
        tensors[measure.MEASURED.index(part)][1, 0] = math.nan
        return [torch.where(batch[-1], x, math.nan) for x in tensors]  # behind the mask anything may stand

    monkeypatch.setattr(measure, "_measure_batch", broken)
    trainer = make(tmp_path, max_steps=1)
    trainer._by_length = False  # so that the second row is the second of the batch
    with pytest.raises(FloatingPointError, match=f"{part} in 1 of 4 rows"):
        trainer.train()
    trainer = make(tmp_path, on_nonfinite="skip", max_steps=2)
    trainer._by_length = False
    trainer.train()
    assert trainer._rollout.kept.tolist() == trainer._rollout.response_mask.any(-1).tolist()
    assert trainer._rollout.kept.tolist() == [True, False, True, True]
    assert all(tensor.isfinite().all() for name, tensor in trainer._rollout.state_dict().items())
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert json.dumps(trainer.state.log_history, allow_nan=False)


class NaNOnce(torch.autograd.Function):
    """The identity; its gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_nan_in_an_update_is_named_or_the_step_left_out(tmp_path, where):
    def broken(trainer):
        forward = trainer.model.forward

        def wrapped(*batch, **kwargs):
            logprobs, values, *_ = forward(*batch, **kwargs)
            if torch.is_grad_enabled() and trainer.state.global_step == 1:
                logprobs = NaNOnce.apply(logprobs) if where == "backward" else logprobs * math.nan
            return logprobs, values, None, None

        trainer.model.forward = wrapped
        return trainer

    what = "gradients" if where == "backward" else "log-probs or values of .* tokens"
    with pytest.raises(FloatingPointError, match=f"after step 1: NaN or infinite {what}"):
        broken(make(tmp_path, max_steps=3)).train()
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append(weights(trainer.model))

    trainer = broken(make(tmp_path, on_nonfinite="skip", max_steps=3, callbacks=[Snapshot()]))
    trainer.train()
    assert_equal(snapshots[0], snapshots[1])
    assert not snapshots[2]["policy.lm_head.weight"].equal(snapshots[1]["policy.lm_head.weight"])
    assert all(tensor.isfinite().all() for tensor in snapshots[2].values())
    assert logged(trainer, "skipped_updates") == [0.0, 1.0, 0.0]


def test_a_policy_that_cannot_be_sampled_from_names_its_broken_weights(tmp_path):
    model = policy()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"lm_head\.weight is NaN or infinite"):
        make(tmp_path, model, reward_funcs=reward_model(), max_steps=1, on_nonfinite="skip").train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_nonfinite": "ignore"}, "`on_nonfinite`"),
        ({"ema_decay": 1.0}, "`ema_decay`"),
        ({"critic_warmup_steps": -1}, "`critic_warmup_steps`"),
        ({"ptx_ratio": 0.0}, "`ptx_ratio`"),
        ({"ptx_coef": 1.0, "ptx_ratio": 0.3}, "`ptx_ratio` = 0.3 gives 1.2 pretraining rows"),
        ({"ptx_coef": 1.0, "ptx_ratio": 0.5, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, "2"),
        ({"vllm_kwargs": {"mode": "server"}}, "`vllm_kwargs` needs `use_vllm`"),
        ({"critic_warmup_steps": 1, "advantage_estimator": "reward"}, "`critic_warmup_steps` needs"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), **{"per_device_train_batch_size": 4, **options})


def test_full_determinism_reaches_ppo_and_gives_the_same_bytes_again(tmp_path):
    runs = []
    with patch.dict(os.environ):
        try:
            for run in ("first", "second"):
                trainer = make(tmp_path / run, max_steps=3, full_determinism=True)
                trainer.train()
                runs.append(weights(trainer.model))
                assert torch.are_deterministic_algorithms_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
    assert_equal(*runs)
