"""Prompts and whole texts as token ids, the same way in each stage: what a policy answers and a reward model reads."""

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
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
    options = without_none(row.get("chat_template_kwargs")) or {}
    check_template_kwargs(options)
    return {"tools": without_none(tools) or None, **options}


def check_template_kwargs(options: dict[str, Any]) -> None:
    """Raise an `InputError` for `chat_template_kwargs` that are arguments of what renders the template."""
    if taken := sorted(options.keys() & RENDERING):
        raise InputError(f"`chat_template_kwargs`: {taken[0]!r} is set by what reads the rows; leave it out.")


def without_none(value: Any) -> Any:
    """A value without the fields of mappings that are None, such as those that Arrow fills in."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


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


def question(prompt: Text) -> str:
    """What a prompt asks: its text, or the content of its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def as_completion(prompt: Text, text: str) -> Text:
    """A sampled text in the form of its prompt: text, or one message of the assistant."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def scored_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
) -> list[list[int]]:
    """Ids of prompt and response of each row, as a reward model of the policy's vocabulary is trained on them.

    Many chat templates write something behind the token that ends a turn (ChatML a newline), and a reward model is
    trained, and read, at the last token of the whole conversation. A policy stops at the token that ends its turn, so
    what the template writes behind it is added here. A response that ends otherwise stays as it is.

    Some templates (Qwen3's) write something before the assistant's last content that the prompt does not have, such as
    an empty block of thoughts. If a response does not begin with it, the text is rendered with the template again.
    """
    turns: dict[str, tuple[str | None, int | None, list[int]]] = {}
    result = []
    for row, ids, response in zip(rows, prompt_ids, completion_ids, strict=True):
        prompt = row["prompt"]
        whole = ids + response
        if not isinstance(prompt, str) and response:
            options = template_options(row)
            key = json.dumps([prompt[-1].get("role"), options], sort_keys=True, default=str)
            if key not in turns:
                turns[key] = _turn(tokenizer, prompt, options)
            before, end, behind = turns[key]
            if response[-1] == end:
                text = "" if before == "" else tokenizer.decode(response, skip_special_tokens=True)
                if before is not None and text.startswith(before):
                    whole = whole + behind
                else:
                    text = whole_text(prompt, break_special_tokens(tokenizer, text))
                    whole = encode_text(tokenizer, text, ended=True, **options)
        result.append(whole)
    return result


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
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id, padding_side=side)
    return ids.to(device), pad_sequence(real, batch_first=True, padding_side=side).to(device)


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, response_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[str], list[list[int]]]:
    """Texts, without special tokens, and ids of the real tokens of each response."""
    ids = [row[row_mask].tolist() for row, row_mask in zip(response_ids, mask, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids


# The shortest row of a batch has at least this share of the longest one's tokens.
LIKE_LENGTH = 0.75


def batches_by_length(lengths: Sequence[int], *, max_tokens: float = float("inf")) -> list[list[int]]:
    """Indices of rows in batches of similar length, longest first, of at most `max_tokens` (padding included).

    A longer row is a batch by itself.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and lengths[row] >= LIKE_LENGTH * longest and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
