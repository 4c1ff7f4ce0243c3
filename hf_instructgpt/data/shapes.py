"""Convert rows in the shapes of public data sets into the columns that a stage reads.

The shape follows from the names of the columns and is logged. The option `column_map` maps columns of other names.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from datasets import Dataset
from transformers.utils import logging

from ..errors import InputError
from ..text import TEMPLATE_COLUMNS, without_none
from .by_column import any_starts_with, first_roles, is_filled, is_nested, kind_of, lowest_ranks, role_sequences
from .columns import form_of
from .reading import dataset_of

logger = logging.get_logger(__name__)

# Other names of the roles, such as ShareGPT's. A role that is not here is not changed.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}
QUESTIONS, INPUTS = ("instruction", "question", "query"), ("input", "context")
SYSTEMS = ("system", "system_prompt")
ANSWERS = ("completion", "output", "response", "answer")
LISTS, SCORES = ("responses", "answers", "completions", "candidates"), ("score", "rating", "overall_score", "reward")
# Columns that name the best of several answers, whose columns are called `response_1`, `response_2` or `answer_a`.
VERDICTS = ("better_response_id", "better", "preferred", "preference", "choice", "winner", "label", "labels")
STEMS = ("response", "answer", "output", "completion", "summary", "conversation", "human_ref")
ENDS = ([str(number) for number in range(100)], "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# What a prompt is made of. A comparison has one column `prompt` instead.
PROMPT_PARTS = (*QUESTIONS, *INPUTS, *SYSTEMS, "conversations", "history")
# Columns that hold messages, or text that may be messages written as JSON.
MESSAGES = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
MESSAGES += ("conversation_a", "conversation_b")
OPENAI = {"input", "preferred_output", "non_preferred_output"}
# Where the assistant's last turn begins in a dialogue that is text, as in Anthropic/hh-rlhf.
ASSISTANT = "\n\nAssistant:"

Row = dict[str, Any]


class Shape(NamedTuple):
    """What rows are read as, for the log (None: the columns of this package), and the conversion of a row."""

    name: str | None
    convert: Callable[[Row], Row]
    is_single: bool = False  # a row holds one of the responses to its prompt, which are to be compared


def shaped(dataset: Dataset, kind: str, *, source: str) -> Dataset:
    """Rows with the columns that `kind` ("sft", "reward" or "prompts") reads; an unknown shape is left unchanged.

    A row with the columns of a shape, but not its values, is an `InputError` that names `source`, row and column.
    """
    shape = RECOGNISERS[kind](dataset)
    if shape is None:
        return dataset
    if shape.name:
        logger.warning_once(f"{source}: read as {shape.name}.")
    if kind == "sft":
        dataset = _approved(dataset, source)
    if kind == "reward":
        dataset = _decided(dataset, source)
    unread = set()

    def converted(number: int, row: Row) -> Row:
        try:
            row = _tidy(row)
            made = _with_system(row, _tidy(shape.convert(row)))
        except InputError as error:
            raise InputError(f"{source}, row {number}, {error}") from error
        unread.update(_unread(row, made, kind))
        return _trained(made) if kind == "sft" else made

    if shape.name is None and _is_unchanged(dataset, kind):
        return dataset
    if shape.name or not all(_is_same(converted(i, row), row) for i, row in enumerate(dataset, start=1)):
        dataset = dataset_of(converted(i, row) for i, row in enumerate(dataset, start=1))
        dataset = _grouped(dataset, source) if shape.is_single else dataset
    if unread:
        names = _quoted(sorted(unread))
        logger.warning_once(f"{source}: {names}: not read, because prompts are used unchanged. Write it into them.")
    return dataset


def _is_unchanged(dataset: Dataset, kind: str) -> bool:
    """Whether the columns alone tell that rows of our own form would be converted to themselves."""
    form, columns = form_of(dataset.column_names, kind), set(dataset.column_names)
    kinds = {column: kind_of(dataset, column) for column in columns}
    read_too = {*PROMPT_PARTS, *LISTS, *TEMPLATE_COLUMNS, *SYSTEMS, "scores"} - {*form}
    nested = {name for name in columns if is_nested(dataset, name)}
    if columns & read_too or nested - {*form} or any(kinds[name] == "other" for name in nested):
        return False
    if "ranks" in form and (kinds["responses"], kinds["ranks"]) != ("texts", "ranks"):
        return False  # ranks may be written as text
    texts = [name for name in columns & {*form, *MESSAGES} if kinds[name] == "text"]
    if any(any_starts_with(dataset, name, ("[", "{")) or not is_filled(dataset, name) for name in texts):
        return False
    chats = [name for name in form if kinds[name] == "messages"]
    if not chats:
        return True
    # Roles may have other names, and an answer may repeat its prompt or need its prompt's form.
    roles = {role for name in chats for some in role_sequences(dataset, name)[1] for role in some}
    answers = {name for name in form if name in ("completion", "chosen", "rejected")}
    return (
        all(is_filled(dataset, name) for name in chats)
        and all(ROLES.get(role.casefold(), role) == role for role in roles)
        and answers <= {*chats}
        and first_roles(dataset, answers) <= {"assistant"}
        and ("prompt" not in form or ("prompt" in chats and "assistant" not in first_roles(dataset, ["prompt"])))
    )


def shape_of(dataset: Dataset, kind: str) -> str | None:
    """What the rows are read as for `kind`; None if they cannot be read."""
    shape = RECOGNISERS[kind](dataset)
    return shape and (shape.name or "the columns of this package")


def _demonstrations(dataset: Dataset) -> Shape | None:
    columns = set(dataset.column_names)
    if {"message_id", "parent_id", "text", "role"} <= columns:
        raise InputError(
            "`dataset_name`: each row is one message of a tree (`parent_id`), not a demonstration. Make one row per "
            "conversation, with a column `messages`."
        )
    form = form_of(columns, "sft")
    if form == ("prompt", "completion"):
        repeated, note = _repeated(dataset, "completion")
        return Shape(note and f"demonstrations; {note}", lambda row: _answered(row, repeated))
    if form:
        return Shape(None, dict)
    if "conversations" in columns:
        return Shape(
            "ShareGPT: `conversations` are the messages", lambda row: {**row, "messages": row["conversations"]}
        )
    question, answer = _first(QUESTIONS, columns), _first(ANSWERS, columns)
    if not (question and answer):
        return None
    asked = _quoted(name for name in (question, *INPUTS) if name in columns)
    return Shape(
        f"Alpaca: a turn of the user ({asked}) and one of the assistant (`{answer}`)",
        lambda row: {**row, "prompt": _asked(row), "completion": [_message("assistant", row[answer])]},
    )


def _answered(row: Row, repeated: bool) -> Row:
    """A prompt and its completion; both are messages if one of them is."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [_message("assistant", completion)]
    if isinstance(prompt, str) and isinstance(completion, list):
        prompt = [_message("user", prompt)]
    return {**row, "prompt": prompt, "completion": _without(prompt, completion, repeated)}


