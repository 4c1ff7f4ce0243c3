"""The probe with several versions of transformers and TRL: `python tests/version_matrix.py FOLDER [CELL ...]`.

A cell is `lowest` (all lower bounds of pyproject.toml), `newest` (whatever pip takes today) or
`TRANSFORMERS:TRL`, such as `5.15:1.10.0` (of 5.15 the newest patch, everything else as pip resolves it). Without
cells: lowest, newest, and TRANSFORMERS x TRL below. Each is installed into a virtual environment in FOLDER, in which
`version_probe.py` is run, and which is then removed: two to four minutes a cell. Prints a Markdown table of what was
run and exits with 1 if a cell failed; the logs stay in FOLDER.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRANSFORMERS = ("5.5", "5.10", "5.15", "5.20", "5.23")
SHOWN = ("transformers", "trl", "accelerate", "datasets", "huggingface-hub", "peft", "torch")


def lowest(requirement: str) -> str:
    """`x>=1.2,<2` as `x==1.2`."""
    name, version = re.match(r"([\w-]+)(?:>=|==)([\w.]+)", requirement).groups()
    return f"{name}=={version}"


def pinned(name: str) -> str:
    """A line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def requirements(cell: str) -> list[str]:
    """What pip is asked for beside the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if cell == "lowest":
        return [lowest(each) for each in (*project["dependencies"], *project["optional-dependencies"]["peft"])]
    if cell == "newest":
        return []
    transformers, trl = cell.split(":")
    wanted = {f"transformers=={transformers}.*": transformers, f"trl=={trl}": trl}
    return [requirement for requirement, version in wanted.items() if version != "newest"]


def all_cells() -> list[str]:
    trl = ("1.10.0", pinned("trl").removeprefix("trl=="), "newest")
    middle = [f"{one}:{other}" for one in TRANSFORMERS for other in trl]
    return ["lowest", *middle, "newest:1.10.0", f"newest:{trl[1]}", "newest"]


def run(cell: str, folder: Path, seen: set[tuple[str, ...]]) -> str | None:
    """A row of the table: the versions, how many steps of the probe passed, and the seconds; None for one `seen`."""
    started = time.monotonic()
    name = cell.replace(":", "_")
    environment, place, log = folder / f"venv_{name}", folder / name, folder / f"{name}.log"
    for path in (environment, place):
        shutil.rmtree(path, ignore_errors=True)
    place.mkdir(parents=True)
    venv.create(environment, with_pip=True)
    python = str((environment / "bin" / "python").absolute())
    pip = [python, "-m", "pip", "--quiet", "install", "--progress-bar", "off"]
    with log.open("w", encoding="utf-8") as output:
        options = {"stdout": output, "stderr": subprocess.STDOUT}
        # PyTorch first: the package index may have a smaller build of this one than of the newest.
        installed = subprocess.run([*pip, pinned("torch")], **options).returncode == 0
        installed &= subprocess.run([*pip, f"{ROOT}[peft]", *requirements(cell)], **options).returncode == 0
        listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True)
        versions = dict(line.replace("_", "-").split("==") for line in listed.stdout.splitlines() if "==" in line)
        row = tuple(versions.get(package, "-") for package in SHOWN)
        if installed and row not in seen:
            probe, environ = ROOT / "tests" / "version_probe.py", os.environ | {"HF_HUB_OFFLINE": "1"}
            subprocess.run([python, str(probe)], cwd=place, env=environ, **options)
    shutil.rmtree(environment)
    shutil.rmtree(place)
    if installed and row in seen:  # the pinned TRL may be the newest one
        return None
    seen.add(row)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failure = "crashed" if installed else "not installed"
    result = next((line for line in reversed(lines) if re.fullmatch(r"\d+ of \d+", line)), failure)
    return f"| {' | '.join(row)} | {result} | {time.monotonic() - started:.0f} |"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(f"| {' | '.join(SHOWN)} | steps | seconds |\n|{' --- |' * (len(SHOWN) + 2)}", flush=True)
    seen, failed = set(), False
    for cell in sys.argv[2:] or all_cells():
        row = run(cell, Path(sys.argv[1]), seen)
        if row is not None:
            print(row, flush=True)
            failed |= re.search(r"\| (\d+) of \1 \|", row) is None
    sys.exit(failed)


if __name__ == "__main__":
    main()
