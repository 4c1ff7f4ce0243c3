"""Recorded rollouts: what is in the files, and that PPO repeats a run from them to the same weights."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from test_ppo_trainer import EOS, PROMPTS, TOKENIZER, lengths, make, policy
from test_report_page import data_of, plain

from hf_instructgpt import RecordedRollouts
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.recording import write_rollout
from hf_instructgpt.ppo.rollout import Rollout
from hf_instructgpt.sampling.engines import engine_from_options
from hf_instructgpt.stages.report import write_report

SMALL = {"per_device_train_batch_size": 2, "num_mini_batches": 2, "num_ppo_epochs": 2, "learning_rate": 1e-2}


def first_two(completion_ids, **_):
    """None for some responses."""
    return [float(len(ids)) if ids[0] % 4 else None for ids in completion_ids]


def weights(trainer):
    return {name: x.clone() for name, x in trainer.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def record(folder, **options):
    trainer = make(folder, record_rollouts=True, **{**SMALL, "max_steps": 12, **options})
    trainer.train()
    return trainer


def test_a_row_holds_a_response_without_padding(tmp_path):
    """Two responses of two columns, the second one not kept: [5, EOS] and [EOS, padding]."""
    x = torch.tensor([[0.5, 0.25], [0.0, 0.0]])
    rollout = Rollout(
        prompt_ids=torch.tensor([[66, 1], [2, 3]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        response_ids=torch.tensor([[5, EOS], [EOS, EOS]]),
        response_mask=torch.tensor([[True, True], [False, False]]),
        kept=torch.tensor([True, False]),
        scores=torch.tensor([2.0, 0.0]),
        score_terms=torch.tensor([[2.0, torch.nan], [torch.nan, torch.nan]]),
        **dict.fromkeys(("old_logprobs", "ref_logprobs", "kl_penalty", "kl", "rewards", "values", "returns"), x),
        token_scores=x,
        importance_weights=torch.ones(2, 2),
        advantages=2 * x,
    )
    names = {"reward_names": ["a", "b"], "tokenizer": TOKENIZER, "stop_token_ids": [EOS]}
    write_rollout(rollout, tmp_path, step=12, process=1, **names)
    first, second = pq.read_table(tmp_path / "rollout_000012_1.parquet").to_pylist()
    assert first["prompt_ids"] == [1] and first["response_ids"] == [5, EOS] and first["step"] == 12
    assert first["old_logprobs"] == [0.5, 0.25] and first["advantages"] == [1.0, 0.5]
    assert (first["scores"], first["scores/a"]) == (2.0, 2.0) and first["scores/b"] != first["scores/b"]
    assert first["tokens"] == [TOKENIZER.decode([5]), TOKENIZER.decode([EOS])]
    # Up to its stop token, although none of its tokens is real any more.
    assert not second["kept"] and second["response_ids"] == [EOS] and math.isnan(second["old_logprobs"][0])


def test_responses_come_in_their_order_and_then_again(tmp_path):
    prompt = PROMPTS.select([0])
    record(tmp_path, train_dataset=prompt, max_steps=8)
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [path.name for path in files] == ["rollout_000000_0.parquet", "rollout_000004_0.parquet"]
    ids = [row["response_ids"] for path in files for row in pq.read_table(path).to_pylist()]
    assert len({tuple(row) for row in ids}) > 4
    recorded, again = RecordedRollouts(tmp_path / "rollouts"), RecordedRollouts(tmp_path / "rollouts")
    prompt_ids = TOKENIZER(prompt[0]["prompt"])["input_ids"]
    assert recorded.generate([prompt_ids] * 3, generation_config=None) == ids[:3]
    again.load_state_dict(recorded.state_dict())
    for some in (recorded, again):
        assert some.generate([prompt_ids] * 6, generation_config=None) == [*ids[3:], *ids[:1]]


@pytest.mark.parametrize("options", [{}, {"num_generations": 2}, {"advantage_estimator": "reward"}])
def test_training_from_a_recording_gives_the_same_weights(tmp_path, options):
    trainer = record(tmp_path / "a", reward_funcs=[lengths, first_two], **options)
    recorded = RecordedRollouts(tmp_path / "a" / "rollouts")
    assert [func.__name__ for func in recorded.reward_funcs] == ["lengths", "first_two"]
    again = make(
        tmp_path / "b", generator=recorded, reward_funcs=recorded.reward_funcs, **{**SMALL, "max_steps": 12, **options}
    )
    again.train()
    assert same(weights(trainer), weights(again))
    logs = [[entry.get("score") for entry in some.state.log_history] for some in (trainer, again)]
    assert logs[0] == logs[1]


def test_a_dropped_response_is_dropped_again(tmp_path):
    trainer = record(tmp_path / "a", reward_funcs=first_two)
    rows = [row for path in (tmp_path / "a" / "rollouts").glob("*") for row in pq.read_table(path).to_pylist()]
    assert {row["kept"] for row in rows} == {True, False}
    generator = engine_from_options({"rollouts": str(tmp_path / "a" / "rollouts")})
    again = make(tmp_path / "b", generator=generator, reward_funcs=first_two, **{**SMALL, "max_steps": 12})
    again.train()
    assert same(weights(trainer), weights(again))


@pytest.mark.parametrize("step", [4, 6])  # after a rollout, and in the middle of one
def test_both_resume_exactly(tmp_path, step):
    whole = record(tmp_path / "a", save_strategy="steps", save_steps=step)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a" / "rollouts").iterdir()}
    assert len(files) == 3
    (tmp_path / "a" / "rollouts" / "rollout_000099_0.parquet").write_text("of another run")
    resumed = make(tmp_path / "a", record_rollouts=True, **{**SMALL, "max_steps": 12})
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "rollouts").iterdir()} == files

    def replay(**options):
        recorded = RecordedRollouts(tmp_path / "a" / "rollouts")
        rewards = recorded.reward_funcs
        options = {**SMALL, "max_steps": 12, "save_strategy": "steps", "save_steps": step, **options}
        return make(tmp_path / "b", generator=recorded, reward_funcs=rewards, **options)

    replay().train()
    again = replay()
    again.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{step}"))
    assert same(weights(whole), weights(again))


def test_a_critic_is_pretrained_from_a_recording(tmp_path):
    """The policy stays what it is, and the responses come round again."""
    record(tmp_path / "a", learning_rate=0.0)
    recorded = RecordedRollouts(tmp_path / "a" / "rollouts")
    options = {**SMALL, "max_steps": 24, "critic_warmup_steps": 24, "num_train_epochs": 9}
    trainer = make(tmp_path / "b", generator=recorded, reward_funcs=recorded.reward_funcs, **options)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"value_model"}
    losses = [entry["value_loss"] for entry in trainer.state.log_history if "value_loss" in entry]
    assert sum(losses[-6:]) < sum(losses[:6])  # the same six mini-batches of responses


def test_what_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no recorded rollouts"):
        RecordedRollouts(tmp_path)
    record(tmp_path / "a", train_dataset=PROMPTS.select(range(4)), max_steps=4)
    recorded = RecordedRollouts(tmp_path / "a" / "rollouts")
    with pytest.raises(InputError, match="holds no response to the prompt with the token ids"):
        make(tmp_path / "b", generator=recorded, **{**SMALL, "max_steps": 12}).train()
    with pytest.raises(InputError, match="of other responses"):
        recorded.reward_funcs[0](completion_ids=[[1, 2, 3]])
    with pytest.raises(ValueError, match="`output_dir`: the run would replace the recording"):
        PPOConfig(output_dir=str(tmp_path / "a"), generator={"rollouts": str(tmp_path / "a" / "rollouts")})
    with pytest.raises(InputError, match="does not sample from the policy"):
        options = {**SMALL, "max_steps": 4, "train_dataset": PROMPTS.select(range(4))}
        make(tmp_path / "c", model=policy(seed=7, eos_bias=-3), generator=recorded, **options).train()
    calls = []

    def late(completion_ids, **_):
        """Rewards of tokens from the second rollout on."""
        calls.append(1)
        return [[1.0] * len(ids) if len(calls) > 1 else 1.0 for ids in completion_ids]

    record(tmp_path / "d", reward_funcs=late)
    with pytest.raises(InputError, match="gave rewards to tokens"):
        _ = RecordedRollouts(tmp_path / "d" / "rollouts").reward_funcs
    path = tmp_path / "a" / "rollouts" / "rollout_000000_0.parquet"
    path.rename(path.with_name("rollout_000000_1.parquet"))
    with pytest.raises(InputError, match="recorded by 2 processes, and this run has 1"):
        RecordedRollouts(path.parent).generate([[1]], generation_config=None)
    path.with_name("rollout_000000_0.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"rollout_000000_0.parquet is not what this version writes"):
        _ = RecordedRollouts(path.parent).reward_funcs


def test_a_replay_drops_what_the_recorded_run_dropped_and_may_score_it(tmp_path):
    """A NaN score of one of two functions drops a response; of such a response the sampler's log-probs are unknown."""

    def odd(completion_ids, **_):
        return [math.nan if ids[0] % 4 == 0 else 1.0 for ids in completion_ids]

    options = {**SMALL, "max_steps": 12, "on_nonfinite": "skip"}
    trainer = record(tmp_path / "a", reward_funcs=[lengths, odd], on_nonfinite="skip")
    recorded = RecordedRollouts(tmp_path / "a" / "rollouts")
    again = make(tmp_path / "b", generator=recorded, reward_funcs=recorded.reward_funcs, **options)
    again.train()
    assert same(weights(trainer), weights(again))
    scored = make(tmp_path / "c", generator=RecordedRollouts(recorded.folder), **{**options, "max_steps": 4})
    scored.train()
    assert scored.state.log_history[0]["dropped_samples"] == 0


