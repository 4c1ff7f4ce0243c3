"""Where a stage writes: aside first, moved into place when whole."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..errors import InputError
from ..files import absolute_folder, is_same_value, make_directory, read_json, to_json, write_whole
from ..resuming.checkpoint import alone_in, checkpoints, last_whole_checkpoint
from ..resuming.resumable import CHANGED_HOOKS, STATE_FILE

logger = logging.get_logger(__name__)

# In each result: the options it was made with and the paths of its files. What stands beside them is the user's.
STAGE_FILE = "stage.json"
# The files of a result that was deleted from among the user's.
NO_FILES = [STAGE_FILE]
# What `hf-instructgpt evaluate reward` found, beside the reward model or elsewhere.
REPORT_CARD_FILE = "report_card.json"
# run.json says that a folder holds a run; metrics.json, moved in last, that it is whole.
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"


def partial_directory(output_dir: str | Path) -> Path:
    """The folder beside `output_dir` in which a stage works until it is done."""
    output_dir = Path(output_dir)
    return output_dir.with_name(f".{output_dir.name}.partial")


def _old(output_dir: Path) -> Path:
    """Where an earlier result stands while the new one is moved into its place."""
    return output_dir.with_name(f".{output_dir.name}.old")


@dataclass
class Work:
    """A folder to work in, and the checkpoint to resume from, if any."""

    folder: Path
    checkpoint: str | None
    options: dict

    def begin(self) -> None:
        """Clear what a broken run left, but for what is resumed. Called when all has been checked."""
        state = PartialState()
        state.wait_for_everyone()
        if state.is_main_process:
            for path in [] if self.checkpoint else list(self.folder.iterdir()):  # the folder stays: it is locked
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            (self.folder / STAGE_FILE).write_text(to_json({"options": self.options}), encoding="utf-8")
        state.wait_for_everyone()


@contextmanager
def stage_output(output_dir: str | Path, *, options: dict, overwrite: bool, resume: bool) -> Iterator[Work | None]:
    """A folder to work in, which becomes `output_dir` when the block ends without an error.

    Until the very end, `output_dir` is what it was before. What a broken run left behind is kept where it holds a
    checkpoint, until [`Work.begin`]. Files in `output_dir` that no stage wrote survive being overwritten.

    Args:
        output_dir (`str` or `Path`): Where the result goes. A link is kept, and written through.
        options (`dict`): What the result depends on, for JSON.
        overwrite (`bool`): Whether it may replace an earlier result, and a broken run's checkpoints.
        resume (`bool`): Whether to go on from the last checkpoint of a broken run, which is newer than a whole result;
            without one, to keep a whole result.

    Yields:
        [`Work`], or None if the result is whole already.

    Raises:
        InputError: `output_dir` holds something that may not be replaced, or cannot be resumed with these options; or
            another run writes there.
    """
    output_dir, state = absolute_folder(output_dir), PartialState()
    partial, old = partial_directory(output_dir), _old(output_dir)
    if state.is_main_process and old.exists() and not output_dir.exists():
        old.rename(output_dir)  # a run was stopped between its last two steps, below
    state.wait_for_everyone()
    if output_dir.is_mount():
        raise InputError(
            f"`output_dir`: {output_dir} is a mount point, which cannot be replaced: name a folder in it."
        )
    if resume and is_whole(output_dir):
        _check_same(read_json(output_dir / STAGE_FILE), options, output_dir)
        yield None
        return
    check_free(output_dir, overwrite or resume)
    new_parents = [parent for parent in partial.parents if not parent.exists()]
    state.wait_for_everyone()
    if state.is_main_process:
        make_directory(partial)
    state.wait_for_everyone()
    with alone_in(partial):
        try:
            known = _check_again(output_dir, partial, overwrite or (resume and bool(checkpoints(partial))))
            yield (work := _open(output_dir, partial, options, overwrite=overwrite, resume=resume))
        except BaseException:
            if state.is_main_process and not checkpoints(partial):
                shutil.rmtree(partial, ignore_errors=True)
                with suppress(OSError):
                    for parent in new_parents:
                        parent.rmdir()
            raise
        state.wait_for_everyone()
        if state.is_main_process:
            _move_into_place(work, output_dir, old, known=known)
        state.wait_for_everyone()


def _open(output_dir: Path, partial: Path, options: dict, *, overwrite: bool, resume: bool) -> Work:
    """Find what a broken run left: it is resumed, replaced on request, or refused."""
    checkpoint = None
    if resume:
        found = [_last_whole_checkpoint(partial) if PartialState().is_main_process else None]
        checkpoint = broadcast_object_list(found)[0]
        if checkpoints(partial) and PartialState().is_main_process:
            start = f"goes on from {Path(checkpoint).name}" if checkpoint else "starts anew: no checkpoint is whole"
            logger.warning(f"The run that was broken off in {partial} {start}.")
    elif checkpoints(partial) and not overwrite:
        raise InputError(
            f"a run into {output_dir} was broken off; its checkpoints are in {partial}. Pass --resume to go on from "
            "the last one, or --overwrite_output_dir to drop them."
        )
    if resume and checkpoints(partial):
        _check_same(read_json(partial / STAGE_FILE), options, partial)
    return Work(partial, checkpoint, options)


def is_whole(output_dir: Path) -> bool:
    """Whether a folder holds a stage's result, and no newer run into it was broken off."""
    known = read_json(output_dir / STAGE_FILE)
    return known is not None and known.get("files") != NO_FILES and not checkpoints(partial_directory(output_dir))


