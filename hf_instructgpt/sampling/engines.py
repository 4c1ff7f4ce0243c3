"""How a trainer's options say responses are sampled: the generation settings, and the engine."""

import copy
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from ..errors import InputError
from .generate import Generator, sampling_config
from .policy_sampler import PolicySampler, can_sample
from .server import ServerGenerator
from .vllm import VLLMGenerator

logger = logging.get_logger(__name__)


def generation_config_for(
    model: nn.Module, processing_class: PreTrainedTokenizerBase, args: TrainingArguments
) -> GenerationConfig:
    """The settings that the options ask for; of `model`, those that are saved with it must be sound, too."""
    config = sampling_config(
        model,
        processing_class,
        max_new_tokens=args.max_completion_length,
        temperature=args.temperature,
        stop_token_ids=args.stop_token_ids or (),
        **(args.generation_kwargs or {}),
    )
    if args.stop_token_ids:  # what is saved stops where it has learned to
        model.generation_config.eos_token_id = config.eos_token_id
    try:
        with TemporaryDirectory() as folder:
            copy.deepcopy(model.generation_config).save_pretrained(folder)
    except ValueError as error:
        raise InputError(
            f"the policy's `generation_config` could not be saved with it: {' '.join(str(error).split())} PPO samples "
            "by its own options, so correct it on the model that you pass, or make it `GenerationConfig()`."
        ) from error
    return config


def make_generator(
    generator: Generator | None,
    args: TrainingArguments,
    policy: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    accelerator: Accelerator,
    generation_config: GenerationConfig,
    is_sharded: bool,
) -> Generator | None:
    """The engine that was passed, or that the options name; None: the policy's own `generate` samples."""
    chosen = [name for name in ("use_vllm", "fast_sampling") if getattr(args, name)]
    if generator is not None and args.generator is not None:
        raise InputError("`generator`: pass the engine, or describe it in the options, not both.")
    if generator is not None and chosen:
        raise InputError(f"`{chosen[0]}` and `generator`: choose one engine.")
    if args.generator is not None:
        return ServerGenerator.from_options(args.generator)
    if args.use_vllm:
        return VLLMGenerator(
            policy,
            accelerator=accelerator,
            processing_class=processing_class,
            generation_config=generation_config,
            **(args.vllm_kwargs or {}),
        )
    if not args.fast_sampling:
        return generator
    if not can_sample(policy):
        raise InputError(
            "`fast_sampling`: the policy's `forward` does not take positions, a cache and `logits_to_keep`, or "
            "its cache holds more than attention's keys and values. Leave it out: `generate` samples instead."
        )
    if is_sharded:
        logger.warning("`fast_sampling` is off: the weights are sharded.")
        return None
    return PolicySampler(args.sampling_dtype and getattr(torch, args.sampling_dtype))
