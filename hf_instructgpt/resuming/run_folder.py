"""The folder of a result: free or taken, the same run or another one, finished or not, and alone in it.

A stage works in its `output_dir` from the start. `stage.json` holds its options and says whether it is finished: then
it lists the stage's files, and is written last. What was there before is kept in `_previous` until then. A run of
several parts has a `run.json`, and is finished when its results are there.
"""

import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..errors import InputError
from ..files import (
    absolute_folder,
    delete,
    is_same_value,
    make_directory,
    partial_path,
    read_json,
    to_json,
    write_whole,
)
from ..layout import RUN_FILE, STAGE_FILE, STATE_FILE, checkpoints, is_broken_off
from .checkpoint import ASIDE_FOLDER, alone_in, last_whole_checkpoint

logger = logging.get_logger(__name__)

# Holds what was in the folder before, until the new result is finished. Trainer pushes nothing with an underscore.
PREVIOUS = "_previous"
# What `run.json` may hold beside the options: the seconds that each part took.
SECONDS = "seconds"
# The files of a result that was deleted from among the user's.
NO_FILES = [STAGE_FILE]


class RunFolder:
    """The `output_dir` of one stage, opened by [`stage_folder`]."""

    def __init__(self, path: Path, options: dict):
        self.path, self.options = path, options
        self.previous = path / PREVIOUS
        self.checkpoint: str | None = None  # to resume from
        self.has_begun = False

    @property
    def known(self) -> dict | None:
        """The content of `stage.json`, if there is one."""
        return read_json(self.path / STAGE_FILE)

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds a complete result."""
        return (self.known or {}).get("files", NO_FILES) != NO_FILES and not self.previous.exists()

    @property
    def is_broken_off(self) -> bool:
        """Whether a run began here and has not finished."""
        return is_broken_off(self.path)

    def check_free(self, *, overwrite: bool, resume: bool = False) -> None:
        """Raise an `InputError` if the folder holds what may not be replaced."""
        path, known = self.path, self.known
        if not path.exists() or (path.is_dir() and _is_empty(path)):
            return
        if (known or {}).get("files") == NO_FILES:
            return
        if not _is_stage(known):
            raise InputError(f"{path} is not empty and holds no stage's result. Choose another `output_dir`.")
        if overwrite and not isinstance(known.get("files", []), list):
            raise InputError(f"{path / STAGE_FILE} does not list the stage's files. Choose another `output_dir`.")
        if overwrite:
            return
        if not self.is_broken_off and not resume:
            raise InputError(
                f"{path} holds a result already. Choose another `output_dir`, pass --resume to leave it as it is, "
                "or --overwrite_output_dir to replace it."
            )
        if self.is_broken_off and not resume:
            raise InputError(
                f"a run into {path} was interrupted. Pass --resume to continue from its last checkpoint, or "
                "--overwrite_output_dir to start again."
            )

    def recover(self, *, resume: bool = False) -> None:
        """Bring a folder in order whose run was killed between two steps, or before its first checkpoint."""
        replaced, began = _is_stage(read_json(self.previous / STAGE_FILE)), self.is_broken_off
        resumable = checkpoints(self.path) or (resume and (self.path / ASIDE_FOLDER).exists())
        is_own = replaced or _is_stage(self.known)  # not the folder of another program
        if not self.previous.is_dir() or not is_own or (began and resumable):
            return
        if replaced and not began and self.known is not None:
            return self.settle()
        if replaced and began:
            self.clear()
        _give_back(self.previous, self.path, [])
        shutil.rmtree(self.previous)

    def begin(self) -> None:
        """Start to write, when all has been checked: set aside what was here, and clear what is not resumed."""
        state = PartialState()
        state.wait_for_everyone()
        self.has_begun = True
        if state.is_main_process:
            if self.checkpoint is None and self.is_broken_off:
                self.clear()
            elif self.known is not None and self.checkpoint is None:
                self.set_aside()
            write_whole(self.path / STAGE_FILE, to_json({"options": self.options, "finished": False}))
        state.wait_for_everyone()

    def abandon(self) -> None:
        """Undo a run that failed before its first checkpoint."""
        if self.has_begun and not checkpoints(self.path):
            if self.is_broken_off and not self.previous.exists():
                self.clear()
            self.recover()

    def finish(self) -> None:
        """List the run's files: from here on the result is finished."""
        content = {"options": self.options, "finished": True, "files": _paths(self.path)}
        write_whole(self.path / STAGE_FILE, to_json(content))
        self.settle()

    def delete(self) -> None:
        """Delete a result and what a broken run left; the user's own files stay."""
        if self.is_broken_off:
            self.clear()
        self.set_aside()
        write_whole(self.path / STAGE_FILE, to_json({"files": NO_FILES}))
        self.settle()
        if [path.name for path in self.path.iterdir()] == NO_FILES:
            shutil.rmtree(self.path)

    def set_aside(self) -> None:
        """Move everything into `_previous`, `stage.json` last."""
        self.previous.mkdir(exist_ok=True)
        for entry in self.entries(self.path):
            entry.rename(self.previous / entry.name)

    def settle(self) -> None:
        """Give back what no stage wrote and delete the rest of `_previous`, its `stage.json` last."""
        known = read_json(self.previous / STAGE_FILE)
        if known is not None:
            _give_back(self.previous, self.path, known["files"])
        for entry in self.entries(self.previous) if self.previous.is_dir() else ():
            delete(entry)
        shutil.rmtree(self.previous, ignore_errors=True)

    def clear(self) -> None:
        """Delete everything but `_previous`, `stage.json` last. The folder itself stays: it is locked."""
        for entry in self.entries(self.path):
            delete(entry)

    @staticmethod
    def entries(folder: Path) -> list[Path]:
        """What is in a folder but `_previous`, with `stage.json` last."""
        entries = [path for path in folder.iterdir() if path.name != PREVIOUS]
        return sorted(entries, key=lambda path: (path.name == STAGE_FILE, path.name))


