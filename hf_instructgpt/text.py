"""Prompts and whole texts as token ids, the same way in each stage: what a policy answers and a reward model reads."""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .errors import InputError

logger = logging.get_logger(__name__)

# Columns of a row that the chat template gets beside its messages, as in TRL.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
# What a template gets, and what is done with it, that is not a row's to say.
RENDERING = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}
RENDERING -= {"documents", "kwargs"}

Text = str | list[dict]


def template_options(row: dict[str, Any]) -> dict[str, Any]:
    """What the chat template gets beside a row's messages: its `tools` and its `chat_template_kwargs`.

    Arrow fills fields that only other rows have with None; those are left out.
    """
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    options = _without_none(row.get("chat_template_kwargs")) or {}
    check_template_kwargs(options)
    return {"tools": _without_none(tools) or None, **options}


def check_template_kwargs(options: dict[str, Any]) -> None:
    """Raise an `InputError` for `chat_template_kwargs` that are arguments of what renders the template."""
    if taken := sorted(options.keys() & RENDERING):
        raise InputError(f"`chat_template_kwargs`: {taken[0]!r} is set by what reads the rows; leave it out.")


def template_rows(columns: dict[str, list], count: int) -> list[dict[str, Any]]:
    """[`template_options`] of `count` rows that are given by column."""
    columns = {name: columns[name] for name in TEMPLATE_COLUMNS if name in columns}
    return [template_options({name: column[i] for name, column in columns.items()}) for i in range(count)]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text, **options: Any) -> list[int]:
    """Ids of a prompt, ready to be answered.

    Messages go through the chat template. A last message of the assistant is continued; behind any other, the
    template opens the assistant's turn. Text is taken as it is, with the beginning-of-text token that the tokenizer
    puts before it, once, and without an end-of-text token that the tokenizer puts behind it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompt (`str` or `list[dict]`): Text or messages.
        options: For the chat template, as [`template_options`] gives them.
    """
    if not isinstance(prompt, str):
        return _render_prompt(tokenizer, prompt, tokenize=True, return_dict=False, **options)
    ids, written = _encode(tokenizer, prompt), _count_end(prompt, tokenizer.eos_token)
    return ids[: len(ids) - _count_end(ids, tokenizer.eos_token_id) + written]


def _render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: list[dict], **options: Any) -> Any:
    continues = bool(prompt) and prompt[-1].get("role") == "assistant"
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=not continues, continue_final_message=continues, **options
    )


def encode_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """[`encode_prompt`] of a data set's row: its `prompt`, with its `tools` and `chat_template_kwargs`."""
    return encode_prompt(tokenizer, row["prompt"], **template_options(row))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: Text, *, ended: bool, **options: Any) -> list[int]:
    """Ids of a whole text, prompt and response, as a reward model is trained on it.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The reward model's.
        text (`str` or `list[dict]`): Text or messages, see [`whole_text`].
        ended (`bool`): Whether a text gets an end-of-text token behind it. Messages end as the chat template says.
        options: For the chat template, as [`template_options`] gives them.
    """
    if not isinstance(text, str):
        return tokenizer.apply_chat_template(text, tokenize=True, return_dict=False, **options)
    if ended and tokenizer.eos_token:
        text = text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    ids = _encode(tokenizer, text)
    doubled = max(_count_end(ids, tokenizer.eos_token_id) - _count_end(text, tokenizer.eos_token), 0) * ended
    return ids[: len(ids) - doubled]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]


def _count_end(sequence: str | list[int], end: str | int | None) -> int:
    """How many times a text ends with a token, or a row of ids with an id."""
    if end is None or isinstance(sequence, str):
        return 0 if not end else (len(sequence) - len(re.sub(f"(?:{re.escape(end)})+$", "", sequence))) // len(end)
    return next((i for i, token in enumerate(reversed(sequence)) if token != end), len(sequence))


def whole_text(prompt: Text, response: Text) -> Text:
    """Prompt and response as one text or one list of messages.

    A plain text that answers messages is the assistant's. A response to a prompt that ends with the assistant's
    message goes on with that message.

    Raises:
        InputError: The prompt is text and the response messages.
    """
    if isinstance(prompt, str) and isinstance(response, list):
        raise InputError("the prompt is text and the response messages: make both text, or both messages.")
    if isinstance(prompt, list) and isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    if isinstance(prompt, list) and prompt and prompt[-1].get("role") == response[0].get("role") == "assistant":
        first = {**response[0], "content": prompt[-1]["content"] + response[0]["content"]}
        return [*prompt[:-1], first, *response[1:]]
    return prompt + response