def _prompts(dataset: Dataset) -> Shape | None:
    columns = dataset.column_names
    if "prompt" in columns:
        return Shape(None, dict)
    name = "prompts: a turn of the user, or the turns before the answer"
    if _has_prompt(columns):
        return Shape(name, lambda row: {**row, "prompt": _asked(row)})
    if "messages" in columns:
        return Shape(name, lambda row: {**row, "prompt": _before_answer(row["messages"])})
    shape = _comparisons(dataset, needs_mark=True)
    if shape is None:
        return None

    def convert(row: Row) -> Row:
        made = shape.convert(row)
        return {**row, **{name: made[name] for name in ("prompt", *TEMPLATE_COLUMNS) if name in made}}

    return Shape(f"prompts of {shape.name}", convert)


# ---- Preferences and rankings --------------------------------------------------------------------------------------


def _comparisons(dataset: Dataset, needs_mark: bool = False) -> Shape | None:
    """`needs_mark`: refuse texts whose prompt could only be guessed."""
    columns = set(dataset.column_names)
    if columns >= OPENAI:
        return Shape("OpenAI's preferences: `preferred_output` and `non_preferred_output` to `input`", _openai)
    if {"chosen", "rejected"} <= columns:
        return _preferences(dataset, needs_mark)
    if not _has_prompt(columns) and not {"conversation_a", "conversation_b"} <= columns:
        return None
    answers = _first(LISTS, columns)
    if answers and {"ranks", "scores"} & columns:
        return _rankings(answers, "ranks" if "ranks" in columns else "scores", dataset)
    if answers and _is_list_of_mappings(dataset, answers):
        name = f"rankings: each of `{answers}` has a text, and a `rank` or a score"
        return Shape(name, lambda row: _listed(row, answers))
    return _several_answers(columns) or _single_answers(columns)


