"""A folder `checkpoint-x` or `checkpoint-2-copy` lies beside the checkpoints: it is none, and the run resumes."""

from pathlib import Path

from product import assert_done, broken_off, command, stage_files


def check(folder: Path) -> None:
    for stage, argv in stage_files(folder).items():
        broken_off(*argv, "--output_dir", folder / stage, step=4)
        for name in ("checkpoint-x", "checkpoint-2-copy", "checkpoint-"):
            (folder / stage / name).mkdir()
            (folder / stage / name / "trainer_state.json").write_text("{}")
        assert_done(command(*argv, "--output_dir", folder / stage, "--resume"))
