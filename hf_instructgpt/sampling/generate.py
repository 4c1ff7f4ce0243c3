"""From prompts to responses: by a model's own `generate`, or by an inference engine in its place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from ..errors import InputError
from ..functional import ends_with_stop, response_mask
from ..models.forward import context_length, without_router_logits
from ..text import Text, as_completion, decode_responses, encode_row, pad_rows

logger = logging.get_logger(__name__)

# Generation settings that change how fast tokens are sampled, not which ones.
HARMLESS = ("use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile")
# Generation settings that have no effect at these values.
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
# Arguments of TRL's vLLM engine that decide which tokens are sampled.
VLLM_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_completion_length"),
    *("generation_kwargs", "structured_outputs_regex"),
)


class Generator(Protocol):
    """An inference engine that samples responses in place of the policy: `PPOTrainer(generator=...)`.

    The trainer computes the log-probs itself, so an engine's rounding does not matter. An engine may set the attribute
    `last_logprobs`: its own log-probs (nats) of the tokens it returned last, one list per response. They show whether
    it samples from the policy; the mean difference is logged as `sampling_logprob_diff`.
    """

    def sync_weights(self, policy: PreTrainedModel) -> None:
        """Copy the policy's weights. Called on every process before a rollout if the weights have changed."""

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        """Sample one response per prompt from the policy's own distribution.

        Args:
            prompt_ids (`list[list[int]]`): Token ids of the prompts, without padding.
            generation_config ([`~transformers.GenerationConfig`]): `temperature`, `max_new_tokens`, `eos_token_id`.

        Returns:
            `list[list[int]]`: Token ids of the responses, each with the stop token that ended it.
        """


@dataclass
class Samples:
    """One response to the prompt of each row, as lists in the rows' order."""

    rows: list[dict]  # each with a `prompt`, and the columns that chat templates and reward functions read
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]  # the stop token that ended a response included
    texts: list[str]  # without special tokens
    ended: list[bool]  # by a stop token

    @classmethod
    def decode(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[dict],
        prompt_ids: list[list[int]],
        response_ids: torch.Tensor,
        mask: torch.Tensor,
        *,
        stop_token_ids: list[int],
    ) -> "Samples":
        """Samples from response ids and the mask of their real tokens, `(B, R)` each."""
        ended = ends_with_stop(response_ids, mask=mask, stop_token_ids=stop_token_ids).tolist()
        texts, completion_ids = decode_responses(tokenizer, response_ids, mask)
        return cls(rows, prompt_ids, completion_ids, texts, ended)

    @classmethod
    def join(cls, parts: "list[Samples]") -> "Samples":
        """One record of several."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(list(chain.from_iterable(column)) for column in columns))

    @property
    def prompts(self) -> list[Text]:
        """The rows' prompts."""
        return [row["prompt"] for row in self.rows]

    @property
    def completions(self) -> list[Text]:
        """The texts in the form of their prompts: text, or one message of the assistant."""
        return list(map(as_completion, self.prompts, self.texts))

    def columns(self) -> dict[str, list]:
        """All other columns of the rows, by name."""
        return {name: [row[name] for row in self.rows] for name in self.rows[0] if name != "prompt"}

    def __getitem__(self, part: slice) -> "Samples":
        return Samples(*(values[part] for values in vars(self).values()))


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    streamer: BaseStreamer | None = None,
    **settings: Any,
) -> Samples:
    """Sample a response to each row's prompt, by default at temperature 1; `settings` are [`sampling_config`]'s."""
    config = sampling_config(model, tokenizer, max_new_tokens=max_new_tokens, **settings)
    parts = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        prompt_ids = [encode_row(tokenizer, row) for row in some]
        batch = pad_rows(prompt_ids, pad_token_id=config.pad_token_id, side="left", device=model.device)
        responses = generate_responses(model, *batch, generation_config=config, streamer=streamer)
        parts.append(Samples.decode(tokenizer, some, prompt_ids, *responses, stop_token_ids=config.eos_token_id))
    return Samples.join(parts)


def room_for_response(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], *, wanted: int
) -> int:
    """Tokens left for a response behind the longest prompt: `wanted`, or what the context leaves (0 or less: none)."""
    context = context_length(model) or float("inf")
    return min(wanted, context - max(len(encode_row(tokenizer, row)) for row in rows))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random numbers drawn in the block, on the device too; those drawn outside stay the same."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def check_generation_kwargs(kwargs: dict[str, Any], *, option: str) -> None:
    """Raise a `ValueError` for a setting that changes the sampling distribution."""
    for name, value in kwargs.items():
        if name in OWN_OPTIONS:
            raise ValueError(f"`{option}`: set `{name}` with PPO's own option `{OWN_OPTIONS[name]}`.")
        if name not in HARMLESS and value not in NEUTRAL.get(name, ()):
            raise ValueError(
                f"`{option}`: `{name}` = {value!r} is not supported. It samples tokens from another distribution than "
                "the one PPO computes log-probs of, so the ratios would be wrong and the KL could become negative."
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
    """Generation settings that sample from the model's own distribution, changed by the temperature alone.

    Of the model's own generation settings only the stop tokens are kept, joined with the tokenizer's and
    `stop_token_ids`.
    """
    stop = model.generation_config.eos_token_id
    stop = {*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id, *stop_token_ids}
    stop = sorted(stop - {None})
    # Masks tell which tokens are real, so any id can be the padding.
    pad = next(id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id, *stop, 0) if id_ is not None)
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if do_sample else {}
    # Trainer writes use_cache=False into the configuration of the model it trains.
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
    """Response ids and the mask of their real tokens, `(B, R)` each, to left-padded prompts `(B, P)`."""
    # `generate` fills settings that are None from the model's own, for example its repetition penalty.
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
    """Response ids and the mask of their real tokens, `(B, R)` each, from an engine, whose output is checked."""
    rows = generator.generate(prompt_rows, generation_config=generation_config)
    name, longest = type(generator).__name__, generation_config.max_new_tokens
    if len(rows) != len(prompt_rows):
        raise InputError(f"the generator {name} returned {len(rows)} responses for {len(prompt_rows)} prompts.")
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= longest:
            raise InputError(f"the generator {name}: response {i} has {len(row)} tokens, not 1 to {longest}.")
    short, stop = [row for row in rows if len(row) < longest], set(generation_config.eos_token_id)
    if short and not any(stop & set(row) for row in short):
        logger.warning_once(
            f"the generator {name}: no response shorter than {longest} tokens ends with a stop token. Return the stop "
            "token as a part of the response; without it, the response counts as truncated."
        )
    ids, mask = pad_rows(rows, pad_token_id=generation_config.pad_token_id, side="right", device=device)
    return ids, mask & response_mask(ids, stop_token_ids=generation_config.eos_token_id)
