"""The zero point of a reward model's scores."""

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..scoring.reward_models import reward_model_scores
from ..text import encode_text, template_options, whole_text

# Enough for a mean: its standard error is then a thirtieth of the scores' spread.
MAX_DEMONSTRATIONS = 1024


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Dataset,
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> float:
    """Shift a reward model's scores so that demonstrations score 0 on average (Ouyang et al. 2022, section 3.5).

    `bias = -mean r(demonstration)`: the loss of a reward model leaves its zero open. A whole CharGPT holds the shift
    in its buffer `score_bias`, so that every way of loading it gives the shifted score. Any other model holds it in
    `config.score_bias`, which this package adds wherever it scores; other code gets the score without it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The reward model. It is left in evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        demonstrations ([`~datasets.Dataset`]): `prompt` and `completion`, or `messages`, or `text`. Of more than 1024
            rows, 1024 at equal distances are used.
        max_length (`int`, *optional*): A longer text loses its beginning, as in training.
        batch_size (`int`): Texts at a time.

    Returns:
        `float`: what was added to the scores.
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
