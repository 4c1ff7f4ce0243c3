"""What a data set's columns tell without a Python object per row: kinds, empty values, and bounds of lengths."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..text import TEMPLATE_COLUMNS, render_prompt, template_options

BATCH = 100_000  # rows that are read at a time, so that memory does not grow with the data set
CHUNK = 1000  # rows that are Python objects at a time
# Bytes that a prompt's tokens may be of beside its own: SentencePiece puts a space in front.
MARGIN = 4
BETWEEN_ROLES = "\x1f"  # in no role; a line break may be


def kind_of(rows: Dataset, column: str) -> str:
    """ "text", "messages" (of `role` and `content` alone, both text), "texts" (a list of them), "ranks" or "other"."""
    return _kind(rows.data.schema.field(column).type)


def _kind(kind: pyarrow.DataType) -> str:
    if _is_text(kind):
        return "text"
    if not pyarrow.types.is_list(kind):
        return "other"
    if not pyarrow.types.is_struct(kind.value_type):
        return (
            "ranks" if pyarrow.types.is_integer(kind.value_type) else "texts" if _is_text(kind.value_type) else "other"
        )
    fields = {field.name: field.type for field in kind.value_type}
    return "messages" if fields.keys() == {"role", "content"} and all(map(_is_text, fields.values())) else "other"


def arrays(rows: Dataset, column: str) -> Iterator[pyarrow.Array]:
    """The values of a column as Arrow's arrays, in order."""
    for table in rows.select_columns([column]).with_format("arrow").iter(batch_size=BATCH):
        yield from table[column].chunks


def strings(rows: Dataset, column: str) -> Iterator[pyarrow.Array]:
    """All texts of a column of text, texts or messages (their contents), some at a time."""
    for array in arrays(rows, column):
        flat = array if _is_text(array.type) else array.flatten()
        yield flat if _is_text(flat.type) else pc.struct_field(flat, "content")


def characters(rows: Dataset, columns: Iterable[str]) -> set[str]:
    """All characters of some columns of text, texts or messages."""
    found: set[str] = set()
    for array in chain.from_iterable(strings(rows, column) for column in columns):
        found.update(chain.from_iterable(filter(None, array.to_pylist())))
    return found


def is_nested(rows: Dataset, column: str) -> bool:
    """Whether the values of a column may be lists or mappings."""
    kind = rows.data.schema.field(column).type
    return pyarrow.types.is_nested(kind) or isinstance(kind, pyarrow.BaseExtensionType)


def any_starts_with(rows: Dataset, column: str, beginnings: tuple[str, ...]) -> bool:
    """Whether a text of a column of text begins, after blanks, with one of some others."""
    trimmed = (pc.utf8_ltrim_whitespace(array) for array in arrays(rows, column))
    return any(pc.any(pc.starts_with(array, text)).as_py() for array in trimmed for text in beginnings)


def is_filled(rows: Dataset, column: str) -> bool:
    """Whether a column of text, texts or messages has no value, and no part of one, that is None, blank or empty."""
    return all((sizes > 0).all() for sizes, _ in _sizes(rows, column))


def counts(rows: Dataset, column: str) -> np.ndarray:
    """The length `(N,)` of each list of a column, 0 for None."""
    found = [pc.fill_null(pc.list_value_length(array), 0) for array in arrays(rows, column)]
    return np.concatenate([np.zeros(0, int), *(array.to_numpy(zero_copy_only=False) for array in found)])


