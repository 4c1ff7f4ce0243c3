"""`output_dir` is empty, holds a NUL or has 300 characters: refused in a line that names it, nothing is written."""

import os
from pathlib import Path

from product import assert_refused, command, stage_files

SLOW = True


def check(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    os.chdir(home)
    commands = [["run"], ["overopt"], ["arena"], ["rounds"], *stage_files(folder).values()]
    for argv in commands:
        for name in ("", "a\0b", "x" * 300, "/", "..", str(folder / "sft.jsonl" / "out")):
            assert_refused(command(*argv, "--output_dir", name), "`output_dir`")
    assert list(home.iterdir()) == []
