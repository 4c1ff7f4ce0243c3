"""Copies, adapters, trunks and dropout of models."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError


def independent_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy that shares nothing with `model`, with adapters merged.

    Those on quantised weights stay layers of the copy, because merged weights would be rounded.
    """
    clone = copy.deepcopy(model)
    # TRL's SFTTrainer sets a `forward` on the instance that would still run the original's weights.
    without_adapter(clone).__dict__.pop("forward", None)
    if has_adapter(clone):
        clone = without_adapter(clone) if is_quantised(clone) else clone.merge_and_unload()
        clone.config._name_or_path = ""  # these are no longer the weights of that name
    return clone


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is a PeftModel; called in every forward, where accelerate's own test would take 1 ms."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The model without PEFT's wrapper, which hides `forward`'s arguments; LoRA layers stay inside."""
    return model.get_base_model() if has_adapter(model) else model


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's weights, adapters aside, are in 8 or 4 bits."""
    model = without_adapter(model)
    # A trunk has only the configuration of the model that was loaded.
    is_loaded_so = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    return is_loaded_so or getattr(model, "is_quantized", False)


def keep_differentiable(model: nn.Module) -> None:
    """Let gradients pass 4-bit weights on a CPU.

    In evaluation bitsandbytes packs them there for AVX512-BF16 in place, and a product with packed weights has no
    gradient, in training as well.
    """
    layers = [layer for layer in model.modules() if getattr(layer, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        layer.state_dict()  # unpacks
        layer.support_avx512bf16_for_cpu = False


def trunk(model: nn.Module) -> PreTrainedModel:
    """The model below the language-modelling head; it returns the last hidden state."""
    model = without_adapter(model)
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    # Llama 4's text model: its `base_model_prefix` is not the name of its trunk.
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


@contextlib.contextmanager
def last_hidden_state(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which each forward inside the block adds the trunk's last hidden state `(B, T, H)`."""
    kept: list[torch.Tensor] = []
    handle = trunk(model).register_forward_hook(lambda module, args, output: kept.append(output.last_hidden_state))
    try:
        yield kept
    finally:
        handle.remove()


def disable_dropout(model: nn.Module) -> None:
    """Turn off all dropout, modules and plain numbers (such as Llama's `attention_dropout`), but not in the config."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _dropout_rates(module):
            setattr(module, name, 0.0)


@contextlib.contextmanager
def without_configured_dropout(model: nn.Module) -> Iterator[None]:
    """Set dropout rates in the configurations to 0 inside the block: some models (Falcon) read them in `forward`."""
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    rates = [(config, _dropout_rates(config)) for config in configs.values() if isinstance(config, PreTrainedConfig)]
    try:
        for config, own in rates:
            vars(config).update(dict.fromkeys(own, 0.0))
        yield
    finally:
        for config, own in rates:
            vars(config).update(own)


def _dropout_rates(thing: nn.Module | PreTrainedConfig) -> dict[str, float]:
    """Nonzero attributes such as `attention_dropout`, `resid_pdrop` or `layerdrop`."""
    return {
        name: value for name, value in vars(thing).items() if "drop" in name and isinstance(value, float) and value
    }


@torch.no_grad()
def hidden_width(model: nn.Module) -> int:
    """Measured width of the last hidden state, which may differ from `hidden_size` (OPT-350m)."""
    body = trunk(model)
    was_training = body.training
    hidden = body.eval()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device)).last_hidden_state
    body.train(was_training)
    return hidden.shape[-1]


def load_weights(model: nn.Module, directory: str | Path) -> None:
    """Load weights that `save_pretrained` wrote into a model of the same kind, or its adapter."""
    if has_adapter(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    else:
        # float32 holds all narrower types exactly; the model's parameters may have several.
        saved, report = type(model).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        # The class alone may have more weights than the model (BERT's pooler); no weight of the model may be random.
        names = model.state_dict().keys()
        if missing := sorted(names & set(report["missing_keys"])):
            raise InputError(
                f"{directory} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}."
            )
        model.load_state_dict({name: weight for name, weight in saved.state_dict().items() if name in names})
