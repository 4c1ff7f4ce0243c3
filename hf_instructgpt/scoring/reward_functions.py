"""Python functions as rewards: names, checks against the data, calls (sync or async) and their results."""

import asyncio
import atexit
import inspect
import os
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import chdir, contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError

ARGUMENTS = ("prompts", "completions", "completion_ids")


def reward_name(func: PreTrainedModel | Callable) -> str:
    """Name of a reward function in errors: a model's folder or repository, or the function's name."""
    if isinstance(func, nn.Module):
        return Path(func.config._name_or_path).name or type(func).__name__
    if isinstance(func, partial) and not hasattr(func, "__name__"):
        return reward_name(func.func)
    return getattr(func, "__name__", type(func).__name__)


def reward_names(funcs: Sequence[PreTrainedModel | Callable]) -> list[str]:
    """Names of reward functions in logs; a name that occurs twice gets its number appended."""
    names: list[str] = []
    for i, func in enumerate(funcs):
        name = reward_name(func)
        names.append(f"{name}_{i}" if name in names else name)
    return names


def check_signatures(funcs: Iterable[Any], datasets: Iterable[Any]) -> None:
    """Raise an `InputError` for a reward function that cannot be called with the columns of a dataset."""
    tables = [names for dataset in datasets if (names := getattr(dataset, "column_names", None)) is not None]
    for func in funcs:
        if not isinstance(func, str | nn.Module) and not callable(func):
            raise InputError(f"`reward_funcs`: {func!r} is no model, no name of one, and no function.")
        for names in tables if not isinstance(func, str | nn.Module) else ():
            _check_signature(func, [name for name in names if name not in ("prompt", *ARGUMENTS)])


def _check_signature(func: Callable, columns: list[str]) -> None:
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return
    try:
        signature.bind(**dict.fromkeys((*ARGUMENTS, *columns)))
    except TypeError as error:
        raise InputError(
            f"the reward function {reward_name(func)} cannot be called: {error}. By name it gets "
            f"{', '.join((*ARGUMENTS, *columns))}: the last are the data set's columns. `**columns` at the end of "
            "its arguments takes those that it does not need."
        ) from error


def call_reward_functions(funcs: Sequence[Callable], **arguments: list) -> list[list[float | None]]:
    """Scores of each completion by each function; async functions run concurrently.

    Raises:
        InputError: A function failed, or returned anything but a number or None for each completion.
    """
    results: list[Any] = []
    with chdir("."):
        for func in funcs:
            with _named(func):
                result = func(**arguments)
                results.append(list(result) if inspect.isgenerator(result) else result)
        waiting = {i: result for i, result in enumerate(results) if inspect.isawaitable(result)}
        if waiting:
            named = [_named_result(funcs[i], result) for i, result in waiting.items()]
            for i, result in zip(waiting, result_of(gather_all(named)), strict=True):
                results[i] = result
    count = len(arguments["completions"])
    return [_as_numbers(result, reward_name(func), count) for func, result in zip(funcs, results, strict=True)]


def result_of(coroutine: Coroutine) -> Any:
    """The result of a coroutine, which is cancelled at Ctrl-C; in a notebook too."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()


@cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """The event loop of this process, in a thread, because a notebook has one running in the main thread."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def close() -> None:
        if os.getpid() == pid:
            asyncio.run_coroutine_threadsafe(_end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    atexit.register(close)
    return loop


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def gather_all(awaitables: list) -> list:
    """Results of awaitables that run concurrently; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _named_result(func: Callable, awaitable) -> Any:
    with _named(func):
        return await awaitable


@contextmanager
def _named(func: Callable) -> Iterator[None]:
    """Turn what a reward function raises, `sys.exit` included, into an `InputError` with its name and line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        file = getattr(getattr(func, "__code__", None), "co_filename", None)
        place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
        raise InputError(
            f"the reward function {reward_name(func)} raised {type(error).__name__}: {error} "
            f"({Path(place.filename).name}, line {place.lineno}). Catch what may fail, and return None for a response "
            "that cannot be scored."
        ) from error


@contextmanager
def as_judge() -> Iterator[None]:
    """Say "the judge" in errors instead of "the reward function"."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("the reward function", "the judge", 1)) from error


def _as_numbers(scores: Any, name: str, count: int) -> list[float | None]:
    """The returned scores as a list of `count` numbers or None."""
    try:
        if isinstance(scores, str | bytes | Mapping | Set):
            raise TypeError(f"it returned a {type(scores).__name__}")
        numbers = [None if score is None else _as_number(score) for score in scores]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the reward function {name} must return a list of numbers (or None), one for each completion in their "
            f"order: {error}."
        ) from error
    if len(numbers) != count:
        raise InputError(f"the reward function {name} returned {len(numbers)} scores for {count} completions.")
    return numbers


def _as_number(score: Any) -> float:
    if isinstance(score, str | bytes):
        raise TypeError(f"{score!r} is text")
    return float(score)
