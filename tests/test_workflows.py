"""The scheduled workflows run what is there: all files they name exist, and the matrix is version_matrix.py's."""

import re
from pathlib import Path

import yaml
from version_matrix import all_cells, lowest, requirements

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def jobs(name: str) -> dict:
    return yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))["jobs"]


def test_every_file_that_a_workflow_names_is_there():
    assert WORKFLOWS.keys() == {"tests", "versions"}
    for path in WORKFLOWS.values():
        named = set(re.findall(r"tests/\w+\.py|constraints\.txt", path.read_text(encoding="utf-8")))
        assert named and all((ROOT / name).is_file() for name in named)


def test_the_workflow_installs_as_the_readme_says():
    commands = " && ".join(step["run"] for step in jobs("tests")["ordinary"]["steps"] if "run" in step)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in re.search(r"^python3 -m venv .* -m pytest.*$", readme, flags=re.MULTILINE)[0].split(" && "):
        assert command in commands


def test_all_cells_of_the_matrix_are_run_every_week():
    assert jobs("versions")["probe"]["strategy"]["matrix"]["cell"] == all_cells()


def test_what_a_cell_installs():
    assert requirements("newest") == []
    assert requirements("5.15:1.10.0") == ["transformers==5.15.*", "trl==1.10.0"]
    assert requirements("newest:1.10.0") == ["trl==1.10.0"]
    assert {"transformers==5.5.4", "trl==1.10", "peft==0.19"} <= set(requirements("lowest"))
    assert lowest("trl>=1.10,!=1.15.0,<2") == "trl==1.10"
