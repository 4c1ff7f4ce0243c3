"""Load models by name or path, adapters included, and give them LoRA layers."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import find_adapter_config_file, logging

from ..errors import InputError
from .checks import check_vocabulary
from .surgery import has_adapter, without_adapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def loading_options(args: TrainingArguments) -> dict[str, Any]:
    """Options of `from_pretrained` in a trainer's `model_init_kwargs`, which alone cannot allow remote code."""
    options = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    if options["trust_remote_code"] and not args.trust_remote_code:
        raise InputError(
            "`model_init_kwargs` has `trust_remote_code`, but the option `trust_remote_code` is off: set that one to "
            "let the model and its tokenizer run their own code, or leave both out."
        )
    if "torch_dtype" in options:  # its old name
        options["dtype"] = options.pop("torch_dtype")
    return options


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of transformers, such as the table of weights that a new head lacks."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn what fails while a model is loaded, such as a damaged file, into an `InputError` that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError):
            raise
        what = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise InputError(f"the model {name} cannot be loaded: {what}{' '.join(str(error).split())}") from error


def load_policy(model: "str | PreTrainedModel | PeftModel", **kwargs: Any) -> "PreTrainedModel | PeftModel":
    """Load a policy, full or an adapter, by its Hub id or path; return a model as it is."""
    if isinstance(model, str):
        kwargs = {"dtype": torch.float32, **kwargs}
        with loading(model):
            if find_adapter_config_file(model, revision=kwargs.get("revision")) is None:
                return AutoModelForCausalLM.from_pretrained(model, **kwargs)
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(model, is_trainable=True, **kwargs)
    # TRL's SFTTrainer leaves a `forward` on the instance that returns no logits.
    without_adapter(model).__dict__.pop("forward", None)
    return model


def load_reward_model(
    model: "str | PreTrainedModel | PeftModel | Callable",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs: Any,
) -> "PreTrainedModel | PeftModel | Callable":
    """Load a reward model that fits `tokenizer`, full or an adapter, by its name; return anything else as it is."""
    if isinstance(model, nn.Module) and not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise InputError(
            f"`reward_funcs`: {type(model).__name__} is a module without a Transformers configuration. Pass a "
            "function `f(completions, **columns)` that calls it and returns a list of scores."
        )
    if not isinstance(model, str):
        return model
    name, kwargs = model, {"dtype": torch.float32, **kwargs}
    with loading(name), quiet():
        if find_adapter_config_file(name) is None:
            model = AutoModelForSequenceClassification.from_pretrained(name, **kwargs)
        else:
            model = _load_reward_adapter(name, **kwargs)
    if tokenizer is not None:
        check_vocabulary(name, tokenizer, model)
        if model.config.get_text_config().pad_token_id is None:
            raise InputError(f"{name} has no `pad_token_id` in its config. Set the one it was trained with.")
    return model


def _load_reward_adapter(name: str, **kwargs: Any) -> "PeftModel":
    from peft import AutoPeftModelForSequenceClassification

    # The score head is part of the adapter.
    model = AutoPeftModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs)
    model.config._name_or_path = name  # instead of its base model's
    with suppress(OSError):  # adapters of other programs have no configuration beside them
        model.config.score_bias = PreTrainedConfig.get_config_dict(name)[0].get("score_bias", 0.0)
    return model


def add_lora(model: PreTrainedModel, peft_config: "PeftConfig", *, task_type: str) -> "PeftModel":
    """Add a new adapter to a model, of which only the adapter is trained."""
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise InputError('`peft_config` needs PEFT: `pip install "hf-instructgpt[peft]"`.') from error
    if has_adapter(model):
        raise InputError(
            "`peft_config`: the model has an adapter already. Leave `peft_config` out to train that one, or merge it "
            "first (`merge_and_unload`)."
        )
    if peft_config.is_prompt_learning:
        raise InputError("`peft_config`: prompt learning is not supported; use LoRA or another kind with layers.")
    peft_config = copy.deepcopy(peft_config)  # PEFT modifies it
    peft_config.task_type = task_type
    if task_type != "CAUSAL_LM":
        # The options name the policy's modules: they have a prefix, and this model has no such head.
        peft_config.modules_to_save = None
        prefix = f"{model.base_model_prefix}."
        modules = peft_config.target_modules
        if isinstance(modules, str):  # "all-linear", or a regular expression of a full name
            names = [name for name, _ in model.named_modules()]
            modules = {name for name in names if re.fullmatch(modules, prefix + name)} or modules
            peft_config.target_modules = modules
        elif isinstance(modules, list | set):
            peft_config.target_modules = {name.removeprefix(prefix) for name in modules}
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(peft_config, name, None) or {}
            setattr(peft_config, name, {key.removeprefix(prefix): value for key, value in pattern.items()})
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        whose = "" if task_type == "CAUSAL_LM" else "for the critic, the same model without its head: "
        raise InputError(f"`peft_config`: {whose}{' '.join(str(error).split())}") from error


def switches_off(peft_config: "PeftConfig") -> bool:
    """Whether turning the adapter off restores the original model; not if it trains biases."""
    init = getattr(peft_config, "init_lora_weights", True)
    return getattr(peft_config, "bias", "none") == "none" and init in (True, False, "gaussian", "orthogonal")
