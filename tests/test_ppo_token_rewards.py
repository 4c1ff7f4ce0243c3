"""PPO with rewards of tokens, several rewards on one scale, and what reward functions report besides scores."""

import logging

import pandas as pd
import pytest
import torch
from test_ppo_trainer import PROMPTS, TOKENIZER, assert_equal, logged, make, policy
from transformers import GPT2Config, GPT2ForTokenClassification

from hf_instructgpt import RewardSpan
from hf_instructgpt.errors import InputError

ROWS = list(PROMPTS)[:4]


def tokens(completion_ids, **_):
    """1, 2, 3, ... for the tokens of a response."""
    return [[float(t + 1) for t in range(len(ids))] for ids in completion_ids]


def ends(completion_ids, **_):
    """The same sums, at the end."""
    return [float(sum(range(len(ids) + 1))) for ids in completion_ids]


def spans(completion_ids, **_):
    """The same, as spans."""
    return [[RewardSpan(0, t + 1, t + 1.0) for t in range(len(ids))] for ids in completion_ids]


def roll_out(tmp_path, *funcs, is_training=True, **options):
    options = {"kl_coef": 0.0, "seed": 0, **options}
    trainer = make(tmp_path, reward_funcs=list(funcs), **options)
    torch.manual_seed(0)
    return trainer._roll_out(ROWS, num_generations=1, is_training=is_training), trainer


def expected(rollout, weight=1.0):
    numbers = weight * torch.arange(1.0, 1.0 + rollout.response_mask.shape[1]).expand_as(rollout.rewards)
    return torch.where(rollout.response_mask, numbers, 0)


def last(rollout):
    return rollout.response_mask & ~torch.nn.functional.pad(rollout.response_mask[:, 1:], (0, 1))


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


# ---- Where rewards fall --------------------------------------------------------------------------------------------


def test_rewards_fall_on_their_tokens_and_their_sum_is_the_score(tmp_path):
    rollout, _ = roll_out(tmp_path, tokens)
    assert rollout.response_mask.sum(-1).tolist() != [6] * 4  # some end by themselves
    close(rollout.token_scores, expected(rollout))
    close(rollout.rewards, expected(rollout))
    close(rollout.scores, expected(rollout).sum(-1))
    close(rollout.score_terms[:, 0], rollout.scores)
    same, _ = roll_out(tmp_path, spans)
    assert_equal(same.state_dict(), rollout.state_dict())
    at_the_end, _ = roll_out(tmp_path, ends)
    close(at_the_end.scores, rollout.scores)
    assert at_the_end.token_scores.equal(torch.where(last(rollout), at_the_end.scores[:, None], 0))


def test_the_kl_and_the_penalty_for_a_missing_end_are_subtracted(tmp_path):
    options = {"kl_coef": 0.3, "missing_eos_penalty": 5.0, "ref_model": policy(seed=3)}
    rollout, _ = roll_out(tmp_path, tokens, **options)
    cut = rollout.response_mask.all(-1) & (rollout.response_ids[:, -1] != TOKENIZER.eos_token_id)
    assert 0 < cut.sum() < 4
    penalties = 5.0 * (last(rollout) & cut[:, None])
    close(rollout.scores, (expected(rollout) - penalties).sum(-1))
    close(rollout.rewards, expected(rollout) - penalties - 0.3 * rollout.kl_penalty)


def test_without_a_critic_every_token_has_the_sum(tmp_path):
    rollout, _ = roll_out(tmp_path, tokens, advantage_estimator="reward")
    close(rollout.advantages, torch.where(rollout.response_mask, rollout.scores[:, None], 0))


