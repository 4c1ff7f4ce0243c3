"""Options that broke in mid-run are refused before anything is read: a scheduler's arguments, a compiler's name."""

from pathlib import Path

from product import assert_refused, command, write_rows


def check(folder: Path) -> None:
    file = write_rows(folder / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 2)
    argv = ["sft", "--dataset_name", file, "--output_dir", folder / "out"]
    scheduler = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs"]
    assert_refused(command(*argv, *scheduler, '{"min_rate": 0.1}'), "lr_scheduler_kwargs", "min_rate")
    assert_refused(command(*argv, "--torch_compile_backend", "nope"), "torch_compile_backend", "nope", "inductor")
    assert not (folder / "out").exists()
