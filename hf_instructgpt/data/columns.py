"""The columns each stage reads, and the check that a user's data set has them, row by row."""

import math
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# Kind -> the forms it may take; the first is the one a message about missing columns asks for.
FORMS = {
    "sft": (("prompt", "completion"), ("messages",), ("text",)),
    "preference": (("prompt", "chosen", "rejected"),),
    "ranking": (("prompt", "responses", "ranks"),),
    "prompts": (("prompt",),),
}


def check_columns(dataset: "Dataset", kind: str, *, source: str) -> None:
    """Check that every row of `dataset` can be used as `kind`; plain text and lists of messages are both fine.

    Args:
        dataset: a `datasets.Dataset`. Columns the kind does not read are ignored.
        kind: "sft" (`prompt` and `completion`, or `messages`, or `text`), "preference" (`prompt`, `chosen`,
            `rejected`), "ranking" (`prompt`, `responses`, `ranks`) or "prompts" (`prompt`).
        source: the file or data set name to put into the message.

    Raises:
        InputError: naming the source, the row (the first is row 1, a JSONL file's first line) and the column, for
            missing columns, a value of the wrong type, an empty text or message list, a message without role or
            content, fewer than two responses, and responses and ranks of different length.
    """
    form = form_of(dataset.column_names, kind)
    if form is None:
        raise InputError(f"{source}: {_missing(kind, dataset.column_names)}")
    if len(dataset) == 0:
        raise InputError(f"{source}: there are no rows")
    row, kinds = 1, {}
    columns = [*form, "margin"] if "margin" in dataset.column_names and "prompt" in form else list(form)
    for batch in dataset.with_format(None).select_columns(columns).iter(batch_size=1000):
        for offset, column, problem in _problems(batch, form, kinds):
            raise InputError(f"{source}, row {row + offset}, column {column!r}: {problem}")
        row += len(batch[form[0]])


def form_of(columns: Iterable[str], kind: str) -> tuple[str, ...] | None:
    """The columns of a data set that `kind`, which may be "reward", reads; None if it has none of its forms."""
    forms = FORMS["ranking"] + FORMS["preference"] if kind == "reward" else FORMS[kind]
    return next((form for form in forms if set(form) <= set(columns)), None)


def as_ranking(row: dict[str, Any]) -> tuple[str | list, list, list[int]]:
    """Prompt, responses and ranks of a ranking or, as a ranking of two, of a preference."""
    if "ranks" in row:
        return row["prompt"], row["responses"], row["ranks"]
    return row["prompt"], [row["chosen"], row["rejected"]], [1, 2]


def _missing(kind: str, columns: list[str]) -> str:
    wanted = FORMS[kind][0]
    missing = [column for column in wanted if column not in columns]
    others = "".join(f", or {' and '.join(map(repr, form))} alone" for form in FORMS[kind][1:])
    text = f"{kind} data needs the columns {', '.join(map(repr, wanted))}{others}; "
    text += f"missing: {', '.join(map(repr, missing))}; it has: {', '.join(map(repr, columns)) or 'none'}"
    known = [column for form in FORMS[kind] for column in form if column not in columns]
    for column in columns:
        for near in get_close_matches(column, known, n=1, cutoff=0.75):
            text += f"; is {column!r} meant to be {near!r}?"
    return f"{text}. If they have other names, map them, as in `--column_map question={wanted[0]}`."


def _problems(batch: dict[str, list], form: tuple[str, ...], kinds: dict[str, type]) -> Iterator[tuple[int, str, str]]:
    """`kinds` holds what each column was in the rows so far: text, or lists."""
    for offset, row in enumerate(zip(*(batch[column] for column in form), strict=True)):
        for column, value in zip(form, row, strict=True):
            problem = _CHECKS.get(column, _text_or_messages)(value)
            problem = problem or _mixed(kinds.setdefault(column, type(value)), value)
            problem = problem or (_response(value) if column in ("completion", "chosen", "rejected") else None)
            if problem:
                yield offset, column, problem
        if "ranks" in form and len(row[1]) != len(row[2]):
            yield offset, "ranks", f"{len(row[2])} ranks for {len(row[1])} responses; each response needs one"
    for offset, margin in enumerate(batch.get("margin", ())):
        if type(margin) not in (int, float) or not math.isfinite(margin):
            yield offset, "margin", f"{_wrong_type(margin, 'a number')}; write 0 for a row without one"


def _mixed(kind: type, value: Any) -> str | None:
    if isinstance(value, kind):
        return None
    names = {str: "text", list: "messages"}
    return f"{names[type(value)]}, where the rows before have {names[kind]}; make all rows text, or all messages"


def _response(value: str | list) -> str | None:
    """What is wrong with a response whose fields are right: that somebody else than the assistant speaks first."""
    if isinstance(value, str) or value[0]["role"] not in ("user", "system"):
        return None
    return (
        f"the response begins with a message of {value[0]['role']!r}; it must begin with the assistant's. If it "
        "repeats the prompt, it must do so word for word"
    )


def _text_or_messages(value: Any) -> str | None:
    if isinstance(value, list):
        return _messages(value)
    return _text(value, wanted="text or a list of messages")


def _text(value: Any, wanted: str = "text") -> str | None:
    if not isinstance(value, str):
        return _wrong_type(value, wanted)
    return None if value.strip() else "the text is empty"


def _messages(value: Any) -> str | None:
    if not isinstance(value, list):
        return _wrong_type(value, "a list of messages")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            return f"message {number}: {_wrong_type(message, 'a role and a content')}"
        for key in ("role", "content"):
            if key == "content" and message.get("tool_calls") and message.get(key) in (None, ""):
                continue
            # Arrow fills a key that other rows have with None.
            if message.get(key) is None:
                return f"message {number} has no {key!r}"
            problem = _text(message[key])
            if problem:
                return f"message {number}, {key!r}: {problem}"
    return None if value else "the list of messages is empty"


def _responses(value: Any) -> str | None:
    if not isinstance(value, list):
        return _wrong_type(value, "a list of responses")
    if len(value) < 2:
        return f"{len(value)} response(s); a ranking needs at least two"
    problems = (
        (number, _text_or_messages(response) or _mixed(type(value[0]), response) or _response(response))
        for number, response in enumerate(value, 1)
    )
    return next((f"response {number}: {problem}" for number, problem in problems if problem), None)


def _ranks(value: Any) -> str | None:
    # type() rather than isinstance: True is an int, but not a rank.
    if isinstance(value, list) and all(type(rank) is int for rank in value):
        return None
    return _wrong_type(value, "a list of whole numbers")


def _wrong_type(value: Any, wanted: str) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__}) where {wanted} should be"


_CHECKS = {"messages": _messages, "text": _text, "responses": _responses, "ranks": _ranks}