@pytest.mark.parametrize("options", [{"log_tokens": 1}, {"eval_strategy": "steps", "eval_steps": 4}])
def test_evaluations_do_not_draw_from_a_recording(tmp_path, options):
    record(tmp_path / "a", max_steps=4)
    with pytest.raises(InputError, match="recorded responses are those of training"):
        generator = RecordedRollouts(tmp_path / "a" / "rollouts")
        make(tmp_path / "b", generator=generator, eval_dataset=PROMPTS, **{**SMALL, "max_steps": 4, **options})


def test_files_of_processes_that_are_gone_are_deleted(tmp_path):
    record(tmp_path / "a", max_steps=4)
    path = tmp_path / "a" / "rollouts" / "rollout_000000_0.parquet"
    path.with_name("rollout_000000_1.parquet").write_bytes(path.read_bytes())
    record(tmp_path / "a", max_steps=4)
    assert [some.name for some in path.parent.iterdir()] == [path.name]


def test_the_report_shows_recorded_rollouts(tmp_path, open_page):
    trainer = record(tmp_path / "a", per_device_train_batch_size=8, num_mini_batches=2, max_steps=8)
    trainer.save_state()
    (rollout, last) = data_of(write_report(tmp_path / "a").read_text(encoding="utf-8"))["rollouts"]
    assert (rollout["step"], last["step"]) == (0, 4)
    scores = [response["score"] for response in last["responses"]]
    assert len(scores) == 8 and scores == sorted(scores, reverse=True)
    rows = pq.read_table(tmp_path / "a" / "rollouts" / "rollout_000004_0.parquet").to_pylist()
    assert scores[0] == max(row["scores"] for row in rows) and scores[-1] == min(row["scores"] for row in rows)
    best = max(rows, key=lambda row: row["scores"])
    token, logprob, new_logprob, *_ = last["responses"][0]["tokens"][0]
    assert token == best["tokens"][0] and new_logprob is None and logprob == pytest.approx(best["old_logprobs"][0])
    tab = open_page(tmp_path / "a" / "report.html", locale="en-GB", viewport={"width": 390, "height": 844})
    assert "Recorded rollouts" in tab.locator("h2").all_inner_texts()
    assert tab.locator("#recorded .token").count() == sum(len(some["tokens"]) for some in last["responses"])
    tab.select_option("#rollout", "0")
    assert tab.locator("#recorded .token").count() == sum(len(some["tokens"]) for some in rollout["responses"])
    tab.select_option("#recordedQuantity", "reward")
    tab.locator("#recorded .token").first.click()
    assert "clipped –" in plain(tab.inner_text("#popup"))