def _openai(row: Row) -> Row:
    asked, chosen, rejected = row["input"], row["preferred_output"], row["non_preferred_output"]
    if not isinstance(asked, dict):
        raise InputError(f"column 'input': {asked!r} where a mapping with `messages` should be.")
    return {"prompt": asked.get("messages"), "chosen": chosen, "rejected": rejected, "tools": asked.get("tools")}


def _preferences(dataset: Dataset, needs_mark: bool) -> Shape:
    repeated, note = _repeated(dataset, "chosen", "rejected")
    name = note and f"preferences; {note}"
    if not _has_prompt(dataset.column_names):
        name = "preferences with the prompt inside: what `chosen` and `rejected` have in common at their beginning"
    elif "prompt" not in dataset.column_names:
        name = "preferences whose prompt is a turn of the user"

    def convert(row: Row) -> Row:
        sides = [[side] if isinstance(side, dict) else side for side in (row["chosen"], row["rejected"])]
        prompt = _asked(row)
        if prompt is None and all(isinstance(side, str) for side in sides):
            start = _shared_text(*sides, needs_mark=needs_mark)
            prompt, (chosen, rejected) = sides[0][:start], (side[start:] for side in sides)
        else:
            prompt, (chosen, rejected) = _apart(prompt, sides, repeated)
        return {**_others(row, *PROMPT_PARTS), "prompt": prompt, "chosen": chosen, "rejected": rejected}

    return Shape(name, convert)


def _rankings(answers: str, by: str, dataset: Dataset) -> Shape:
    repeated, note = _repeated(dataset, answers)
    notes = [f"rankings of `{answers}` by `{by}`{', the higher the better' if by == 'scores' else ''}"]
    if by == "ranks" and (odd := _num_odd(dataset)):
        notes.append(
            f"the lowest of `ranks` is best, but it is neither 0 nor 1 in {odd} of {len(dataset)} rows: if they are "
            "scores, name the column `scores`"
        )
    notes += [note] if note else []
    is_ours = (answers, by) == ("responses", "ranks") and len(notes) == 1
    name = None if is_ours else "; ".join(notes)
    return Shape(name, lambda row: _ranking(row, row[answers], by, row[by], repeated=repeated))


def _ranking(row: Row, responses: Any, by: str, values: Any, *, repeated: bool = False) -> Row:
    responses, values = _parsed(responses), _parsed(values)
    prompt, apart = _apart(_asked(row), responses if isinstance(responses, list) else [], repeated)
    ranks = _whole(values) if by == "ranks" else _ranks_of(by, values)
    return {
        **_others(row, *PROMPT_PARTS, *LISTS, "scores"),
        "prompt": prompt,
        "responses": apart or responses,
        "ranks": ranks,
    }


def _listed(row: Row, column: str) -> Row:
    """A ranking whose responses are mappings, such as `{"answer": ..., "rank": 1}`."""
    items = _parsed(row[column]) or []
    text = _first((*ANSWERS, "text", "content"), items[0] if items else ())
    value = _first(("rank", *SCORES), items[0] if items else ())
    if text is None or value is None:
        raise InputError(f"column {column!r}: each response needs a text and a `rank` or `score`.")
    by = "ranks" if value == "rank" else value
    return _ranking(row, [item.get(text) for item in items], by, [item.get(value) for item in items])


def _several_answers(columns: set[str]) -> Shape | None:
    """Answers in columns of their own, with a column that names the best one, or with a score each."""
    found = ((stem, [end for end in ends if f"{stem}_{end}" in columns]) for stem in STEMS for ends in ENDS)
    stem, ends = next(((stem, ends) for stem, ends in found if len(ends) > 1), (None, []))
    sides, verdict = [f"{stem}_{end}" for end in ends], _first(VERDICTS, columns)
    scores = next(([f"{s}_{end}" for end in ends] for s in SCORES if {f"{s}_{end}" for end in ends} <= columns), None)
    if not ends or (verdict is None and scores is None):
        return None

    def convert(row: Row) -> Row:
        if verdict is None:
            ranks = _ranks_of(scores[0], [_number(score, row[score]) for score in scores])
        else:
            ranks = _verdict(verdict, row[verdict], ends)
        return _ranking(_others(row, *sides, verdict), [row[side] for side in sides], "ranks", ranks)

    by = f"`{verdict}`" if verdict else f"{_quoted(scores)}, the higher the better"
    return Shape(f"{len(sides)} answers ({_quoted(sides)}), the better one by {by}", convert)


