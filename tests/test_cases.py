"""What people bring, as `tests/cases/run.py` tries it; each case is a test."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("cases_run", Path(__file__).parent / "cases" / "run.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)


def parameter(path):
    """A case's parameter; those that say `SLOW = True` are marked."""
    marks = pytest.mark.slow if "\nSLOW = True" in path.read_text(encoding="utf-8") else ()
    return pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=marks)


@pytest.mark.parametrize("path", map(parameter, cases.case_files([])))
def test_case(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases.load_case(path).check(tmp_path)


def test_a_wrong_case_counts(tmp_path, monkeypatch, capsys):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "bad.py").write_text('"""Bad."""\n\n\ndef check(folder):\n    assert False\n')
    (tmp_path / "room" / "good.py").write_text('"""Good."""\n\n\ndef check(folder):\n    pass\n')
    monkeypatch.setattr(cases, "HERE", tmp_path)
    assert cases.main([]) == 1
    assert "1 of 2 cases are right." in capsys.readouterr().out
