"""Python functions as rewards: names, checks against the data, calls (sync or async) and their errors."""

import asyncio
import atexit
import inspect
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import InputError
from .token_scores import read_reward, total

logger = logging.get_logger(__name__)

ARGUMENTS = ("prompts", "completions", "completion_ids")
EXTRAS = ("trainer_state", "log_metric", "log_extra")
# Seconds that are spent on finding the response at which a function failed.
MAX_SEARCH = 10


def _ignored(*_: Any, **__: Any) -> None:
    pass


@dataclass
class Calling:
    """How a trainer calls reward functions: the arguments of `EXTRAS`, and the patience with async functions."""

    trainer_state: Any = None
    log_metric: Callable[[str, float], None] = _ignored
    log_extra: Callable[[str, list], None] = _ignored
    timeout: float | None = None  # seconds per call of an async function
    retries: int = 0


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
    name = reward_name(func)
    if isinstance(func, partial):
        if taken := sorted(func.keywords.keys() & {*ARGUMENTS, *EXTRAS, *columns}):
            raise InputError(
                f"the reward function {name} has the argument `{taken[0]}` already, and it is also passed with each "
                "call: rename one of them."
            )
        try:
            inspect.signature(func.func).bind_partial(*func.args, **func.keywords)
        except ValueError:  # no signature
            return
        except TypeError as error:
            raise InputError(
                f"the reward function {name} cannot be called with {dict(func.keywords)}: {error}."
            ) from error
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return
    try:
        signature.bind(**dict.fromkeys((*ARGUMENTS, *columns, *_accepted(func))))
    except TypeError as error:
        raise InputError(
            f"the reward function {name} cannot be called: {error}. By name it gets "
            f"{', '.join((*ARGUMENTS, *columns))}: the last are the data set's columns. `**columns` at the end of "
            f"its arguments takes those that it does not need. It may also ask for {', '.join(EXTRAS)}."
        ) from error


def _accepted(func: Callable) -> list[str]:
    """The arguments of `EXTRAS` that a function takes."""
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):
        return []
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in EXTRAS if takes_all or name in parameters]


def call_reward_functions(funcs: Sequence[Callable], **arguments: list) -> list[list[float | None]]:
    """Scores of each completion by each function: numbers, or the sums of what it gave tokens or spans.

    Raises:
        InputError: A function failed, or returned something else for a completion.
    """
    rewards = call_functions(funcs, arguments, tokenizer=None, calling=Calling())
    return [list(map(total, some)) for some in rewards]


def call_functions(
    funcs: Sequence[Callable],
    arguments: dict[str, list],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    calling: Calling,
) -> list[list[float | list[float] | None]]:
    """What each function gives each completion, as [`read_reward`] reads it; async functions run concurrently.

    `tokenizer` is that of `completion_ids`.
    """
    results: list[Any] = []
    reports: list[list[Callable]] = [[] for _ in funcs]  # what an async function logs counts if the call succeeds
    named = [arguments | _extras(func, calling, calls) for func, calls in zip(funcs, reports, strict=True)]
    with chdir("."):
        for func, given in zip(funcs, named, strict=True):
            try:
                result = func(**given)
                results.append(list(result) if inspect.isgenerator(result) else result)
            except (Exception, SystemExit) as error:
                raise _failure(func, error, arguments, _failing_row(func, given, arguments, error)) from error
        waiting = {i: result for i, result in enumerate(results) if inspect.isawaitable(result)}
        if waiting:
            attempts = [
                _attempts(funcs[i], named[i], result, calling, arguments, reports[i]) for i, result in waiting.items()
            ]
            for i, result in zip(waiting, result_of(gather_all(attempts)), strict=True):
                results[i] = result
    for report in (report for calls in reports for report in calls):
        report()
    return [_read(result, func, arguments, tokenizer) for func, result in zip(funcs, results, strict=True)]


def _extras(func: Callable, calling: Calling, calls: list[Callable]) -> dict[str, Any]:
    """The arguments of `EXTRAS` for a function; an async one's, which may be repeated, note how they are called."""
    found = {name: getattr(calling, name) for name in _accepted(func)}
    if inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None)):  # noqa: B004
        for name in found.keys() & {"log_metric", "log_extra"}:
            found[name] = partial(_note, calls, found[name])
    return found


def _note(calls: list[Callable], report: Callable, *args: Any, **kwargs: Any) -> None:
    calls.append(partial(report, *args, **kwargs))


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


