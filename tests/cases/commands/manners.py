"""`--version`, `python -m hf_instructgpt`, help with examples and exit codes, and a hint for an option's old name."""

import subprocess
import sys
from pathlib import Path

from product import assert_done, assert_refused, command

import hf_instructgpt


def check(folder: Path) -> None:
    for flag in ("--version", "-V"):
        assert_done(command(flag), hf_instructgpt.__version__)
    module = subprocess.run([sys.executable, "-m", "hf_instructgpt", "--version"], capture_output=True, text=True)
    assert module.returncode == 0 and hf_instructgpt.__version__ in module.stdout, module
    assert_done(command("--help"), "examples:", "exit codes:", "--quiet", "130")
    assert_done(command("sft", "--help"), "examples:", "data:")
    assert_done(command("ppo", "--help"), "examples:", "rewards:", "sampling:")
    assert_done(command(), "verbs:")
    assert_refused(command("sft", "--torch_dtype", "float32"), "Did you mean `dtype`?")
    assert_refused(command("trian"), "trian", "'run', 'sft', 'reward', 'ppo'")
