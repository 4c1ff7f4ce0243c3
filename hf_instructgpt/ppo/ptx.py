"""PPO-ptx: the language-modelling loss on pretraining text beside PPO's (Ouyang et al. 2022, section 3.5)."""

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.pretraining_text import PretrainingText
from ..errors import InputError
from ..text import pad_rows
from .config import PPOConfig
from .critic import ActorCritic
from .metrics import Metrics, sum_over_processes
from .rollout import TextBatch


def pretraining_text(
    dataset: Dataset | None, *, args: PPOConfig, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> PretrainingText | None:
    """The text of PPO-ptx, None without it."""
    if (dataset is None) != (args.ptx_coef == 0):
        raise InputError("PPO-ptx needs both a `ptx_dataset` and a `ptx_coef` above 0; leave out both or none.")
    if dataset is None:
        return None
    max_length = min(filter(None, (args.ptx_max_length, context)))
    return PretrainingText(dataset, tokenizer=tokenizer, max_length=max_length, seed=args.seed)


def text_batches(
    text: PretrainingText, step: int, *, args: PPOConfig, pad_token_id: int, accelerator: Accelerator
) -> list[TextBatch]:
    """This process's rows of an optimizer step, one batch per micro-batch; which rows follows from the step alone."""
    count, parts = int(args.ptx_rows), args.gradient_accumulation_steps
    start = (step * args.world_size + args.process_index) * count
    rows = text.rows(start, count)
    ids, mask = pad_rows(rows, pad_token_id=pad_token_id, side="right", device=accelerator.device)
    num_tokens = sum_over_processes(mask[:, 1:].sum(), accelerator)
    split = [(ids[i::parts], mask[i::parts]) for i in range(parts)]
    return [TextBatch(x[:, :1], real[:, :1], x[:, 1:], real[:, 1:], num_tokens) for x, real in split]


def text_loss(actor_critic: ActorCritic, text: TextBatch, metrics: Metrics) -> torch.Tensor:
    """Cross-entropy of a micro-batch's text: its sum over tokens, divided by the mini-batch's count.

    `actor_critic` is not wrapped by DDP, which allows one forward per backward; its hooks are on the parameters.
    """
    sequences = text.prompt_ids, text.prompt_mask, text.response_ids, text.response_mask
    loss = -actor_critic(*sequences, with_values=False)[0]
    metrics.record(ptx_loss=loss[text.response_mask])
    return torch.where(text.response_mask, loss, 0).sum() / text.num_tokens.clamp(min=1)
