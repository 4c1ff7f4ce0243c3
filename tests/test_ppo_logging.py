"""What a user of Trainer expects to see and to steer: callbacks, trackers, completions, the progress bar."""

import json
import sqlite3

import pandas as pd
import pytest
import torch
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_ppo_trainer import PROMPTS, TOKENIZER, lengths, logged, make, reward_model
from transformers import TrainerCallback

from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo import logs
from hf_instructgpt.ppo.logs import PPOProgressCallback
from hf_instructgpt.ppo.token_log import rewind

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)


class Recorder(TrainerCallback):
    """Counts every event; at a step it may set a control flag."""

    def __init__(self, flag=None, step=None):
        self.counts, self.flag, self.step = dict.fromkeys(EVENTS, 0), flag, step

    def __getattribute__(self, name):
        if name in EVENTS:
            self.counts[name] += 1
        return super().__getattribute__(name)

    def on_step_end(self, args, state, control, **kwargs):
        if self.flag is not None and state.global_step == self.step:
            setattr(control, self.flag, True)
        return control


def test_the_token_log_of_a_run_without_a_scored_rollout_is_json(tmp_path):
    def reward(prompts, **_):
        return [1.0 if prompt == "zz" else None for prompt in prompts]

    trainer = make(tmp_path, reward_funcs=reward, log_tokens=1, eval_dataset=Dataset.from_list([{"prompt": "zz"}]))
    with pytest.raises(InputError, match="no response was scored"):
        trainer.train()
    text = (tmp_path / "tokens.jsonl").read_text(encoding="utf-8")
    assert '"advantage": ' in text and "NaN" not in text


def test_every_event_of_a_callback_is_sent(tmp_path):
    recorder = Recorder()
    options = {"eval_dataset": PROMPTS, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    options |= {"save_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 4}
    make(tmp_path, callbacks=[recorder], **options).train()
    assert recorder.counts == {
        **dict.fromkeys(EVENTS, 1),
        **dict.fromkeys(("on_step_begin", "on_substep_end", "on_pre_optimizer_step"), 4),
        **dict.fromkeys(("on_optimizer_step", "on_step_end"), 4),
        "on_log": 4 + 2 + 1,  # each step, each evaluation, the summary
        "on_evaluate": 2,
        "on_save": 2,
    }


@pytest.mark.parametrize(
    "flag", ["should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log"]
)
def test_every_control_flag_is_honoured(tmp_path, flag):
    recorder = Recorder(flag, step=3)
    options = {"eval_dataset": PROMPTS, "logging_strategy": "no", "num_train_epochs": 2, "num_ppo_epochs": 4}
    trainer = make(tmp_path, callbacks=[recorder], **options)  # two rollouts an epoch, 8 steps
    trainer.train()
    steps = {"should_training_stop": 3, "should_epoch_stop": 3 + 8}
    assert trainer.state.global_step == steps.get(flag, 16)
    assert (tmp_path / "checkpoint-3").is_dir() == (flag == "should_save")
    assert [log["step"] for log in trainer.state.log_history if "eval_score" in log] == (
        [3] if flag == "should_evaluate" else []
    )
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == ([3] if flag == "should_log" else [])


def test_metrics_reach_tensorboard(tmp_path):
    options = {"report_to": ["tensorboard"], "eval_dataset": PROMPTS, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make(tmp_path, max_steps=4, **options)
    trainer.train()
    (file,) = (tmp_path / "runs").rglob("events.out.*")
    events = EventAccumulator(str(file)).Reload()
    for tag in ("train/score", "train/kl", "train/policy_loss", "eval/score"):
        assert tag in events.Tags()["scalars"], tag
    assert [e.value for e in events.Scalars("train/score")] == pytest.approx(logged(trainer, "score"))


def test_metrics_and_completions_reach_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    assert trackio.Table
    options = {"report_to": ["trackio"], "project": "ppo", "log_completions": True, "num_completions_to_print": 0}
    trainer = make(tmp_path / "run", max_steps=2, **options)
    trainer.train()
    (file,) = (tmp_path / "trackio").glob("ppo*.db")
    rows = [json.loads(row[0]) for row in sqlite3.connect(file).execute("select metrics from metrics")]
    assert [row["train/score"] for row in rows if "train/score" in row] == pytest.approx(logged(trainer, "score"))
    assert sum("completions" in row for row in rows) == 2


class FakeWandb:
    """`wandb.log` and `wandb.Table`."""

    def __init__(self):
        self.logs = []

    @staticmethod
    def Table(dataframe):  # noqa: N802
        return dataframe

    def log(self, row):
        self.logs.append(row)


def test_the_completions_table_is_written_printed_and_sent_to_wandb(tmp_path, monkeypatch, capsys):
    wandb = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", wandb)
    table = {"prompt": ["a", "b"], "completion": ["xy", "z"], "lengths": [2.0, 1.0], "score": [2.0, 1.0]}
    logs.log_completions(table, step=7, output_dir=tmp_path, num_to_print=1, report_to=["wandb"])
    frame = pd.read_parquet(tmp_path / "completions" / "completions_00007.parquet")
    assert frame.to_dict("list") == {"step": [7, 7], **table}
    assert wandb.logs[0]["completions"].equals(frame)
    printed = capsys.readouterr().out
    assert "Step 7" in printed and ("xy" in printed) != ("│ z" in printed)


@pytest.mark.parametrize("messages", [False, True])
def test_a_rollout_s_completions_stand_beside_their_own_scores(tmp_path, messages):
    prompts = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "bc"}]] if messages else ["a", "bc"]
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    options = {"log_completions": True, "max_steps": 2, "logging_steps": 2, "num_completions_to_print": 0}
    trainer = make(tmp_path, reward_funcs=[lengths, reward_model()], train_dataset=data, **options)
    trainer.train()
    frame = pd.read_parquet(tmp_path / "completions" / "completions_00002.parquet")
    assert list(frame) == ["step", "prompt", "completion", *trainer.reward_names, "score", "kl"]
    rollout = trainer._rollout
    for i, row in frame.iterrows():
        ids = rollout.response_ids[i][rollout.response_mask[i]]
        assert row["completion"] == TOKENIZER.decode(ids, skip_special_tokens=True)
        assert row["lengths"] == len(ids)
        assert row["score"] == pytest.approx(rollout.scores[i].item())
    assert any("bc" in text for text in frame["prompt"]) and any("bc" not in text for text in frame["prompt"])