def _verdict(column: str, value: Any, ends: list[str]) -> list[int]:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    text = "" if isinstance(value, bool) else str(value).strip().casefold()
    if text.startswith("tie"):
        return [1] * len(ends)
    named = re.split(r"[_\s]", text)[-1]
    ranks = [1 if end.casefold() == named else 2 for end in ends]
    if 1 not in ranks:
        raise InputError(
            f"column {column!r}: {value!r} names none of the answers ({_quoted(ends)}). Write one of these, or make "
            "the columns `chosen` and `rejected`."
        )
    return ranks


def _single_answers(columns: set[str]) -> Shape | None:
    answer, value = _first((*ANSWERS, "text"), columns), _first(("label", *SCORES), columns)
    if not (answer and value):
        return None

    def convert(row: Row) -> Row:
        options = {name: row[name] for name in TEMPLATE_COLUMNS if name in row}
        return {"prompt": _asked(row), "response": row[answer], "value": _number(value, row[value]), **options}

    name = f"single answers (`{answer}`), compared by `{value}` with the others to their prompt"
    return Shape(name, convert, is_single=True)


def _grouped(dataset: Dataset, source: str) -> Dataset:
    """One ranking per prompt of rows with one response each."""
    groups: dict[str, list[Row]] = {}
    for row in dataset:
        groups.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append(row)
    several = [group for group in groups.values() if len({row["value"] for row in group}) > 1]
    if not several:
        raise InputError(f"{source}: no prompt has two answers that differ in value, so none can be compared.")
    if len(several) < len(groups):
        logger.warning_once(
            f"{source}: {len(groups) - len(several)} of {len(groups)} prompts are skipped: their answers do not "
            "differ in value."
        )
    return dataset_of(
        {
            **_others(group[0], "response", "value"),
            "responses": [row["response"] for row in group],
            "ranks": _ranks_of("value", [row["value"] for row in group]),
        }
        for group in several
    )


def _ranks_of(column: str, scores: Any) -> list[int]:
    """Ranks of scores, the highest first; equal scores tie."""
    if not isinstance(scores, list):
        raise InputError(f"column {column!r}: {scores!r} where a list of numbers should be.")
    numbers = [_number(column, score) for score in scores]
    return [1 + sum(other > number for other in numbers) for number in numbers]


def _number(column: str, value: Any) -> float:
    try:
        number = float({"true": 1, "false": 0}.get(str(value).casefold(), value))
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise InputError(f"column {column!r}: {value!r} where a number should be.")
    return number


def _whole(ranks: Any) -> Any:
    """Ranks as whole numbers, if they are written as text or with a point; other values unchanged."""
    if not isinstance(ranks, list):
        return ranks
    return [int(float(rank)) if re.fullmatch(r"-?\d+(\.0*)?", str(rank)) else rank for rank in ranks]


def _num_odd(dataset: Dataset) -> int:
    """The number of rows whose lowest rank is neither 0 nor 1."""
    if (lowest := lowest_ranks(dataset)) is not None:
        return int((lowest * (lowest - 1) != 0).sum())
    lists = [ranks for ranks in (_whole(_parsed(value)) for value in dataset["ranks"]) if isinstance(ranks, list)]
    return sum(min((rank for rank in ranks if type(rank) is int), default=0) not in (0, 1) for ranks in lists)


def _is_list_of_mappings(dataset: Dataset, column: str) -> bool:
    value = _parsed(dataset[0][column]) if len(dataset) else None
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" not in value[0]


# ---- Demonstrations that are read ----------------------------------------------------------------------------------


def _approved(dataset: Dataset, source: str) -> Dataset:
    """Demonstrations with the columns that are read, without those whose `label` is false, as in KTO's data."""
    form = form_of(dataset.column_names, "sft")
    labels = dataset["label"] if "label" in dataset.column_names and form != ("text",) else []
    labels = [LABELS.get(str(label).casefold()) for label in labels]
    if False in labels and None not in labels:
        kept = [i for i, label in enumerate(labels) if label]
        if not kept:
            raise InputError(f"{source}, column 'label': it is false in all rows, so none is a demonstration.")
        num_left_out = len(labels) - len(kept)
        logger.warning_once(f"{source}: {num_left_out} of {len(labels)} rows are left out: their `label` is false.")
        dataset = dataset.select(kept)
    read = (*(form or dataset.column_names), *TEMPLATE_COLUMNS, *SYSTEMS, *INPUTS)
    return dataset.select_columns([column for column in dataset.column_names if column in read])


