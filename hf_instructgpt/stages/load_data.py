"""The data that a stage reads, by the names its arguments give: rows, their checks, and what is held out."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from datasets import Dataset, DatasetDict
from jinja2 import TemplateError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import RewardConfig, SFTConfig

from ..char_gpt import CharGPTTokenizer
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..data.columns import check_columns, form_of
from ..data.reading import dataset_of, read_rows
from ..data.shapes import shaped
from ..errors import InputError
from ..ppo.config import PPOConfig
from ..text import encode_prompt, encode_text, special_token_breaker, template_options, whole_text
from .arguments import StageArguments

logger = logging.get_logger(__name__)

TEXT_COLUMNS = ("prompt", "completion", "messages", "chosen", "rejected", "responses")
# Roles that chat templates know. Others may be a template's own, or misspelt.
ROLES = {"system", "developer", "user", "assistant", "tool"}


def load_stage_datasets(args: StageArguments, kind: str, *, needs_eval: bool) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows of a stage, their columns checked.

    Args:
        args ([`StageArguments`]): `dataset_name` is a Hub id, a folder, a file, or a sample data set.
        kind (`str`): "sft", "reward" or "prompts". A sample data set's config follows from it unless given.
        needs_eval (`bool`): Whether a missing evaluation split is an error.

    Raises:
        InputError: No such data, a broken file, a missing split, or columns that do not fit.
    """
    dataset = load_rows(args, kind)
    rows = []
    for option in ("dataset_train_split", "dataset_test_split"):
        split = getattr(args, option)
        if split in dataset:
            rows.append(checked_split(dataset, split, kind, source=args.dataset_name))
        elif needs_eval or option == "dataset_train_split":
            raise InputError(f"`{option}`: {args.dataset_name} has no split `{split}`; it has {', '.join(dataset)}.")
        else:
            rows.append(None)
    return tuple(rows)


def load_rows(args: StageArguments, kind: str, *splits: str) -> DatasetDict:
    """All splits of a data set, unchecked; those that a stage reads, and `splits`, in the shape of its `kind`.

    What was read is kept, since a command reads it several times; a file that has changed is read again.
    """
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
    """What [`load_rows`] keeps. `state` is that of the files: other ones are other rows."""
    name, config, column_map, max_rows = json.loads(options)
    dataset = raw_rows(
        StageArguments(dataset_name=name, dataset_config=config, column_map=column_map, max_rows=max_rows), kind
    )
    for split in {*splits} & {*dataset}:
        dataset[split] = shaped(dataset[split], kind, source=f"{name} ({split})")
    return dataset


def _state(name: str) -> tuple:
    """Where the files of a data set are, and when they were changed."""
    path = Path(name).absolute()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.exists()]
    return tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats)


def _with_template_kwargs(rows: Dataset, args: StageArguments) -> Dataset:
    name = "chat_template_kwargs"
    if name in rows.column_names:
        raise InputError(f"`{name}`: {args.dataset_name} has a column of that name; leave the option out.")
    return rows.add_column(name, [args.chat_template_kwargs] * len(rows))


def raw_rows(args: StageArguments, kind: str) -> DatasetDict:
    """All splits of a data set, with the names of `column_map`; of sample data the configuration of `kind`."""
    name = args.dataset_name
    if name is None:
        raise InputError("`dataset_name` is missing: a Hub id, a folder, a file, `document` or `lab`.")
    if name in SAMPLE_DATASETS:
        return _load_sample(args, kind)
    try:
        dataset = read_rows(name, args.dataset_config, max_rows=args.max_rows)
    except InputError as error:
        samples = " and ".join(f"`{sample}`" for sample in SAMPLE_DATASETS)
        hint = "" if Path(name).exists() else f" (There is the sample data {samples}.)"
        raise InputError(f"`dataset_name`: {error}{hint}") from error
    return DatasetDict({split: _renamed(rows, args) for split, rows in dataset.items()})


def _load_sample(args: StageArguments, kind: str) -> DatasetDict:
    name = args.dataset_name
    for option in ("dataset_test_fraction", "column_map", "max_rows"):
        if getattr(args, option) is not None:
            raise InputError(f"`{option}`: the sample data `{name}` is used as it is; leave it out.")
    if kind == "reward":
        kind = "ranking" if "ranking" in SAMPLE_DATASETS[name] else "preference"
    return load_sample_dataset(name, args.dataset_config or kind)


def _renamed(rows: Dataset, args: StageArguments) -> Dataset:
    """Rows with the columns that `column_map` names under its names."""
    names = args.column_map or {}
    missing = [old for old in names if old not in rows.column_names]
    if missing:
        raise InputError(
            f"`column_map`: {args.dataset_name} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}."
        )
    taken = [new for new in names.values() if new in rows.column_names and new not in names]
    return rows.remove_columns(taken).rename_columns(names) if names else rows


