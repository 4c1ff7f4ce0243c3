"""What a reward function may return for a response besides a number: a number per token, or rewards of spans."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

UNITS = ("token", "char")


@dataclass(frozen=True)
class RewardSpan:
    """A reward for a part of a response, such as a step of reasoning. It lands on the part's last token.

    A reward function may return a list of these for a response; an empty list is a reward of 0.

    Args:
        start (`int`): First position of the part.
        end (`int`): The position after its last one, as in Python's slices.
        value (`float`): The reward.
        unit (`str`, *optional*): What positions count: `"token"` (of `completion_ids`, the default) or `"char"` (of
            the completion's text). A character belongs to the first token with which it can be decoded.
    """

    start: int
    end: int
    value: float
    unit: str = "token"


def read_reward(
    value: Any, *, ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase | None
) -> float | list[float] | None:
    """A response's reward: None, a number, or one number for each of its token ids.

    Without a tokenizer, spans of characters are rewards of the last token: for their sum.

    Raises:
        TypeError: It is neither.
        ValueError: It has another length, or a span is outside of the response.
    """
    if value is None:
        return None
    if getattr(value, "ndim", 0) == 1 and len(value) != 1:  # an array or a tensor
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return as_number(value)
    if all(isinstance(item, RewardSpan) for item in value):
        rewards = [0.0] * len(ids)
        for span in value:
            rewards[_last_token(span, ids, text, tokenizer)] += as_number(span.value)
        return rewards
    numbers = [as_number(item) for item in value]
    if len(numbers) != len(ids):
        raise ValueError(f"{len(numbers)} rewards of tokens, and the response has {len(ids)} tokens")
    return numbers


def as_number(score: Any) -> float:
    """The number, which must not be text."""
    if isinstance(score, str | bytes):
        raise TypeError(f"{score!r} is text")
    return float(score)


def total(reward: float | list[float] | None) -> float | None:
    """The sum of a response's rewards."""
    return sum(reward) if isinstance(reward, list) else reward


def placed(rewards: Sequence[float | list[float] | None], lengths: Sequence[int]) -> torch.Tensor:
    """Rewards of responses with so many tokens, `(B, R)`: a number on the last token, those of tokens as they are."""
    rows = torch.zeros(len(rewards), max(lengths, default=0))
    for row, reward, length in zip(rows, rewards, lengths, strict=True):
        if isinstance(reward, list):
            row[:length] = torch.tensor(reward)
        elif length:
            row[length - 1] = reward or 0.0
    return rows


def _last_token(span: RewardSpan, ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    size = {"token": len(ids), "char": len(text)}.get(span.unit)
    if size is None:
        raise ValueError(f"the unit of {span} is none of {', '.join(UNITS)}")
    if not 0 <= span.start < span.end <= size:
        raise ValueError(f"{span} is outside of the response, which has {size} {span.unit}s")
    if span.unit == "token":
        return span.end - 1
    if tokenizer is None:
        return len(ids) - 1

    # Sampled ids need not be those into which a tokenizer would split their text, so that offsets of a tokenizer do
    # not fit them. Beginnings of the response are decoded instead, as its text was.
    def is_there(t: int) -> bool:
        return tokenizer.decode(list(ids[: t + 1]), skip_special_tokens=True)[: span.end] == text[: span.end]

    return bisect_left(range(len(ids) - 1), True, key=is_there)
