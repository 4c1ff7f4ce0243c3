"""The ordinary tests with the lowest versions that pyproject.toml claims: `python tests/lowest_versions.py FOLDER`.

Makes a virtual environment in FOLDER, a quarter of an hour in all. Last run: NOT YET.
"""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("peft", "test")


def lowest(requirement: str) -> str:
    """`x>=1.2,<2` as `x==1.2`."""
    name, version = re.match(r"([\w-]+)(?:>=|==)([\w.]+)", requirement).groups()
    return f"{name}=={version}"


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]]
    wanted = sorted({lowest(requirement) for requirement in (*project["dependencies"], *extras)})
    folder = Path(sys.argv[1])
    venv.create(folder, with_pip=True)
    python = str((folder / "bin" / "python").absolute())
    install = [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off"]
    torch = [requirement for requirement in wanted if requirement.startswith("torch==")]
    subprocess.run([*install, *torch], check=True)
    subprocess.run([*install, *wanted], check=True)
    subprocess.run([*install, "--no-deps", "-e", str(ROOT)], check=True)
    print(" ".join(wanted), flush=True)
    sys.exit(subprocess.run([python, "-m", "pytest", "-q"], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