def test_weights_and_none(tmp_path):
    """Weights 2 and -1; the second function's number is the last token's, and it gives the first response none."""

    def numbers(completions, **_):
        return [None, 10.0, 20.0, 30.0]

    def nothing(completions, **_):
        return [None] * 4

    rollout, _ = roll_out(tmp_path, tokens, numbers, nothing, reward_weights=[2.0, -1.0, 5.0])
    given = torch.tensor([0.0, 10.0, 20.0, 30.0])
    close(rollout.token_scores, expected(rollout, 2.0) - torch.where(last(rollout), given[:, None], 0))
    close(rollout.scores, rollout.token_scores.sum(-1))
    mean, _ = roll_out(tmp_path, tokens, numbers, reward_weights=[3.0, 1.0], reward_aggregation="mean")
    close(mean.scores[1:], (0.75 * expected(mean).sum(-1) + 0.25 * given)[1:])
    close(mean.token_scores[0], expected(mean)[0])
    close(mean.token_scores.sum(-1), mean.scores)
    dropped, _ = roll_out(tmp_path, lambda **x: [None, *tokens(**x)[1:]])
    assert dropped.kept.tolist() == [False, True, True, True] and not dropped.token_scores[0].any()


def test_scaling_and_clipping_keep_the_proportions(tmp_path):
    rollout, trainer = roll_out(tmp_path, tokens, scale_scores=True, score_clip=1.5)
    deviation = rollout.scores.double().std(unbiased=False).item()
    assert trainer.token_rewards.score_sums[0] == 4
    scaled = expected(rollout) / deviation
    factors = (1.5 / scaled.sum(-1)).clamp(max=1)
    assert 0 < (factors < 1).sum() < 4
    close(rollout.token_scores, scaled * factors[:, None])
    close(rollout.scores, expected(rollout).sum(-1))  # logged as they are


@pytest.mark.parametrize("options", [{"reward_aggregation": "min"}, {"reward_uncertainty_coef": 0.5}])
def test_what_compares_responses_refuses_rewards_of_tokens(tmp_path, options):
    with pytest.raises(InputError, match=r"compares the scores of complete responses, and a reward function gave"):
        roll_out(tmp_path, tokens, ends, **options)


def test_a_nan_of_a_token_is_named_or_its_response_left_out(tmp_path):
    def broken(completion_ids, **_):
        return [[float("nan"), *row[1:]] if i == 1 else row for i, row in enumerate(tokens(completion_ids))]

    with pytest.raises(FloatingPointError, match="scores of broken in 1 of 4 rows"):
        roll_out(tmp_path, broken)
    rollout, _ = roll_out(tmp_path, broken, on_nonfinite="skip")
    assert rollout.kept.tolist() == [True, False, True, True]
    close(rollout.token_scores, expected(rollout))


# ---- Several rewards on one scale ----------------------------------------------------------------------------------


def test_each_function_is_divided_by_its_own_deviation(tmp_path):
    """1, 3, 5, 7: deviation sqrt 5; 100, 100, 300, 300: 100; constants: 1. The logged scores are not divided."""
    functions = [
        lambda **_: [1.0, 3.0, 5.0, 7.0],
        lambda **_: [100.0, 100.0, 300.0, 300.0],
        lambda **_: [2.0, None, 2.0, 2.0],
    ]
    rollout, trainer = roll_out(tmp_path, *functions, reward_weights=[1.0, 2.0, 1.0], normalize_rewards=True)
    by_hand = torch.tensor([1.0, 3.0, 5.0, 7.0]) / 5**0.5 + torch.tensor([2.0, 2.0, 6.0, 6.0])
    close(rollout.rewards.sum(-1), by_hand + torch.tensor([2.0, 0.0, 2.0, 2.0]))
    close(rollout.scores, torch.tensor([203.0, 203.0, 607.0, 609.0]))
    assert trainer.token_rewards.term_sums.tolist() == [[4, 16, 84], [4, 800, 200_000], [3, 6, 12]]
    trainer._roll_out(ROWS, num_generations=1)  # an evaluation teaches it nothing
    assert trainer.token_rewards.term_sums[0].tolist() == [4, 16, 84]
    trainer._roll_out(ROWS, num_generations=1, is_training=True)
    assert trainer.token_rewards.term_sums[0].tolist() == [8, 32, 168]


def test_rewards_of_tokens_are_divided_by_the_deviation_of_their_sums(tmp_path):
    rollout, _ = roll_out(tmp_path, tokens, lambda **_: [0.0] * 4, normalize_rewards=True)
    close(rollout.token_scores, expected(rollout) / rollout.scores.double().std(unbiased=False).item())


