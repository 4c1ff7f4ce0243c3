"""Load the data that a stage's arguments name: rows, their checks, and what is held out."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from jinja2 import TemplateError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..char_gpt import CharGPTTokenizer
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..data.by_column import (
    characters,
    first_of_each,
    kind_of,
    length_bounds,
    role_sequences,
    rows_at,
    strings,
)
from ..data.columns import check_columns, form_of
from ..data.reading import dataset_of, read_rows
from ..data.shapes import shaped
from ..errors import InputError
from ..models.forward import context_length
from ..text import (
    TEMPLATE_COLUMNS,
    encode_row,
    encode_text,
    special_token_breaker,
    special_token_pattern,
    template_options,
    whole_text,
)
from .arguments import StageArguments

if TYPE_CHECKING:
    from .parsing import TrainerConfig

logger = logging.get_logger(__name__)

TEXT_COLUMNS = ("prompt", "completion", "messages", "chosen", "rejected", "responses")
# Roles that chat templates know. Others may belong to a template, or may be misspelt.
ROLES = {"system", "developer", "user", "assistant", "tool"}


def load_stage_datasets(args: StageArguments, kind: str, *, needs_eval: bool) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows of a stage ("sft", "reward" or "prompts"), with checked columns.

    A missing evaluation split is None, or an `InputError` if `needs_eval`.
    """
    dataset, source, test = load_rows(args, kind), args.dataset_name, args.dataset_test_split
    train = checked_split(dataset, args.dataset_train_split, kind, source=source)
    if test not in dataset and not needs_eval:
        return train, None
    return train, checked_split(dataset, test, kind, source=source, option="dataset_test_split")


def load_text(option: str, args: StageArguments, tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
    """The text that an option beside `dataset_name` names, such as PPO-ptx's, as [`rows_to_read`] if with a tokenizer.

    It gets the `chat_template_kwargs` of the stage, unless it has its own.
    """
    name, split = getattr(args, option), args.dataset_train_split
    options = {"dataset_train_split": split, "allow_special_tokens": args.allow_special_tokens}
    args_of_text = StageArguments(dataset_name=name, **options)
    try:
        dataset = load_rows(args_of_text, "sft")
    except InputError as error:
        raise InputError(str(error).replace("`dataset_name`", f"`{option}`")) from error
    rows = checked_split(dataset, split, "sft", source=name, option=option)
    if args.chat_template_kwargs is not None and "chat_template_kwargs" not in rows.column_names:
        rows = _with_template_kwargs(rows, args)
    return rows if tokenizer is None else rows_to_read(rows, args_of_text, tokenizer)


def load_rows(args: StageArguments, kind: str, *splits: str) -> DatasetDict:
    """All splits of a data set; those that a stage reads, and `splits`, in the shape of `kind`, but not checked."""
    names = tuple(sorted({args.dataset_train_split, args.dataset_test_split, "test", *splits}))
    if args.dataset_name in (None, *SAMPLE_DATASETS):
        dataset = raw_rows(args, kind)
    else:
        options = json.dumps([args.dataset_name, args.dataset_config, args.column_map, args.max_rows])
        dataset = DatasetDict(_shaped_rows(options, kind, names, _state(args.dataset_name)))
    if args.chat_template_kwargs is not None:
        for split in {*names} & {*dataset}:
            dataset[split] = _with_template_kwargs(dataset[split], args)
    return dataset if args.dataset_test_fraction is None else _hold_out(dataset, args)


@lru_cache(maxsize=8)
def _shaped_rows(options: str, kind: str, splits: tuple[str, ...], state: tuple) -> DatasetDict:
    """What [`load_rows`] reads, kept because a command reads it several times, until the files' `state` changes."""
    name, config, column_map, max_rows = json.loads(options)
    args = StageArguments(dataset_name=name, dataset_config=config, column_map=column_map, max_rows=max_rows)
    dataset = raw_rows(args, kind)
    for split in {*splits} & {*dataset}:
        dataset[split] = shaped(dataset[split], kind, source=f"{name} ({split})")
    return dataset


def _state(name: str) -> tuple:
    path = Path(name).absolute()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.exists()]
    return tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats)


