"""Checkpoints, complete or damaged (a list of their files, written last, tells which), and locked folders."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None

from ..errors import InputError
from ..files import disk_errors
from ..layout import checkpoints

logger = logging.get_logger(__name__)

MANIFEST_FILE = "checkpoint.json"
# What a process needs beside Trainer's files.
RANK_STATE_FILE = "trainer_state_{rank}.pt"
# Where a checkpoint is written until it is complete: Trainer looks for `checkpoint-*` only, and pushes nothing with an
# underscore in front.
ASIDE_FOLDER = "_checkpoint_in_progress"
# Folders that this process has locked.
_locked: set[Path] = set()


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder, and turn errors of a full or read-only disk into one line.

    All processes of a run enter the block together; blocks may be nested. The lock is `flock` on the folder itself
    rather than a lock file (filelock): it leaves nothing behind, and ends with its process, also when that is killed.
    """
    folder, error = Path(folder).resolve(), [None]
    descriptor = None
    if fcntl is not None and PartialState().is_main_process and folder not in _locked:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            error = [f"another process is at work in {folder}: wait for it, stop it, or choose another folder."]
        except (FileNotFoundError, PermissionError) as reason:
            error = [f"{folder} cannot be opened: {reason.strerror}."]
        except OSError as reason:  # some network file systems
            logger.warning(f"{folder} cannot be locked ({reason}): start no other run in it.")
    try:
        if error := broadcast_object_list(error)[0]:
            raise InputError(error)
        if descriptor is not None:
            _locked.add(folder)
        with disk_errors(folder):
            yield
    finally:
        if descriptor is not None:
            _locked.discard(folder)
            os.close(descriptor)


def write_manifest(folder: Path, *, options: dict) -> None:
    """List the files of a finished checkpoint with their sizes and SHA-256 sums, and options that must stay."""
    files = {str(path.relative_to(folder)): _fingerprint(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    content = {"options": options, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files, _ = content["files"].items(), content["options"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST_FILE} is missing or broken"
    for name, fingerprint in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _fingerprint(folder / name) != fingerprint:
            return f"{name} is not as it was written"
    return None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint; damaged ones are reported and skipped.

    One that was complete when its run was killed, but not yet in its place, is moved there first.
    """
    for path in Path(output_dir, ASIDE_FOLDER).glob("checkpoint-*"):
        if not Path(output_dir, path.name).exists() and find_damage(path) is None:
            path.rename(Path(output_dir, path.name))
    for path in checkpoints(output_dir):
        damage = find_damage(path)
        if damage is None:
            return str(path)
        logger.warning(f"{path} is damaged ({damage}) and skipped.")
    return None


def check_resumable(folder: str | Path, *, options: dict) -> None:
    """Raise an `InputError` for a checkpoint that cannot be continued exactly."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"`resume_from_checkpoint`: there is no folder {folder}.")
    damage = find_damage(folder)
    if damage is not None:
        raise InputError(
            f"{folder} is damaged: {damage}. Resume from another one, or pass `resume_from_checkpoint=True` to take "
            "the last whole one."
        )
    if not (folder / RANK_STATE_FILE.format(rank=0)).is_file():
        raise InputError(
            f"{folder} was saved with `save_only_model=True`: it holds no optimizer and no random state, and cannot "
            "be resumed. Start a new run from it as `model`."
        )
    saved = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["options"]
    for name, value in options.items():
        if name in saved and saved[name] != value:  # earlier versions saved fewer
            raise InputError(
                f"{folder} was saved with another `{name}` ({saved[name]}, now {value}): the run would not go on "
                "as it began. Resume it as it was started, or start a new run from the checkpoint as `model`."
            )


def _fingerprint(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
