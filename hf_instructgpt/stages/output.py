"""Where a stage writes: aside first, moved into place when whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint

from ..errors import InputError


def partial_directory(output_dir: str | Path) -> Path:
    """The folder beside `output_dir` in which a stage works until it is done."""
    output_dir = Path(output_dir)
    return output_dir.with_name(f".{output_dir.name}.partial")


@contextmanager
def stage_output(output_dir: str | Path, *, overwrite: bool, resume: bool) -> Iterator[tuple[Path, str | None]]:
    """A folder to work in, which becomes `output_dir` when the block ends without an error.

    What a broken run left behind is kept only to resume from its last checkpoint. Until the very end, `output_dir` is
    what it was before.

    Args:
        output_dir (`str` or `Path`): Where the result goes.
        overwrite (`bool`): Whether it may replace what stands there.
        resume (`bool`): Whether to go on from the last checkpoint of a broken run.

    Yields:
        `tuple[Path, str | None]`: the folder to work in and the checkpoint to resume from, if any.

    Raises:
        InputError: `output_dir` holds something already and `overwrite` is False.
    """
    output_dir, partial, state = Path(output_dir), partial_directory(output_dir), PartialState()
    if output_dir.exists() and not overwrite and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"{output_dir} is not empty. Choose another `output_dir`, or pass --overwrite_output_dir.")
    checkpoint = get_last_checkpoint(partial) if resume and partial.is_dir() else None
    state.wait_for_everyone()
    if state.is_main_process:
        if checkpoint is None:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()
    yield partial, checkpoint
    state.wait_for_everyone()
    if state.is_main_process:
        old = output_dir.with_name(f".{output_dir.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if output_dir.exists():
            output_dir.rename(old)
        partial.rename(output_dir)
        shutil.rmtree(old, ignore_errors=True)
    state.wait_for_everyone()
