"""Inference engines that sample in the policy's place, and what they need of it: its whole weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .actor_critic import has_adapter, independent_copy


@torch.no_grad()
def whole_weights(policy: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The policy's parameters by the names under which they are saved, each once, whole, an adapter merged.

    Parameters that are sharded (FSDP2) are gathered one at a time, so every process must take every one of them. An
    adapter is merged in a copy: merged in place and taken out again, the weights would no longer be the same bits.

    Raises:
        InputError: There is an adapter, and its weights are sharded.
    """
    if has_adapter(policy):
        if any(isinstance(p, DTensor) for p in policy.parameters()):
            raise InputError(
                "an engine cannot follow a LoRA adapter whose weights are sharded: use DDP, or no adapter."
            )
        policy = independent_copy(policy)
    for name, p in policy.named_parameters():
        yield name, p.full_tensor() if isinstance(p, DTensor) else p.detach()


class VLLMGenerator:
    """TRL's vLLM engine as a [`Generator`].

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The model whose weights the engine follows.
        accelerator ([`~accelerate.Accelerator`]): The trainer's.
        processing_class (`PreTrainedTokenizerBase`): The policy's tokenizer.
        generation_config ([`~transformers.GenerationConfig`]): See [`sampling_config`].
        kwargs: Other arguments of `VLLMGeneration`, such as `mode`, `server_base_url` or `gpu_memory_utilization`.

    Raises:
        InputError: vLLM is not installed, or an argument is unknown to the engine.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        accelerator,
        processing_class: PreTrainedTokenizerBase,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ):
        # Here, since it takes a while. `trl.generation` itself has the class only where vLLM is installed.
        from trl.generation.vllm_generation import VLLMGeneration

        try:
            self.engine = VLLMGeneration(
                model=policy,
                accelerator=accelerator,
                processing_class=processing_class,
                temperature=generation_config.temperature,
                max_completion_length=generation_config.max_new_tokens,
                logprobs=None,
                generation_kwargs={"stop_token_ids": generation_config.eos_token_id},
                **kwargs,
            )
        except TypeError as error:
            raise InputError(f"`vllm_kwargs`: {error}") from error
        except ImportError as error:
            raise InputError(f"`use_vllm` needs vLLM, which is not installed here: {error}") from error

    def sync_weights(self, policy: PreTrainedModel) -> None:
        self.engine.sync_weights()

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        return self.engine.generate(prompts=prompt_ids, images=None, num_generations=1)[1]
