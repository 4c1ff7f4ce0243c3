"""Many runs as the cells of a table: made in worker processes, kept on disk, gone on with after a stop."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import torch

from ..errors import InputError
from ..stages.output import make_directory, partial_directory, read_json, to_json

RESULT_FILE, LOG_FILE = "result.json", "log.txt"


def run_cells(work: Callable[..., dict], cells: dict[str, dict], folder: Path) -> dict[str, dict]:
    """Results of all cells, by name; a cell whose result is in `folder` already is not run again.

    One worker for each core, of one thread each: tiny models gain nothing from more threads. With an accelerator
    there is one worker.

    Args:
        work (`Callable`): A function of a module, `work(folder=..., **options) -> dict`: it may write into `folder`,
            and what it returns goes into JSON.
        cells (`dict[str, dict]`): Options of `work` by the cell's name, which becomes a folder's.
        folder (`Path`): Where the cells go.

    Raises:
        InputError: A cell could not be run. Those that are done stay.
    """
    make_directory(folder)
    results = {name: read_json(folder / name / RESULT_FILE) for name in cells}
    todo = [name for name, result in results.items() if result is None]
    if not todo:
        return results
    has_accelerator = torch.accelerator.is_available()
    num_workers = 1 if has_accelerator else min(len(todo), len(os.sched_getaffinity(0)))
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
            if not isinstance(error, InputError):
                raise
            raise InputError(f"{folder.name}, {name}: {error}") from error
    return results


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    logging.captureWarnings(True)


def _run_cell(work: Callable[..., dict], options: dict, folder: Path) -> tuple[dict, float]:
    """Run one cell aside and move it into place when whole; what it prints goes into its log."""
    aside = partial_directory(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    start = time.perf_counter()
    with (aside / LOG_FILE).open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        result = work(folder=aside, **options)
    (aside / RESULT_FILE).write_text(to_json(result), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return result, time.perf_counter() - start
