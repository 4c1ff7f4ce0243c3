"""Can the tests fail? Each bug of `mutants.py` is put into a copy of the package, where its test must go red."""

import multiprocessing
import os
import shutil
import signal
import string
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
NUMBERS = range(1, 63)
TIMEOUT = 240  # seconds; a bug may make a loop endless
# How the report of a failed test begins when an assertion of the test's own made it fail.
ASSERTIONS = ("AssertionError", "assert ", "Failed: DID NOT RAISE")
REPORT, OUTPUT = ".report.xml", ".output.txt"
# Each run is a process of its own, made from one that has imported the libraries, but nothing of ours: seconds saved.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "torch",
        "datasets",
        "matplotlib.figure",
        "peft",
        "pydantic",
        "scipy.stats",
        "transformers.trainer",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "trl.models",
        "trl.trainer.reward_trainer",
        "trl.trainer.sft_trainer",
        "trl.generation.vllm_generation",
    ]
)
PLUGIN = "copy_of_the_package"
# Another installation must not take the copy's place.
PLUGIN_CODE = """
from pathlib import Path
import pytest
import hf_instructgpt

def pytest_configure(config):
    if not Path(hf_instructgpt.__file__).is_relative_to(Path(__file__).parent):
        raise pytest.UsageError(f"{hf_instructgpt.__file__} was imported instead of the copy")
"""


def replaced(mutant: Mutant) -> str:
    """The file's text with the bug in it; a piece that is not there exactly once makes the mutant stale."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    old, new = ((piece,) if isinstance(piece, str) else piece for piece in (mutant.old, mutant.new))
    for before, after in zip(old, new, strict=True):
        count = text.count(before)
        assert count == 1, f"STALE: mutant {mutant.number} looks for a piece that {mutant.file} has {count} times"
        text = text.replace(before, after)
    return text


def copy_checkout(folder: Path) -> None:
    """The package and the tests as files of their own, all else by links."""
    for path in ROOT.iterdir():
        if path.name in ("hf_instructgpt", "tests"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / f"{PLUGIN}.py").write_text(PLUGIN_CODE, encoding="utf-8")


def run_pytest(folder: Path, arguments: list[str]) -> None:
    """What a process does: pytest as from a shell in the copy, its output in a file."""
    os.setsid()
    with (folder / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    here = {"", str(ROOT), str(ROOT / "tests")}
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in here)]
    sys.dont_write_bytecode = True
    pytest.main(arguments)


def run_tests(folder: Path, tests: list[str], *, timeout: float) -> dict[str, str | None]:
    """Run tests in a copy: by node id, None for those that passed, else how they did not."""
    options = ["-p", PLUGIN, "-p", "no:cacheprovider", "-o", "addopts=", f"--basetemp={folder / '.tmp'}"]
    process = PROCESSES.Process(target=run_pytest, args=(folder, [*options, f"--junitxml={folder / REPORT}", *tests]))
    process.start()
    try:
        process.join(timeout)
        assert not process.is_alive(), f"not done after {timeout} seconds"
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started itself
            process.join()
    assert (folder / REPORT).is_file(), (folder / OUTPUT).read_text()[-4000:]
    results = {}
    for case in ElementTree.parse(folder / REPORT).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        test = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        results[test] = None if outcome is None else f"{outcome.tag}: {outcome.get('message')}"
    return results


def check_killed(folder: Path, mutant: Mutant) -> None:
    """A bug must make the test that is named beside it fail, and by an assertion."""
    copy_checkout(folder)
    (folder / mutant.file).write_text(replaced(mutant), encoding="utf-8")
    results = run_tests(folder, [mutant.test], timeout=TIMEOUT)
    assert list(results) == [mutant.test], results
    (result,) = results.values()
    assert result is not None, f"SURVIVED: {mutant.bug}"
    kind, _, message = result.partition(": ")
    assert kind == "failure" and message.startswith(ASSERTIONS), result


def test_every_number_has_a_mutant_whose_place_is_known():
    assert {int(mutant.number.rstrip(string.ascii_lowercase)) for mutant in MUTANTS} == set(NUMBERS)
    assert len({mutant.number for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        text = replaced(mutant)
        if mutant.file.endswith(".py"):
            compile(text, mutant.file, "exec")


@pytest.mark.mutants
def test_all_named_tests_pass_as_the_package_stands(tmp_path):
    copy_checkout(tmp_path)
    tests = list(dict.fromkeys(mutant.test for mutant in MUTANTS))
    assert run_tests(tmp_path, tests, timeout=2 * TIMEOUT) == dict.fromkeys(tests)


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.number)
def test_a_mutant_is_killed(tmp_path, mutant):
    check_killed(tmp_path, mutant)


@pytest.mark.mutants
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("return stops_before == 0", "return stops_before < 1", "SURVIVED"),
        ("return stops_before == 9", "return stops_before == 1", "STALE"),
        ("return stops_before == 0", "return stops_before == nothing", "failure: NameError"),
        ("import torch\n", "import no_such_module\n", "error: collection failure"),
    ],
    ids=["survived", "stale", "error", "not imported"],
)
def test_what_is_no_killed_mutant_is_told(tmp_path, old, new, reason):
    test = "tests/test_functional.py::test_a_response_mask_has_no_hole"
    mutant = Mutant("0", "none", "hf_instructgpt/functional.py", old, new, test)
    with pytest.raises(AssertionError, match=reason):
        check_killed(tmp_path, mutant)