def load_text(option: str, args: StageArguments, tokenizer: PreTrainedTokenizerBase | None = None) -> Dataset:
    """The text that an option beside `dataset_name` names, such as PPO-ptx's, its columns checked.

    `chat_template_kwargs` are for it too, unless it has its own; with a tokenizer it is as [`rows_to_read`] makes it.
    """
    name, split = getattr(args, option), args.dataset_train_split
    options = {"dataset_train_split": split, "allow_special_tokens": args.allow_special_tokens}
    args_of_text = StageArguments(dataset_name=name, **options)
    try:
        dataset = load_rows(args_of_text, "sft")
    except InputError as error:
        raise InputError(str(error).replace("`dataset_name`", f"`{option}`")) from error
    if split not in dataset:
        raise InputError(f"`{option}`: {name} has no split `{split}`; it has {', '.join(dataset)}.")
    rows = checked_split(dataset, split, "sft", source=name)
    if args.chat_template_kwargs is not None and "chat_template_kwargs" not in rows.column_names:
        rows = _with_template_kwargs(rows, args)
    return rows if tokenizer is None else rows_to_read(rows, args_of_text, tokenizer)


def checked_split(dataset: DatasetDict, split: str, kind: str, *, source: str) -> Dataset:
    """One split of what [`load_rows`] read, its columns checked."""
    check_columns(dataset[split], data_form(dataset[split], kind), source=f"{source} ({split})")
    return dataset[split]


def data_form(rows: Dataset, kind: str) -> str:
    """What `reward` data is, "ranking" or "preference"; other kinds as they are."""
    if kind != "reward":
        return kind
    return "ranking" if "ranks" in rows.column_names else "preference"


def is_same_data(name: str | None, other: str | None) -> bool:
    """Whether two names are of one data set, however its path is written."""
    if name is None or other is None:
        return name == other
    return name == other or (Path(name).exists() and Path(name).resolve() == Path(other).resolve())


def _hold_out(dataset: DatasetDict, args: StageArguments) -> DatasetDict:
    """The training split in two, by prompt."""
    source, test, fraction = args.dataset_train_split, args.dataset_test_split, args.dataset_test_fraction
    if test in dataset or source not in dataset:
        raise InputError(
            f"`dataset_test_fraction`: {args.dataset_name} has the splits {', '.join(dataset)}; it is for data with "
            f"`{source}` and without `{test}`."
        )
    rows = dataset[source]
    parts = {source: [], test: []}
    for i, row in enumerate(rows):
        parts[test if _place(row) < fraction else source].append(i)
    if not all(parts.values()):
        raise InputError(
            f"`dataset_test_fraction`: {fraction} of the prompts of {args.dataset_name} leaves one part without rows."
        )
    return DatasetDict({**dataset, **{split: rows.select(indices) for split, indices in parts.items()}})


def _place(row: dict) -> float:
    """Where in [0, 1) a row's prompt falls, evenly and by what it says alone, as text or as messages."""
    prompt = row.get("prompt") or (row.get("messages") or [])[:-1] or row
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        prompt = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    return int.from_bytes(sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).digest()[:8]) / 2**64


# ---- Rows and the model that is to read them -----------------------------------------------------------------------


