"""Whole and damaged checkpoints: a list of a checkpoint's files, written last, tells them apart."""

import hashlib
import json
import re
from pathlib import Path

from transformers.utils import logging

from ..errors import InputError

logger = logging.get_logger(__name__)

MANIFEST_FILE = "checkpoint.json"
PPO_STATE_FILE = "ppo_state_{rank}.pt"
# Where a checkpoint is written before it is whole: Trainer looks for `checkpoint-*` only, and pushes nothing with an
# underscore in front.
ASIDE_FOLDER = "_checkpoint_in_progress"


def write_manifest(folder: Path, *, num_processes: int) -> None:
    """List the files of a finished checkpoint with their sizes and SHA-256 sums."""
    files = {str(path.relative_to(folder)): _fingerprint(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    content = {"num_processes": num_processes, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST_FILE} is missing or broken"
    for name, fingerprint in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _fingerprint(folder / name) != fingerprint:
            return f"{name} is not as it was written"
    return None


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint of a run that is whole; damaged ones are named and passed over.

    One that was whole, but not yet in its place when its run was killed, is moved there first.
    """
    for path in Path(output_dir, ASIDE_FOLDER).glob("checkpoint-*"):
        if not Path(output_dir, path.name).exists() and find_damage(path) is None:
            path.rename(Path(output_dir, path.name))
    numbered = []
    for path in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            numbered.append((int(match[1]), path))
    for _, path in sorted(numbered, reverse=True):
        damage = find_damage(path)
        if damage is None:
            return str(path)
        logger.warning(f"{path} is damaged ({damage}) and passed over.")
    return None


def check_resumable(folder: str | Path, *, num_processes: int) -> None:
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
    if not (folder / PPO_STATE_FILE.format(rank=0)).is_file():
        raise InputError(
            f"{folder} was saved with `save_only_model=True`: it holds no optimizer and no rollout, and cannot be "
            "resumed. Start a new run from it as `model`."
        )
    saved_by = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["num_processes"]
    if saved_by != num_processes:
        raise InputError(
            f"{folder} was saved by {saved_by} process(es) and cannot be resumed by {num_processes}: each has its own "
            "rollout and random state."
        )


def _fingerprint(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