# ---- What functions report -----------------------------------------------------------------------------------------


def reporting(completion_ids, trainer_state, log_metric, log_extra, **_):
    log_metric("longest", max(map(len, completion_ids)))
    log_metric("calls", trainer_state.global_step)
    log_extra("words", [f"{len(ids)} tokens" for ids in completion_ids])
    return [None if i == 1 else row for i, row in enumerate(tokens(completion_ids))]


def test_metrics_are_logged_and_columns_are_in_the_table(tmp_path):
    options = {"max_steps": 4, "log_completions": True, "num_completions_to_print": 1, "log_tokens": 1}
    trainer = make(tmp_path, reward_funcs=reporting, eval_dataset=PROMPTS, logging_steps=4, **options)
    trainer.train()
    assert logged(trainer, "calls") == [1.0]  # of the rollouts before steps 1 and 3: the token log's do not count
    assert 1 <= logged(trainer, "longest")[0] <= 6
    assert {"eval_longest", "eval_calls", "eval_score"} <= trainer.evaluate().keys()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00004.parquet")
    lengths = trainer._rollout.response_mask.sum(-1)[trainer._rollout.kept].tolist()
    assert table["words"].tolist() == [f"{length} tokens" for length in lengths] and len(lengths) == 3


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("words", [1], r"`words` has 1 values for 4 responses"),
        ("score", [1] * 4, r"the table of completions has a column `score` already"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, name, values, words):
    def odd(completions, log_extra, **_):
        log_extra(name, values)
        return [0.0] * len(completions)

    with pytest.raises(InputError, match=f"the reward function odd raised InputError: `log_extra`: .*{words}"):
        make(tmp_path, reward_funcs=odd, max_steps=1).train()


@pytest.mark.parametrize("name", ["loss", "learning_rate", "epoch", "num_tokens", "eval_score"])
def test_a_name_of_the_trainer_s_is_not_replaced(tmp_path, name):
    def odd(completions, log_metric, **_):
        log_metric(name, 1.0)
        return [0.0] * len(completions)

    with pytest.raises(InputError, match=f"`log_metric`: `{name}` is a name of the trainer's own"):
        make(tmp_path, reward_funcs=odd, max_steps=1).train()


def test_columns_of_several_types_are_text(tmp_path):
    def odd(completions, log_extra, **_):
        log_extra("mixed", ["a", 1, None, 2.0][: len(completions)])
        log_extra("large", [2**70, "\ud800", torch.ones(2), True][: len(completions)])
        return [float(i) for i in range(len(completions))]

    options = {"log_completions": True, "num_completions_to_print": 0, "per_device_train_batch_size": 4}
    make(tmp_path, reward_funcs=odd, max_steps=1, num_ppo_epochs=1, **options).train()
    table = pd.read_parquet(next((tmp_path / "completions").iterdir()))
    assert list(table["mixed"][:2]) == ["a", "1"] and table["mixed"][2:].isna().tolist() == [True, False]
    assert table["large"][0] == str(2**70) and table["large"][1] == "?"


def test_what_a_failed_attempt_reported_does_not_count(tmp_path):
    calls = []

    async def shaky(completions, log_metric, log_extra, **_):
        calls.append(1)
        log_metric("calls", len(calls))
        log_extra("column", [len(calls)] * len(completions))
        if len(calls) == 1:
            raise OSError("away")
        return [float(i) for i in range(len(completions))]

    trainer = make(tmp_path, reward_funcs=shaky, reward_retries=1, max_steps=1, num_ppo_epochs=1)
    trainer.train()
    assert len(calls) == 2 and trainer.state.log_history[0]["calls"] == 2.0


