"""A reward function, or its module, calls sys.exit: an error line names it, and the exit code is not 0."""

import os
from pathlib import Path

from product import command, stage_files


def check(folder: Path) -> None:
    os.chdir(folder)
    argv = stage_files(folder)["ppo"]
    i = argv.index("--reward_funcs")
    for name, code in {
        "exits_early": "import sys\nsys.exit(0)\n",
        "exits_late": "import sys\ndef f(completions, **_):\n    sys.exit()\n",
    }.items():
        Path(f"{name}.py").write_text(code)
        argv[i + 1] = f"{name}.f"
        result = command(*argv, "--output_dir", folder / name)
        last = result.err.strip().split("\n")[-1]
        assert result.code == 2 and name in last and ("sys.exit" in last or "SystemExit" in last), result
        assert not (folder / name).exists()
    assert command("ppo", "--help").code == 0
