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
from .formats import form_of
from .reading import dataset_of

logger = logging.get_logger(__name__)

# Other spellings of the roles, such as ShareGPT's; roles that are not here stay as they are.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}
QUESTIONS, INPUTS = ("instruction", "question", "query"), ("input", "context")
ANSWERS = ("completion", "output", "response", "answer")
LISTS, SCORES = ("responses", "answers", "completions", "candidates"), ("score", "rating", "overall_score", "reward")
# What names the better one of two answers, whose columns end in one of these pairs.
VERDICTS = ("better_response_id", "better", "preferred", "preference", "choice", "winner", "label", "labels")
STEMS = ("response", "answer", "output", "completion", "summary", "conversation", "human_ref")
ENDS = (("_0", "_1"), ("_1", "_2"), ("_a", "_b"), ("_A", "_B"))
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

    def turned(numbered: tuple[int, Row]) -> Row:
        number, row = numbered
        try:
            return _tidy(turn(_tidy(row)))
        except InputError as error:
            raise InputError(f"{source}, row {number}, {error}") from error

    if not name and all(_is_same(turned(numbered), numbered[1]) for numbered in enumerate(dataset, start=1)):
        return dataset
    rows = list(map(turned, enumerate(dataset, start=1)))
    if rows and "value" in rows[0] and "value" not in dataset.column_names:
        rows = _grouped(rows, source)
    return dataset_of(rows)


def shape_of(dataset: Dataset, kind: str) -> str | None:
    """What the rows are read as for `kind`; None if they cannot be."""
    name, turn = _recognised(dataset, kind)
    return name or (turn and "the columns of this package")


def _recognised(dataset: Dataset, kind: str) -> tuple[str | None, Callable[[Row], Row] | None]:
    """What to say of a shape, if it is not ours, and the function of its rows."""
    columns = set(dataset.column_names)
    return {"sft": _demonstrations, "reward": _comparisons, "prompts": _prompts}[kind](columns, dataset)


def _demonstrations(columns: set[str], dataset: Dataset):
    form = form_of(columns, "sft")
    if form:
        return None, _answered if form == ("prompt", "completion") else lambda row: row
    if "conversations" in columns:
        return "ShareGPT: `conversations` are the messages", lambda row: {
            **_others(row, "conversations"),
            "messages": _with_system(row, row["conversations"]),
        }
    question, answer = _first(QUESTIONS, columns), _first(ANSWERS, columns)
    if question and answer:
        used = [name for name in (question, *INPUTS, answer) if name in columns]
        return (
            f"Alpaca: a turn of the user ({_quoted(used[:-1])}) and one of the assistant (`{answer}`)",
            lambda row: {
                **_others(row, *used, "system", "history"),
                "prompt": _asked(row),
                "completion": [_message("assistant", row[answer])],
            },
        )
    return None, None


