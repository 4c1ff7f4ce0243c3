"""Where responses come from: the policy's own `generate`, or an inference engine in its place."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import InputError
from ..functional import response_mask
from ..models.forward import without_router_logits
from ..text import pad_rows

logger = logging.get_logger(__name__)

# What may be set beside PPO's own options: it changes how fast tokens are sampled, not which.
HARMLESS = ("use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile")
# These do nothing at these values.
NEUTRAL = {
    "top_k": (0, None),
    "top_p": (1.0, None),
    "min_p": (0.0, None),
    "typical_p": (1.0, None),
    "repetition_penalty": (1.0, None),
    "no_repeat_ngram_size": (0, None),
    "num_beams": (1, None),
    "do_sample": (True,),
}
OWN_OPTIONS = {
    "temperature": "temperature",
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
    "max_completion_length": "max_completion_length",
    "eos_token_id": "stop_token_ids",
    "stop_strings": "stop_token_ids",
    "generation_kwargs": "generation_kwargs",
}
# Arguments of TRL's vLLM engine that say which tokens are sampled.
VLLM_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_completion_length"),
    *("generation_kwargs", "structured_outputs_regex"),
)


class Generator(Protocol):
    """An engine that samples responses in the policy's place; pass one as `PPOTrainer(generator=...)`.

    Log-probs are worked out by the trainer all the same, so an engine need not agree with it to the last digit. An
    engine may have an attribute `last_logprobs`: its own log-probs of the tokens that it gave last, one list per
    response. They show whether it samples from the policy; the mean difference is logged as `sampling_logprob_diff`.
    """

    def sync_weights(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights. Called on every process, before a rollout, when they have changed."""

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        """One response a prompt, as ids, the stop token that ended it included, from the policy's own distribution."""


def check_generation_kwargs(kwargs: dict[str, Any], *, option: str) -> None:
    """Raise a `ValueError` for a setting that would bend the distribution that PPO's log-probs are of."""
    for name, value in kwargs.items():
        if name in OWN_OPTIONS:
            raise ValueError(f"`{option}`: set `{name}` by PPO's own option `{OWN_OPTIONS[name]}`.")
        if name not in HARMLESS and value not in NEUTRAL.get(name, ()):
            raise ValueError(
                f"`{option}`: `{name}` = {value!r} is refused. Tokens would be sampled from another "
                "distribution than the one PPO takes log-probs of: the ratio would be wrong and the KL could turn "
                "negative."
            )


def sampling_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    do_sample: bool = True,
    stop_token_ids: Sequence[int] = (),
    **kwargs: Any,
) -> GenerationConfig:
    """Generation settings under which the sampled tokens follow the model's own distribution.

    Nothing but the temperature may bend it: the log-probs that PPO compares would be of another distribution. Of the
    model's own generation settings only the stop tokens are kept, joined with the tokenizer's and `stop_token_ids`.
    """
    stop = model.generation_config.eos_token_id
    stop = {*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id, *stop_token_ids}
    stop = sorted(stop - {None})
    # Masks tell what is real: any id can fill the rest.
    pad = next(id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id, *stop, 0) if id_ is not None)
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}
    # `use_cache` by hand: Trainer writes use_cache=False into the configuration of the model it trains.
    settings = {"use_cache": True, **kwargs, "do_sample": do_sample, **sampling}
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stop, pad_token_id=pad, **settings)


@torch.no_grad()
def generate_responses(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    *,
    generation_config: GenerationConfig,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one response a row.

    Args:
        model (`nn.Module`): Anything with the `generate` and the `generation_config` of `transformers`.
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(B, P)`): Left-padded prompts.
        generation_config ([`~transformers.GenerationConfig`]): See [`sampling_config`].
        kwargs: For `generate`.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, R)`: response ids and the mask of their real tokens.
    """
    # `generate` fills what is None here from the model's own settings: its repetition penalty, for one, would apply.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with without_router_logits(model):
            sequences = model.generate(
                input_ids=prompt_ids, attention_mask=prompt_mask.long(), generation_config=generation_config, **kwargs
            )
    finally:
        model.generation_config = own
    response_ids = sequences[:, prompt_ids.shape[1] :]
    return response_ids, response_mask(response_ids, stop_token_ids=generation_config.eos_token_id)


def engine_responses(
    generator: Generator, prompt_rows: list[list[int]], *, generation_config: GenerationConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from an engine: response ids and the mask of their real tokens, `(B, R)` each.

    Raises:
        InputError: The engine gave another number of responses, an empty one, or one that is too long.
    """
    rows = generator.generate(prompt_rows, generation_config=generation_config)
    name, longest = type(generator).__name__, generation_config.max_new_tokens
    if len(rows) != len(prompt_rows):
        raise InputError(f"the generator {name} gave {len(rows)} responses for {len(prompt_rows)} prompts.")
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= longest:
            raise InputError(f"the generator {name}: response {i} has {len(row)} tokens, not 1 to {longest}.")
    short, stop = [row for row in rows if len(row) < longest], set(generation_config.eos_token_id)
    if short and not any(stop & set(row) for row in short):
        logger.warning_once(
            f"the generator {name}: no response that is shorter than {longest} tokens ends with a stop token. The one "
            "that ended a response belongs to it: without it, the response counts as cut off."
        )
    ids, mask = pad_rows(rows, pad_token_id=generation_config.pad_token_id, side="right", device=device)
    return ids, mask & response_mask(ids, stop_token_ids=generation_config.eos_token_id)
