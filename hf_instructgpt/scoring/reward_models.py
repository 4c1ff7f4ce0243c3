"""Scores of responses by reward models and reward functions."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.forward import context_length
from ..text import (
    batches_by_length,
    encode_text,
    pad_rows,
    scored_rows,
    special_token_breaker,
    template_rows,
    whole_text,
)
from .reward_functions import call_reward_functions, reward_name


@torch.no_grad()
def reward_model_scores(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int, by_length: bool = False
) -> torch.Tensor:
    """Scores of whole texts (prompt and response as ids) by a sequence-classification model with one label, `(B,)`.

    The rows are padded on the right with the model's own padding id; which token is scored is the model's rule, the
    one it was trained with. `config.score_bias`, where there is one, is added (see `reward/calibration.py`).

    In batches of `batch_size` rows in turn, or (`by_length`) of rows of like length, with as many tokens as that many
    of the longest have.
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


def score_responses(
    reward_funcs: Sequence[PreTrainedModel | Callable],
    *,
    policy_tokenizer: PreTrainedTokenizerBase | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
    prompts: list,
    columns: dict[str, list],
    prompt_rows: list[list[int]],
    completions: list,
    completion_ids: list[list[int]],
    ended: list[bool],
    batch_size: int,
    by_length: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score of each response by each of F reward functions.

    A model without a tokenizer of its own here reads the ids themselves, prompt and response in one row as
    [`scored_rows`] makes it with `policy_tokenizer`, without ids for which it has no embedding: a policy whose
    embeddings are padded further can sample them, and they stand for no text. One with a tokenizer reads the text,
    through its own chat template for messages, else with its end-of-text token behind a response that `ended` by
    itself. Special tokens that a policy wrote as text, or that stand in messages, are text to it.

    A function is called as `f(prompts=..., completions=..., completion_ids=..., **columns) -> list[float | None]` and
    may be async: those run at the same time. None leaves its term out.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, F)` on the CPU: scores and, boolean, where there is one.

    Raises:
        InputError: A text is longer than a model reads, or a function failed or returned anything but a number or None
            for each completion.
    """
    functions = [func for func in reward_funcs if not isinstance(func, nn.Module)]
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    scores = iter(call_reward_functions(functions, **arguments))
    terms, given = [], []
    options = template_rows(columns, len(prompts))
    for func, tokenizer in zip(reward_funcs, tokenizers, strict=True):
        if isinstance(func, nn.Module):
            if tokenizer is None:
                known = func.get_input_embeddings().num_embeddings
                rows = scored_rows(policy_tokenizer, prompts, prompt_rows, completion_ids, options=options)
                rows = [[i for i in row if i < known] for row in rows]
            else:
                broken = special_token_breaker(tokenizer)
                asked = [prompt if isinstance(prompt, str) else broken(prompt) for prompt in prompts]
                texts = zip(map(whole_text, asked, map(broken, completions)), ended, options, strict=True)
                rows = [encode_text(tokenizer, text, ended=end, **more) for text, end, more in texts]
            terms.append(reward_model_scores(func, rows, batch_size=batch_size, by_length=by_length).cpu())
            given.append(torch.ones(len(rows), dtype=torch.bool))
            continue
        numbers = next(scores)
        given.append(torch.tensor([number is not None for number in numbers]))
        terms.append(torch.tensor([0.0 if number is None else number for number in numbers], dtype=torch.float32))
    return torch.stack(terms, dim=1), torch.stack(given, dim=1)