def _decided(dataset: Dataset, source: str) -> Dataset:
    """Preferences without the votes that prefer neither answer (`tie`), or have an empty answer."""
    if not {"chosen", "rejected", "tie"} <= set(dataset.column_names):
        return dataset
    ties = {i for i, tie in enumerate(dataset["tie"]) if tie is True}
    pairs = zip(dataset["chosen"], dataset["rejected"], strict=True)
    empty = {i for i, pair in enumerate(pairs) if _any_empty(pair)} - ties
    for some, why in ((ties, "their `tie` is true"), (empty, "an answer is empty")):
        if some:
            logger.warning_once(f"{source}: {len(some)} of {len(dataset)} votes are skipped: {why}.")
    kept = [i for i in range(len(dataset)) if i not in ties | empty]
    if not kept:
        raise InputError(f"{source}: all {len(dataset)} votes are ties or have an empty answer: none is a preference.")
    return dataset.select(kept) if len(kept) < len(dataset) else dataset


def _any_empty(answers: Iterable[Any]) -> bool:
    last = (answer[-1] if isinstance(answer, list) and answer else answer for answer in answers)
    texts = (message.get("content") if isinstance(message, dict) else message for message in last)
    return any(isinstance(text, str) and not text.strip() for text in texts)


def _trained(row: Row) -> Row:
    """The columns of a demonstration that SFT trains on; it would take others for the prompt."""
    return {name: row[name] for name in (*form_of(row, "sft"), *TEMPLATE_COLUMNS) if name in row}


# ---- Prompts and messages ------------------------------------------------------------------------------------------


def _asked(row: Row) -> Any:
    """The prompt of a row: its own, the turns before the answer, or a turn of the user; None if it has none."""
    if "prompt" in row:
        return row["prompt"]
    if "conversations" in row:
        return _before_answer(row["conversations"])
    name = _first(QUESTIONS, row)
    if not isinstance(row.get(name), str):
        return row.get(name)
    text = "\n\n".join([row[name], *(row[column] for column in _filled(row, INPUTS))])
    turns = []
    for pair in row.get("history") or []:
        turns += [_message(role, content) for role, content in zip(("user", "assistant"), pair, strict=False)]
    return [*turns, _message("user", text)]


def _has_prompt(columns: Iterable[str]) -> bool:
    return not {"prompt", "conversations", *QUESTIONS}.isdisjoint(columns)


