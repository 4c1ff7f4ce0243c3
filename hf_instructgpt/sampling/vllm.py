"""vLLM as a generator, and a policy's complete weights for any engine."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.shards import gathered, stored
from ..models.surgery import without_adapter


@torch.no_grad()
def whole_weights(policy: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter once, by the name it is saved under, gathered from shards and with adapters merged.

    Every process must take every parameter, because sharded ones are gathered one at a time. An adapter is merged in a
    copy of its layer, because unmerging would not restore the same bits.
    """
    yield from _merged_weights(without_adapter(policy), "", set())


def _merged_weights(module: nn.Module, prefix: str, given: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    # `given` holds the ids of the parameters that were yielded.
    unload = getattr(module, "unload_and_optionally_merge_module", None)
    if unload is not None or hasattr(module, "base_layer"):  # PEFT's replacement of a layer
        # A memo for `deepcopy`, which takes these as copies of the parameters.
        memo = {id(p): nn.Parameter(gathered(p, stored(p)).clone(), False) for p in module.parameters()}
        layer = copy.deepcopy(module, memo)
        if unload is None:
            layer.merge()
            layer = layer.get_base_layer()
        else:
            layer = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        yield from layer.named_parameters(prefix.removesuffix("."))
        return
    for name, p in module.named_parameters(recurse=False):
        if id(p) not in given:  # tied weights are one parameter
            given.add(id(p))
            yield prefix + name, gathered(p, stored(p)).detach()
    for name, child in module.named_children():
        yield from _merged_weights(child, f"{prefix}{name}.", given)


class VLLMGenerator:
    """TRL's vLLM engine as a [`Generator`]; `kwargs` are other arguments of `VLLMGeneration`.

    In the training process (`mode="colocate"`) the engine takes its weights by vLLM's own `reload_weights`: TRL writes
    them directly into the layers, which a CPU and quantized weights do not allow.
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
        if kwargs.get("mode", "colocate") == "colocate":
            if not policy.name_or_path:
                raise InputError(
                    "`use_vllm`: the engine loads the policy by its name, and a model made in memory has none. "
                    "Save it together with its tokenizer, and pass the folder as the policy."
                )
            is_tied = getattr(policy.config.get_text_config(), "tie_word_embeddings", False)
            if is_tied and accelerator.device.type == "cpu":
                # vLLM repacks the output embedding only if it is loaded separately.
                raise InputError(
                    "`use_vllm` on a CPU: vLLM would keep the old output embedding of a policy whose input and output "
                    "embeddings are one matrix. Leave `use_vllm` out, or train on a GPU."
                )
        # Slow to import; `trl.generation` itself exports it only if vLLM is installed.
        from trl.generation.vllm_generation import VLLMGeneration

        try:
            self.engine = VLLMGeneration(
                model=policy,
                accelerator=accelerator,
                processing_class=processing_class,
                temperature=generation_config.temperature,
                max_completion_length=generation_config.max_new_tokens,
                logprobs=0,  # the sampled token's own
                generation_kwargs={"stop_token_ids": generation_config.eos_token_id},
                **kwargs,
            )
        except TypeError as error:
            raise InputError(f"`vllm_kwargs`: {error}") from error
        except ImportError as error:
            raise InputError(f"`use_vllm` needs vLLM, which is not installed here: {error}") from error
        if self.engine.mode == "colocate":
            # TRL also calls it when it wakes an engine.
            self.engine.sync_weights = self._reload_weights

    def sync_weights(self, policy: PreTrainedModel) -> None:
        self.engine.sync_weights()

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        _, responses, logprobs, _ = self.engine.generate(prompts=prompt_ids, images=None, num_generations=1)
        # TRL has None where vLLM has NaN.
        self.last_logprobs = [[math.nan if x is None else x for (x,) in row] for row in logprobs]
        return responses

    def _reload_weights(self) -> None:
        engine = self.engine
        if engine.enable_sleep_mode:
            clear_device_cache()
            engine.llm.wake_up(tags=["weights"])
            engine._llm_weights_sleeping = False
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole_weights(engine.model)})
        engine.llm.reset_prefix_cache()