def _answered(row: Row) -> Row:
    """A prompt and its completion, both messages if one of them is."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [_message("assistant", completion)]
    if isinstance(prompt, str) and isinstance(completion, list):
        prompt = [_message("user", prompt)]
    return {**row, "prompt": prompt, "completion": _without(prompt, completion)}


def _comparisons(columns: set[str], dataset: Dataset):
    answers = _first(LISTS, columns)
    if {"chosen", "rejected"} <= columns:
        repeated = _is_repeated(dataset, ("chosen", "rejected"))
        name = None
        if repeated:
            name = "preferences whose `chosen` and `rejected` repeat the prompt: it is taken out of them"
        elif not _has_prompt(columns):
            name = "preferences with the prompt inside: what `chosen` and `rejected` begin with alike"
        elif "prompt" not in columns:
            name = "preferences whose prompt is a turn of the user"
        return name, lambda row: _pair(row, repeated)
    if not _has_prompt(columns) and not {"conversation_a", "conversation_b"} <= columns:
        return None, None
    if answers and {"ranks", "scores"} & columns:
        by = "ranks" if "ranks" in columns else "scores"
        name = None if (by, answers) == ("ranks", "responses") else f"rankings of `{answers}` by `{by}`"
        name = f"{name}, the higher the better" if by == "scores" else name
        repeated = _is_repeated(dataset, ("responses",))
        return name, lambda row: _ranking(row, row[answers], by, row[by], repeated=repeated)
    if answers and _is_list_of_mappings(dataset, answers):
        return f"rankings: each of `{answers}` has a text, and a `rank` or a score", lambda row: _listed(row, answers)
    two = _two_answers(columns)
    if two:
        return two
    answer, value = _first((*ANSWERS, "text"), columns), _first(("label", *SCORES), columns)
    if answer and value:
        return f"single answers (`{answer}`), compared by `{value}` with the others to their prompt", lambda row: {
            "prompt": _asked(row),
            "response": row[answer],
            "value": _number(value, row[value]),
            **{name: row[name] for name in ("tools", "chat_template_kwargs") if name in row},
        }
    return None, None


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
    return None, None


# ---- Preferences and rankings --------------------------------------------------------------------------------------


def _pair(row: Row, repeated: bool, *, needs_mark: bool = False) -> Row:
    """A preference with a prompt, which its responses no longer hold."""
    rest, sides = _others(row, "chosen", "rejected", *QUESTIONS, *INPUTS, "conversations", "system", "history"), []
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
        elif repeated:
            sides = [side.removeprefix(prompt) for side in sides]
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
        if repeated:
            responses = [response.removeprefix(prompt) for response in responses]
        elif isinstance(prompt, list):
            responses = [_without(prompt, response) for response in responses]
        elif responses and all(isinstance(response, list) for response in responses) and isinstance(prompt, str):
            prompt = [_message("user", prompt)]
    ranks = _whole(_parsed(values)) if by == "ranks" else _ranks_of(by, _parsed(values))
    used = (*LISTS, *QUESTIONS, *INPUTS, "conversations", "system", "history", "scores")
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


def _two_answers(columns: set[str]):
    """Two answers in two columns, and a third one that says which is better, or two scores."""
    pairs = ((f"{stem}{a}", f"{stem}{b}") for stem in STEMS for a, b in ENDS)
    sides = next((pair for pair in pairs if set(pair) <= columns), None)
    if sides is None:
        return None
    ends = sides[0][-1], sides[1][-1]
    verdict = _first(VERDICTS, columns)
    scores = next(([f"{s}_{end}" for end in ends] for s in SCORES if {f"{s}_{end}" for end in ends} <= columns), None)
    if verdict is None and scores is None:
        return None

    def turn(row: Row) -> Row:
        if verdict is None:
            ranks = _ranks_of(scores[0], [row[score] for score in scores])
        else:
            ranks = _verdict(verdict, row[verdict], ends)
        responses = [row[side] for side in sides]
        if not _has_prompt(row) and all(isinstance(response, list) and response for response in responses):
            length = _shared(responses)
            row = {**row, "prompt": responses[0][:length]}
            responses = [response[length:] for response in responses]
        return _ranking(_others(row, *sides, verdict), responses, "ranks", ranks)

    said = f"`{verdict}`" if verdict else f"{_quoted(scores)}, the higher the better"
    return f"two answers ({_quoted(sides)}), the better one by {said}", turn


def _verdict(column: str, value: Any, ends: tuple[str, str]) -> list[int]:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    text = "" if isinstance(value, bool) else str(value).strip().casefold()
    if text.startswith("tie"):
        return [1, 1]
    named = re.split(r"[_\s]", text)[-1]
    if named not in {end.casefold() for end in ends}:
        raise InputError(
            f"column {column!r}: {value!r} names neither of the two answers (`{ends[0]}`, `{ends[1]}`). Write one of "
            "these, or make the columns `chosen` and `rejected`."
        )
    return [1, 2] if named == ends[0].casefold() else [2, 1]


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


def _is_repeated(dataset: Dataset, columns: tuple[str, ...]) -> bool:
    """Whether the responses of all rows, texts, begin with their prompts: for a few it may be their way to answer."""
    if not {"prompt", *columns} <= set(dataset.column_names) or len(dataset) == 0:
        return False
    for row in dataset.select_columns(["prompt", *columns]):
        prompt, texts = row["prompt"], []
        for column in columns:
            texts += row[column] if isinstance(row[column], list) else [row[column]]
        if not isinstance(prompt, str) or not prompt.strip() or len(texts) < 2:
            return False
        if not all(isinstance(text, str) and text.startswith(prompt) and len(text) > len(prompt) for text in texts):
            return False
    return True


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
        return _with_system(row, _before_answer(row["conversations"]))
    question, more = row[_first(QUESTIONS, row)], row.get(_first(INPUTS, row)) if _first(INPUTS, row) else None
    if not isinstance(question, str):
        return question
    text = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
    turns = []
    for pair in row.get("history") or []:
        turns += [_message(role, said) for role, said in zip(("user", "assistant"), pair, strict=False)]
    return _with_system(row, [*turns, _message("user", text)])


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


def _with_system(row: Row, messages: Any) -> Any:
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or not isinstance(messages, list):
        return messages
    return [_message("system", system), *messages]


def _without(prompt: Any, response: Any) -> Any:
    """A response without the prompt before it."""
    is_repeated = isinstance(response, list) and len(response) > len(prompt) and response[: len(prompt)] == prompt
    return response[len(prompt) :] if is_repeated else response


def _message(role: str, content: Any) -> dict:
    return {"role": role, "content": content}


def _tidy(row: Row) -> Row:
    """Messages with `role` and `content`, both text, and without fields that Arrow filled with None."""
    row = {name: _messages(value) if isinstance(value, (list, dict)) else value for name, value in row.items()}
    for name in ("messages", "conversations"):
        if name in row:
            row[name] = _messages(_parsed(row[name]))
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
