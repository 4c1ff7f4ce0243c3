"""The columns that each stage reads, and the check of a user's data against them, row by row."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import permutations
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

# Kind -> its forms; the first is the one that a message about missing columns asks for.
FORMS = {
    "sft": (("prompt", "completion"), ("messages",), ("text",)),
    "preference": (("prompt", "chosen", "rejected"),),
    "ranking": (("prompt", "responses", "ranks"),),
    "prompts": (("prompt",),),
}


def check_columns(dataset: "Dataset", kind: str, *, source: str) -> None:
    """Check that every row can be used as `kind`, a key of `FORMS`; errors name `source`, the row and the column."""
    form = form_of(dataset.column_names, kind)
    if form is None:
        raise InputError(f"{source}: {_missing(kind, dataset.column_names)}")
    if len(dataset) == 0:
        raise InputError(f"{source}: there are no rows")
    if _is_clear(dataset, form):
        return
    columns = [*form, "margin"] if "margin" in dataset.column_names and "prompt" in form else list(form)
    number, types = 0, {}
    for batch in dataset.with_format(None).select_columns(columns).iter(batch_size=1000):
        for values in zip(*(batch[column] for column in columns), strict=True):
            number, row = number + 1, dict(zip(columns, values, strict=True))
            for column, value in row.items():
                if problem := _problem(column, value, row, types):
                    raise InputError(f"{source}, row {number}, column {column!r}: {problem}")


def _is_clear(dataset: "Dataset", form: tuple[str, ...]) -> bool:
    """Whether the columns alone tell that no row has a fault, so that none need be read as Python objects."""
    from . import by_column  # here, as `datasets` is: it takes seconds to import

    fits = {"text": ("text",), "messages": ("messages",), "responses": ("texts",), "ranks": ("ranks",)}
    kinds = [by_column.kind_of(dataset, column) in fits.get(column, ("text", "messages")) for column in form]
    if "margin" in dataset.column_names or not all(kinds):
        return False
    if "ranks" in form:
        counts = by_column.counts(dataset, "responses")
        is_whole = by_column.lowest_ranks(dataset) is not None and counts.min() > 1
        if not is_whole or (counts != by_column.counts(dataset, "ranks")).any():
            return False
    if not all(by_column.is_filled(dataset, column) for column in form if column != "ranks"):
        return False
    answers = [column for column in form if column in ("completion", "chosen", "rejected")]
    return by_column.first_roles(dataset, answers).isdisjoint(("user", "system"))


def form_of(columns: Iterable[str], kind: str) -> tuple[str, ...] | None:
    """The columns of a data set that `kind`, which may be "reward", reads; None if it has none of its forms."""
    forms = FORMS["ranking"] + FORMS["preference"] if kind == "reward" else FORMS[kind]
    return next((form for form in forms if set(form) <= set(columns)), None)


def ranked_pairs(responses: list, ranks: list[int]) -> list[tuple[int, int]]:
    """All (better, worse) index pairs of one ranking; ties and identical responses give none. Rank 1 is best."""
    return [
        (better, worse)
        for better, worse in permutations(range(len(ranks)), 2)
        if ranks[better] < ranks[worse] and responses[better] != responses[worse]
    ]


def as_ranking(row: dict[str, Any]) -> tuple[str | list, list, list[int]]:
    """Prompt, responses and ranks of a ranking, or of a preference as a ranking of two."""
    if "ranks" in row:
        return row["prompt"], row["responses"], row["ranks"]
    return row["prompt"], [row["chosen"], row["rejected"]], [1, 2]


def _missing(kind: str, columns: list[str]) -> str:
    wanted, *others = FORMS[kind]
    missing = [column for column in wanted if column not in columns]
    text = f"{kind} data needs the columns {', '.join(map(repr, wanted))}"
    text += "".join(f", or {' and '.join(map(repr, form))} alone" for form in others)
    text += f"; missing: {', '.join(map(repr, missing))}; it has: {', '.join(map(repr, columns)) or 'none'}"
    known = [column for form in FORMS[kind] for column in form if column not in columns]
    for column in columns:
        for near in get_close_matches(column, known, n=1, cutoff=0.75):
            text += f"; is {column!r} meant to be {near!r}?"
    return f"{text}. If they have other names, map them, as in `--column_map question={wanted[0]}`."


def _problem(column: str, value: Any, row: dict, types: dict[str, type]) -> str | None:
    """What is wrong with a value; `types` holds the type of each column in the rows before: text or lists."""
    if column == "margin":
        is_number = type(value) in (int, float) and math.isfinite(value)
        return None if is_number else f"{_wrong_type(value, 'a number')}; write 0 for a row without one"
    if column == "ranks":
        return _ranks(value, row["responses"])
    check = {"messages": _messages, "text": _text, "responses": _responses}.get(column, _text_or_messages)
    problem = check(value) or _mixed(types.setdefault(column, type(value)), value)
    return problem or (_response(value) if column in ("completion", "chosen", "rejected") else None)


def _mixed(before: type, value: Any) -> str | None:
    if isinstance(value, before):
        return None
    names = {str: "text", list: "messages"}
    return f"{names[type(value)]}, where the rows before have {names[before]}; make all rows text, or all messages"


def _response(value: str | list) -> str | None:
    if isinstance(value, str) or value[0]["role"] not in ("user", "system"):
        return None
    return (
        f"the response begins with a message of {value[0]['role']!r}; it must begin with the assistant's. If it "
        "repeats the prompt, it must do so word for word"
    )


def _text_or_messages(value: Any) -> str | None:
    return _messages(value) if isinstance(value, list) else _text(value, wanted="text or a list of messages")


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
            if message.get(key) is None:  # or Arrow filled it in, because other rows have the key
                return f"message {number} has no {key!r}"
            if problem := _text(message[key]):
                return f"message {number}, {key!r}: {problem}"
    return None if value else "the list of messages is empty"


def _responses(value: Any) -> str | None:
    if not isinstance(value, list):
        return _wrong_type(value, "a list of responses")
    if len(value) < 2:
        return f"{len(value)} response(s); a ranking needs at least two"
    for number, response in enumerate(value, 1):
        problem = _text_or_messages(response) or _mixed(type(value[0]), response) or _response(response)
        if problem:
            return f"response {number}: {problem}"
    return None


def _ranks(value: Any, responses: list) -> str | None:
    # type() and not isinstance: True is an int, but no rank.
    if not isinstance(value, list) or any(type(rank) is not int for rank in value):
        return _wrong_type(value, "a list of whole numbers")
    if len(value) != len(responses):
        return f"{len(value)} ranks for {len(responses)} responses; each response needs one"
    return None


def _wrong_type(value: Any, wanted: str) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__}) where {wanted} should be"
