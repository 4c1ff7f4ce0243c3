"""A run that was to replace a result was broken off: the old one is kept, and `--resume` continues the new one."""

import json
from pathlib import Path

from product import assert_done, assert_refused, broken_off, command, left, stage_files

SLOW = True


def check(folder: Path) -> None:
    argv = stage_files(folder)["sft"]
    new = [*argv, "--learning_rate", "2e-3"]
    assert_done(command(*new, "--output_dir", folder / "whole"))

    out, previous = folder / "out", folder / "out" / "_previous"
    assert_done(command(*argv, "--output_dir", out))
    argv, new = ([*some, "--output_dir", out] for some in (argv, new))
    old, weights = left(out), (out / "model.safetensors").read_bytes()
    broken_off(*new, "--overwrite_output_dir", step=2)  # before a checkpoint
    assert_done(command(*argv, "--resume"))
    assert left(out) == old
    broken_off(*new, "--overwrite_output_dir", step=4)
    assert_refused(command(*argv, "--resume"), "`learning_rate` differs")
    assert_refused(command(*argv), "was interrupted", "--resume", "--overwrite_output_dir")
    assert_refused(command("generate", out, "--prompt", "a"), "not finished")
    assert_refused(command("push", out), "not finished")
    assert (previous / "model.safetensors").read_bytes() == weights and (out / "checkpoint-2").is_dir()
    assert_done(command(*new, "--resume"), f"broken off in {out} continues from checkpoint-2")
    assert left(out) == left(folder / "whole") and not previous.exists()
    assert_done(command(*new, "--resume"))

    # All checkpoints are damaged.
    broken_off(*new, "--overwrite_output_dir", step=4)
    (out / "checkpoint-2" / "optimizer.pt").unlink()
    assert_done(command(*new, "--resume"), "checkpoint-2 is damaged", "starts again: no checkpoint is complete")
    assert left(out) == left(folder / "whole")
    assert json.loads((out / "stage.json").read_text())["options"]["learning_rate"] == 2e-3