def as_completion(prompt: Text, text: str) -> Text:
    """A sampled text in the form of its prompt: text, or one message of the assistant."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def scored_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
    *,
    options: Sequence[dict[str, Any]] | None = None,
) -> list[list[int]]:
    """Prompt and response of each row as ids, as a reward model of the policy's vocabulary is trained on them.

    Many chat templates write something behind the token that ends a turn (ChatML a newline), and a reward model is
    trained, and read, at the last token of the whole conversation. A policy stops at the token that ends its turn, so
    that what the template writes behind it is added here. A response that ends otherwise stays as it is.

    Some templates (Qwen3's) write something before the assistant's last content that the opened turn does not have,
    such as an empty block of thoughts. Where a response does not begin with it, the text goes through the template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prompts (`Sequence`): Texts or message lists.
        prompt_ids, completion_ids (`Sequence[list[int]]`): Their ids and those of the responses.
        options (`Sequence[dict]`, *optional*): What the template gets for each row, see [`template_options`].
    """
    turns: dict[str, tuple[str | None, int | None, list[int]]] = {}
    rows = []
    for i, (prompt, ids, response) in enumerate(zip(prompts, prompt_ids, completion_ids, strict=True)):
        row = ids + response
        if not isinstance(prompt, str) and response:
            row_options = options[i] if options else {}
            key = json.dumps([prompt[-1].get("role"), row_options], sort_keys=True, default=str)
            if key not in turns:
                turns[key] = _turn(tokenizer, prompt, row_options)
            before, end, behind = turns[key]
            if response[-1] == end:
                text = "" if before == "" else tokenizer.decode(response, skip_special_tokens=True)
                if before is not None and text.startswith(before):
                    row = row + behind
                else:
                    whole = whole_text(prompt, break_special_tokens(tokenizer, text))
                    row = encode_text(tokenizer, whole, ended=True, **row_options)
        rows.append(row)
    return rows


def _turn(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict], options: dict
) -> tuple[str | None, int | None, list[int]]:
    """What the template writes before the last content, the special token that ends the turn, and the ids behind it.

    Of what stands before, only what an opened turn does not have yet: None if that begins in another way.
    """
    mark = "qzjxqzjx"  # in no template
    text = tokenizer.apply_chat_template(whole_text(prompt, mark), tokenize=False, **options)
    opened, place = _render_prompt(tokenizer, prompt, tokenize=False, **options), text.rindex(mark)
    before = text[len(opened) : place] if text[:place].startswith(opened) else None
    if before != "":
        logger.warning_once(
            f"The chat template begins the assistant's last message with {before or 'something'!r}, which is not in "
            "the prompt of a new answer: responses without it are rendered anew for the reward model, as in training."
        )
    ids = tokenizer(text[place + len(mark) :], add_special_tokens=False)["input_ids"]
    special = _special_tokens(tokenizer)
    place = next((i for i, token in enumerate(ids) if token in special), None)
    return (before, None, []) if place is None else (before, ids[place], ids[place + 1 :])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Control tokens by id: those with a role, and all others that were added as special."""
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def break_special_tokens(tokenizer: PreTrainedTokenizerBase, text: Text) -> Text:
    """Text or messages in which a special token that somebody typed is text: a space stands behind its first letter.

    `</s>` becomes `< /s>`, in all that a message holds but its role and name. The tokens that a chat template writes
    around the messages are not touched.
    """
    return special_token_breaker(tokenizer)(text)


def special_token_breaker(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """[`break_special_tokens`] for many texts: a function of a text, of messages, or of lists of them."""
    tokens = sorted((token for token in _special_tokens(tokenizer).values() if len(token) > 1), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def broken(value: Any, named: tuple[str, ...] = ("role", "name")) -> Any:
        """`named`: what of a message stays as it is; all else in it is text."""
        if isinstance(value, str):
            return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        if isinstance(value, dict):
            return {name: item if name in named else broken(item, ()) for name, item in value.items()}
        return [broken(item, named) for item in value] if isinstance(value, list) else value

    return broken


def pad_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one `(B, L)` tensor and its boolean mask, padded on `side` ("left" or "right")."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row, dtype=torch.long), True
    return ids.to(device), mask.to(device)


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, response_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[str], list[list[int]]]:
    """Texts (special tokens left out) and ids of the real tokens of each response."""
    ids = [row[row_mask].tolist() for row, row_mask in zip(response_ids, mask, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids


# A batch of rows of like length is a quarter padding at most.
LIKE_LENGTH = 0.75


def batches_by_length(lengths: Sequence[int], *, max_tokens: float = float("inf")) -> list[list[int]]:
    """Rows of like length together, longest first, so that little of a padded batch is padding.

    Args:
        lengths (`Sequence[int]`): Tokens of each row.
        max_tokens (`float`): Most tokens of a batch, padding included; a longer row is a batch by itself.

    Returns:
        `list[list[int]]`: Numbers of the rows of each batch, in which the shortest row has at least
        `LIKE_LENGTH` times the tokens of the longest one.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and lengths[row] >= LIKE_LENGTH * longest and (len(batches[-1]) + 1) * longest <= max_tokens
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
