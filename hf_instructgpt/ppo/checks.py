"""What PPOTrainer refuses before it starts: models, tokenizers and prompts that do not fit together."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .config import PPOConfig
from .rollout import encode_prompt


def foreign_tokenizers(
    reward_funcs: list,
    given: list[PreTrainedTokenizerBase | None],
    policy_tokenizer: PreTrainedTokenizerBase,
    **kwargs,
) -> list[PreTrainedTokenizerBase | None]:
    """For each reward function its tokenizer, or None where the policy's token ids will do."""
    if len(given) != len(reward_funcs):
        raise InputError(
            f"`reward_processing_classes` has {len(given)} entries for {len(reward_funcs)} reward functions."
        )
    tokenizers = []
    for func, tokenizer in zip(reward_funcs, given, strict=True):
        # A folder without one holds a model that is taken to know the policy's tokens; `check_models` counts them.
        if tokenizer is None and isinstance(func, str):
            has_one = not Path(func).is_dir() or Path(func, "tokenizer_config.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(func, **kwargs) if has_one else None
        same = tokenizer is None or (
            tokenizer.get_vocab() == policy_tokenizer.get_vocab()
            and tokenizer.chat_template == policy_tokenizer.chat_template
        )
        tokenizers.append(None if same else tokenizer)
    return tokenizers


def check_models(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_funcs: list[PreTrainedModel | Callable],
    reward_weights: list[float],
    reward_tokenizers: list[PreTrainedTokenizerBase | None],
) -> None:
    """Raise an `InputError` for a tokenizer or a reward model that does not fit the policy."""
    vocab_size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {vocab_size}: they do not belong together. "
            "Pass the model's own tokenizer, or resize the model's embeddings."
        )
    if len(reward_weights) != len(reward_funcs):
        raise InputError(
            f"`reward_weights` has {len(reward_weights)} entries for {len(reward_funcs)} reward functions."
        )
    for func, reward_tokenizer in zip(reward_funcs, reward_tokenizers, strict=True):
        if not isinstance(func, PreTrainedModel):
            continue
        name = func.config._name_or_path or type(func).__name__
        if func.config.num_labels != 1:
            raise InputError(
                f"the reward model {name} has num_labels = {func.config.num_labels}; a reward model has 1. "
                "Train it with num_labels=1."
            )
        if func.config.get_text_config().pad_token_id is None:
            raise InputError(
                f"the reward model {name} has no `pad_token_id` in its config and cannot score texts of unequal "
                "length. Set the one it was trained with."
            )
        if reward_tokenizer is None and func.get_input_embeddings().num_embeddings != vocab_size:
            raise InputError(
                f"the reward model {name} knows {func.get_input_embeddings().num_embeddings} tokens and the policy "
                f"{vocab_size}: pass its tokenizer as `reward_processing_classes`, or one of the policy's vocabulary."
            )


def check_prompts(
    name: str,
    dataset: Dataset | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """Raise an `InputError` for data without prompts, or for a prompt that leaves no room to answer."""
    if dataset is None:
        return
    if "prompt" not in dataset.column_names:
        raise InputError(f"`{name}` has no column `prompt`; its columns are {', '.join(dataset.column_names)}.")
    if len(dataset) == 0:
        raise InputError(f"`{name}` has no rows.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt in enumerate(dataset["prompt"], start=1):
        length = len(encode_prompt(tokenizer, prompt))
        if length == 0:
            raise InputError(f"`{name}`, row {row}: the prompt is empty.")
        if context is not None and length + args.max_completion_length > context:
            raise InputError(
                f"`{name}`, row {row}: a prompt of {length} tokens and `max_completion_length` = "
                f"{args.max_completion_length} do not fit into the model's context of {context}. Shorten the prompt "
                "or lower `max_completion_length`."
            )