def _before_answer(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    end = len(messages)
    while end and isinstance(messages[end - 1], dict) and messages[end - 1].get("role") == "assistant":
        end -= 1
    return messages[:end]


def _apart(prompt: Any, responses: list, repeated: bool) -> tuple[Any, list]:
    """A prompt, which may be inside the responses, and the responses without it."""
    are_messages = bool(responses) and all(isinstance(response, list) and response for response in responses)
    if are_messages and (prompt is None or isinstance(prompt, str)):
        first = responses[0][0]
        if prompt is None or (isinstance(first, dict) and first.get("role") not in ("assistant", "tool")):
            start = _shared(responses)
            return responses[0][:start], [response[start:] for response in responses]
        prompt = [_message("user", prompt)]
    return prompt, [_without(prompt, response, repeated) for response in responses]


def _shared(responses: list[list]) -> int:
    """The number of messages that all responses begin with, at least one of each left."""
    longest = min(map(len, responses)) - 1
    return next((i for i in range(longest) if any(x[i] != responses[0][i] for x in responses)), longest)


def _shared_text(chosen: str, rejected: str, *, needs_mark: bool) -> int:
    """Where responses begin: after the last mark of the assistant's turn, else after the last word in common."""
    lengths = range(1, min(len(chosen), len(rejected)) + 1)
    shared = chosen[: bisect_left(lengths, True, key=lambda length: chosen[:length] != rejected[:length])]
    if ASSISTANT in shared:
        return shared.rindex(ASSISTANT) + len(ASSISTANT)
    end = max(shared.rfind(" "), shared.rfind("\n")) + 1
    if end == 0 or needs_mark:
        raise InputError(
            "column 'chosen': it is not clear where its prompt ends. Put the prompt into a column `prompt`, or write "
            "messages."
        )
    return end


def _repeated(dataset: Dataset, *columns: str) -> tuple[bool, str | None]:
    """Whether most responses begin with their prompt, a text, and a note about it.

    If only some do, it may be the answers' own way to begin.
    """
    if "prompt" not in dataset.column_names:
        return False, None
    count = 0
    for batch in dataset.with_format(None).select_columns(["prompt", *columns]).iter(batch_size=1000):
        for prompt, *responses in zip(*(batch[column] for column in ("prompt", *columns)), strict=True):
            responses = responses[0] if isinstance(responses[0], list) else responses
            is_text = isinstance(prompt, str) and prompt.strip() and responses
            count += bool(is_text) and all(_without(prompt, text, True) != text for text in responses)
    is_removed = 2 * count > len(dataset)
    what = "it is removed" if is_removed else "it is kept, because most rows do not"
    return (
        is_removed,
        f"{count} of {len(dataset)} rows repeat the prompt in {_quoted(columns)}: {what}" if count else None,
    )


def _without(prompt: Any, response: Any, repeated: bool) -> Any:
    """A response without the prompt before it; from texts it is removed only if they are known to repeat it."""
    is_alike = isinstance(prompt, list) and isinstance(response, list)
    is_alike = is_alike or (repeated and isinstance(prompt, str) and isinstance(response, str))
    is_longer = is_alike and len(response) > len(prompt)
    return response[len(prompt) :] if is_longer and response[: len(prompt)] == prompt else response


def _with_system(row: Row, made: Row) -> Row:
    """A converted row with the turn of the system that a column of the row holds."""
    column = "prompt" if "prompt" in made else "messages"
    names, messages = _filled(row, SYSTEMS), made.get(column)
    first = messages[0] if isinstance(messages, list) and messages else None
    if not names or not isinstance(first, dict) or first.get("role") == "system":
        return made
    return {**made, column: [_message("system", row[names[0]]), *messages]}


def _unread(row: Row, made: Row, kind: str) -> list[str]:
    """Columns of a row that hold text which the converted row lacks."""
    is_text = isinstance(made.get("prompt", made.get("text")), str)
    inputs = _filled(row, INPUTS) if kind != "prompts" and "prompt" in row and "prompt" in made else []
    return (_filled(row, SYSTEMS) if is_text else []) + inputs


def _filled(row: Row, columns: Iterable[str]) -> list[str]:
    return [name for name in columns if isinstance(row.get(name), str) and row[name].strip()]


def _message(role: str, content: Any) -> dict:
    return {"role": role, "content": content}


def _tidy(row: Row) -> Row:
    """Messages with `role` and `content`, both text, and without the fields that Arrow filled with None."""
    row = {name: _messages(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}
    for name in MESSAGES:
        messages = _messages(_parsed(row[name])) if isinstance(row.get(name), str) else None
        if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
            row[name] = messages
    for name in TEMPLATE_COLUMNS:
        if name in row:
            row[name] = without_none(_parsed(row[name]))
    if "chat_template_kwargs" in row:
        row["chat_template_kwargs"] = row["chat_template_kwargs"] or {}
    return row


def _messages(value: Any) -> Any:
    """Messages as chat templates read them, in lists of any depth; other values unchanged."""
    if isinstance(value, list):
        return [_messages(item) for item in value]
    if not isinstance(value, dict):
        return value
    names = {"from": "role", "value": "content"} if {"from", "value"} <= set(value) else {}
    message = {names.get(key, key): item for key, item in value.items()}
    if not ("role" in message and {"content", "tool_calls"} & set(message)):
        return value
    role, content = message["role"], message.get("content")
    message = {**without_none(message), "content": content}
    message["role"] = ROLES.get(role.casefold(), role) if isinstance(role, str) else role
    if content is None and message.get("tool_calls"):
        message["content"] = ""
    is_parts = isinstance(content, list) and content and all(isinstance(part, dict) for part in content)
    if is_parts and all(part.get("type", "text") == "text" and isinstance(part.get("text"), str) for part in content):
        message["content"] = "".join(part["text"] for part in content)
    return message


def _parsed(value: Any) -> Any:
    """A list or mapping written as JSON, as in a CSV file; other values unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _is_same(row: Row, other: Row) -> bool:
    """Whether two rows are equal, where 1 and 1.0 differ."""
    return row.keys() == other.keys() and all(repr(row[name]) == repr(other[name]) for name in row)


def _first(names: Iterable[str], columns: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _others(row: Row, *names: str | None) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


RECOGNISERS = {"sft": _demonstrations, "reward": _comparisons, "prompts": _prompts}
