"""The notebook, in Chinese and English: run cell by cell as a reader runs it, and its exercises solved."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

from hf_instructgpt import functional

FOLDER = Path(__file__).parents[1] / "recipes" / "notebooks"
CHINESE, ENGLISH = (FOLDER / f"instructgpt_walkthrough{end}.ipynb" for end in ("", "_en"))
CHAPTERS = ["环境", "第一阶段：监督微调", "第二阶段：奖励模型", "第三阶段：PPO", "结果", "练习", "保存、取回、分享"]
# Exercise, the function that is broken in it, and the number of the bug in `mutants.py`.
BROKEN = {3: ("token_rewards", "13a"), 4: ("response_mask", "5b"), 5: ("value_loss", "27c")}
# argv: the notebook. An exercise runs twice: as it is, and with its solution in place of the reader's function.
RUN = """
import json, re, sys
import matplotlib
matplotlib.use("Agg")
names = {"__name__": "__main__"}
cells = {cell["id"]: "".join(cell["source"]) for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
         if cell["cell_type"] == "code" or cell["id"].endswith("-solution")}
for id, source in cells.items():
    if id.endswith("-solution"):
        continue
    exec(compile(source, id, "exec"), names)
    if id.startswith("ex"):
        solution = re.search("```python\\n(.*?)```", cells[id.replace("-code", "-solution")], re.DOTALL)[1]
        solved, count = re.subn(r"def (?!.*def ).*?\\n(?=\\n\\n)", lambda _: solution, source, flags=re.DOTALL)
        assert count == 1, id
        exec(compile(solved, id, "exec"), names)
html = names["view"]._repr_html_()
assert html.count("<p>") == 4 and "rgba(" in html
"""


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook, kind):
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind}


def function(source, name):
    """The tree of a function's body, without its docstring and the check of shapes."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    (found,) = (node for node in functions if node.name == name)
    kept = [node for node in found.body if not (isinstance(node, ast.Expr) and "check_shapes" in ast.unparse(node))]
    return ast.dump(ast.Module([node for node in kept if not isinstance(node, ast.Expr)], []))


@pytest.mark.slow
def test_every_cell_runs_and_the_exercises_can_be_solved(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(CHINESE)], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it/s" not in done.stderr
    assert re.findall(r"练习 (\d)[： ](还没有写|还有错误|正确)", done.stdout) == [
        (number, said) for number in "12345" for said in ("还没有写" if number < "3" else "还有错误", "正确")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", BROKEN)
def test_what_is_broken_in_an_exercise_is_a_known_bug(number):
    name, known = BROKEN[number]
    (mutant,) = (some for some in MUTANTS if some.number == known)
    right = inspect.getsource(getattr(functional, name))
    assert mutant.old in right
    for path in (CHINESE, ENGLISH):
        code, texts = sources(read(path), "code"), sources(read(path), "markdown")
        broken = re.search(r"def (\w+)", code[f"ex{number}-code"])[1]
        assert function(code[f"ex{number}-code"], broken) == function(right.replace(mutant.old, mutant.new), name)
        solution = re.search("```python\n(.*?)```", texts[f"ex{number}-solution"], re.DOTALL)[1]
        assert function(solution, broken) == function(right, name)


def test_it_follows_the_document():
    text = "\n".join(sources(read(CHINESE), "markdown").values())
    assert re.findall(r"^## \d\. (.*)$", text, flags=re.MULTILINE) == CHAPTERS
    assert {f"E{n}" for n in range(1, 10)} <= set(re.findall(r"E\d", text))


def test_both_languages_have_the_same_cells():
    chinese, english = read(CHINESE), read(ENGLISH)
    assert [cell["id"] for cell in chinese["cells"]] == [cell["id"] for cell in english["cells"]]
    for id, text in sources(english, "markdown").items():
        other = sources(chinese, "markdown")[id]
        assert re.search("[一-鿿]{2}", other), id
        for mark in (r"^#+ (?=\d)", r"\$\$", r"`\w+`", r"E\d", "<details>", "```"):
            one, two = (set(re.findall(mark, some, re.MULTILINE)) for some in (text, other))
            assert one == two, (id, mark)
    for id, source in sources(english, "code").items():
        trees = [ast.parse(text) for text in (source, sources(chinese, "code")[id])]
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        assert ast.dump(trees[0]) == ast.dump(trees[1]), id


@pytest.mark.parametrize("path", [CHINESE, ENGLISH], ids=["zh", "en"])
def test_cells_are_short_and_carry_their_outputs(path):
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(len(cell["source"]) <= 32 for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # what may be clipped, curves, pairs
    text = json.dumps(outputs, ensure_ascii=False)
    assert "Error" not in text and "Warning" not in text and not re.search(r"/(tmp|root|home|work|Users)/", text)
