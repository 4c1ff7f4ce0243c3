"""Run a grid of jobs in worker processes; results are cached on disk, so an interrupted grid can be resumed.

joblib's pool would kill the jobs under way when one fails; that of `concurrent.futures` finishes them.
"""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from ..errors import InputError
from ..files import delete, make_directory, read_json, to_json, write_whole
from ..resuming.checkpoint import alone_in

# A job's result is written last: it marks the job as done.
RESULT_FILE, LOG_FILE = "result.json", "log.txt"


def run_cells(work: Callable[..., dict], cells: dict[str, dict], folder: Path) -> dict[str, dict]:
    """Results of all jobs, by name; a job whose result is in `folder` already is not run again.

    `work(folder=..., **options)`, a function of a module, may write into its folder and returns what goes into JSON.
    There is one worker per core, with one thread each, because tiny models gain nothing from more threads; with an
    accelerator there is one worker. A job that fails is named; the results of the others stay.
    """
    make_directory(folder)
    with alone_in(folder):
        results = {name: read_json(folder / name / RESULT_FILE) for name in cells}
        todo = {name: options for name, options in cells.items() if results[name] is None}
        if todo:
            results |= _run_all(work, todo, folder)
    return results


def _run_all(work: Callable[..., dict], cells: dict[str, dict], folder: Path) -> dict[str, dict]:
    results = {}
    num_workers = 1 if torch.accelerator.is_available() else min(len(cells), _num_cores())
    # Spawned, not forked: a fork leaves torch's threads in an undefined state.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_prepare_worker) as pool:
        futures = {pool.submit(_run_cell, work, options, folder / name): name for name, options in cells.items()}
        try:
            for future in as_completed(futures):
                name = futures[future]
                results[name], seconds = future.result()
                print(f"{folder.name}: {name} done in {seconds:.0f} s ({len(results)} of {len(cells)})", flush=True)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # jobs that are under way are finished
            if isinstance(error, InputError):
                raise InputError(f"{folder.name}, {name}: {error}") from error
            if isinstance(error, Exception):  # if a worker died, any job that was under way
                begun = [path for path in sorted(folder.glob(f"*/{LOG_FILE}")) if path.parent.name in cells]
                logs = ", ".join(str(path) for path in begun if not (path.parent / RESULT_FILE).exists())
                raise RuntimeError(f"{folder.name}, {name} failed; what it printed is in {logs}") from error
            raise
    return results


def _num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    logging.captureWarnings(True)
    # If the parent was killed, a worker would finish its job beside those of a resumed run, and then wait for ever.
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _run_cell(work: Callable[..., dict], options: dict, folder: Path) -> tuple[dict, float]:
    """Run one job and return its result and the seconds it took; what it prints goes into its log."""
    delete(folder)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    with (folder / LOG_FILE).open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        result = work(folder=folder, **options)
    write_whole(folder / RESULT_FILE, to_json(result))
    return result, time.perf_counter() - start
