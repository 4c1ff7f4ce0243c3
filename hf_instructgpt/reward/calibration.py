"""Zero and unit of a reward model's scores."""

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..sampling.generate import Samples, room_for_response, sample, seeded
from ..scoring.reward_models import reward_model_scores
from ..text import TEMPLATE_COLUMNS, encode_row, encode_text, scored_rows, template_options, whole_text

logger = logging.get_logger(__name__)

# The standard error of the mean is then 1/32 of the scores' standard deviation, ...
MAX_DEMONSTRATIONS = 1024
# ... and that of the standard deviation about 1/32 of itself.
MAX_PROMPTS = 512
# Scores that differ less say nothing (as log-odds: 50.02 %), and to divide by their deviation would show noise.
MIN_STD = 1e-3


def sample_responses(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, demonstrations: Dataset, *, seed: int, batch_size: int
) -> Samples | None:
    """A policy's responses at temperature 1, one to the prompt of each demonstration, for [`calibrate`].

    At most 512 demonstrations are used. A response has at most as many tokens as the longest of theirs, and as the
    policy's context leaves. Random numbers drawn elsewhere stay the same. None if no row has a prompt that fits.
    """
    rows, longest = [], 1
    for row in _spread(demonstrations, MAX_PROMPTS):
        options = {name: row[name] for name in TEMPLATE_COLUMNS if name in row}
        prompt = row["prompt"] if "prompt" in row else row.get("messages", [])[:-1]
        if prompt and room_for_response(policy, tokenizer, [made := {**options, "prompt": prompt}], wanted=1) > 0:
            rows.append(made)
            whole = encode_text(tokenizer, _text(row), ended=True, **template_options(row))
            longest = max(longest, len(whole) - len(encode_row(tokenizer, made)))
    rows.sort(key=lambda row: len(encode_row(tokenizer, row)))  # a long prompt then shortens few responses
    policy.eval()
    parts = []
    with seeded(seed, policy.device):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            room = room_for_response(policy, tokenizer, some, wanted=longest)
            parts.append(sample(policy, tokenizer, some, max_new_tokens=room, batch_size=batch_size))
    return Samples.join(parts) if parts else None


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Dataset,
    *,
    samples: Samples | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
) -> float:
    """Give a reward model's scores their zero and, with `samples`, their unit.

    `score = (r - mean r(demonstration)) / std r(sample)`. Demonstrations score 0 on average (Ouyang et al. 2022,
    section 3.5), because the loss leaves the zero point open. The scores of the samples, the SFT model's responses,
    have (population) standard deviation 1, so that a `kl_coef` means the same for every reward model.

    The score head, a linear layer, is divided in place, so every way of loading the model gives the new unit.
    `config.score_scale` keeps the divisor: the difference of two scores times `score_scale` is their log-odds. The
    scores keep their unit, with a warning, without such a head or with a standard deviation below 0.001.

    A full CharGPT stores the shift in its buffer `score_bias`, so every way of loading it gives the shifted score;
    any other model in `config.score_bias`, which only this package adds. At most 1,024 demonstrations are used.
    Returns the shift, in the new unit; leaves the model in evaluation mode.
    """
    model.eval()

    def scores(rows: list[list[int]]) -> torch.Tensor:
        rows = [ids if max_length is None else ids[-max_length:] for ids in rows]
        return reward_model_scores(model, rows, batch_size=batch_size).cpu().double()

    if samples is not None:
        rows = scored_rows(tokenizer, samples.rows, samples.prompt_ids, samples.completion_ids)
        # All processes must divide by the same number, to the last bit.
        std = broadcast_object_list([scores(rows).std(correction=0).item()])[0]
        _divide_scores(model, std, rows[0][:8])
    rows = [
        encode_text(tokenizer, _text(row), ended=True, **template_options(row))
        for row in _spread(demonstrations, MAX_DEMONSTRATIONS)
    ]
    # The shift comes last: it also undoes what the division does to a shift that was there before.
    bias = -scores(rows).mean().item()
    if hasattr(model, "score_bias") and not is_peft_model(model):
        with torch.no_grad():
            model.score_bias += bias
    else:
        model.config.score_bias = getattr(model.config, "score_bias", 0.0) + bias
    return bias


def _divide_scores(model: PreTrainedModel, std: float, ids: list[int]) -> None:
    """Divide the score head's weight and bias by `std`; `ids` are a text on which the head is looked for."""
    unscaled = f"The scores keep their unit. Their standard deviation over the policy's responses is {std:.3g}"
    if not MIN_STD < std < float("inf"):
        logger.warning(f"{unscaled}: the reward model tells them apart too little. Train it longer.")
        return
    head = _score_head(model, ids)
    if head is None:
        logger.warning(
            f"{unscaled}, and {type(model).__name__} has no linear score head that could be divided by it, or its "
            f"adapter does not train that head (`modules_to_save`). Multiply `kl_coef` by {std:.3g} instead."
        )
        return
    with torch.no_grad():
        for p in head.parameters():
            p /= std
    model.config.score_scale = getattr(model.config, "score_scale", 1.0) * std
    logger.info(f"Scores are divided by {std:.3f}, the standard deviation over the policy's responses.")


@torch.no_grad()
def _score_head(model: PreTrainedModel, ids: list[int]) -> nn.Linear | None:
    """The linear layer whose output is the score, if it is saved with the model: the last one of a forward pass."""
    last = {}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [
        some.register_forward_hook(lambda layer, _, output: last.update(layer=layer, output=output)) for some in layers
    ]
    try:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    layer, output = last.get("layer"), last.get("output", logits[..., :0])
    is_score = output.shape[-1] == 1 and torch.isclose(output, logits - getattr(model, "score_bias", 0.0)).any()
    is_saved = is_score and (layer.weight.requires_grad or not is_peft_model(model))
    return layer if is_saved and layer.weight.is_floating_point() else None


def _spread(rows: Dataset, most: int) -> Dataset:
    """At most so many rows, evenly spread."""
    number = min(len(rows), most)
    return rows.select([i * len(rows) // number for i in range(number)])


def _text(row: dict) -> str | list[dict]:
    if "prompt" in row and "completion" in row:
        return whole_text(row["prompt"], row["completion"])
    return row["messages"] if "messages" in row else row["text"]
