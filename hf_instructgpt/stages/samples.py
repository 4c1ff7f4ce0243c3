"""A few rows of a stage's data as its card shows them: answered before and after, or scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from ..evaluation.comparison import question
from ..evaluation.preference import response_text, score_rankings
from ..hub.model_card import CARD_FILE, Made
from ..sampling.generate import generate_responses, sampling_config
from ..text import TEMPLATE_COLUMNS, decode_responses, encode_row, pad_rows

NUM_SAMPLES = 4
MAX_NEW_TOKENS = 64
TEXT_PROMPT = 24  # characters of a text without a prompt, from which it is to be continued


def answers_to(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    *,
    max_new_tokens: int,
    do_sample: bool = False,
) -> list[str]:
    """A policy's answers to the prompts of rows, greedy or sampled at temperature 1."""
    config = sampling_config(policy, tokenizer, max_new_tokens=max_new_tokens, do_sample=do_sample)
    batch = pad_rows(
        [encode_row(tokenizer, row) for row in rows],
        pad_token_id=config.pad_token_id,
        side="left",
        device=policy.device,
    )
    return decode_responses(tokenizer, *generate_responses(policy, *batch, generation_config=config))[0]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers, also a device's, that follow from the seed alone; those that are drawn outside stay the same."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def answer_room(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], *, wanted: int) -> int:
    """Tokens that an answer may have behind the longest prompt: as wanted, or what the context leaves, 0 or less."""
    context = getattr(policy.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    return min(wanted, context - max(len(encode_row(tokenizer, row)) for row in rows))


def known_of(model: str) -> Made | None:
    """What the card of a model in a folder or on the Hub knows; None where it has none of this package."""
    try:
        return Made.load(model if Path(model).is_dir() else Path(hf_hub_download(model, CARD_FILE)).parent)
    except (OSError, HFValidationError):
        return None


def as_asked(text: str, tokenizer: PreTrainedTokenizerBase, made: Made | None) -> str | list[dict]:
    """A user's text in the form that a model was trained on; unknown: messages where it has a chat template."""
    in_messages = tokenizer.chat_template and (made is None or isinstance(made.prompt, list))
    return [{"role": "user", "content": text}] if in_messages else text


def asked_row(prompt: str | list[dict], made: Made | None) -> dict:
    """A row of a prompt, with what the chat template got beside each when the model was trained."""
    return {"prompt": prompt, "chat_template_kwargs": made and made.chat_template_kwargs}


def prompt_of(row: dict) -> str | list[dict]:
    """What of a row of any form can be answered: its prompt, or what stands before its last message, or a start."""
    if "prompt" in row:
        return row["prompt"]
    messages = row.get("messages", [])
    return messages[:-1] or (messages or row["text"][:TEXT_PROMPT])


def _prompt_row(row: dict) -> dict:
    return {**{name: row[name] for name in TEMPLATE_COLUMNS if name in row}, "prompt": prompt_of(row)}


class AnsweredSamples:
    """The first rows of a data set, answered by a policy before and after it is trained.

    Args:
        trainer ([`~transformers.Trainer`]): With [`CardMixin`]. Made before it trains; the answers before are taken
            then. They draw no random number.
        rows ([`~datasets.Dataset`]): Rows with `prompt`, `messages` or `text`.
    """

    def __init__(self, trainer: Trainer, rows: Dataset):
        self.trainer = trainer
        self.rows = [_prompt_row(row) for row in rows.take(min(NUM_SAMPLES, len(rows)))]
        wanted = getattr(trainer.args, "max_completion_length", MAX_NEW_TOKENS)
        policy, tokenizer = trainer.card_model(), trainer.processing_class
        self.max_new_tokens = answer_room(policy, tokenizer, self.rows, wanted=wanted)
        self.before = self._answers()

    def _answers(self) -> list[str | None]:
        """None where the weights lie in shards."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or self.max_new_tokens < 1:
            return [None] * len(self.rows)
        policy = trainer.card_model()
        was_training = policy.training
        policy.eval()
        answers = answers_to(policy, trainer.processing_class, self.rows, max_new_tokens=self.max_new_tokens)
        policy.train(was_training)
        return answers

    def finish(self) -> list[dict]:
        """Prompt and both answers of each row, now that the policy is trained."""
        columns = zip(self.rows, self.before, self._answers(), strict=True)
        return [{"prompt": question(row["prompt"]), "before": old, "after": new} for row, old, new in columns]


def scored_samples(trainer: Trainer, rows: Dataset) -> list[dict]:
    """The label's best and worst response to the first prompts, with a reward model's scores."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    some = rows.select(range(min(NUM_SAMPLES, len(rows))))
    rankings, _ = score_rankings(
        trainer.card_model(), trainer.processing_class, some, max_length=trainer.args.max_length
    )
    samples = []
    for row, ranking in zip(some, rankings, strict=True):
        order = sorted(range(len(ranking.ranks)), key=ranking.ranks.__getitem__)
        best, worst = order[0], order[-1]
        samples.append(
            {
                "prompt": question(row["prompt"]),
                "best": response_text(ranking.responses[best]),
                "best_score": ranking.scores[best],
                "worst": response_text(ranking.responses[worst]),
                "worst_score": ranking.scores[worst],
            }
        )
    return samples