@contextmanager
def stage_folder(
    output_dir: str | Path, *, options: dict, overwrite: bool, resume: bool
) -> Iterator[RunFolder | None]:
    """Open a stage's `output_dir`, which is finished when the block ends without an error; None if it is already.

    Nothing in it changes before [`RunFolder.begin`]. If the block fails before its first checkpoint, the folder is
    again what it was. The user's own files survive, if they were there before the stage began.

    Raises:
        InputError: The folder holds what may not be replaced, was made with other options, or is in use.
    """
    state = PartialState()
    folder = RunFolder(absolute_folder(output_dir), options)
    if not folder.path.is_dir():
        folder.check_free(overwrite=overwrite)  # a file
    new = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    state.wait_for_everyone()
    if state.is_main_process:
        make_directory(folder.path)
    state.wait_for_everyone()
    with alone_in(folder.path):
        try:
            if state.is_main_process:
                folder.recover(resume=resume)
            state.wait_for_everyone()
            if resume and folder.is_finished:
                check_same_options(folder.path, options, folder.known)
                yield None
                return
            folder.check_free(overwrite=overwrite, resume=resume)
            if resume and folder.is_broken_off:
                check_same_options(folder.path, options, folder.known)
                folder.checkpoint = _find_checkpoint(folder.path)
            yield folder
        except BaseException:
            if state.is_main_process:
                folder.abandon()
                with suppress(OSError):
                    for path in new:
                        path.rmdir()
            raise
        state.wait_for_everyone()
        if state.is_main_process:
            folder.finish()
        state.wait_for_everyone()


def _find_checkpoint(path: Path) -> str | None:
    """The last complete checkpoint: this package's, or Trainer's own, which writes `trainer_state.json` last."""
    from .resumable import CHANGED_HOOKS  # it imports Trainer, which readers of folders do not need

    found = [None]
    if PartialState().is_main_process:
        if CHANGED_HOOKS:
            found[0] = next((str(x) for x in checkpoints(path) if (x / STATE_FILE).is_file()), None)
        else:
            found[0] = last_whole_checkpoint(path)
        if checkpoints(path):
            start = f"continues from {Path(found[0]).name}" if found[0] else "starts again: no checkpoint is complete"
            logger.warning(f"The run that was broken off in {path} {start}.")
    return broadcast_object_list(found)[0]


def is_finished(output_dir: str | Path) -> bool:
    """Whether a folder holds a stage's finished result."""
    return RunFolder(Path(output_dir), {}).is_finished


def check_finished(output_dir: str | Path) -> None:
    """Raise an `InputError` for the folder of a stage that is under way or was broken off."""
    folder = RunFolder(Path(output_dir), {})
    if folder.is_broken_off:
        earlier = f" The earlier result is in {folder.previous}." if folder.previous.is_dir() else ""
        raise InputError(
            f"the run in {output_dir} is not finished: wait for it, or run its command again with --resume. Its "
            f"checkpoints can be used.{earlier}"
        )


def delete_result(output_dir: Path) -> None:
    """Delete a stage's result or broken run; the user's own files stay."""
    folder = RunFolder(absolute_folder(output_dir), {})
    if folder.path.is_dir():
        folder.recover()
        folder.delete()


