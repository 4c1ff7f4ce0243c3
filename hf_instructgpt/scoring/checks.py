"""Checks of reward models against the policy whose responses they score."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.checks import check_vocabulary, check_weights
from .process_rewards import is_process_reward_model
from .reward_models import reward_model_scores


def foreign_tokenizers(
    reward_funcs: list[PreTrainedModel | Callable],
    given: list[PreTrainedTokenizerBase | None],
    *,
    policy: PreTrainedModel,
    policy_tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool = False,
) -> list[PreTrainedTokenizerBase | None]:
    """The tokenizer of each reward function, given or loaded; None for a function or if the policy's contains it."""
    if len(given) != len(reward_funcs):
        raise InputError(
            f"`reward_processing_classes` has {len(given)} entries for {len(reward_funcs)} reward functions."
        )
    tokenizers = []
    for func, tokenizer in zip(reward_funcs, given, strict=True):
        if isinstance(func, nn.Module):
            name = func.config._name_or_path
            if tokenizer is None:
                tokenizer = _named_tokenizer(name, policy_tokenizer, trust_remote_code=trust_remote_code)
            name = f"the reward model {name or type(func).__name__}"
            num_rows = [model.get_input_embeddings().num_embeddings for model in (func, policy)]
            if _is_contained(name, tokenizer, policy_tokenizer, *num_rows):
                tokenizer = None
            else:
                check_vocabulary(name, tokenizer, func)
        else:
            tokenizer = None
        tokenizers.append(tokenizer)
    return tokenizers


def _named_tokenizer(
    name: str, policy_tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase | None:
    """Load a reward model's tokenizer; None for a model without a name or a folder without a tokenizer."""
    if not name or (Path(name).is_dir() and not Path(name, "tokenizer_config.json").is_file()):
        return None
    if name == policy_tokenizer.name_or_path:  # which may have changed since, such as its chat template
        return policy_tokenizer
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(
            f"the tokenizer of the reward model {name} cannot be loaded: {' '.join(str(error).split())} Pass it as "
            "`reward_processing_classes`; if it is the policy's, pass that one."
        ) from error


def _is_contained(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    policy_tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    num_policy_rows: int,
) -> bool:
    """Whether the policy's tokenizer has all tokens by the same ids, and the same chat template."""
    if tokenizer is None:
        if num_rows != num_policy_rows:
            raise InputError(
                f"{name} knows {num_rows} tokens and the policy {num_policy_rows}, and no tokenizer "
                "belongs to it: pass its tokenizer as `reward_processing_classes` (the policy's, if it is the same), "
                "or a reward model of the policy's vocabulary."
            )
        return True
    vocab, policy_vocab = tokenizer.get_vocab(), policy_tokenizer.get_vocab()
    # Embeddings may be padded and a vocabulary may have gaps: count the ids that the policy reads and writes.
    num_needed = min(max(policy_vocab.values()) + 1, num_policy_rows)
    templates = (None, policy_tokenizer.chat_template)
    agrees = vocab.items() <= policy_vocab.items() and tokenizer.chat_template in templates
    return agrees and num_rows >= num_needed


def check_reward_funcs(
    model: PreTrainedModel, reward_funcs: list[PreTrainedModel | Callable], reward_weights: list[float]
) -> None:
    """Refuse a reward model that cannot score, and a wrong number of weights."""
    own = {id(p) for p in model.parameters()}
    if len(reward_weights) != len(reward_funcs):
        raise InputError(
            f"`reward_weights` has {len(reward_weights)} entries for {len(reward_funcs)} reward functions."
        )
    for func in reward_funcs:
        if not isinstance(func, nn.Module):
            continue
        name = func.config._name_or_path or type(func).__name__
        check_weights(f"the reward model {name}", func)
        if any(id(p) in own for p in func.parameters()):
            raise InputError(
                f"the reward model {name} shares parameters with the policy, which is trained: pass a copy."
            )
        check_num_labels(f"the reward model {name}", func.config.num_labels, of_tokens=is_process_reward_model(func))
        check_padding_id(f"the reward model {name}", func.config)
        if not is_process_reward_model(func):
            _check_padded_score(name, func)


def check_num_labels(name: str, num_labels: int, *, of_tokens: bool) -> None:
    """Refuse a head with another number of labels than a reward model, or a process reward model, has."""
    if of_tokens and num_labels not in (1, 2):
        raise InputError(
            f"{name} classifies tokens with num_labels = {num_labels}; a process reward model has 1 label, a score, "
            "or 2, of which the second means a good step."
        )
    if not of_tokens and num_labels != 1:
        raise InputError(f"{name} has num_labels = {num_labels}; a reward model has 1. Train it with num_labels=1.")


def check_padding_id(name: str, config: PreTrainedConfig) -> None:
    """Refuse a reward model that cannot tell padding from text."""
    if getattr(config.get_text_config(), "pad_token_id", None) is None:  # a model of images has no such field
        raise InputError(
            f"{name} has no `pad_token_id` in its config and cannot score texts of unequal length. Set the one it was "
            "trained with."
        )


@torch.no_grad()
def _check_padded_score(name: str, func: PreTrainedModel) -> None:
    """Refuse a model whose score of a text changes with right padding."""
    pad_token_id, count = func.config.get_text_config().pad_token_id, func.get_input_embeddings().num_embeddings
    ids = [i for i in range(count) if i != pad_token_id][:8]
    was_training = func.training
    func.eval()
    alone, padded = (reward_model_scores(func, rows, batch_size=2)[0] for rows in ([ids[:4]], [ids[:4], ids]))
    func.train(was_training)
    tolerance = 1e-3 if func.dtype == torch.float32 else 0.1
    if (alone - padded).abs() > tolerance * max(1, alone.abs()):
        raise InputError(
            f"the reward model {name} gives another score to a text with padding behind it ({padded:.4g}, alone "
            f"{alone:.4g}): it reads its score at the last position, as XLNet does. Use a model that reads it at the "
            "last real token or at the first one."
        )
