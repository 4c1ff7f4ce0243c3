"""`--quiet` prints nothing but warnings and errors; output that goes to a file has no bars and no dictionaries."""

import os
import subprocess
import sys
from pathlib import Path

SLOW = True

STAGE = "sft --dataset_name document --max_steps 3 --logging_steps 1 --use_cpu --report_to none --eval_strategy no"


def run(*more: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "hf_instructgpt", *STAGE.split(), "--save_strategy", "no", *more]
    env = {name: value for name, value in os.environ.items() if "PROGRESS_BARS" not in name}
    return subprocess.run(argv, capture_output=True, text=True, env=env)


def check(folder: Path) -> None:
    usual = run("--output_dir", str(folder / "a"))
    assert usual.returncode == 0 and "epoch 3/3  loss" in usual.stdout and "Done:" in usual.stdout, usual
    assert "'loss'" not in usual.stdout and "'loss'" in run("--output_dir", str(folder / "c"), "--verbose").stdout
    assert "it/s" not in usual.stderr and "\r" not in usual.stderr, usual.stderr
    assert "deprecated" not in usual.stderr and "pin_memory" not in usual.stderr, usual.stderr
    quiet = run("--output_dir", str(folder / "b"), "--quiet")
    assert quiet.returncode == 0 and quiet.stdout == "", quiet
    assert (folder / "b" / "config.json").is_file()
