"""Prompts and responses as token ids, the same way in every stage."""

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

# Columns that the chat template gets beside the messages, as in TRL.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
# Arguments of `apply_chat_template` that a row may not set.
RENDERING = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}
RENDERING -= {"documents", "kwargs"}

Text = str | list[dict]


def template_options(row: dict[str, Any]) -> dict[str, Any]:
    """The `tools` and `chat_template_kwargs` of a row, without the None values that Arrow fills in."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    options = without_none(row.get("chat_template_kwargs")) or {}
    check_template_kwargs(options)
    return {"tools": without_none(tools) or None, **options}


def check_template_kwargs(options: dict[str, Any]) -> None:
    """Refuse `chat_template_kwargs` that are arguments of `apply_chat_template` itself."""
    if taken := sorted(options.keys() & RENDERING):
        raise InputError(f"`chat_template_kwargs`: {taken[0]!r} is set by this package; leave it out.")


def without_none(value: Any) -> Any:
    """Drop the keys of (nested) mappings whose value is None."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text, **options: Any) -> list[int]:
    """Ids of a prompt that a policy is to answer; `options` go to the chat template.

    A last message of the assistant is continued; after any other message the assistant's turn is opened. Text gets
    the tokenizer's beginning-of-text token once, and no end-of-text token.
    """
    if not isinstance(prompt, str):
        return render_prompt(tokenizer, prompt, tokenize=True, return_dict=False, **options)
    return _tokenize_as_ended(tokenizer, prompt)


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: list[dict], **options: Any) -> Any:
    """Messages by the chat template, the assistant's turn opened or continued; `options` say in which form."""
    continues = bool(prompt) and prompt[-1].get("role") == "assistant"
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=not continues, continue_final_message=continues, **options
    )


def encode_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """[`encode_prompt`] of a row's `prompt`, `tools` and `chat_template_kwargs`."""
    return encode_prompt(tokenizer, row["prompt"], **template_options(row))


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """[`encode_row`] of many rows, texts in one call."""
    prompts, options = [row["prompt"] for row in rows], [template_options(row) for row in rows]
    if all(isinstance(prompt, str) for prompt in prompts):
        return _tokenize_many(tokenizer, prompts)
    return [encode_prompt(tokenizer, prompt, **some) for prompt, some in zip(prompts, options, strict=True)]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], options: Sequence[dict[str, Any]]
) -> list[list[int]]:
    """[`encode_text`] of many ended texts, in one call if none is messages."""
    if all(isinstance(text, str) for text in texts):
        end = tokenizer.eos_token or ""
        return _tokenize_many(tokenizer, [text.removesuffix(end) + end for text in texts])
    return [encode_text(tokenizer, text, ended=True, **some) for text, some in zip(texts, options, strict=True)]


def _tokenize_many(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """[`_tokenize_as_ended`] of many texts in one call, which a fast tokenizer reads in parallel."""
    bos = tokenizer.bos_token
    if not texts or (bos and any(text.startswith(bos) for text in texts)):
        return [_tokenize_as_ended(tokenizer, text) for text in texts]
    ids = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    return [_without_added_end(tokenizer, *pair) for pair in zip(ids, texts, strict=True)]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: Text, *, ended: bool, **options: Any) -> list[int]:
    """Ids of prompt and response, with one end-of-text token if `ended`; messages end as their template says."""
    if not isinstance(text, str):
        return tokenizer.apply_chat_template(text, tokenize=True, return_dict=False, **options)
    if not ended:
        return _tokenize(tokenizer, text)
    if tokenizer.eos_token:
        text = text.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    return _tokenize_as_ended(tokenizer, text)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]


