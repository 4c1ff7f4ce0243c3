"""Scores of responses by reward models and reward functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.forward import context_length
from ..models.offload import on_device
from ..sampling.generate import Samples
from ..text import (
    Text,
    batches_by_length,
    encode_text,
    pad_rows,
    scored_rows,
    special_token_breaker,
    template_options,
    whole_text,
)
from .process_rewards import is_process_reward_model, process_rewards
from .reward_functions import Calling, call_functions, reward_name
from .token_scores import placed, total


@dataclass
class Scored:
    """What F reward functions gave B responses, on the CPU."""

    terms: torch.Tensor  # (B, F), each function's score, or the sum of what it gave tokens; 0 where it gave none
    given: torch.Tensor  # (B, F), boolean: whether it gave one
    token_terms: torch.Tensor | None  # (B, R, F), the same where it falls; None if no function gave tokens anything

    def divided_by(self, scales: torch.Tensor) -> "Scored":
        """The same with each function's scores divided by its scale, `(F,)`."""
        token_terms = None if self.token_terms is None else self.token_terms / scales
        return Scored(self.terms / scales, self.given, token_terms)


@torch.no_grad()
def reward_model_scores(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int, by_length: bool = False
) -> torch.Tensor:
    """Scores `(B,)` of texts (ids of prompt and response) by a sequence-classification model with one label.

    Rows are padded on the right with the model's own padding id, and the model decides which token it reads the score
    at. `config.score_bias` is added where there is one (see `reward/calibration.py`). With `by_length`, batches hold
    rows of similar length, and as many tokens as `batch_size` of the longest rows.
    """
    pad_token_id = model.config.get_text_config().pad_token_id
    lengths = [len(row) for row in rows]
    if by_length:
        batches = batches_by_length(lengths, max_tokens=batch_size * max(lengths))
    else:
        batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    scores = []
    for batch in batches:
        chunk = [rows[i] for i in batch]
        ids, mask = pad_rows(chunk, pad_token_id=pad_token_id, side="right", device=model.device)
        try:
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        except (IndexError, RuntimeError) as error:
            if (context_length(model) or ids.shape[1]) >= ids.shape[1]:
                raise
            raise InputError(
                f"the reward model {reward_name(model)} reads at most {context_length(model)} tokens, and a response "
                f"with its prompt has {ids.shape[1]}. Lower `max_completion_length`, or use a model that reads more."
            ) from error
        scores.append(logits.squeeze(-1).float())
    place = torch.tensor([i for batch in batches for i in batch]).argsort()
    return torch.cat(scores)[place.to(model.device)] + getattr(model.config, "score_bias", 0.0)


@torch.no_grad()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    completions: Sequence[Text],
    *,
    ended: Sequence[bool] | None = None,
    batch_size: int = 64,
    by_length: bool = False,
) -> torch.Tensor:
    """Scores `(B,)` of completions by a reward model that reads the text with its own tokenizer.

    Messages go through its chat template; other texts get its end-of-text token if they `ended` (default: all did).
    Special tokens that somebody typed are read as text.
    """
    ids = encode_scored(tokenizer, rows, completions, ended=ended)
    return reward_model_scores(model, ids, batch_size=batch_size, by_length=by_length)


def encode_scored(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    completions: Sequence[Text],
    *,
    ended: Sequence[bool] | None = None,
) -> list[list[int]]:
    """What [`score_texts`] lets the reward model read."""
    broken = special_token_breaker(tokenizer)
    ids = []
    for row, completion, end in zip(rows, completions, ended or [True] * len(rows), strict=True):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else broken(row["prompt"])
        text = whole_text(prompt, broken(completion))
        ids.append(encode_text(tokenizer, text, ended=end, **template_options(row)))
    return ids


def score_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    batch_size: int = 64,
    by_length: bool = False,
) -> torch.Tensor:
    """Scores `(B,)` of samples by a reward model that reads the policy's token ids; `tokenizer` is the policy's.

    Ids for which the reward model has no embedding are left out: a policy with more embeddings than its tokenizer has
    tokens can sample them, and they stand for no text.
    """
    num_embeddings = model.get_input_embeddings().num_embeddings
    ids = scored_rows(tokenizer, samples.rows, samples.prompt_ids, samples.completion_ids)
    ids = [[i for i in row if i < num_embeddings] for row in ids]
    return reward_model_scores(model, ids, batch_size=batch_size, by_length=by_length)


def score_responses(
    reward_funcs: Sequence[PreTrainedModel | Callable],
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
    samples: Samples,
    *,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 64,
    by_length: bool = False,
    step_separator: str = "\n",
    calling: Calling | None = None,
) -> Scored:
    """Scores of samples by each reward function.

    A reward model with a tokenizer reads the text ([`score_texts`]), one without the policy's ids ([`score_samples`]).
    A process reward model reads the text and scores its steps ([`process_rewards`]).
    """
    functions = [func for func in reward_funcs if not isinstance(func, nn.Module)]
    arguments, calling = reward_arguments(samples), calling or Calling()
    called = iter(call_functions(functions, arguments, tokenizer=policy_tokenizer, calling=calling))
    rewards, batching = [], {"batch_size": batch_size, "by_length": by_length}
    for func, tokenizer in zip(reward_funcs, tokenizers, strict=True):
        if not isinstance(func, nn.Module):
            rewards.append(next(called))
            continue
        with on_device(func):
            if is_process_reward_model(func):
                steps = {"separator": step_separator, "policy_tokenizer": policy_tokenizer, "batch_size": batch_size}
                rewards.append(process_rewards(func, tokenizer or policy_tokenizer, samples, **steps))
            elif tokenizer is None:
                rewards.append(score_samples(func, policy_tokenizer, samples, **batching).tolist())
            else:
                ended = samples.ended
                scores = score_texts(func, tokenizer, samples.rows, samples.completions, ended=ended, **batching)
                rewards.append(scores.tolist())
    given = torch.tensor([[reward is not None for reward in some] for some in rewards]).T
    terms = torch.tensor([[total(reward) or 0.0 for reward in some] for some in rewards]).T
    token_terms = None
    if any(isinstance(reward, list) for some in rewards for reward in some):
        lengths = [len(ids) for ids in samples.completion_ids]
        token_terms = torch.stack([placed(some, lengths) for some in rewards], dim=-1)
    return Scored(terms, given, token_terms)


def reward_arguments(samples: Samples) -> dict[str, list]:
    """Keyword arguments of a reward function: `prompts`, `completions`, `completion_ids`, and the other columns."""
    arguments = {"prompts": samples.prompts, "completions": samples.completions}
    return {**arguments, "completion_ids": samples.completion_ids, **samples.columns()}