async def _attempts(
    func: Callable, given: dict, awaitable: Any, calling: Calling, arguments: dict, reports: list[Callable]
) -> Any:
    """The result of an async function, called again after 1, 2, 4, ... seconds where it fails or takes too long."""
    for attempt in range(calling.retries + 1):
        start = time.monotonic()
        try:
            return await asyncio.wait_for(awaitable if attempt == 0 else func(**given), calling.timeout)
        except (Exception, SystemExit) as error:
            reports.clear()
            failure = error
            if isinstance(error, TimeoutError) and time.monotonic() - start >= (calling.timeout or float("inf")):
                failure = TimeoutError(f"no result after `reward_timeout` = {calling.timeout:g} seconds")
                failure.__traceback__ = error.__traceback__
            if attempt == calling.retries or isinstance(error, SystemExit):
                raise _failure(func, failure, arguments) from error
        logger.warning(
            f"The reward function {reward_name(func)} raised {type(failure).__name__}: {failure}. It is called again "
            f"in {2**attempt} s (`reward_retries`: {attempt + 1} of {calling.retries})."
        )
        await asyncio.sleep(2**attempt)


def _failing_row(func: Callable, given: dict, arguments: dict, error: BaseException) -> int | None:
    """The first completion for which the function, called for it alone, fails in the same way, if one is found."""
    count, quiet = len(arguments["completions"]), dict.fromkeys(EXTRAS[1:], _ignored)
    end = time.monotonic() + MAX_SEARCH
    for row in range(count if isinstance(error, Exception) else 0):
        if time.monotonic() > end:
            return None
        alone = {name: [values[row]] for name, values in arguments.items()}
        try:
            result = func(**{name: quiet.get(name, value) for name, value in given.items()} | alone)
            if inspect.isgenerator(result):
                list(result)
        except type(error):
            return row
        except (Exception, SystemExit):
            return None
    return None


def _failure(func: Callable, error: BaseException, arguments: dict, row: int | None = None) -> InputError:
    """The error of a function that raised one, `sys.exit` included, with its name, its line and the response."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(getattr(func, "__code__", None), "co_filename", None)
    place = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return InputError(
        f"the reward function {reward_name(func)} raised {type(error).__name__}: {error} "
        f"({Path(place.filename).name}, line {place.lineno}) for {_which(arguments, row)}. Catch what may fail, and "
        "return None for a response that cannot be scored."
    )


def _which(arguments: dict, row: int | None) -> str:
    """A response of a call by its number and prompt, or the whole call."""
    count, prompts = len(arguments["completions"]), arguments.get("prompts")
    if row is None and count > 1:
        first = f"; the first prompt is {_short(prompts[0])}" if prompts else ""
        return f"responses 0 to {count - 1} of a call{first}"
    return f"response {row or 0}" + (f", to the prompt {_short(prompts[row or 0])}" if prompts else "")


def _short(prompt: Any) -> str:
    text = repr(prompt if isinstance(prompt, str) else prompt[-1].get("content") if prompt else "")
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def as_judge() -> Iterator[None]:
    """Say "the judge" in errors instead of "the reward function"."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("the reward function", "the judge", 1)) from error


def _read(
    results: Any, func: Callable, arguments: dict, tokenizer: PreTrainedTokenizerBase | None
) -> list[float | list[float] | None]:
    """What a function returned, for each completion None, a number or a number per token."""
    name, completions, ids = reward_name(func), arguments["completions"], arguments.get("completion_ids")
    must = (
        f"the reward function {name} must return a list of numbers (or None), one for each completion in their order; "
        "a completion may also have a list with a number for each of its `completion_ids`, or with `RewardSpan`s"
    )
    try:
        if isinstance(results, str | bytes | Mapping | Set):
            raise TypeError(f"it returned a {type(results).__name__}")
        results = list(results)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{must}: {error}.") from error
    if len(results) != len(completions):
        raise InputError(
            f"the reward function {name} returned {len(results)} scores for {len(completions)} completions."
        )
    rewards = []
    for row, (result, completion) in enumerate(zip(results, completions, strict=True)):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        try:
            if ids is None and isinstance(result, list | tuple):
                raise TypeError("it gets no `completion_ids` here")
            own_ids = ids[row] if ids is not None else []
            rewards.append(read_reward(result, ids=own_ids, text=text, tokenizer=tokenizer))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{must}. For {_which(arguments, row)} it returned something else: {error}.") from error
    return rewards