@contextmanager
def run_folder(
    path: Path,
    options: dict,
    *,
    writes: Sequence[str],
    stages: Sequence[str] = (),
    optional: Sequence[str] = (),
    overwrite: bool,
    resume: bool,
) -> Iterator[dict]:
    """Make or reopen the folder of a run of several parts, by its `run.json`, whose content is yielded.

    `writes` names the files and folders that a run writes beside its `stages`, and so all that `overwrite` may delete;
    the file that marks the run as finished comes first. Not every run of the command has the `optional` options.
    """
    state, optional = PartialState(), {*optional, SECONDS}
    if state.is_main_process:
        make_directory(path)
    state.wait_for_everyone()
    with alone_in(path):
        known = read_json(path / RUN_FILE)
        _check_run(path, known, options.keys() - optional, optional, replaces=overwrite or resume)
        for folder in [RunFolder(path / name, {}) for name in stages] if known is not None else ():
            if state.is_main_process:  # a run may have been killed while it was deleted
                folder.recover(resume=resume)
            state.wait_for_everyone()
            if not resume:
                folder.check_free(overwrite=True)
        state.wait_for_everyone()  # all processes look before one writes
        if known is not None and resume:
            check_same_options(path, {**options, SECONDS: None}, {"options": {**known, SECONDS: None}})
            yield known
            return
        if state.is_main_process:
            if known is not None:
                _delete_run(path, writes, stages)
            write_whole(path / RUN_FILE, to_json(options))
        state.wait_for_everyone()
        yield options


def _check_run(path: Path, known: dict | None, needed: Set[str], optional: Set[str], *, replaces: bool) -> None:
    """Refuse a folder that holds no run, a run of another command, or one that may not be replaced."""
    if known is None and not _is_empty(path):
        raise InputError(f"{path} is not empty and holds no run. Choose another `output_dir`.")
    if known is not None and known.keys() - optional != needed:
        raise InputError(f"{path} holds a run of another command. Choose another `output_dir`.")
    if known is not None and not replaces:
        raise InputError(
            f"{path} holds another run. Choose another `output_dir`, pass --resume to continue it, or "
            "--overwrite_output_dir to replace it."
        )


def _delete_run(path: Path, writes: Sequence[str], stages: Sequence[str]) -> None:
    """Delete what a run writes and nothing else; what is still there under its name is complete."""
    (path / writes[0]).unlink(missing_ok=True)
    for name in stages:
        delete_result(path / name)
    for name in writes:
        aside = partial_path(path / name)
        delete(aside)
        if (path / name).is_dir():
            with alone_in(path / name):
                (path / name).rename(aside)
            delete(aside)
        delete(path / name)


def check_same_options(folder: Path, options: dict, known: dict) -> None:
    """Raise an `InputError` that names the first option in which the run in a folder differs."""
    before, now = (_flat(some) for some in (known.get("options", {}), options))
    for key in {**before, **now}:
        if not is_same_value(before.get(key), now.get(key)):
            raise InputError(
                f"{folder} was made with other options (`{key}` differs): resume it with the options it was started "
                "with, or pass --overwrite_output_dir instead of --resume to start again."
            )


def _flat(options: dict) -> dict:
    """`{"sft": {"seed": 1}}` as `{"sft.seed": 1}`."""
    nested = {key: value if isinstance(value, dict) else {"": value} for key, value in options.items()}
    return {f"{key}.{name}".rstrip("."): x for key, value in nested.items() for name, x in value.items()}


def add_files(folder: Path, names: list[str]) -> None:
    """Make files that were written later a part of a stage's result, so that they go when it is replaced."""
    known = read_json(folder / STAGE_FILE)
    if known is not None and "files" in known:
        files = sorted({*known["files"], *names})
        write_whole(folder / STAGE_FILE, to_json({**known, "files": files}))


def _is_stage(known: dict | None) -> bool:
    """Whether the content of a `stage.json` is this package's."""
    return known is not None and ("files" in known or known.get("finished") is False)


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing but what a run left that was killed as it began."""
    return {path.name for path in folder.iterdir()} <= {
        partial_path(Path(name)).name for name in (STAGE_FILE, RUN_FILE)
    }


def _paths(folder: Path) -> list[str]:
    """The paths of all files in a folder but `_previous` and the page that `report` writes."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in paths if path.parts[0] not in (PREVIOUS, "report.html")]


def _give_back(source: Path, target: Path, files: list[str]) -> None:
    """Move what no stage wrote back; a name that the new result has too gets `.before` appended."""
    for path in RunFolder.entries(source):
        place, is_folder = target / path.name, path.is_dir() and not path.is_symlink()
        own = [file.removeprefix(f"{path.name}/") for file in files if file.startswith(f"{path.name}/")]
        if is_folder and (own or (place.is_dir() and path.name not in files)):
            _give_back(path, place, own)
        elif path.name not in files:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place if not place.exists() else place.with_name(f"{path.name}.before"))
