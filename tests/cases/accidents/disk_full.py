"""The disk is full while a checkpoint or a result is written: one line says so and where, and the run resumes."""

import resource
import shutil
from pathlib import Path

from product import assert_done, assert_refused, command, left, ppo_trainer, stage_files

SLOW = True

# What the writing of the model, of the optimizer (by torch, which has no word for it), and of the result meets.
SIZES = (5_000, 150_000)


def full(size: int, run, *args):
    """A call where no file may become larger than `size`: what a full disk says comes from the same calls."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        return run(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def check(folder: Path) -> None:
    for stage, argv in stage_files(folder).items():
        whole, out = folder / f"{stage}-whole", folder / "out"
        assert_done(command(*argv, "--output_dir", whole))
        for size in SIZES:
            result = full(size, command, *argv, "--output_dir", out)
            assert_refused(result, "the disk is full", str(folder))
            assert_done(command(*argv, "--output_dir", out, "--resume"))
            assert left(out) == left(whole), (stage, size)
            shutil.rmtree(out)
    trainer = ppo_trainer(folder, save_strategy="steps", save_steps=1)
    try:
        full(30_000, trainer.train)
    except ValueError as error:
        assert "the disk is full" in str(error) and str(folder) in str(error)
    else:
        raise AssertionError("the limit did not hold")
