"""Rows in the shapes of public data sets, turned into the columns that a stage reads.

Which shape it is follows from the names of the columns, and is said. Columns of other names are mapped by the option
`column_map`.
"""

import json
import re
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from ..errors import InputError
from ..text import TEMPLATE_COLUMNS
from .columns import form_of
from .reading import dataset_of

logger = logging.get_logger(__name__)

# Other spellings of the roles, such as ShareGPT's; roles that are not here stay as they are.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}
QUESTIONS, INPUTS = ("instruction", "question", "query"), ("input", "context")
SYSTEMS = ("system", "system_prompt")
ANSWERS = ("completion", "output", "response", "answer")
LISTS, SCORES = ("responses", "answers", "completions", "candidates"), ("score", "rating", "overall_score", "reward")
# What names the best one of some answers, whose columns end in these: `response_1`, `response_2`, `answer_a`.
VERDICTS = ("better_response_id", "better", "preferred", "preference", "choice", "winner", "label", "labels")
STEMS = ("response", "answer", "output", "completion", "summary", "conversation", "human_ref")
ENDS = ([str(number) for number in range(100)], "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# Where the assistant's last turn begins in a dialogue that is text, as in Anthropic/hh-rlhf.
ASSISTANT = "\n\nAssistant:"

Row = dict[str, Any]


def shaped(dataset: Dataset, kind: str, *, source: str) -> Dataset:
    """Rows with the columns that `kind` reads; unknown shapes are left as they are, for [`check_columns`] to refuse.

    Args:
        dataset ([`~datasets.Dataset`]): Rows as they came.
        kind (`str`): "sft", "reward" or "prompts".
        source (`str`): The data set's name, for messages.

    Raises:
        InputError: A row has the columns of a shape, but not its values. It names `source`, the row and the column.
    """
    name, turn = _recognised(dataset, kind)
    if turn is None:
        return dataset
    if name:
        logger.warning_once(f"{source}: read as {name}.")
    if kind == "sft":
        dataset = _approved(dataset, source)
    unread = set()

    def turned(numbered: tuple[int, Row]) -> Row:
        number, row = numbered
        try:
            row = _tidy(row)
            made = _with_system(row, _tidy(turn(row)))
        except InputError as error:
            raise InputError(f"{source}, row {number}, {error}") from error
        unread.update(_unread(row, made, kind))
        return _trained(made) if kind == "sft" else made

    if name or not all(_is_same(turned(numbered), numbered[1]) for numbered in enumerate(dataset, start=1)):
        rows = list(map(turned, enumerate(dataset, start=1)))
        if rows and "value" in rows[0] and "value" not in dataset.column_names:
            rows = _grouped(rows, source)
        dataset = dataset_of(rows)
    if unread:
        logger.warning_once(
            f"{source}: {_quoted(sorted(unread))}: not read, since prompts are taken as they are. Write it into them."
        )
    return dataset


def shape_of(dataset: Dataset, kind: str) -> str | None:
    """What the rows are read as for `kind`; None if they cannot be."""
    name, turn = _recognised(dataset, kind)
    return name or (turn and "the columns of this package")


def _recognised(dataset: Dataset, kind: str) -> tuple[str | None, Callable[[Row], Row] | None]:
    """What to say of a shape, if it is not ours, and the function of its rows."""
    columns = set(dataset.column_names)
    return {"sft": _demonstrations, "reward": _comparisons, "prompts": _prompts}[kind](columns, dataset)


def _demonstrations(columns: set[str], dataset: Dataset):
    if {"message_id", "parent_id", "text", "role"} <= columns:
        raise InputError(
            "`dataset_name`: each row is one message of a tree (`parent_id`), not a demonstration. Make a row of each "
            "conversation, with a column `messages`."
        )
    form = form_of(columns, "sft")
    if form == ("prompt", "completion"):
        repeated, said = _repeated(dataset, "completion")
        return said and f"demonstrations; {said}", lambda row: _answered(row, repeated)
    if form:
        return None, lambda row: row
    if "conversations" in columns:
        return "ShareGPT: `conversations` are the messages", lambda row: {
            **_others(row, "conversations"),
            "messages": row["conversations"],
        }
    question, answer = _first(QUESTIONS, columns), _first(ANSWERS, columns)
    if question and answer:
        used = [name for name in (question, *INPUTS, answer) if name in columns]
        return (
            f"Alpaca: a turn of the user ({_quoted(used[:-1])}) and one of the assistant (`{answer}`)",
            lambda row: {
                **_others(row, *used, "history"),
                "prompt": _asked(row),
                "completion": [_message("assistant", row[answer])],
            },
        )
    return None, None


def _answered(row: Row, repeated: bool) -> Row:
    """A prompt and its completion, both messages if one of them is."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [_message("assistant", completion)]
    if isinstance(prompt, str) and isinstance(completion, list):
        prompt = [_message("user", prompt)]
    return {**row, "prompt": prompt, "completion": _without(prompt, completion, repeated)}


def _comparisons(columns: set[str], dataset: Dataset):
    answers = _first(LISTS, columns)
    if {"input", "preferred_output", "non_preferred_output"} <= columns:
        return "OpenAI's preferences: `preferred_output` and `non_preferred_output` to `input`", lambda row: {
            "prompt": row["input"]["messages"],
            "chosen": row["preferred_output"],
            "rejected": row["non_preferred_output"],
            "tools": _without_none(row["input"].get("tools")),
        }
    if {"chosen", "rejected"} <= columns:
        return _preferences(columns, dataset)
    if not _has_prompt(columns) and not {"conversation_a", "conversation_b"} <= columns:
        return None, None
    if answers and {"ranks", "scores"} & columns:
        by = "ranks" if "ranks" in columns else "scores"
        name = None if (by, answers) == ("ranks", "responses") else f"rankings of `{answers}` by `{by}`"
        name = f"{name}, the higher the better" if by == "scores" else name
        repeated, said = _repeated(dataset, answers)
        odd = _num_odd(dataset) if by == "ranks" else 0
        strange = odd and (
            f"the lowest of `ranks` is best, but it is neither 0 nor 1 in {odd} of {len(dataset)} rows: if they are "
            "scores, name the column `scores`"
        )
        name = "; ".join(filter(None, (name or ((said or odd) and "rankings"), strange, said))) or None
        return name, lambda row: _ranking(row, row[answers], by, row[by], repeated=repeated)
    if answers and _is_list_of_mappings(dataset, answers):
        return f"rankings: each of `{answers}` has a text, and a `rank` or a score", lambda row: _listed(row, answers)
    several = _several_answers(columns)
    if several:
        return several
    answer, value = _first((*ANSWERS, "text"), columns), _first(("label", *SCORES), columns)
    if answer and value:
        return f"single answers (`{answer}`), compared by `{value}` with the others to their prompt", lambda row: {
            "prompt": _asked(row),
            "response": row[answer],
            "value": _number(value, row[value]),
            **{name: row[name] for name in ("tools", "chat_template_kwargs") if name in row},
        }
    return None, None


def _preferences(columns: set[str], dataset: Dataset):
    repeated, said = _repeated(dataset, "chosen", "rejected")
    name = None
    if said:
        name = f"preferences; {said}"
    elif not _has_prompt(columns):
        name = "preferences with the prompt inside: what `chosen` and `rejected` begin with alike"
    elif "prompt" not in columns:
        name = "preferences whose prompt is a turn of the user"
    return name, lambda row: _pair(row, repeated)


def _prompts(columns: set[str], dataset: Dataset):
    if "prompt" in columns:
        return None, lambda row: row
    if _has_prompt(columns):
        return "prompts: a turn of the user, or the turns before the answer", lambda row: {
            **row,
            "prompt": _asked(row),
        }
    if "messages" in columns:
        return "prompts: the `messages` before the last answer", lambda row: {
            **row,
            "prompt": _before_answer(row["messages"]),
        }
    if {"chosen", "rejected"} <= columns:
        return "prompts: what `chosen` and `rejected` begin with alike", lambda row: {
            **row,
            "prompt": _pair(row, False, needs_mark=True)["prompt"],
        }
    name, turn = _comparisons(columns, dataset)

    def asked(row: Row) -> Row:
        made = turn(row)
        return {**row, **{name: made[name] for name in ("prompt", *TEMPLATE_COLUMNS) if name in made}}

    return (f"prompts of {name}", asked) if turn else (None, None)


# ---- Preferences and rankings --------------------------------------------------------------------------------------


def _pair(row: Row, repeated: bool, *, needs_mark: bool = False) -> Row:
    """A preference with a prompt, which its responses no longer hold."""
    rest, sides = _others(row, "chosen", "rejected", *QUESTIONS, *INPUTS, "conversations", *SYSTEMS, "history"), []
    prompt = _asked(row) if _has_prompt(row) else None
    for name in ("chosen", "rejected"):
        side = row[name]
        sides.append([side] if isinstance(side, dict) else side)
    if all(isinstance(side, list) and side for side in sides):
        inside = sides[0][0].get("role") not in ("assistant", "tool") if isinstance(sides[0][0], dict) else False
        if prompt is None or (isinstance(prompt, str) and inside):
            length = _shared(sides)
            prompt, sides = sides[0][:length], [side[length:] for side in sides]
        elif isinstance(prompt, str):
            prompt = [_message("user", prompt)]
        else:
            sides = [_without(prompt, side) for side in sides]
    elif all(isinstance(side, str) for side in sides):
        if prompt is None:
            length = _shared_text(*sides, needs_mark=needs_mark)
            prompt, sides = sides[0][:length], [side[length:] for side in sides]
        else:
            sides = [_without(prompt, side, repeated) for side in sides]
    return {**rest, "prompt": prompt, "chosen": sides[0], "rejected": sides[1]}


def _shared(sides: list[list]) -> int:
    """How many messages both sides begin with, one at least being left of each."""
    longest = min(map(len, sides)) - 1
    return next((i for i in range(longest) if sides[0][i] != sides[1][i]), longest)


def _shared_text(chosen: str, rejected: str, *, needs_mark: bool) -> int:
    """Where the responses begin: behind the last mark of the assistant's turn, else behind the last shared word."""
    shared = "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if ASSISTANT in shared:
        return shared.rindex(ASSISTANT) + len(ASSISTANT)
    end = max(shared.rfind(" "), shared.rfind("\n")) + 1
    if end == 0 or needs_mark:
        raise InputError(
            "column 'chosen': it is not clear where its prompt ends. Give the prompt in a column `prompt`, or as "
            "messages."
        )
    return end


def _ranking(row: Row, responses: Any, by: str, values: Any, *, repeated: bool = False) -> Row:
    prompt = _asked(row) if _has_prompt(row) else row.get("prompt")
    responses = _parsed(responses)
    if isinstance(responses, list):
        if repeated or isinstance(prompt, list):
            responses = [_without(prompt, response, repeated) for response in responses]
        elif responses and all(isinstance(response, list) for response in responses) and isinstance(prompt, str):
            prompt = [_message("user", prompt)]
    ranks = _whole(_parsed(values)) if by == "ranks" else _ranks_of(by, _parsed(values))
    used = (*LISTS, *QUESTIONS, *INPUTS, "conversations", *SYSTEMS, "history", "scores")
    return {**_others(row, *used), "prompt": prompt, "responses": responses, "ranks": ranks}


def _listed(row: Row, column: str) -> Row:
    """A ranking whose responses are mappings, such as `{"answer": ..., "rank": 1}`."""
    items = _parsed(row[column]) or []
    text = _first((*ANSWERS, "text", "content"), items[0] if items else ())
    value = _first(("rank", *SCORES), items[0] if items else ())
    if text is None or value is None:
        raise InputError(f"column {column!r}: each response needs a text and a `rank` or `score`.")
    by = "ranks" if value == "rank" else value
    return _ranking(row, [item.get(text) for item in items], by, [item.get(value) for item in items])


def _several_answers(columns: set[str]):
    """Answers in columns of their own, and a column that says which is best, or a score of each."""
    found = ((stem, [end for end in ends if f"{stem}_{end}" in columns]) for stem in STEMS for ends in ENDS)
    stem, ends = next(((stem, ends) for stem, ends in found if len(ends) > 1), (None, []))
    sides, verdict = [f"{stem}_{end}" for end in ends], _first(VERDICTS, columns)
    scores = next(([f"{s}_{end}" for end in ends] for s in SCORES if {f"{s}_{end}" for end in ends} <= columns), None)
    if not ends or (verdict is None and scores is None):
        return None

    def turn(row: Row) -> Row:
        if verdict is None:
            ranks = _ranks_of(scores[0], [_number(score, row[score]) for score in scores])
        else:
            ranks = _verdict(verdict, row[verdict], ends)
        responses = [row[side] for side in sides]
        if not _has_prompt(row) and all(isinstance(response, list) and response for response in responses):
            length = _shared(responses)
            row = {**row, "prompt": responses[0][:length]}
            responses = [response[length:] for response in responses]
        return _ranking(_others(row, *sides, verdict), responses, "ranks", ranks)

    said = f"`{verdict}`" if verdict else f"{_quoted(scores)}, the higher the better"
    return f"{len(sides)} answers ({_quoted(sides)}), the better one by {said}", turn


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


def _ranks_of(column: str, scores: Any) -> list[int]:
    """Ranks of scores, the highest first; equal ones tie."""
    if not isinstance(scores, list):
        raise InputError(f"column {column!r}: {scores!r} where a list of numbers should be.")
    numbers = [_number(column, score) for score in scores]
    return [1 + sum(other > number for other in numbers) for number in numbers]


def _number(column: str, value: Any) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        number = words.get(value.casefold()) if isinstance(value, str) else None
        number = float(value) if number is None else number
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise InputError(f"column {column!r}: {value!r} where a number should be.")
    return number


def _grouped(rows: list[Row], source: str) -> list[Row]:
    """One ranking per prompt of rows that each hold one of its responses."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append(row)
    several = [group for group in groups.values() if len({row["value"] for row in group}) > 1]
    if not several:
        raise InputError(f"{source}: no prompt has two answers that differ in value, and so none can be compared.")
    if len(several) < len(groups):
        logger.warning_once(
            f"{source}: {len(groups) - len(several)} of {len(groups)} prompts are skipped: their answers do not "
            "differ in value."
        )
    return [
        {
            **_others(group[0], "response", "value"),
            "responses": [row["response"] for row in group],
            "ranks": _ranks_of("value", [row["value"] for row in group]),
        }
        for group in several
    ]


def _is_same(row: Row, other: Row) -> bool:
    """Whether two rows are alike, 1 and 1.0 being different."""
    return row.keys() == other.keys() and all(repr(row[name]) == repr(other[name]) for name in row)


def _repeated(dataset: Dataset, *columns: str) -> tuple[bool, str | None]:
    """Whether responses that begin with their prompt, a text, repeat it, as most rows then do, and what to say of it.

    In a few rows it may be the answers' own way to begin.
    """
    if "prompt" not in dataset.column_names:
        return False, None
    count = 0
    for row in dataset.select_columns(["prompt", *columns]):
        responses = [row[column] for column in columns]
        responses = responses[0] if isinstance(responses[0], list) else responses
        is_asked = isinstance(row["prompt"], str) and row["prompt"].strip() and responses
        count += bool(is_asked) and all(_without(row["prompt"], text, True) != text for text in responses)
    taken = 2 * count > len(dataset)
    done = "it is taken out" if taken else "it stays, since most rows do not"
    return taken, f"{count} of {len(dataset)} rows repeat the prompt in {_quoted(columns)}: {done}" if count else None


def _num_odd(dataset: Dataset) -> int:
    """In how many rows the ranks begin neither at 0 nor at 1."""
    lists = [ranks for ranks in (_whole(_parsed(value)) for value in dataset["ranks"]) if isinstance(ranks, list)]
    return sum(min((rank for rank in ranks if type(rank) is int), default=0) not in (0, 1) for ranks in lists)


def _approved(dataset: Dataset, source: str) -> Dataset:
    """Demonstrations in the columns that are read, without those whose `label` is false, as in KTO's data."""
    columns = dataset.column_names
    form = form_of(columns, "sft")
    if "label" in columns and form != ("text",):
        dataset = _labelled(dataset, source)
    read = (*(form or columns), *TEMPLATE_COLUMNS, *SYSTEMS, *INPUTS)
    return dataset.select_columns([column for column in columns if column in read])


def _trained(row: Row) -> Row:
    """The columns of a demonstration that are trained on; others would be taken for its prompt."""
    return {name: row[name] for name in (*form_of(row, "sft"), *TEMPLATE_COLUMNS) if name in row}


def _labelled(dataset: Dataset, source: str) -> Dataset:
    labels = [LABELS.get(str(label).casefold()) for label in dataset["label"]]
    kept = [i for i, label in enumerate(labels) if label]
    if None in labels or len(kept) == len(labels):
        return dataset
    if not kept:
        raise InputError(f"{source}, column 'label': it is false in all rows, and so none is a demonstration.")
    logger.warning_once(
        f"{source}: {len(labels) - len(kept)} of {len(labels)} rows are left out: their `label` is false."
    )
    return dataset.select(kept)


def _is_list_of_mappings(dataset: Dataset, column: str) -> bool:
    value = _parsed(dataset[0][column]) if len(dataset) else None
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" not in value[0]


def _whole(ranks: Any) -> Any:
    """Ranks as whole numbers, where they are written as text or with a point."""
    if not isinstance(ranks, list):
        return ranks
    whole = []
    for rank in ranks:
        try:
            number = None if isinstance(rank, bool) else float(rank)
        except (TypeError, ValueError):
            number = None
        whole.append(rank if number is None or not number.is_integer() else int(number))
    return whole


# ---- Prompts and messages ------------------------------------------------------------------------------------------


def _asked(row: Row) -> Any:
    """The prompt of a row: its `prompt`, its `conversations`, or the user's turn that its question makes."""
    if "prompt" in row:
        return row["prompt"]
    if "conversations" in row:
        return _before_answer(row["conversations"])
    question = row[_first(QUESTIONS, row)]
    if not isinstance(question, str):
        return question
    text = "\n\n".join([question, *(row[name] for name in _filled(row, INPUTS))])
    turns = []
    for pair in row.get("history") or []:
        turns += [_message(role, said) for role, said in zip(("user", "assistant"), pair, strict=False)]
    return [*turns, _message("user", text)]


def _has_prompt(columns: Iterable[str]) -> bool:
    return bool({"prompt", "conversations", *QUESTIONS} & set(columns))


def _before_answer(messages: Any) -> Any:
    """The messages before the assistant's turns at the end."""
    if not isinstance(messages, list):
        return messages
    end = len(messages)
    while end and isinstance(messages[end - 1], dict) and messages[end - 1].get("role") == "assistant":
        end -= 1
    return messages[:end]


def _with_system(row: Row, made: Row) -> Row:
    """What a row was made into, with the system's turn that a column of the row holds."""
    column = "prompt" if "prompt" in made else "messages"
    names, messages = _filled(row, SYSTEMS), made.get(column)
    first = messages[0] if isinstance(messages, list) and messages else None
    if not names or not isinstance(first, dict) or first.get("role") == "system":
        return made
    return {**made, column: [_message("system", row[names[0]]), *messages]}


def _unread(row: Row, made: Row, kind: str) -> list[str]:
    """Columns of a row that say something, but are not in what it was made into."""
    is_text = isinstance(made.get("prompt", made.get("text")), str)
    inputs = _filled(row, INPUTS) if kind != "prompts" and "prompt" in row and "prompt" in made else []
    return (_filled(row, SYSTEMS) if is_text else []) + inputs


def _filled(row: Row, columns: Iterable[str]) -> list[str]:
    """Those of the columns that hold a text which is not empty."""
    return [name for name in columns if isinstance(row.get(name), str) and row[name].strip()]


def _without(prompt: Any, response: Any, repeated: bool = False) -> Any:
    """A response without the prompt before it; texts only where it is known that they repeat it."""
    is_alike = isinstance(prompt, list) and isinstance(response, list)
    is_alike = is_alike or (repeated and isinstance(prompt, str) and isinstance(response, str))
    is_longer = is_alike and len(response) > len(prompt)
    return response[len(prompt) :] if is_longer and response[: len(prompt)] == prompt else response


def _message(role: str, content: Any) -> dict:
    return {"role": role, "content": content}


def _tidy(row: Row) -> Row:
    """Messages with `role` and `content`, both text, and without fields that Arrow filled with None."""
    row = {name: _messages(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}
    for name in ("messages", "conversations"):
        if name in row:
            row[name] = _messages(_parsed(row[name]))
    for name in ("prompt", "completion", "chosen", "rejected", "conversation_a", "conversation_b"):
        messages = _messages(_parsed(row.get(name)))
        if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
            row[name] = messages
    if "tools" in row:
        row["tools"] = _without_none(_parsed(row["tools"]))
    if "chat_template_kwargs" in row:
        row["chat_template_kwargs"] = _without_none(_parsed(row["chat_template_kwargs"])) or {}
    return row


def _messages(value: Any) -> Any:
    """Messages as chat templates read them, in lists of any depth; other values as they are."""
    if isinstance(value, list):
        return [_messages(item) for item in value]
    if not isinstance(value, dict):
        return value
    names = {"from": "role", "value": "content"} if {"from", "value"} <= set(value) else {}
    message = {names.get(key, key): item for key, item in value.items()}
    if not ("role" in message and {"content", "tool_calls"} & set(message)):
        return value
    role, content = message["role"], message.get("content")
    message = {key: item for key, item in message.items() if item is not None or key in ("role", "content")}
    message["role"] = ROLES.get(role.casefold(), role) if isinstance(role, str) else role
    if content is None and message.get("tool_calls"):
        message["content"] = ""
    is_parts = isinstance(content, list) and content and all(isinstance(part, dict) for part in content)
    if is_parts and all(part.get("type", "text") == "text" and isinstance(part.get("text"), str) for part in content):
        message["content"] = "".join(part["text"] for part in content)
    if "tool_calls" in message:
        message["tool_calls"] = _without_none(message["tool_calls"])
    return message


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _parsed(value: Any) -> Any:
    """A list or mapping that is written as JSON, as in a CSV file; other values as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _first(names: Iterable[str], columns: Iterable[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _others(row: Row, *names: str | None) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
