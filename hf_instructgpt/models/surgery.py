"""Copies, adapters, backbones and dropout of models."""

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
    """Copy a model, with adapters merged, so that it shares nothing with the original."""
    clone = copy.deepcopy(model)
    # SFTTrainer puts a closure over the original there, which would run the original's weights.
    without_adapter(clone).__dict__.pop("forward", None)
    if has_adapter(clone):
        clone = clone.merge_and_unload()
        clone.config._name_or_path = ""  # its weights are no longer those of that name
    return clone


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is wrapped by PEFT; faster than accelerate's test, which takes a millisecond per forward."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The Transformers model with its LoRA layers, without PEFT's wrapper, which hides `forward`'s arguments."""
    return model.get_base_model() if has_adapter(model) else model


def trunk(model: nn.Module) -> PreTrainedModel:
    """The model below the language-modelling head, which returns the last hidden state."""
    model = without_adapter(model)
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    # Llama 4's text model: its `base_model_prefix` is not the name of its trunk.
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def disable_dropout(model: nn.Module) -> None:
    """Turn off dropout, in modules and attributes (Llama's `attention_dropout`), but not in the config."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _dropout_rates(module):
            setattr(module, name, 0.0)


@contextlib.contextmanager
def without_configured_dropout(model: nn.Module) -> Iterator[None]:
    """Temporarily set the dropout rates in the configs to 0, because some models (Falcon) read them in `forward`."""
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
    """Attributes such as `attention_dropout`, `resid_pdrop` or `layerdrop` that are not 0."""
    return {
        name: value for name, value in vars(thing).items() if "drop" in name and isinstance(value, float) and value
    }


@torch.no_grad()
def hidden_width(model: nn.Module) -> int:
    """Measured width of the last hidden state, which can differ from `config.hidden_size` (OPT-350m)."""
    body = trunk(model)
    was_training = body.training
    hidden = body.eval()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device)).last_hidden_state
    body.train(was_training)
    return hidden.shape[-1]


def load_weights(model: nn.Module, directory: str | Path) -> None:
    """Load what `save_pretrained` wrote into a model of the same class, or into its adapter."""
    if has_adapter(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    else:
        # float32 holds the other types exactly; parameters may differ in type.
        saved, report = type(model).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        # The class may have more than this model, such as BERT's pooler; nothing may be initialized anew.
        names = model.state_dict().keys()
        if missing := sorted(names & set(report["missing_keys"])):
            raise InputError(
                f"{directory} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}."
            )
        model.load_state_dict({name: weight for name, weight in saved.state_dict().items() if name in names})
