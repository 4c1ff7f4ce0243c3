"""Process reward models: a token-classification head that judges each step of a response.

The text is read as TRL's PRMTrainer wrote it for training: the prompt, and each step followed by a separator, whose
last token carries the step's label (Lightman et al. 2023, arXiv 2305.20050; Uesato et al. 2022, arXiv 2211.14275).
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.forward import context_length
from ..models.surgery import without_adapter
from ..sampling.generate import Samples
from ..text import encode_row, pad_rows, special_token_breaker
from .token_scores import RewardSpan, read_reward


def is_process_reward_model(model: nn.Module) -> bool:
    """Whether a model has a token-classification head."""
    return type(without_adapter(model)).__name__.endswith("ForTokenClassification")


def steps_of(text: str, separator: str) -> list[tuple[str, int, int]]:
    """The steps of a text that are not blank, and where each begins and ends in it, with its separator if it has one.

    `"a\\n\\nb"` has the steps `("a", 0, 2)` and `("b", 3, 4)`.
    """
    steps, start = [], 0
    for step in text.split(separator):
        end = min(start + len(step) + len(separator), len(text))
        if step.strip():
            steps.append((step, start, end))
        start = end
    return steps


@torch.no_grad()
def process_rewards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Samples,
    *,
    separator: str,
    policy_tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> list[list[float]]:
    """A number for each token of each sample: a step's reward on the token that ends it, 0 on all others.

    With two labels the reward is the probability of the second one, `True` in TRL's data; with one it is the logit.
    The last step is read with a separator too, whether or not the response wrote one. Blank steps are left out.
    """
    end = tokenizer.encode(separator, add_special_tokens=False)
    broken, rows, marks, steps = special_token_breaker(tokenizer), [], [], []
    for row, text in zip(samples.rows, samples.texts, strict=True):
        ids, places, found = _prompt_ids(tokenizer, row), [], steps_of(text, separator)
        for step, _, _ in found:
            ids = ids + tokenizer.encode(broken(step), add_special_tokens=False) + end
            places.append(len(ids) - 1)
        rows.append(ids)
        marks.append(places)
        steps.append(found)
    rewards = []
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        numbers = _token_numbers(model, rows[part])
        for i, places in enumerate(marks[part]):
            rewards.append(numbers[i, places].tolist())
    return [
        read_reward(
            [RewardSpan(a, b, value, "char") for (_, a, b), value in zip(found, values, strict=True)],
            ids=ids,
            text=text,
            tokenizer=policy_tokenizer,
        )
        for found, values, ids, text in zip(steps, rewards, samples.completion_ids, samples.texts, strict=True)
    ]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, row: dict) -> list[int]:
    """A text behind the beginning-of-text token, if there is one, as in training; messages by the chat template."""
    if not isinstance(row["prompt"], str):
        return encode_row(tokenizer, row)
    ids = tokenizer.encode(row["prompt"], add_special_tokens=False)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return ids if begin and ids[:1] == begin else begin + ids


def _token_numbers(model: PreTrainedModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """The logit of one label, or the probability of the second of two, at each token of each row `(B, T)`."""
    pad_token_id = model.config.get_text_config().pad_token_id
    ids, mask = pad_rows(rows, pad_token_id=pad_token_id, side="right", device=model.device)
    most = context_length(model)
    if most is not None and ids.shape[1] > most:
        raise InputError(
            f"the process reward model {model.config._name_or_path or type(model).__name__} reads at most {most} "
            f"tokens, and a response with its prompt and a separator behind each step has {ids.shape[1]}. Lower "
            "`max_completion_length`, or use a model that reads more."
        )
    logits = model(input_ids=ids, attention_mask=mask.long()).logits.float()
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.softmax(-1)[..., 1]
