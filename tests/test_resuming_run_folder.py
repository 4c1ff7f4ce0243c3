"""Where a stage writes: a result is never lost or taken for finished when it is not, and the user's files survive."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from hf_instructgpt import layout
from hf_instructgpt.errors import InputError
from hf_instructgpt.resuming.checkpoint import write_manifest
from hf_instructgpt.resuming.run_folder import (
    PREVIOUS,
    STAGE_FILE,
    RunFolder,
    check_finished,
    delete_result,
    stage_folder,
)

OPTIONS = {"learning_rate": 0.1}


def work(folder, text="result", *, options=OPTIONS, overwrite=False, resume=False, checkpoints=(), fail=None):
    """One run of a stage; returns the checkpoint it was to resume from."""
    with stage_folder(folder, options=options, overwrite=overwrite, resume=resume) as work_in:
        if work_in is None:
            return "whole"
        work_in.begin()
        (work_in.path / "model").write_text(text)
        for name in checkpoints:
            (work_in.path / name).mkdir()
            (work_in.path / name / "trainer_state.json").write_text("{}")
            write_manifest(work_in.path / name, options={})
        if fail is not None:
            raise fail
    return work_in.checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_by_the_name_of_a_checkpoint_is_none(tmp_path):
    for name in ("checkpoint-3", "checkpoint-10", "checkpoint-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-20").write_text("")
    assert [path.name for path in layout.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-3"]


def test_a_result_is_finished_at_the_end_and_not_before(tmp_path):
    out = tmp_path / "deep" / "out"
    with stage_folder(out, options=OPTIONS, overwrite=False, resume=False) as begun:
        begun.begin()
        (begun.path / "model").write_text("result")
        assert begun.checkpoint is None and not begun.is_finished
        with pytest.raises(InputError, match="is not finished"):
            check_finished(out)
    check_finished(out)
    assert names(out) == ["model", STAGE_FILE] and names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [InputError("bad"), RuntimeError("ours"), KeyboardInterrupt()])
def test_a_failure_without_a_checkpoint_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        work(tmp_path / "deep" / "deeper" / "out", fail=error)
    assert names(tmp_path) == []


def test_a_failure_leaves_the_earlier_result_as_it_was(tmp_path):
    work(tmp_path / "out", "first")
    with pytest.raises(RuntimeError):
        work(tmp_path / "out", "second", overwrite=True, fail=RuntimeError())
    assert (tmp_path / "out" / "model").read_text() == "first" and names(tmp_path) == ["out"]


def test_resume_takes_the_last_whole_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "out", checkpoints=("checkpoint-9", "checkpoint-10"), fail=KeyboardInterrupt())
    broken = tmp_path / "out" / "checkpoint-11"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_')
    assert work(tmp_path / "out", resume=True).endswith("checkpoint-10")
    assert work(tmp_path / "out", resume=True) == "whole"


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_what_a_killed_run_left_without_a_checkpoint_goes_when_that_is_said(tmp_path, how):
    out = tmp_path / "out"
    (out / "_checkpoint_in_progress" / "checkpoint-1").mkdir(parents=True)
    (out / STAGE_FILE).write_text(json.dumps({"options": OPTIONS, "finished": False}))
    with pytest.raises(InputError, match=r"a run into .* was interrupted"):
        work(out)
    assert (out / "_checkpoint_in_progress").is_dir()
    assert work(out, **{how: True}) is None
    assert names(out) == ["model", STAGE_FILE]


@pytest.mark.parametrize("content", ["{}", '{"options": {}}', '{"finished": true}'])
def test_a_stage_file_of_another_program_is_not_taken_for_a_killed_run(tmp_path, content):
    (tmp_path / STAGE_FILE).write_text(content)
    (tmp_path / "thesis.txt").write_text("years")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="not empty and holds no stage's result"):
            work(tmp_path, **options)
    assert names(tmp_path) == [STAGE_FILE, "thesis.txt"]


def test_what_is_there_to_be_resumed_goes_when_all_has_been_checked(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "out", checkpoints=("checkpoint-1",), fail=KeyboardInterrupt())
    with pytest.raises(InputError, match="--resume to continue from its last checkpoint, or --overwrite"):
        work(tmp_path / "out")
    stage = stage_folder(tmp_path / "out", options={}, overwrite=True, resume=False)
    with pytest.raises(InputError, match="mistyped"), stage:
        raise InputError("mistyped")
    assert (tmp_path / "out" / "checkpoint-1").is_dir()
    assert work(tmp_path / "out", overwrite=True) is None and names(tmp_path) == ["out"]


@pytest.mark.parametrize("whole", [True, False])
def test_resume_with_other_options_names_the_option(tmp_path, whole):
    if whole:
        work(tmp_path / "out")
    else:
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path / "out", checkpoints=("checkpoint-1",), fail=KeyboardInterrupt())
    with pytest.raises(InputError, match="`learning_rate` differs"):
        work(tmp_path / "out", options={"learning_rate": 0.2}, resume=True)


def test_a_taken_folder_is_refused(tmp_path):
    out = tmp_path / "out"
    work(out)
    with pytest.raises(InputError, match="--overwrite_output_dir"):
        work(out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="not empty and holds no stage's result"):
            work(tmp_path / "mine", **options)
    assert names(tmp_path) == ["mine", "out"] and names(tmp_path / "mine") == ["thesis.txt"]


def test_an_empty_folder_is_not_taken_for_a_whole_result(tmp_path):
    (tmp_path / "out").mkdir()
    assert work(tmp_path / "out", resume=True) is None
    assert (tmp_path / "out" / "model").is_file()


def test_overwriting_keeps_what_no_stage_wrote(tmp_path):
    out = tmp_path / "out"
    work(out, "first")
    (out / "notes.txt").write_text("mine")
    (out / "mine").mkdir()
    (out / "mine" / "a").write_text("a")
    (out / "checkpoint-1").write_text("my own, under a name the next result needs")
    work(out, "second", overwrite=True, checkpoints=("checkpoint-1",))
    assert (out / "model").read_text() == "second" and (out / "notes.txt").read_text() == "mine"
    assert (out / "mine" / "a").read_text() == "a"
    assert (out / "checkpoint-1.before").read_text().startswith("my own")
    work(out, "third", overwrite=True)
    assert (out / "notes.txt").is_file() and not (out / "checkpoint-1").exists()


def test_overwriting_keeps_what_lies_in_a_stage_s_own_folders(tmp_path):
    out = tmp_path / "out"
    work(out, "first", checkpoints=("checkpoint-1",))
    assert "checkpoint-1/trainer_state.json" in json.loads((out / STAGE_FILE).read_text())["files"]
    (out / "checkpoint-1" / "mine").mkdir()
    (out / "checkpoint-1" / "mine" / "a").write_text("a")
    work(out, "second", overwrite=True)
    assert names(out / "checkpoint-1") == ["mine"] and (out / "checkpoint-1" / "mine" / "a").read_text() == "a"
    # A version that listed folders as a whole replaced them as a whole.
    out = tmp_path / "old"
    work(out, "first", checkpoints=("checkpoint-1",))
    content = json.loads((out / STAGE_FILE).read_text())
    (out / STAGE_FILE).write_text(json.dumps({**content, "files": ["model", "checkpoint-1", STAGE_FILE]}))
    work(out, "second", overwrite=True)
    assert names(out) == ["model", STAGE_FILE]


class PowerCutError(BaseException):
    """The process ends: nothing is cleaned up."""


def moments(monkeypatch, error):
    """Count the steps on disk of what follows; the one that is asked for fails, of a power cut all that follow too."""
    counter = {"left": None, "seen": 0}

    def wrapped(original):
        def step(*args, **kwargs):
            counter["seen"] += 1
            over = counter["left"] is not None and counter["seen"] - counter["left"]
            if over and (over == 1 or (over > 1 and isinstance(error, PowerCutError))):
                raise error
            return original(*args, **kwargs)

        return step

    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "replace"), (os, "rmdir")):
        monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    return counter


@pytest.mark.parametrize("checkpoints", [(), ("checkpoint-1",)])
@pytest.mark.parametrize("error", [PowerCutError(), OSError(5, "Input/output error")], ids=["power", "disk"])
@pytest.mark.parametrize("after", ["plain", "resume", "overwrite"])
@pytest.mark.parametrize("action", ["overwrite", "fail", "delete"])
def test_a_crash_at_any_step_loses_nothing(tmp_path, monkeypatch, action, after, error, checkpoints):
    """Whatever comes next, the result is the first, the second or the third, and the user's files are there."""
    counter, step = moments(monkeypatch, error), 0
    flags = {} if after == "plain" else {after: True}
    while True:
        out = tmp_path / f"{action}{step}"
        counter.update(left=None)
        work(out, "first", checkpoints=checkpoints)
        (out / "notes.txt").write_text("mine")
        (out / "folder").mkdir()
        (out / "folder" / "mine").write_text("mine")
        counter.update(left=step, seen=0)
        try:
            if action == "delete":
                delete_result(out)
            else:
                fail = RuntimeError() if action == "fail" else None
                with suppress(RuntimeError):
                    work(out, "second", overwrite=True, fail=fail)
            break
        except (PowerCutError, OSError, InputError):  # the last: the folder itself cannot be written
            counter.update(left=None)
        try:
            work(out, "third", **flags)
        except InputError as error:
            assert after == "plain" and "holds a result already" in str(error), (step, error)
        assert (out / "notes.txt").is_file() and (out / "folder" / "mine").is_file(), step
        assert RunFolder(out, {}).is_finished and not (out / PREVIOUS).exists(), step
        assert (out / "model").read_text() in (("third",) if after == "overwrite" else ("first", "second", "third"))
        step += 1
    assert step > 5


def test_a_folder_of_another_program_is_left_alone(tmp_path):
    (tmp_path / "out" / PREVIOUS).mkdir(parents=True)
    (tmp_path / "out" / PREVIOUS / "thesis.txt").write_text("years")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match="holds no stage's result"):
            work(tmp_path / "out", **options)
    assert names(tmp_path / "out" / PREVIOUS) == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`output_dir`"):
        work(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="holds no stage's result"):
        work(tmp_path / "file", overwrite=True)


def test_a_broken_stage_file_is_not_overwritten(tmp_path):
    work(tmp_path / "out")
    (tmp_path / "out" / STAGE_FILE).write_text("{")
    with pytest.raises(InputError, match=r"stage\.json cannot be read"):
        work(tmp_path / "out", overwrite=True)


def test_the_stage_file_tells_options_and_files(tmp_path):
    work(tmp_path / "out")
    content = json.loads((tmp_path / "out" / STAGE_FILE).read_text())
    assert content["options"] == OPTIONS and sorted(content["files"]) == ["model", STAGE_FILE]
