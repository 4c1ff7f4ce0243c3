"""The command of a broken run is typed again without --resume, or mistyped: its checkpoints are not deleted."""

from pathlib import Path

from product import assert_done, assert_refused, broken_off, command, stage_files


def check(folder: Path) -> None:
    for stage, argv in stage_files(folder).items():
        argv += ["--output_dir", folder / stage]
        broken_off(*argv, step=4)
        checkpoint = folder / stage / "checkpoint-2"
        assert_refused(command(*argv), "--resume", "--overwrite_output_dir")
        typo = [*argv, "--dataset_name", folder / "typo.jsonl"]
        for more in ([], ["--resume"], ["--overwrite_output_dir"]):
            assert_refused(command(*typo, *more))
            assert checkpoint.is_dir(), (stage, more)
        assert_done(command(*argv, "--overwrite_output_dir"), "Done")
        assert (folder / stage / "model.safetensors").is_file()
