"""The notebook is run as a reader runs it, cell by cell."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "recipes" / "notebooks" / "instructgpt_walkthrough.ipynb"
CHAPTERS = ["环境", "第一阶段：监督微调", "第二阶段：奖励模型", "第三阶段：PPO", "结果", "保存、取回、分享"]
# argv: the notebook. Says which cell failed.
RUN = """
import json, sys
import matplotlib
matplotlib.use("Agg")
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(PATH.read_text(encoding="utf-8"))


def sources(notebook, kind):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_every_cell_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(PATH)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it/s" not in done.stderr and len(done.stdout.splitlines()) < 40
    assert "每一轮的损失" in done.stdout and "平均分：SFT" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_follows_the_document(notebook):
    text = "\n".join(sources(notebook, "markdown"))
    assert re.findall(r"^## \d\. (.*)$", text, flags=re.MULTILINE) == CHAPTERS
    assert {f"E{n}" for n in range(1, 10)} <= set(re.findall(r"E\d", text))


def test_cells_are_short_and_carry_no_output(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None and len(cell["source"]) <= 16, cell["id"]
    for text in sources(notebook, "markdown"):
        assert re.search("[一-鿿]{2}", text), text