def _tokenize_as_ended(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize without the end-of-text tokens that the tokenizer adds to those in the text."""
    return _without_added_end(tokenizer, _tokenize(tokenizer, text), text)


def _without_added_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> list[int]:
    """The ids of a text without the end-of-text tokens that the tokenizer adds to those in the text."""
    if not tokenizer.eos_token:
        return ids
    added = _count_end(ids, [tokenizer.eos_token_id]) - _count_end(text, tokenizer.eos_token)
    return ids[: len(ids) - max(added, 0)]


def _count_end(sequence: str | list[int], end: str | list[int]) -> int:
    """How many times `sequence` ends with `end`, which is not empty."""
    count = 0
    while sequence[-len(end) :] == end:
        sequence, count = sequence[: -len(end)], count + 1
    return count


def whole_text(prompt: Text, response: Text) -> Text:
    """Prompt and response as one text or one list of messages.

    After messages, a text is the assistant's message. A last message of the assistant is continued.
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
    rows: Sequence[dict],
    prompt_ids: Sequence[list[int]],
    completion_ids: Sequence[list[int]],
) -> list[list[int]]:
    """Ids of prompt and response of each row, as a reward model with the policy's vocabulary was trained on them.

    A policy stops at the token that ends its turn. What a chat template writes after that token (ChatML: a newline) is
    added here, because the score is read at the last token; a response that was cut stays as it is. Some templates
    (Qwen3's) also write text before the last answer, such as an empty block of thoughts: responses without it are
    rendered again.
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
    """What the template writes before the last answer, the special token that ends its turn, and the ids after that.

    The first is what the prompt with its opened turn lacks, or None if the template changes the prompt itself.
    """
    text, behind = around_answer(tokenizer, prompt, options)
    opened = render_prompt(tokenizer, prompt, tokenize=False, **options)
    before = text[len(opened) :] if text.startswith(opened) else None
    if before != "":
        logger.warning_once(
            f"The chat template begins the assistant's last message with {before or 'something'!r}, which the prompt "
            "of a new answer lacks. Responses without it are rendered again for the reward model, as in training."
        )
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    special = _special_tokens(tokenizer)
    place = next((i for i, token in enumerate(ids) if token in special), None)
    return (before, None, []) if place is None else (before, ids[place], ids[place + 1 :])


def around_answer(tokenizer: PreTrainedTokenizerBase, prompt: list[dict], options: dict) -> tuple[str, str]:
    """What the template writes before and behind an answer to messages."""
    mark = "qzjxqzjx"  # occurs in no template
    text = tokenizer.apply_chat_template(whole_text(prompt, mark), tokenize=False, **options)
    if mark not in text:
        raise InputError(f"the chat template of {tokenizer.name_or_path} does not write the assistant's last message.")
    before, _, behind = text.rpartition(mark)
    return before, behind


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special tokens by id: those with a role, and others that were added as special."""
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def break_special_tokens(tokenizer: PreTrainedTokenizerBase, text: Text) -> Text:
    """Put a space into special tokens that somebody typed, `</s>` -> `< /s>`, so that they are read as text.

    In messages, `role` and `name` stay; the tokens that a chat template adds are not affected.
    """
    return special_token_breaker(tokenizer)(text)


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> str:
    """A regular expression that finds special tokens of more than one character, the longest first."""
    tokens = sorted((token for token in _special_tokens(tokenizer).values() if len(token) > 1), key=len, reverse=True)
    return "|".join(map(re.escape, tokens)) or r"[^\s\S]"


def special_token_breaker(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """[`break_special_tokens`] for many texts: a function of a text, of messages, or of lists of them."""
    pattern = re.compile(special_token_pattern(tokenizer))

    def broken(value: Any, named: tuple[str, ...] = ("role", "name")) -> Any:
        # `named` are the fields of a message that stay; everything nested in the others is text.
        if isinstance(value, str):
            return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        if isinstance(value, dict):
            return {name: item if name in named else broken(item, ()) for name, item in value.items()}
        return [broken(item, named) for item in value] if isinstance(value, list) else value

    return broken


def pad_rows(
    rows: Sequence[Sequence[int]], *, pad_token_id: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and boolean mask, `(B, L)` each, of rows padded on `side` ("left" or "right")."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id, padding_side=side)
    return ids.to(device), pad_sequence(real, batch_first=True, padding_side=side).to(device)


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, response_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[str], list[list[int]]]:
    """Text without special tokens, and ids, of the real tokens of each response `(B, R)`."""
    ids = [row[row_mask].tolist() for row, row_mask in zip(response_ids, mask, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids


# Minimum length of a row, as a share of the longest row in its batch.
LIKE_LENGTH = 0.75


def batches_by_length(lengths: Sequence[int], *, max_tokens: float = float("inf")) -> list[list[int]]:
    """Group row numbers by similar length, longest first, at most `max_tokens` (with padding) or one row a batch."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and lengths[row] >= LIKE_LENGTH * longest and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
