"""A stage starts from a model or data in the folder that it replaces: refused before anything is moved."""

from pathlib import Path

from product import assert_done, assert_refused, command, left, stage_files, write_rows


def check(folder: Path) -> None:
    argv, out = stage_files(folder)["sft"], folder / "out"
    assert_done(command(*argv, "--output_dir", out))
    write_rows(out / "mine.jsonl", [{"prompt": "ab", "completion": "cd"}] * 4)
    before = left(out)
    more = ["--output_dir", out, "--overwrite_output_dir"]
    assert_refused(command(*argv, "--model_name_or_path", out, *more), "model_name_or_path", "Copy it elsewhere")
    assert_refused(command(*argv, "--dataset_name", out / "mine.jsonl", *more), "dataset_name", "Copy it elsewhere")
    assert left(out) == before
