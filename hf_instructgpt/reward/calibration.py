"""The zero point of a reward model's scores."""

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..scoring.reward_models import reward_model_scores
from ..text import encode_text, template_options, whole_text

# The standard error of their mean score is 1/32 of the scores' standard deviation.
MAX_DEMONSTRATIONS = 1024


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Dataset,
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> float:
    """Shift scores so that demonstrations score 0 on average (Ouyang et al. 2022, section 3.5); return the shift.

    A full CharGPT keeps the shift in its buffer `score_bias`, which its `forward` adds. Any other model keeps it in
    `config.score_bias`, which only this package adds.
    """
    model.eval()
    num_rows = min(len(demonstrations), MAX_DEMONSTRATIONS)
    demonstrations = demonstrations.select([i * len(demonstrations) // num_rows for i in range(num_rows)])
    rows = [encode_text(tokenizer, _text(row), ended=True, **template_options(row)) for row in demonstrations]
    rows = [ids if max_length is None else ids[-max_length:] for ids in rows]
    bias = -reward_model_scores(model, rows, batch_size=batch_size).cpu().double().mean().item()
    if hasattr(model, "score_bias") and not is_peft_model(model):
        with torch.no_grad():
            model.score_bias += bias
    else:
        model.config.score_bias = getattr(model.config, "score_bias", 0.0) + bias
    return bias


def _text(row: dict) -> str | list[dict]:
    if "prompt" in row and "completion" in row:
        return whole_text(row["prompt"], row["completion"])
    return row["messages"] if "messages" in row else row["text"]