def test_a_metric_of_ppo_s_own_is_not_replaced(tmp_path):
    def odd(completions, log_metric, **_):
        log_metric("kl", 1.0)
        return [0.0] * len(completions)

    with pytest.raises(InputError, match="`log_metric`: `kl` is a metric of PPO's own"):
        make(tmp_path, reward_funcs=odd, max_steps=1).train()


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    """Stopped in a rollout: rewards of tokens, two scales and the reported numbers and columns go on."""

    def run(folder, resume=None):
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8, "logging_steps": 8, "log_tokens": 1}
        options |= {"log_completions": True, "num_completions_to_print": 0, "num_ppo_epochs": 4}
        options |= {"normalize_rewards": True, "scale_scores": True, "score_clip": 1.0}
        trainer = make(folder, reward_funcs=[reporting, ends], **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, pd.read_parquet(folder / "completions" / "completions_00008.parquet")

    whole, table = run(tmp_path / "whole")
    resumed, same = run(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-6"))
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.token_rewards.term_sums.equal(whole.token_rewards.term_sums)
    names = [name for name in whole.state.log_history[0] if name != "loss" and not name.startswith("system/")]
    assert {"longest", "calls"} <= {*names}
    assert [resumed.state.log_history[0][name] for name in names] == [
        whole.state.log_history[0][name] for name in names
    ]
    pd.testing.assert_frame_equal(same, table)


def test_the_gradient_does_not_depend_on_the_split_into_micro_batches(tmp_path):
    results = []
    for size in (4, 2, 1):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "seed": 3}
        options |= {"normalize_rewards": True, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1}
        trainer = make(tmp_path, policy(), reward_funcs=[tokens, ends], **options)
        trainer.train()
        results.append(trainer.model.state_dict())
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-5)


# ---- Process reward models -----------------------------------------------------------------------------------------


def process_model(**config):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": len(TOKENIZER)}
    sizes |= {"eos_token_id": None, "bos_token_id": None, "pad_token_id": TOKENIZER.pad_token_id}
    return GPT2ForTokenClassification(GPT2Config(**{**sizes, "num_labels": 2, **config}))


def test_a_process_reward_model_by_its_path_trains_a_policy(tmp_path):
    process_model().save_pretrained(tmp_path / "judge")
    TOKENIZER.save_pretrained(tmp_path / "judge")
    options = {"reward_funcs": [str(tmp_path / "judge"), ends], "step_separator": "a", "reward_weights": [1.0, 0.0]}
    trainer = make(tmp_path / "run", max_steps=2, kl_coef=0.0, eval_dataset=PROMPTS, **options)
    trainer.train()
    rollout = trainer._rollout
    texts = [
        TOKENIZER.decode(x[m], skip_special_tokens=True)
        for x, m in zip(rollout.response_ids, rollout.response_mask, strict=True)
    ]
    steps = [sum(bool(step.strip()) for step in text.split("a")) for text in texts]
    assert [(row > 0).sum().item() for row in rollout.token_scores] == steps
    assert all(0 <= score <= count for score, count in zip(rollout.scores.tolist(), steps, strict=True))
    assert "eval_scores/judge" in trainer.evaluate()


def test_token_classifiers_that_judge_no_steps_are_refused(tmp_path):
    with pytest.raises(InputError, match="classifies tokens with num_labels = 3"):
        make(tmp_path, reward_funcs=process_model(num_labels=3))
    with pytest.raises(InputError, match="has no `pad_token_id`"):
        make(tmp_path, reward_funcs=process_model(pad_token_id=None))


# ---- Warnings ------------------------------------------------------------------------------------------------------


def test_equal_responses_and_responses_without_an_end_are_told_within_two_rollouts(tmp_path, caplog):
    class Same:
        last_logprobs = None

        def sync_weights(self, policy):
            pass

        def generate(self, prompt_ids, *, generation_config):
            return [[3, 4, 5]] * len(prompt_ids)

    with caplog.at_level(logging.WARNING, logger="hf_instructgpt"):
        options = {"num_ppo_epochs": 1, "max_completion_length": 3, "generator": Same()}
        make(tmp_path, reward_funcs=ends, max_steps=2, **options).train()
    for words in ("are the same text", "ended by itself", "are equal (6;"):
        assert sum(words in record.message for record in caplog.records) == 1, words
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_instructgpt"):
        make(tmp_path, reward_funcs=ends, max_steps=2, num_ppo_epochs=1).train()
    assert not any("same text" in record.message for record in caplog.records)
