"""A few rows of a stage's data for its card: answered before and after training, or scored."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..evaluation.preference import response_text, score_rankings
from ..hub.model_card import CARD_FILE, NUM_SAMPLES, Made
from ..language import say
from ..markdown import question
from ..sampling.generate import room_for_response, sample
from ..text import TEMPLATE_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

MAX_NEW_TOKENS = 64
TEXT_PROMPT = 24  # characters at the start of a text without a prompt, used as one


def known_of(model: str) -> Made | None:
    """What a model's card, in a folder or on the Hub, says about it; None without a card of this package."""
    try:
        return Made.load(model if Path(model).is_dir() else Path(hf_hub_download(model, CARD_FILE)).parent)
    except (OSError, HFValidationError):
        return None


def as_asked(text: str, tokenizer: PreTrainedTokenizerBase, made: Made | None) -> str | list[dict]:
    """A user's text in the form that a model was trained on; if unknown, messages if it has a chat template."""
    in_messages = tokenizer.chat_template and (made is None or isinstance(made.prompt, list))
    return [{"role": "user", "content": text}] if in_messages else text


def asked_row(prompt: str | list[dict], made: Made | None) -> dict:
    """A prompt's row, with the `chat_template_kwargs` that the model was trained with."""
    return {"prompt": prompt, "chat_template_kwargs": made and made.chat_template_kwargs}


def wanted_tokens(policy: PreTrainedModel, made: Made | None, given: int | None) -> int:
    """Maximum length of an answer: as given, else the card's, the model's generation settings', or 64 tokens."""
    return given or (made and made.max_new_tokens) or policy.generation_config.max_new_tokens or MAX_NEW_TOKENS


def check_sampling(*, max_new_tokens: int | None = None, seed: int = 0) -> None:
    """Refuse options with which nothing can be sampled."""
    if max_new_tokens is not None and max_new_tokens < 1:
        en = f"`--max_new_tokens` must be 1 or more, not {max_new_tokens}."
        raise InputError(say(en, f"`--max_new_tokens` 必须不小于 1，不能是 {max_new_tokens}。"))
    if not 0 <= seed < 2**32:
        en = f"`--seed` must lie between 0 and {2**32 - 1}, not {seed}."
        raise InputError(say(en, f"`--seed` 必须在 0 到 {2**32 - 1} 之间，不能是 {seed}。"))


def prompt_of(row: dict) -> str | list[dict]:
    """What can be answered of a row of any form: its prompt, all but its last message, or the start of its text."""
    if "prompt" in row:
        return row["prompt"]
    messages = row.get("messages", [])
    return messages[:-1] or (messages or row["text"][:TEXT_PROMPT])


def _prompt_row(row: dict) -> dict:
    return {**{name: row[name] for name in TEMPLATE_COLUMNS if name in row}, "prompt": prompt_of(row)}


class AnsweredSamples:
    """The first rows of a data set, answered greedily before the trainer trains and again after."""

    def __init__(self, trainer: "Trainer", rows: "Dataset"):
        self.trainer = trainer
        self.rows = [_prompt_row(row) for row in rows.take(min(NUM_SAMPLES, len(rows)))]
        wanted = getattr(trainer.args, "max_completion_length", MAX_NEW_TOKENS)
        policy, tokenizer = trainer.card_model(), trainer.processing_class
        self.max_new_tokens = room_for_response(policy, tokenizer, self.rows, wanted=wanted)
        self.before = self._answers()

    def _answers(self) -> list[str | None]:
        """Greedy answers; None for sharded weights."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or self.max_new_tokens < 1:
            return [None] * len(self.rows)
        policy = trainer.card_model()
        was_training = policy.training
        policy.eval()
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        answers = sample(policy, trainer.processing_class, self.rows, **options).texts
        policy.train(was_training)
        return answers

    def finish(self) -> list[dict]:
        """Prompt and both answers of each row, after training."""
        columns = zip(self.rows, self.before, self._answers(), strict=True)
        return [{"prompt": question(row["prompt"]), "before": old, "after": new} for row, old, new in columns]


def scored_samples(trainer: "Trainer", rows: "Dataset") -> list[dict]:
    """The best and worst response, by label, to the first prompts, with a reward model's scores."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    some = rows.select(range(min(NUM_SAMPLES, len(rows))))
    rankings, _ = score_rankings(
        trainer.card_model(), trainer.processing_class, some, max_length=trainer.args.max_length
    )
    samples = []
    for row, ranking in zip(some, rankings, strict=True):
        order = sorted(range(len(ranking.ranks)), key=ranking.ranks.__getitem__)
        shown = {"prompt": question(row["prompt"])}
        for name, i in (("best", order[0]), ("worst", order[-1])):
            shown |= {name: response_text(ranking.responses[i]), f"{name}_score": ranking.scores[i]}
        samples.append(shown)
    return samples
