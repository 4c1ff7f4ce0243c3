"""Checkpoints are whole or not there: where they are written, what damage is seen, what is refused."""

import json
import logging
import shutil
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ppo_trainer import EOS, PROMPTS, assert_equal, lengths, logged, make, policy
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from transformers.utils.hub import PushInProgress

from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.state import arguments_mark
from hf_instructgpt.resuming.checkpoint import ASIDE_FOLDER, check_resumable, find_damage, last_whole_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make(folder, **SAVING).train()
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = [
    ("model.safetensors", truncate, "model.safetensors is not as it was written"),
    ("model.safetensors", flip, "model.safetensors is not as it was written"),
    ("value_model/model.safetensors", Path.unlink, "value_model/model.safetensors is missing"),
    ("optimizer.pt", flip, "optimizer.pt is not as it was written"),
    ("trainer_state_0.pt", Path.unlink, "trainer_state_0.pt is missing"),
    ("trainer_state.json", truncate, "trainer_state.json is not as it was written"),
    ("checkpoint.json", truncate, "checkpoint.json is missing or broken"),
    ("checkpoint.json", Path.unlink, "checkpoint.json is missing or broken"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over_for_the_last_whole_one(copy, caplog, file, damage, message):
    damage(copy / "checkpoint-3" / file)
    logger = logging.getLogger("transformers")
    logger.propagate = True
    assert last_whole_checkpoint(copy) == str(copy / "checkpoint-2")
    logger.propagate = False
    assert f"checkpoint-3 is damaged ({message})" in caplog.text
    with pytest.raises(InputError, match=f"checkpoint-3 is damaged: {message}"):
        check_resumable(copy / "checkpoint-3", options={})


def test_training_goes_on_from_the_last_whole_checkpoint(copy, run):
    flip(copy / "checkpoint-3" / "model.safetensors")
    trainer = make(copy, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._resumed_from == str(copy / "checkpoint-2")
    assert find_damage(copy / "checkpoint-3") is None  # written anew
    whole = AutoModelForCausalLM.from_pretrained(run / "checkpoint-3")
    assert_equal(trainer.model.policy.state_dict(), whole.state_dict())
    with pytest.raises(InputError, match="there is no folder"):
        trainer.train(resume_from_checkpoint=str(copy / "checkpoint-9"))


def test_a_name_that_is_no_number_is_no_checkpoint(copy):
    (copy / "checkpoint-3").rename(copy / "checkpoint-3-of-mine")
    assert last_whole_checkpoint(copy) == str(copy / "checkpoint-2")
    with pytest.raises(InputError, match="no whole checkpoint"):
        make(copy / "elsewhere").train(resume_from_checkpoint=True)


def test_a_checkpoint_without_optimizer_and_rollout_is_refused(tmp_path):
    make(tmp_path, save_only_model=True, **SAVING).train()
    for given in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(InputError, match="`save_only_model=True`"):
            make(tmp_path, **SAVING).train(resume_from_checkpoint=given)


def test_another_number_of_processes_is_refused(copy):
    path = copy / "checkpoint-3" / "checkpoint.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"options": {"number of processes": 2}}))
    with pytest.raises(InputError, match=r"another `number of processes` \(2, now 1\)"):
        make(copy, **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_ppo_epochs": 3}, "num_ppo_epochs"),
        ({"seed": 7}, "seed"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"value_model": "shared"}, "value_model"),
        ({"train_dataset": PROMPTS.select([0, 1])}, "train_dataset"),
        ({"ref_model": policy(seed=4)}, "ref_model"),
    ],
)
def test_a_run_that_would_not_go_on_as_it_began_is_refused(copy, options, name):
    with pytest.raises(InputError, match=f"saved with another `{name}`"):
        make(copy, **SAVING, **options).train(resume_from_checkpoint=True)


def test_another_argument_of_a_reward_function_is_noticed(tmp_path):
    def reward(completions, *, weight, judge, **columns):
        return [float(len(text)) for text in completions]

    def run(weight):
        own = partial(reward, weight=weight, judge=object())
        return make(tmp_path, reward_funcs=own, **{**SAVING, "max_steps": 1})

    run("sk-secret").train()
    assert run("sk-secret").train(resume_from_checkpoint=True).global_step == 1
    with pytest.raises(InputError, match="saved with another `arguments of reward_funcs`"):
        run("sk-other").train(resume_from_checkpoint=True)
    assert "sk-secret" not in (tmp_path / "checkpoint-1" / "checkpoint.json").read_text()


def test_the_mark_of_arguments_follows_from_their_values():
    def mark(*args, **kwargs):
        return arguments_mark(partial(print, *args, **kwargs))

    itself = {}
    itself["itself"] = itself
    values = [
        1,
        1.5,
        "1",
        None,
        (1, 2),
        {1, 2},
        {(1, 2): 3},
        {(1, 2): 4},
        np.float32(2),
        Path("a"),
        [{"a": {1}}],
        itself,
    ]
    marks = [*(mark(sep=value) for value in values), mark(1), mark(end=1)]
    assert len({*marks}) == len(marks)
    assert mark(sep={"b": 1, "a": {2, 1}}) == mark(sep={"a": {1, 2}, "b": 1})
    assert mark(sep=object()) == mark(sep=object()) and mark(sep=(1, 2)) == mark(sep=[1, 2])
    assert arguments_mark(print) is None


def test_a_push_while_training_holds_critic_and_average_too(tmp_path, monkeypatch):
    pushed = []

    def look(self, folder):
        pushed.append({path.name for path in tmp_path.iterdir() if not path.name.startswith(("checkpoint", "_"))})

    monkeypatch.setattr(Trainer, "_push_from_checkpoint", look)
    trainer = make(tmp_path, ema_decay=0.9, **{**SAVING, "max_steps": 1})
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [{"value_model", "ema", "modeling_char_gpt.py", "configuration_char_gpt.py"} | pushed[0]]


def test_what_is_being_pushed_stays_as_it_is(tmp_path):
    """Trainer passes over a push while an earlier one reads the folder: nothing in it may change then."""
    trainer = make(tmp_path, **{**SAVING, "max_steps": 1})
    trainer.args.push_to_hub, trainer.push_in_progress = True, PushInProgress([Future()])
    trainer.push_in_progress.wait_until_done = lambda: None
    trainer.train()
    assert (tmp_path / "checkpoint-1" / "value_model").is_dir() and not (tmp_path / "value_model").exists()


def test_a_checkpoint_is_written_aside_and_stands_in_its_place_before_it_is_pushed_and_counted(tmp_path, monkeypatch):
    seen = []

    def look(what):
        there = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
        aside = sorted(path.name for path in tmp_path.glob(f"{ASIDE_FOLDER}/*"))
        seen.append((what, there, aside))

    class OnSave(TrainerCallback):
        def on_save(self, *args, **kwargs):
            look("on_save")

    trainer = make(tmp_path, callbacks=[OnSave()], **{**SAVING, "max_steps": 2, "save_total_limit": 1})
    trainer.args.push_to_hub = True
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: look(f"push {Path(folder).name}"))
    save_rng = trainer._save_rng_state
    trainer._save_rng_state = lambda folder: (look(f"write {Path(folder).name}"), save_rng(folder))
    trainer.train()
    assert seen == [
        ("write checkpoint-1", [], ["checkpoint-1"]),
        ("push checkpoint-1", ["checkpoint-1"], []),
        ("on_save", ["checkpoint-1"], []),
        ("write checkpoint-2", ["checkpoint-1"], ["checkpoint-2"]),
        ("push checkpoint-2", ["checkpoint-1", "checkpoint-2"], []),
        ("on_save", ["checkpoint-2"], []),
    ]
    assert not (tmp_path / ASIDE_FOLDER).exists()