def raw_rows(args: StageArguments, kind: str) -> DatasetDict:
    """All splits of a data set, with the names of `column_map`; of sample data the configuration of `kind`."""
    name = args.dataset_name
    if name is None:
        raise InputError("`dataset_name` is missing: a Hub id, a folder, a file, `document`, `lab` or `lab-en`.")
    if name in SAMPLE_DATASETS:
        for option in ("dataset_test_fraction", "column_map", "max_rows"):
            if getattr(args, option) is not None:
                raise InputError(f"`{option}`: the sample data `{name}` is used unchanged; leave the option out.")
        if kind == "reward":
            kind = "ranking" if "ranking" in SAMPLE_DATASETS[name] else "preference"
        return load_sample_dataset(name, args.dataset_config or kind)
    try:
        dataset = read_rows(name, args.dataset_config, max_rows=args.max_rows)
    except InputError as error:
        samples = ", ".join(f"`{sample}`" for sample in SAMPLE_DATASETS)
        hint = "" if Path(name).exists() else f" (There is the sample data {samples}.)"
        raise InputError(f"`dataset_name`: {error}{hint}") from error
    return DatasetDict({split: _renamed(rows, args) for split, rows in dataset.items()})


def _renamed(rows: Dataset, args: StageArguments) -> Dataset:
    names, columns = args.column_map or {}, rows.column_names
    if missing := [old for old in names if old not in columns]:
        raise InputError(
            f"`column_map`: {args.dataset_name} has no column {missing[0]!r}; it has {', '.join(columns)}."
        )
    taken = [new for new in names.values() if new in columns and new not in names]
    return rows.remove_columns(taken).rename_columns(names) if names else rows


def _with_template_kwargs(rows: Dataset, args: StageArguments) -> Dataset:
    name = "chat_template_kwargs"
    if name in rows.column_names:
        raise InputError(f"`{name}`: {args.dataset_name} has a column with this name; leave the option out.")
    return rows.add_column(name, [args.chat_template_kwargs] * len(rows))


def checked_split(
    dataset: DatasetDict, split: str, kind: str, *, source: str, option: str = "dataset_train_split"
) -> Dataset:
    """One split of what [`load_rows`] read, with checked columns; an `InputError` names `option` if it is missing."""
    if split not in dataset:
        raise InputError(f"`{option}`: {source} has no split `{split}`; it has {', '.join(dataset)}.")
    check_columns(dataset[split], data_form(dataset[split], kind), source=f"{source} ({split})")
    return dataset[split]


def data_form(rows: Dataset, kind: str) -> str:
    """The form of `reward` data, "ranking" or "preference"; other kinds unchanged."""
    if kind != "reward":
        return kind
    return "ranking" if "ranks" in rows.column_names else "preference"


def _hold_out(dataset: DatasetDict, args: StageArguments) -> DatasetDict:
    """The training split in two, by prompt."""
    source, test, fraction = args.dataset_train_split, args.dataset_test_split, args.dataset_test_fraction
    if test in dataset or source not in dataset:
        raise InputError(
            f"`dataset_test_fraction`: {args.dataset_name} has the splits {', '.join(dataset)}; this is for data with "
            f"`{source}` and without `{test}`."
        )
    parts = {source: [], test: []}
    for i, row in enumerate(dataset[source]):
        parts[test if _place(row) < fraction else source].append(i)
    if not all(parts.values()):
        raise InputError(
            f"`dataset_test_fraction`: {fraction} of the prompts of {args.dataset_name} leaves one part without rows."
        )
    return DatasetDict({**dataset, **{split: dataset[source].select(indices) for split, indices in parts.items()}})


def _place(row: dict) -> float:
    """A hash of a row's prompt in [0, 1), the same for text and for messages."""
    prompt = row.get("prompt") or (row.get("messages") or [])[:-1] or row
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        prompt = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    return int.from_bytes(sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).digest()[:8]) / 2**64


# ---- Rows and the model that reads them ----------------------------------------------------------------------------


