"""A run that was to replace a result was broken off: `--resume` goes on with it; the old one is not "Done"."""

import json
from pathlib import Path

from product import assert_done, assert_refused, broken_off, command, left, stage_files


def check(folder: Path) -> None:
    argv = stage_files(folder)["sft"]
    new = [*argv, "--learning_rate", "2e-3"]
    assert_done(command(*new, "--output_dir", folder / "whole"))

    out, partial = folder / "out", folder / ".out.partial"
    assert_done(command(*argv, "--output_dir", out))
    argv, new = ([*some, "--output_dir", out] for some in (argv, new))
    old = left(out)
    broken_off(*new, "--overwrite_output_dir", step=2)  # before a checkpoint
    assert_done(command(*argv, "--resume"))
    assert left(out) == old
    broken_off(*new, "--overwrite_output_dir", step=4)
    assert_refused(command(*argv, "--resume"), "`learning_rate` differs", ".out.partial")
    assert_refused(command(*argv), "holds a result already")
    assert left(out) == old and (partial / "checkpoint-2").is_dir()
    assert_done(command(*new, "--resume"), f"broken off in {partial} goes on from checkpoint-2")
    assert left(out) == left(folder / "whole") and not partial.exists()
    assert_done(command(*new, "--resume"))

    # All checkpoints are damaged.
    broken_off(*new, "--overwrite_output_dir", step=4)
    (partial / "checkpoint-2" / "optimizer.pt").unlink()
    assert_done(command(*new, "--resume"), "checkpoint-2 is damaged", "starts anew: no checkpoint is whole")
    assert left(out) == left(folder / "whole")
    assert json.loads((out / "stage.json").read_text())["options"]["learning_rate"] == 2e-3