def test_the_best_checkpoint_is_remembered_where_it_stands(tmp_path):
    options = {"eval_dataset": PROMPTS, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "score"}
    trainer = make(tmp_path, **SAVING, **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert Path(best).parent == tmp_path and Path(best).is_dir()
    for step in range(trainer.state.best_global_step, 4):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == best


def test_nothing_is_loaded_that_weights_only_would_refuse(run, tmp_path, monkeypatch):
    """Neither by our code nor by Trainer's: a checkpoint from elsewhere cannot run code."""
    load, opened = torch.load, []

    def strict(file, *args, weights_only=None, **kwargs):
        assert weights_only is True, file
        opened.append(Path(file).name)
        return load(file, *args, weights_only=True, **kwargs)

    monkeypatch.setattr(torch, "load", strict)
    make(tmp_path, **SAVING).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state_0.pt"} <= set(opened)


def test_the_mean_loss_of_a_resumed_run_is_that_of_the_whole_run(run, tmp_path):
    whole = make(tmp_path / "whole", logging_steps=2, **SAVING)
    whole_output = whole.train()
    resumed = make(tmp_path / "resumed", logging_steps=2, **SAVING)
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert output.training_loss == whole_output.training_loss == output.metrics["train_loss"]


# Options, and the checkpoints from which the run goes on; the last one is that of its last step.
ENDINGS = {
    # Two epochs of four steps; what comes at their ends is still to do when the checkpoint of their last step is kept.
    "epochs": (
        {"num_train_epochs": 2, "eval_strategy": "epoch", "logging_strategy": "epoch", "eval_on_start": True},
        (1, 3, 4, 8),
    ),
    # Broken off in the middle of the second epoch, in the middle of a rollout.
    "max_steps": ({"max_steps": 5, "eval_strategy": "epoch", "logging_steps": 2}, (3, 4, 5)),
    # A callback ends it.
    "stopped": ({"num_train_epochs": 2, "eval_strategy": "epoch"}, (4, 5, 6)),
}


class StopAtSix(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == 6


def without_times(history):
    times = ("runtime", "per_second")
    return [
        {name: x for name, x in log.items() if not name.endswith(times) and not name.startswith("system/")}
        for log in history
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_from_whichever_checkpoint_a_run_goes_on_it_ends_alike(tmp_path, ending):
    own_options, steps = ENDINGS[ending]

    def trainer(folder):
        callbacks = [StopAtSix()] if ending == "stopped" else []
        options = {"eval_dataset": PROMPTS.select([0, 1]), "save_strategy": "steps", "save_steps": 1}
        return make(folder, callbacks=callbacks, **options, **own_options)

    whole = trainer(tmp_path / "whole")
    output = whole.train()
    assert whole.state.global_step == steps[-1]
    for step in steps:
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = trainer(tmp_path / str(step))
        again = resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.state.global_step == steps[-1], step
        assert_equal(resumed.model.state_dict(), whole.model.state_dict())
        assert without_times(resumed.state.log_history) == without_times(whole.state.log_history), step
        assert again.training_loss == output.training_loss
        assert resumed._num_tokens == whole._num_tokens


def test_a_finished_run_may_be_made_longer(tmp_path):
    make(tmp_path, **SAVING).train()
    longer = make(tmp_path, **{**SAVING, "max_steps": 5})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 5
    assert [log["step"] for log in longer.state.log_history if "loss" in log] == [1, 2, 3, 4, 5]


def test_a_checkpoint_may_be_started_from_as_a_model(run, tmp_path):
    trainer = make(tmp_path, str(run / "checkpoint-3"), lengths, processing_class=None, max_steps=1)
    trainer.train()
    assert trainer.generation_config.eos_token_id == [EOS]
    assert not trainer.model.policy.lm_head.weight.equal(policy().lm_head.weight)


def test_a_run_whose_epochs_end_early_goes_on_exactly(tmp_path):
    class Short(TrainerCallback):
        """Ends each epoch after its third step."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step % 3 == 0

    def trainer(folder):
        options = {"num_train_epochs": 3, "num_ppo_epochs": 4, "eval_strategy": "epoch", "eval_dataset": PROMPTS}
        return make(folder, callbacks=[Short()], save_strategy="steps", save_steps=1, **options)

    whole = trainer(tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == 9
    for step in (3, 4, 9):
        resumed = trainer(tmp_path / str(step))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_equal(resumed.model.state_dict(), whole.model.state_dict())
        assert without_times(resumed.state.log_history) == without_times(whole.state.log_history), step


def test_a_checkpoint_that_was_whole_but_not_in_its_place_is_moved_there(copy):
    (copy / ASIDE_FOLDER).mkdir()
    (copy / "checkpoint-3").rename(copy / ASIDE_FOLDER / "checkpoint-3")
    assert last_whole_checkpoint(copy) == str(copy / "checkpoint-3")
    (copy / "checkpoint-2").rename(copy / ASIDE_FOLDER / "checkpoint-2")
    truncate(copy / ASIDE_FOLDER / "checkpoint-2" / "model.safetensors")
    last_whole_checkpoint(copy)
    assert not (copy / "checkpoint-2").exists()


def test_the_best_checkpoint_of_a_run_that_was_moved_is_found_again(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "num_ppo_epochs": 9, "save_total_limit": 2, "eval_dataset": PROMPTS}

    def reward(completions, **_):
        return [9.0 * (trainer.state.global_step == 2)] * len(completions)

    trainer = make(tmp_path / "before", reward_funcs=reward, max_steps=3, **options)
    trainer.train()
    (tmp_path / "before").rename(tmp_path / "after")
    trainer = make(tmp_path / "after", reward_funcs=reward, max_steps=5, **options)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-2")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "after" / "checkpoint-2")
    assert_equal(trainer.model.policy.state_dict(), best.state_dict())


def test_a_model_whose_parameters_have_several_types_is_resumed_exactly(tmp_path):
    def trainer(folder):
        model = policy(tie_word_embeddings=False)
        embeddings = model.get_input_embeddings().requires_grad_(False).bfloat16()
        embeddings.register_forward_hook(lambda *args: args[-1].float())
        return make(folder, model, learning_rate=1e-3, **SAVING)

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert {p.dtype for p in resumed.model.policy.parameters()} == {torch.bfloat16, torch.float32}
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
