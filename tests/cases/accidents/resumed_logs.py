"""A stage is broken off and resumed: train_loss, num_tokens and all other logs are those of an unbroken run."""

from pathlib import Path

from product import assert_done, broken_off, command, left, stage_files


def check(folder: Path) -> None:
    for stage, argv in stage_files(folder).items():
        assert_done(command(*argv, "--output_dir", folder / f"{stage}-whole"))
        broken_off(*argv, "--output_dir", folder / stage, step=4)
        assert_done(command(*argv, "--output_dir", folder / stage, "--resume"))
        assert left(folder / stage) == left(folder / f"{stage}-whole"), stage