def rows_to_read(rows: Dataset | None, args: StageArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The rows as a model of this tokenizer reads them; what is changed or skipped is counted in the log."""
    if rows is None:
        return None
    rows, notes = rows_and_notes(rows, args, tokenizer)
    for note in notes:
        logger.warning_once(note)
    return rows


def rows_and_notes(
    rows: Dataset, args: StageArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, list[str]]:
    """The rows as a model of this tokenizer reads them, and what is changed or skipped.

    Special tokens in messages are broken up, unless `allow_special_tokens`, and rows whose prompts have more than
    `max_prompt_length` tokens are skipped; an `InputError` if none is left.
    """
    notes: list[str] = []
    if not args.allow_special_tokens:
        rows = _without_special_tokens(rows, args, tokenizer, notes)
    longest = getattr(args, "max_prompt_length", None)
    if longest is None:
        return rows, notes
    if "prompt" not in rows.column_names:
        raise InputError(f"`max_prompt_length`: the rows of {args.dataset_name} have no `prompt`; leave it out.")
    lengths = _prompt_lengths(rows, tokenizer, room=longest)
    kept = np.flatnonzero(lengths <= longest)
    if not len(kept):
        raise InputError(f"`max_prompt_length`: every prompt of {args.dataset_name} has more than {longest} tokens.")
    if len(kept) < len(rows):
        notes.append(
            f"{args.dataset_name}: {len(rows) - len(kept)} of {len(rows)} rows are skipped: their prompts have more "
            f"than `max_prompt_length` = {longest} tokens."
        )
    return rows.select(kept), notes


def _prompt_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, room: float) -> np.ndarray:
    """The prompts' numbers of tokens `(N,)`; those that have `room` or less may be given with any such number."""
    lengths = length_bounds(rows, tokenizer)
    for some in rows_at(rows, np.flatnonzero(lengths > room), *rows.column_names):
        for number, row in some:
            lengths[number] = len(text_ids(tokenizer, row["prompt"], True, row))
    return lengths


def _without_special_tokens(
    rows: Dataset, args: StageArguments, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> Dataset:
    if not _may_have(rows, special_token_pattern(tokenizer)):
        return rows
    broken = special_token_breaker(tokenizer)

    def clean(row: dict) -> dict:
        """Special tokens of a text prompt, and of its answers, are kept: the user has rendered a template."""
        in_messages = isinstance(row.get("prompt", row.get("messages")), list)
        return {n: broken(value) if in_messages and n in TEXT_COLUMNS else value for n, value in row.items()}

    places = [number for number, row in enumerate(rows, start=1) if row != clean(row)]
    if not places:
        return rows
    notes.append(
        f"{args.dataset_name}: {len(places)} of {len(rows)} rows, the first is row {places[0]}, have special tokens "
        "in their messages, such as one that ends a turn. They are read as text: a space was inserted after their "
        "first letter. Set `allow_special_tokens` if they are meant as tokens."
    )
    return dataset_of(map(clean, rows))


def _may_have(rows: Dataset, pattern: str) -> bool:
    """Whether messages of some rows, or their answers, match a regular expression, as far as the columns tell."""
    first = next((name for name in ("prompt", "messages") if name in rows.column_names), None)
    if first is None or kind_of(rows, first) == "text":
        return False  # not messages
    columns = [name for name in rows.column_names if name in TEXT_COLUMNS]
    if any(kind_of(rows, name) == "other" for name in columns):
        return True
    found = (pc.match_substring_regex(some, pattern) for name in columns for some in strings(rows, name))
    return any(pc.any(some).as_py() for some in found)


def check_fits(
    rows: Dataset,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    training_args: "TrainerConfig",
    *,
    source: str,
) -> None:
    """Check rows by [`check_rows`], and log the [`findings`]."""
    check_rows(rows, kind, tokenizer, config, training_args, source=source)
    for finding in findings(rows, kind, tokenizer):
        logger.warning_once(f"{source}: {finding}")


def check_rows(
    rows: Dataset,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    training_args: "TrainerConfig",
    *,
    source: str,
) -> None:
    """Check that the chat template renders every row and the model's context holds it.

    A prompt must leave room for its answer (`max_completion_length` tokens, for PPO). Texts for a reward model are
    truncated by its trainer. Errors name `source`, the row and the column.
    """
    lengths = filter(None, (context_length(config), getattr(training_args, "max_length", None)))
    max_length, room = min(lengths, default=float("inf")), getattr(training_args, "max_completion_length", 1)
    form, known_roles, too_long = data_form(rows, kind), set(), []
    for number, row in _rows_to_try(rows, kind, tokenizer, room=max_length - room):
        try:
            for column, text, is_prompt in texts(row, form):
                if column == "prompt" and kind != "reward":
                    length = len(text_ids(tokenizer, text, is_prompt, row))
                    too_long += [(number, length)] if length + room > max_length else []
                # Only the template can refuse another text, by its roles: one text of each sequence is enough.
                elif not isinstance(text, str) and (roles := tuple(m["role"] for m in text)) not in known_roles:
                    known_roles.add(roles)
                    text_ids(tokenizer, text, is_prompt, row)
        except (TemplateError, InputError) as error:
            raise InputError(f"{source}, row {number}, {error}") from error
    if too_long:
        number, length = too_long[0]
        count = f"{len(too_long)} of {len(rows)} rows are" if len(too_long) > 1 else "it is the only row that is"
        ways = f"Set `max_prompt_length` to {max_length - room} to skip them, or shorten them"
        if room >= max_length:
            ways = f"Lower `max_completion_length`, now {room}: it leaves prompts no room"
        raise InputError(
            f"{source}, row {number}, column 'prompt': {length} tokens and an answer of {room} do not fit into the "
            f"{max_length} that the model's context and the options allow; {count} too long. {ways}."
        )


def _rows_to_try(
    rows: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase, *, room: float
) -> Iterator[tuple[int, dict]]:
    """Number (from 1) and row of what must be rendered: the first of each sequence of roles, and long prompts."""
    numbers = _first_rows(rows, kind)
    if numbers is None:
        numbers = np.arange(len(rows))
    elif "prompt" in rows.column_names and kind != "reward":
        numbers = np.union1d(numbers, np.flatnonzero(length_bounds(rows, tokenizer) > room))
    for number, row in chain.from_iterable(rows_at(rows, numbers, *rows.column_names)):
        yield number + 1, row


def _first_rows(rows: Dataset, kind: str) -> np.ndarray | None:
    """The first row of each sequence of roles; None if the columns cannot tell them apart."""
    columns = [name for name in form_of(rows.column_names, data_form(rows, kind)) if name != "ranks"]
    kinds = {kind_of(rows, name) for name in columns}
    if "other" in kinds or not {*TEMPLATE_COLUMNS}.isdisjoint(rows.column_names):
        return None
    return first_of_each(rows, columns)


def findings(rows: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What may be wrong with rows that passed the checks, in sentences."""
    known = set(tokenizer.get_vocab()) if isinstance(tokenizer, CharGPTTokenizer) else None
    roles, unanswered, unknown, unknown_rows, answer = Counter(), 0, Counter(), 0, None
    for row in _rows_to_look_at(rows, kind, known):
        strange = Counter()
        for column, text, is_prompt in texts(row, data_form(rows, kind)):
            if not isinstance(text, str):
                last = text[-1]["role"]
                roles.update({message["role"] for message in text} - ROLES)
                unanswered += column in ("messages", "completion") and last != "assistant"
                answer = (text, row) if answer is None and not is_prompt and last == "assistant" else answer
            if known is not None:
                contents = [text] if isinstance(text, str) else [message["content"] for message in text]
                strange.update(character for content in contents for character in content if character not in known)
        unknown += strange
        unknown_rows += bool(strange)
    if unanswered:
        yield (
            f"{unanswered} of {len(rows)} conversations end with a turn that is not the assistant's: the model learns "
            "to write it."
        )
    if roles:
        names = ", ".join(f"{role!r} ({count})" for role, count in roles.most_common(5))
        yield f"roles that few chat templates know: {names}. Usual are {', '.join(sorted(ROLES))}."
    if answer is not None and tokenizer.eos_token_id not in text_ids(tokenizer, answer[0], False, answer[1])[-5:]:
        yield (
            f"the chat template ends the assistant's turn without the end-of-text token {tokenizer.eos_token!r}: "
            "the model does not learn to stop. Use a template that writes it, or set `eos_token` to what it writes."
        )
    if unknown:
        shown = ", ".join([repr(character) for character, _ in unknown.most_common(5)] + ["..."][: len(unknown) > 5])
        yield (
            f"{len(unknown)} characters that the model does not know ({shown}) in {unknown_rows} of {len(rows)} rows: "
            "it reads all of them as one unknown token."
        )


def _rows_to_look_at(rows: Dataset, kind: str, known: set[str] | None) -> Iterable[dict]:
    """All rows; only the first of each sequence of roles if the columns tell that the others are like them."""
    numbers = _first_rows(rows, kind)
    if numbers is None:
        return rows
    columns = [name for name in form_of(rows.column_names, data_form(rows, kind)) if name != "ranks"]
    sequences = {name: [roles for roles in role_sequences(rows, name)[1] if roles] for name in columns}
    is_usual = all(ROLES.issuperset(roles) for some in sequences.values() for roles in some)
    is_answered = all(
        roles[-1] == "assistant" for name, some in sequences.items() if name != "prompt" for roles in some
    )
    if not (is_usual and is_answered) or not (known is None or known.issuperset(characters(rows, columns))):
        return rows
    return rows.select(numbers)


def texts(row: dict, form: str) -> Iterator[tuple[str, str | list, bool]]:
    """Column, text and whether it is a prompt; responses come with the prompt before them."""
    columns = form_of(row, form)
    if form == "sft" and columns != ("prompt", "completion"):
        yield columns[0], row[columns[0]], False
        return
    yield "prompt", row["prompt"], True
    for column in columns[1:]:
        if column == "ranks":
            continue
        for text in row[column] if column == "responses" else [row[column]]:
            is_text, answers_text = isinstance(text, str), isinstance(row["prompt"], str)
            if is_text is not answers_text and (answers_text or form == "sft"):
                raise InputError(f"column {column!r}: prompt and response must both be text or both be messages.")
            yield column, whole_text(row["prompt"], text), False


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str | list, is_prompt: bool, row: dict) -> list[int]:
    """Token ids of one of the [`texts`] of a row."""
    if isinstance(text, list) and not tokenizer.chat_template:
        raise InputError("messages need a chat template, which this model's tokenizer lacks. Use text columns.")
    if is_prompt:
        return encode_row(tokenizer, {**row, "prompt": text})
    return encode_text(tokenizer, text, ended=True, **template_options(row))