def test_the_progress_bar_shows_tokens_a_second_and_the_time_left(tmp_path, capsys):
    trainer = make(tmp_path, disable_tqdm=False, max_steps=4)
    assert any(isinstance(callback, PPOProgressCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    bar = capsys.readouterr().err
    assert " tokens/s" in bar and "4/4" in bar and "<" in bar  # tqdm's time left stands behind a <


def test_tokens_are_counted_over_rollouts_and_not_in_evaluations(tmp_path):
    trainer = make(tmp_path, max_steps=4, num_ppo_epochs=2, eval_dataset=PROMPTS, eval_strategy="steps", eval_steps=1)
    seen = []
    roll_out = trainer._roll_out

    def spy(rows, is_training=False, **kwargs):
        rollout = roll_out(rows, is_training=is_training, **kwargs)
        seen.append(rollout.response_mask.sum().item() * is_training)
        return rollout

    trainer._roll_out = spy
    trainer.train()
    assert logged(trainer, "num_tokens") == [seen[0]] * 2 + [sum(seen)] * 2


def test_half_a_line_of_a_killed_process_is_dropped_from_the_token_log(tmp_path):
    path = tmp_path / "tokens.jsonl"
    path.write_text('{"step": 1}\n{"step": 3}\n{"step": 2}\n{"ste', encoding="utf-8")
    rewind(path, step=2)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_bf16_keeps_log_probs_and_values_in_float32(tmp_path):
    trainer = make(tmp_path, bf16=True, max_steps=2)
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    assert rollout.old_logprobs.dtype == rollout.values.dtype == torch.float32
    torch.nn.init.normal_(trainer.model.value_model.value_head.weight)
    torch.nn.init.constant_(trainer.model.value_model.value_head.bias, 100.0)  # in bf16 only halves are left here
    values = trainer._roll_out(list(PROMPTS), num_generations=1).values
    real = values[values != 0]
    assert not torch.equal(real, real.bfloat16().float())
    trainer.train()


def test_a_rollout_that_nobody_scored_leaves_no_step_and_no_number(tmp_path):
    calls = []

    def reward(completions, **_):
        calls.append(1)
        return [None if len(calls) == 2 else 1.0] * len(completions)

    snapshots = []

    class Snapshot(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            snapshots.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    options = {"num_ppo_epochs": 1, "max_steps": 3, "log_completions": True, "num_completions_to_print": 0}
    trainer = make(tmp_path, reward_funcs=reward, callbacks=[Snapshot()], **options)
    trainer.train()
    # Adam has momentum by then, but nothing to follow.
    assert all(snapshots[0][name].equal(tensor) for name, tensor in snapshots[1].items())
    assert not snapshots[2]["value_model.value_head.bias"].equal(snapshots[1]["value_model.value_head.bias"])
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert ["score" in log for log in logs] == [True, False, True]
    assert logs[1]["dropped_samples"] == 1.0
    assert len(pd.read_parquet(tmp_path / "completions" / "completions_00002.parquet")) == 0