def rows_to_read(rows: Dataset | None, args: StageArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The rows as a model of this tokenizer reads them.

    Special tokens in messages are broken up, unless `allow_special_tokens`; rows whose prompts have more than
    `max_prompt_length` tokens are left out. How many, is said.

    Raises:
        InputError: No row is left.
    """
    if rows is not None and not args.allow_special_tokens:
        rows = _without_special_tokens(rows, args, tokenizer)
    return _within_prompt_length(rows, args, tokenizer)


def _without_special_tokens(rows: Dataset, args: StageArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    broken = special_token_breaker(tokenizer)

    def clean(row: dict) -> dict:
        """Of a text prompt, special tokens are the user's own: a template has rendered it. So are its answers'."""
        in_messages = isinstance(row.get("prompt", row.get("messages")), list)
        return {n: broken(value) if in_messages and n in TEXT_COLUMNS else value for n, value in row.items()}

    pairs = [(row, clean(row)) for row in rows]
    places = [number for number, (row, cleaned) in enumerate(pairs, start=1) if row != cleaned]
    if not places:
        return rows
    logger.warning_once(
        f"{args.dataset_name}: {len(places)} of {len(rows)} rows, the first is row {places[0]}, have special tokens "
        "in their messages, such as one that ends a turn. They are read as text: a space was put behind their first "
        "letter. Set `allow_special_tokens` if they are meant as tokens."
    )
    return dataset_of([cleaned for _, cleaned in pairs])


def _within_prompt_length(
    rows: Dataset | None, args: StageArguments, tokenizer: PreTrainedTokenizerBase
) -> Dataset | None:
    longest = getattr(args, "max_prompt_length", None)
    if rows is None or longest is None:
        return rows
    if "prompt" not in rows.column_names:
        raise InputError(f"`max_prompt_length`: the rows of {args.dataset_name} have no `prompt`; leave it out.")
    kept = [i for i, row in enumerate(rows) if _num_tokens(tokenizer, row["prompt"], True, row) <= longest]
    if not kept:
        raise InputError(f"`max_prompt_length`: every prompt of {args.dataset_name} has more than {longest} tokens.")
    if len(kept) == len(rows):
        return rows
    logger.warning_once(
        f"{args.dataset_name}: {len(rows) - len(kept)} of {len(rows)} rows are skipped: their prompts have more than "
        f"`max_prompt_length` = {longest} tokens."
    )
    return rows.select(kept)


def check_fits(
    rows: Dataset,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    training_args: SFTConfig | RewardConfig | PPOConfig,
    *,
    source: str,
) -> None:
    """Check that the chat template can render every row, and that the model's context holds it.

    A prompt that is to be answered must leave room for it (`max_completion_length` tokens, for PPO). What a reward
    model reads is cut, and counted, where its trainer does it. What else may be wrong ([`findings`]) is logged.

    Raises:
        InputError: It names `source`, the row and the column.
    """
    max_length, room = prompt_room(config, training_args)
    form, known_roles, too_long = data_form(rows, kind), set(), []
    for number, row in enumerate(rows, start=1):
        try:
            for column, text, is_prompt in texts(row, form):
                measured = column == "prompt" and kind != "reward"
                if not measured:
                    # Only the template can refuse it, and that by its roles: one of each sequence will do.
                    roles = None if isinstance(text, str) else tuple(message["role"] for message in text)
                    if roles is None or roles in known_roles:
                        continue
                    known_roles.add(roles)
                length = _num_tokens(tokenizer, text, is_prompt, row)
                if measured and length + room > max_length:
                    too_long.append((number, length))
        except (TemplateError, InputError) as error:
            raise InputError(f"{source}, row {number}, {error}") from error
    if too_long:
        number, length = too_long[0]
        count = f"{len(too_long)} of {len(rows)} rows are" if len(too_long) > 1 else "it is the only row that is"
        raise InputError(
            f"{source}, row {number}, column 'prompt': {length} tokens and an answer of {room} do not fit into the "
            f"{max_length} that the model's context and the options allow; {count} too long. Set `max_prompt_length` "
            f"to {max(max_length - room, 1)} to skip them, or shorten them."
        )
    for finding in findings(rows, kind, tokenizer):
        logger.warning_once(f"{source}: {finding}")


def prompt_room(config: PreTrainedConfig, training_args: SFTConfig | RewardConfig | PPOConfig) -> tuple[float, int]:
    """Tokens that a text may have, and those that an answer needs of them."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    max_length = min(filter(None, (context, getattr(training_args, "max_length", None))), default=float("inf"))
    return max_length, getattr(training_args, "max_completion_length", 1)


def findings(rows: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What may be wrong with rows that passed the checks, in sentences."""
    form, roles, unanswered, unknown, unknown_rows = data_form(rows, kind), Counter(), 0, Counter(), 0
    known = set(tokenizer.get_vocab()) if isinstance(tokenizer, CharGPTTokenizer) else None
    example = None
    for row in rows:
        strange = Counter()
        for column, text, is_prompt in texts(row, form):
            if not isinstance(text, str):
                roles.update({message["role"] for message in text} - ROLES)
                unanswered += column in ("messages", "completion") and text[-1]["role"] != "assistant"
                if example is None and not is_prompt and text[-1]["role"] == "assistant":
                    example = text, row
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
    if example is not None and not _ends(tokenizer, *example):
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


def _ends(tokenizer: PreTrainedTokenizerBase, text: list, row: dict) -> bool:
    return tokenizer.eos_token_id in encode_text(tokenizer, text, ended=True, **template_options(row))[-5:]


def texts(row: dict, form: str) -> Iterator[tuple[str, str | list, bool]]:
    """Column, text and whether it is a prompt; of everything else, the text is behind its prompt."""
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


def _num_tokens(tokenizer: PreTrainedTokenizerBase, text: str | list, is_prompt: bool, row: dict) -> int:
    if isinstance(text, list) and not tokenizer.chat_template:
        raise InputError("messages need a chat template, which this model's tokenizer lacks. Use text columns.")
    options = template_options(row)
    if is_prompt:
        return len(encode_prompt(tokenizer, text, **options))
    return len(encode_text(tokenizer, text, ended=True, **options))
