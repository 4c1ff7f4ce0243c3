"""Two starts of one command, in one folder, at once: the second is refused in a line, the first stays complete."""

import subprocess
import sys
from pathlib import Path

from product import assert_done, assert_refused, command, ppo_trainer, stage_files

HOLDER = """
import fcntl, os, sys
for folder in sys.argv[1:]:
    os.makedirs(folder, exist_ok=True)
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def check(folder: Path) -> None:
    argv = [*stage_files(folder)["ppo"], "--output_dir", folder / "ppo"]
    recipe = Path(__file__).parents[3] / "recipes" / "overopt" / "experiment.yaml"
    trainer = ppo_trainer(folder)
    folders = [folder / name for name in ("ppo", "run", "lab", "out")]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *map(str, folders)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        assert_refused(command(*argv), "another process is at work", "ppo")
        assert_refused(command("run", "--output_dir", folder / "run"), "another process is at work", "run")
        assert_refused(
            command("overopt", "--config", recipe, "--output_dir", folder / "lab"), "another process", "lab"
        )
        try:
            trainer.train()
        except ValueError as error:
            assert "another process is at work" in str(error)
        else:
            raise AssertionError("trained beside another run")
        other.stdin.close()
    assert_done(command(*argv))