def delete_result(folder: Path) -> None:
    """Delete a stage's result and what a broken run left; the user's own files stay, and [`check_free`] passes."""
    folder = absolute_folder(folder)
    partial, old, known = partial_directory(folder), _old(folder), read_json(folder / STAGE_FILE)
    shutil.rmtree(partial, ignore_errors=True)
    if known is not None:  # at any moment what stands there is a whole result or none
        make_directory(partial)
        (partial / STAGE_FILE).touch()
        _move_into_place(Work(partial, None, {}), folder, old, known=known)
        if [path.name for path in folder.iterdir()] == NO_FILES:
            shutil.rmtree(folder)
    elif folder.exists():
        folder.rmdir()  # it is empty, or `check_free` would have refused it


def _move_into_place(work: Work, output_dir: Path, old: Path, *, known: dict | None) -> None:
    partial = work.folder
    files = _paths(partial)
    (partial / STAGE_FILE).write_text(to_json({"options": work.options, "files": files}), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if output_dir.exists():
        _copy_foreign(output_dir, partial, known["files"] if known else [])
        output_dir.rename(old)
    partial.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)


def _check_again(output_dir: Path, partial: Path, overwrite: bool) -> dict | None:
    """What `stage.json` says, now that no other run can write it."""
    if not partial.is_dir():
        raise InputError(f"another run has just written {output_dir}: choose another `output_dir`.")
    check_free(output_dir, overwrite)
    return read_json(output_dir / STAGE_FILE)


def _check_same(known: dict | None, options: dict, folder: Path) -> None:
    before = (known or {}).get("options", {})
    for key in {**before, **options}:
        if not is_same_value(before.get(key), options.get(key)):
            raise InputError(
                f"{folder} was made with other options (`{key}` differs): resume it with the options it was started "
                "with, or pass --overwrite_output_dir instead of --resume to start anew."
            )


def check_free(output_dir: Path, overwrite: bool) -> None:
    """Raise an `InputError` if a folder holds what is no stage's, or a result that may not be replaced."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    known = read_json(output_dir / STAGE_FILE)
    if known is not None and known.get("files") == NO_FILES:
        return
    if known is None:
        raise InputError(f"{output_dir} is not empty and holds no stage's result. Choose another `output_dir`.")
    if not overwrite:
        raise InputError(
            f"{output_dir} holds a result already. Choose another `output_dir`, pass --resume to leave it as it is, "
            "or --overwrite_output_dir to replace it."
        )
    if not isinstance(known.get("files"), list):
        raise InputError(f"{output_dir / STAGE_FILE} does not list the stage's files. Choose another `output_dir`.")


def _last_whole_checkpoint(partial: Path) -> str | None:
    """Of this package's checkpoints, or of Trainer's own, which writes `trainer_state.json` last."""
    if not CHANGED_HOOKS:
        return last_whole_checkpoint(partial)
    return next((str(path) for path in checkpoints(partial) if (path / STATE_FILE).is_file()), None)


def _paths(folder: Path) -> list[str]:
    """All files in a folder, by their paths in it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _copy_foreign(source: Path, target: Path, files: list[str]) -> None:
    """Copy what no stage wrote; a name that the new result needs too gets `.before` appended."""
    for path in source.iterdir():
        copy, is_folder = target / path.name, path.is_dir() and not path.is_symlink()
        mine = [file.removeprefix(f"{path.name}/") for file in files if file.startswith(f"{path.name}/")]
        if is_folder and (mine or (copy.is_dir() and path.name not in files)):
            _copy_foreign(path, copy, mine)
        elif path.name not in files:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy = copy if not copy.exists() else copy.with_name(f"{path.name}.before")
            if is_folder:
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy, follow_symlinks=False)


def add_files(source: Path, target: Path) -> None:
    """Move the files in `source` to the same places in `target`, JSON last.

    Of a stage's result they become a part, which goes when the stage is run anew.
    """
    make_directory(target)
    stage = read_json(target / STAGE_FILE)
    if stage is not None:
        write_whole(target / STAGE_FILE, to_json({**stage, "files": sorted({*stage["files"], *_paths(source)})}))
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".json"):
        place = target / path.relative_to(source)
        make_directory(place.parent)
        path.replace(place)


def weights_sha256(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a model's folder, by name."""
    files = [path for path in sorted(Path(folder).glob("*model*")) if path.suffix in (".safetensors", ".bin")]
    sums = {}
    for path in files:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
