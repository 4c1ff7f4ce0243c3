"""Output into a pipe that closes, such as `| head -1`: one line, no traceback."""

import subprocess
import sys
from pathlib import Path

from product import write_rows

SLOW = True


def check(folder: Path) -> None:
    rows = write_rows(folder / "rows.jsonl", [{"prompt": "a" * 500, "completion": "b" * 500}] * 400)
    argv = [sys.executable, "-u", "-m", "hf_instructgpt", "data", str(rows)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 1 and "the output was closed" in err and "Traceback" not in err, err
