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
from .policy_sampler import PolicySampler
from .recorded import RecordedRollouts
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


def engine_from_options(options: dict) -> Generator:
    """The engine that the option `generator` describes: recorded rollouts, or else a server."""
    if isinstance(options, dict) and [*options] == ["rollouts"]:
        return RecordedRollouts(options["rollouts"])
    return ServerGenerator.from_options(options)


def make_generator(
    generator: Generator | None,
    args: TrainingArguments,
    policy: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    accelerator: Accelerator,
    generation_config: GenerationConfig,
    can_sample: bool,
    is_sharded: bool,
) -> Generator | None:
    """The engine that was passed, or that the options name, or our own loop; None: the policy's `generate` samples.

    `can_sample`: our loop can drive the policy.
    """
    if generator is not None and args.generator is not None:
        raise InputError("`generator`: pass the engine, or describe it in the options, not both.")
    if generator is not None and args.use_vllm:
        raise InputError("`use_vllm` and `generator`: choose one engine.")
    if args.generator is not None:
        return engine_from_options(args.generator)
    if args.use_vllm:
        return VLLMGenerator(
            policy,
            accelerator=accelerator,
            processing_class=processing_class,
            generation_config=generation_config,
            **(args.vllm_kwargs or {}),
        )
    if generator is not None:
        return generator
    if can_sample and not is_sharded:
        dtype = args.sampling_dtype and getattr(torch, args.sampling_dtype)
        if dtype is None or (dtype == policy.dtype and accelerator.mixed_precision == "no"):
            return PolicySampler(autocast=accelerator.autocast)
        return PolicySampler(dtype)
    if not args.generation_kwargs:
        reason = "the weights are sharded" if is_sharded else "our own loop cannot drive this model's cache"
        logger.warning(f"Responses are sampled by `generate`, which is slower, because {reason}.")
    if args.sampling_dtype is not None:
        logger.warning("`sampling_dtype` has no effect with `generate`.")
    return None
