"""Scores of responses by reward models and reward functions."""

from collections.abc import Callable, Sequence

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
from .reward_functions import call_reward_functions, reward_name


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of B samples by each of F reward functions and, boolean, where there is one: `(B, F)` each, on the CPU.

    A reward model with a tokenizer reads the text ([`score_texts`]), one without the policy's ids ([`score_samples`]).
    """
    functions = [func for func in reward_funcs if not isinstance(func, nn.Module)]
    numbers = iter(call_reward_functions(functions, **reward_arguments(samples)))
    terms, given, batching = [], [], {"batch_size": batch_size, "by_length": by_length}
    for func, tokenizer in zip(reward_funcs, tokenizers, strict=True):
        if not isinstance(func, nn.Module):
            scores = next(numbers)
            given.append(torch.tensor([score is not None for score in scores]))
            terms.append(torch.tensor([score or 0.0 for score in scores], dtype=torch.float32))
            continue
        with on_device(func):
            if tokenizer is None:
                scores = score_samples(func, policy_tokenizer, samples, **batching)
            else:
                ended = samples.ended
                scores = score_texts(func, tokenizer, samples.rows, samples.completions, ended=ended, **batching)
        terms.append(scores.cpu())
        given.append(torch.ones(len(scores), dtype=torch.bool))
    return torch.stack(terms, dim=1), torch.stack(given, dim=1)


def reward_arguments(samples: Samples) -> dict[str, list]:
    """Keyword arguments of a reward function: `prompts`, `completions`, `completion_ids`, and the other columns."""
    arguments = {"prompts": samples.prompts, "completions": samples.completions}
    return {**arguments, "completion_ids": samples.completion_ids, **samples.columns()}