def lengths_and_last(rows: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The length and the last number of each list of a column of numbers, `(N,)` each; -1 for an empty list."""
    last = [np.zeros(0, int)]
    for array in arrays(rows, column):
        sizes = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        numbers = np.concatenate([[-1], array.flatten().to_numpy(zero_copy_only=False)])
        last.append(np.where(sizes > 0, numbers[np.cumsum(sizes)], -1))
    return counts(rows, column), np.concatenate(last)


def lowest_ranks(rows: Dataset) -> np.ndarray | None:
    """The lowest of the `ranks` `(N,)` of each row; None if they are no lists of whole numbers, or one is empty."""
    found = [np.zeros(0, int)]
    for array in arrays(rows, "ranks") if kind_of(rows, "ranks") == "ranks" else ():
        sizes = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        ranks = array.flatten()
        if ranks.null_count or not (sizes > 0).all():
            return None
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        found.append(np.minimum.reduceat(ranks.to_numpy(zero_copy_only=False), starts))
    return np.concatenate(found) if kind_of(rows, "ranks") == "ranks" else None


def role_sequences(rows: Dataset, column: str) -> tuple[np.ndarray, list[list[str]]]:
    """Which sequence of roles each row's messages have `(N,)`, and the sequences; one, empty, for other columns."""
    if kind_of(rows, column) != "messages":
        return np.zeros(len(rows), int), [[]]
    known: dict[str, int] = {}
    found = [np.zeros(0, int)]
    for _, roles in _sizes(rows, column):
        codes = [known.setdefault(name, len(known)) for name in roles.dictionary.to_pylist()]
        found.append(np.array(codes, int)[roles.indices])
    return np.concatenate(found), [name.split(BETWEEN_ROLES) for name in known]


def first_roles(rows: Dataset, columns: Iterable[str]) -> set[str]:
    """The roles of the first messages in some columns."""
    return {roles[0] for column in columns for roles in role_sequences(rows, column)[1] if roles}


def first_of_each(rows: Dataset, columns: Iterable[str]) -> np.ndarray:
    """The first row (from 0) of each combination of sequences of roles in some columns."""
    codes = np.zeros(len(rows), int)
    for column in columns:
        mine, sequences = role_sequences(rows, column)
        codes = codes * len(sequences) + mine
    return np.sort(np.unique(codes, return_index=True)[1])


def length_bounds(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Upper bounds `(N,)` of the prompts' numbers of tokens, from their bytes; infinite where they tell none.

    A token is made of at least one byte, of the prompt or of what the chat template writes for its roles. A tokenizer
    that turns a byte into several tokens may break a bound, so prompts are measured once more when they are drawn.
    """
    added = MARGIN + len(tokenizer("")["input_ids"])
    kind, options = kind_of(rows, "prompt"), any(name in rows.column_names for name in TEMPLATE_COLUMNS)
    if kind == "text":
        found = [np.where(sizes > 0, sizes + added, np.inf) for sizes, _ in _sizes(rows, "prompt")]
    elif kind == "messages" and not options:
        codes, sequences = role_sequences(rows, "prompt")
        written = np.array([_written(tokenizer, roles, {}) for roles in sequences])[codes]
        sizes = np.concatenate([some for some, _ in _sizes(rows, "prompt")])
        found = [np.where(sizes > 0, sizes + written + added, np.inf)]
    else:
        found = [_bounds_of_rows(rows, tokenizer) + added]
    return np.concatenate(found) if found else np.zeros(0)


def rows_at(rows: Dataset, numbers: np.ndarray, *columns: str) -> Iterator[list[tuple[int, dict]]]:
    """The rows of these numbers (from 0) with those columns that are there, each with its number; some at a time."""
    chosen = rows.with_format(None).select_columns([column for column in columns if column in rows.column_names])
    for some in np.split(numbers, range(CHUNK, len(numbers), CHUNK)) if len(numbers) else ():
        batch = chosen[some.tolist()]
        values = zip(*batch.values(), strict=True)
        yield [(number, dict(zip(batch, row, strict=True))) for number, row in zip(some.tolist(), values, strict=True)]


def _bounds_of_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The bounds of [`length_bounds`] for prompts that are stored as JSON, or with options of the chat template."""
    bounds, written = np.full(len(rows), np.inf), {}
    for number, row in chain.from_iterable(rows_at(rows, np.arange(len(rows)), "prompt", *TEMPLATE_COLUMNS)):
        prompt = row.pop("prompt")
        if isinstance(prompt, str) and not row:
            bounds[number] = len(prompt.encode()) if prompt.strip() else np.inf
        elif isinstance(prompt, list) and prompt and all(map(_is_plain, prompt)):
            roles = [message["role"] for message in prompt]
            key = json.dumps([roles, row], sort_keys=True, default=str)
            if key not in written:
                written[key] = _written(tokenizer, roles, row)
            bounds[number] = sum(len(message["content"].encode()) for message in prompt) + written[key]
    return bounds


def _is_plain(message: Any) -> bool:
    is_plain = isinstance(message, dict) and message.keys() == {"role", "content"}
    return is_plain and all(isinstance(text, str) and text.strip() for text in message.values())


def _written(tokenizer: PreTrainedTokenizerBase, roles: list[str], options: dict) -> float:
    """Bytes that the chat template writes around messages of these roles; infinite if it refuses them."""
    try:
        messages = [{"role": role, "content": "x"} for role in roles]
        return len(render_prompt(tokenizer, messages, tokenize=False, **template_options(options)).encode())
    except Exception:  # whatever a template raises, its own row will raise again, with its number
        return np.inf


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _sizes(rows: Dataset, column: str) -> Iterator[tuple[np.ndarray, pyarrow.DictionaryArray | None]]:
    """Bytes of each value, 0 if it or a part of it is None or blank, and the roles of messages; batch by batch."""
    kind = kind_of(rows, column)
    for array in arrays(rows, column):
        if kind == "text":
            yield _text_sizes(array), None
            continue
        number = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        borders, values, roles = np.concatenate([[0], np.cumsum(number)]), array.flatten(), None
        sizes = _text_sizes(values if kind == "texts" else pc.struct_field(values, "content"))
        bad = sizes == 0
        if kind == "messages":
            names = pc.struct_field(values, "role").cast("string")
            bad = bad | (_text_sizes(names) == 0)
            lists = pyarrow.ListArray.from_arrays(pyarrow.array(borders, pyarrow.int32()), names)
            roles = pc.fill_null(pc.binary_join(lists, BETWEEN_ROLES), "").dictionary_encode()
        total, bad = (np.concatenate([[0], np.cumsum(some)]) for some in (sizes, bad))
        is_whole = (number > 0) & (np.diff(bad[borders]) == 0)
        yield np.where(is_whole, np.diff(total[borders]), 0), roles


def _text_sizes(array: pyarrow.Array) -> np.ndarray:
    sizes = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
    filled = pc.binary_length(pc.utf8_trim_whitespace(array))
    return np.where(pc.fill_null(filled, 0).to_numpy(zero_copy_only=False) > 0, sizes, 0)
