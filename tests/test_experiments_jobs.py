"""Cells: each run once, whole or not there, gone on with after a stop."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_instructgpt.errors import InputError
from hf_instructgpt.experiments.jobs import run_cells
from hf_instructgpt.resuming.run_folder import run_folder


def work(folder, x, fail=False):
    print("hello from", x)
    with (Path(folder).parent / "calls.txt").open("a") as calls:
        calls.write(f"{x}\n")
    if fail:
        raise InputError(f"x = {x} does not work")
    return {"square": x * x}


@pytest.mark.slow
def test_cells_are_run_once_and_their_output_is_kept(tmp_path, capfd):
    cells = {name: {"x": x} for name, x in (("a", 2), ("b", 3))}
    assert run_cells(work, cells, tmp_path / "cells") == {"a": {"square": 4}, "b": {"square": 9}}
    assert json.loads((tmp_path / "cells" / "a" / "result.json").read_text()) == {"square": 4}
    assert (tmp_path / "cells" / "b" / "log.txt").read_text() == "hello from 3\n"
    assert "(2 of 2)" in capfd.readouterr().out
    (tmp_path / "cells" / "b" / "result.json").unlink()
    assert run_cells(work, cells, tmp_path / "cells")["b"] == {"square": 9}
    assert sorted((tmp_path / "cells" / "calls.txt").read_text().split()) == ["2", "3", "3"]


def test_a_cell_that_fails_is_named_and_the_others_stay(tmp_path):
    cells = {"good": {"x": 1}, "bad": {"x": 2, "fail": True}}
    with pytest.raises(InputError, match="cells, bad: x = 2 does not work"):
        run_cells(work, cells, tmp_path / "cells")
    assert not (tmp_path / "cells" / "bad" / "result.json").exists()
    assert run_cells(work, {"good": {"x": 1}}, tmp_path / "cells") == {"good": {"square": 1}}
    assert (tmp_path / "cells" / "calls.txt").read_text().split().count("1") == 1


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    cells = tmp_path / "lab" / "cells"
    cells.mkdir(parents=True)
    (cells.parent / "run.json").write_text("{}")
    other = os.open(cells, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)  # as another process's
    with pytest.raises(InputError, match="another process is at work in"):
        run_cells(work, {"a": {"x": 1}}, cells)
    with pytest.raises(InputError, match="another process is at work in"):
        open_lab(cells.parent, {}, overwrite=True)
    assert cells.is_dir()
    os.close(other)
    open_lab(cells.parent, {}, overwrite=True)
    assert not cells.exists()


def open_lab(folder, options, *, overwrite=False, resume=False):
    with run_folder(folder, options, writes=["found.json", "cells"], overwrite=overwrite, resume=resume):
        pass


def test_a_folder_is_gone_on_with_or_replaced_only_when_that_is_said(tmp_path):
    folder, options = tmp_path / "new" / "lab", {"seeds": [1, 2], "ppo": {"kl_coef": 0.1}}
    open_lab(folder, options)
    assert json.loads((folder / "run.json").read_text()) == {"seeds": [1, 2], "ppo": {"kl_coef": 0.1}}
    (folder / "cells").mkdir()
    for name in ("found.json", "cells/result.json", "thesis.txt"):
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match="holds another run"):
        open_lab(folder, options)
    open_lab(folder, options, resume=True)
    with pytest.raises(InputError, match=r"`ppo\.kl_coef` differs"):
        open_lab(folder, {**options, "ppo": {"kl_coef": 0.2}}, resume=True)
    with pytest.raises(InputError, match="another command"):
        open_lab(folder, {"seeds": [1, 2]}, overwrite=True)
    assert (folder / "cells" / "result.json").is_file()
    open_lab(folder, {**options, "seeds": [3]}, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "thesis.txt"]
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="holds no run"):
        open_lab(folder, options, overwrite=True)


def stay(folder, pid_file):
    Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    """Also where that is killed and can tell them nothing."""
    pid_file = tmp_path / "pid"
    code = f"""
from pathlib import Path
from test_experiments_jobs import stay
from hf_instructgpt.experiments.jobs import run_cells
if __name__ == "__main__":
    run_cells(stay, {{"a": {{"pid_file": {str(pid_file)!r}}}}}, Path({str(tmp_path / "cells")!r}))
"""
    (tmp_path / "main.py").write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], env={**os.environ, "PYTHONPATH": paths})
    try:
        for _ in range(6000):
            if pid_file.is_file() and pid_file.read_text():
                break
            assert parent.poll() is None
            time.sleep(0.1)
        worker = int(pid_file.read_text())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for _ in range(300):
            if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
                return
            time.sleep(0.1)
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker went on")
    finally:
        parent.kill()
