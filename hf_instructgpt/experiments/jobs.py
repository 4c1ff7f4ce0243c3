"""Run a grid of jobs in worker processes; results are kept on disk, so that a grid that was stopped can be resumed.

A job's folder holds what it wrote, `log.txt`, and `result.json`, which is written last. (joblib's pool would kill the
jobs under way when one fails; `concurrent.futures` finishes them.)
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch

from ..errors import InputError
from ..files import delete, make_directory, read_json, to_json, write_whole
from ..resuming.checkpoint import alone_in
from ..resuming.run_folder import RUN_FILE, open_run

RESULT_FILE, LOG_FILE = "result.json", "log.txt"


def open_folder(folder: Path, options: dict, *, writes: Sequence[str], overwrite: bool, resume: bool) -> None:
    """Make or reopen the folder of an experiment's run.

    `writes` names the files and folders that the run writes, all that `overwrite` may delete; the file that says
    that a run is finished comes first.
    """
    known = read_json(folder / RUN_FILE)
    if known is not None and known.keys() != options.keys():
        raise InputError(f"{folder} holds a run of another command. Choose another `output_dir`.")

    def delete_run() -> None:
        for path in (folder / name for name in writes):
            if path.is_dir():
                with alone_in(path):
                    delete(path)
            delete(path)

    open_run(folder, json.loads(to_json(options)), delete_run=delete_run, overwrite=overwrite, resume=resume)


def run_cells(work: Callable[..., dict], cells: dict[str, dict], folder: Path) -> dict[str, dict]:
    """Run `work(folder=..., **options) -> dict` for each cell's options, and return the results by name.

    A cell whose result is in `folder` is not run again. There is one worker per core, with one thread, because tiny
    models gain nothing from more; with an accelerator there is one worker.
    """
    make_directory(folder)
    with alone_in(folder):
        return _run_cells(work, cells, folder)


def _run_cells(work: Callable[..., dict], cells: dict[str, dict], folder: Path) -> dict[str, dict]:
    results = {name: read_json(folder / name / RESULT_FILE) for name in cells}
    todo = [name for name, result in results.items() if result is None]
    if not todo:
        return results
    has_accelerator = torch.accelerator.is_available()
    num_workers = 1 if has_accelerator else min(len(todo), _num_cores())
    # Started anew rather than forked: a fork keeps torch's threads in an undefined state.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_prepare_worker) as pool:
        futures = {pool.submit(_run_cell, work, cells[name], folder / name): name for name in todo}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                name = futures[future]
                results[name], seconds = future.result()
                print(f"{folder.name}: {name} done in {seconds:.0f} s ({number} of {len(todo)})", flush=True)
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # cells that are under way are finished
            if isinstance(error, InputError):
                raise InputError(f"{folder.name}, {name}: {error}") from error
            if isinstance(error, Exception):  # with a worker that died, any cell that was under way
                logs = sorted(
                    path for path in folder.glob(f"*/{LOG_FILE}") if not (path.parent / RESULT_FILE).exists()
                )
                raise RuntimeError(
                    f"{folder.name}, {name} failed; what it printed is in {', '.join(map(str, logs))}"
                ) from error
            raise
    return results


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    logging.captureWarnings(True)
    # A worker whose parent was killed would finish its cell beside those of a resumed run, and then wait for ever.
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _run_cell(work: Callable[..., dict], options: dict, folder: Path) -> tuple[dict, float]:
    """Run one cell; what it prints goes into its log."""
    delete(folder)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    with (folder / LOG_FILE).open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        result = work(folder=folder, **options)
    write_whole(folder / RESULT_FILE, to_json(result))
    return result, time.perf_counter() - start
