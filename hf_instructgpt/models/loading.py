"""Load models by name or path, adapters included, and give them LoRA layers."""

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file, is_bitsandbytes_available, logging

from ..errors import InputError
from .checks import check_vocabulary
from .packing import has_plain_head
from .surgery import has_adapter, keep_differentiable, without_adapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import TrainingArguments


def loading_options(args: "TrainingArguments", **defaults: Any) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: `defaults`, replaced by a trainer's `model_init_kwargs`."""
    options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code, **defaults}
    options |= args.model_init_kwargs or {}
    if options["trust_remote_code"] and not args.trust_remote_code:
        raise InputError(
            "`model_init_kwargs` has `trust_remote_code`, but the option `trust_remote_code` is off: set that one to "
            "let the model and its tokenizer run their own code, or leave both out."
        )
    if "torch_dtype" in options:  # its old name
        options["dtype"] = options.pop("torch_dtype")
    return options


def quantising(kind: str, *, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that quantise a model to "int8" or "nf4"; all else is in `dtype`."""
    check_bitsandbytes(kind)
    is_8bit = kind == "int8"
    config = BitsAndBytesConfig(
        load_in_8bit=is_8bit, load_in_4bit=not is_8bit, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "dtype": dtype, "device_map": {"": device}}


def check_bitsandbytes(option: str) -> None:
    """Refuse an option that needs bitsandbytes where it is not installed."""
    if not is_bitsandbytes_available():
        raise InputError(f"`{option}` needs bitsandbytes, which is not installed: `pip install bitsandbytes`.")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of transformers, such as the table of weights that a new head lacks."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # PEFT asks every model for it, by the only name that older versions of transformers know.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn what fails while a model is loaded, such as a damaged file, into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        what = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        words = " ".join(str(error).split()).partition(" Model type should be one of")[0]  # hundreds of them
        raise InputError(f"the model {name} cannot be loaded: {what}{words}") from error


def load_policy(
    model: "str | PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
) -> "PreTrainedModel | PeftModel":
    """The policy by its Hub id or path, also an adapter on its base model; a model is returned as it is.

    It must have an embedding for each token of `tokenizer`, if that is given.
    """
    if not isinstance(model, str):
        # TRL's SFTTrainer leaves a `forward` on the instance that returns no logits.
        without_adapter(model).__dict__.pop("forward", None)
        keep_differentiable(model)
        return model
    name, missing = model, []
    with loading(name), quiet():
        if find_adapter_config_file(name, revision=kwargs.get("revision")) is None:
            model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
            missing = sorted(info["missing_keys"])
        else:
            from peft import AutoPeftModelForCausalLM

            kwargs = {"dtype": torch.float32, **kwargs}
            model = AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **kwargs)
    if missing:
        raise InputError(f"{name} holds no causal language model: {missing[0]} is missing.")
    if tokenizer is not None:
        check_vocabulary(name, tokenizer, model)
    keep_differentiable(model)
    return model


def load_new_reward_model(
    name: str, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
) -> "PreTrainedModel | PeftModel":
    """A reward model to be trained from any model, with a new score head if it has none, or from an adapter."""
    with loading(name), quiet():
        if find_adapter_config_file(name, revision=kwargs.get("revision")) is None:
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs)
        else:
            model = _new_reward_adapter(name, **kwargs)
    check_vocabulary(name, tokenizer, model)
    keep_differentiable(model)
    return model


def _new_reward_adapter(name: str, *, revision: str | None = None, **kwargs: Any) -> "PeftModel":
    """An adapter, trained for any task, on its base model with a score head, which becomes part of the adapter."""
    import peft

    config = peft.PeftConfig.from_pretrained(name, revision=revision)
    config.task_type, config.inference_mode = "SEQ_CLS", False
    base = AutoModelForSequenceClassification.from_pretrained(
        config.base_model_name_or_path, num_labels=1, revision=config.revision, **kwargs
    )
    model = peft.get_peft_model(base, config)
    new = peft.get_peft_model_state_dict(model)
    weights = peft.load_peft_weights(name, device="cpu", revision=revision)
    trunk = f"base_model.model.{base.base_model_prefix}."
    if lost := sorted(key for key in weights.keys() - new.keys() if key.startswith(trunk)):
        raise InputError(f"the adapter {name}: a reward model has no place for {lost[0]}.")
    peft.set_peft_model_state_dict(model, {**new, **{key: x for key, x in weights.items() if key in new}})
    _read_unit(model, name)
    return model


def _read_unit(model: "PeftModel", name: str) -> None:
    """Zero and unit of an adapter's scores, from the configuration beside it; adapters of other programs have none."""
    with suppress(OSError):
        beside = PreTrainedConfig.get_config_dict(name)[0]
        model.config.score_bias = beside.get("score_bias", 0.0)
        model.config.score_scale = beside.get("score_scale", 1.0)


def load_reward_model(
    model: "str | PreTrainedModel | PeftModel | Callable",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs: Any,
) -> "PreTrainedModel | PeftModel | Callable":
    """A reward model by its Hub id or path, also an adapter on its base model; anything else is returned as it is.

    It must have an embedding for each token of `tokenizer`, if that is given.
    """
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
            model = _load_classifier(name, **kwargs)
        else:
            from peft import AutoPeftModelForSequenceClassification, PeftConfig

            if PeftConfig.from_pretrained(name).task_type == "TOKEN_CLS":
                raise InputError(f"{name} is an adapter that classifies tokens: merge it into its base model first.")

            # The adapter's base model has no score head: its own comes with the adapter.
            model = AutoPeftModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs)
            model.config._name_or_path = name  # logs show its own name, not its base model's
            _read_unit(model, name)
    if tokenizer is not None:
        check_vocabulary(name, tokenizer, model)
        if model.config.get_text_config().pad_token_id is None:
            raise InputError(f"{name} has no `pad_token_id` in its config. Set the one it was trained with.")
    return model


def classifies_tokens(architectures: list[str] | None) -> bool:
    """Whether a configuration is a token classifier's, which as a reward model scores the steps of a response."""
    return any(name.endswith("ForTokenClassification") for name in architectures or ())


def _load_classifier(name: str, **kwargs: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name, trust_remote_code=kwargs.get("trust_remote_code", False))
    if not classifies_tokens(config.architectures):
        return AutoModelForSequenceClassification.from_pretrained(name, **kwargs)
    return AutoModelForTokenClassification.from_pretrained(name, **kwargs)


def frozen_lm_head(policy: "PreTrainedModel | PeftModel") -> nn.Module:
    """What makes a policy's last hidden states logits: a copy that is not trained."""
    policy = without_adapter(policy)
    if not has_plain_head(policy):
        name = policy.config._name_or_path or type(policy).__name__
        raise InputError(f"`lm_coef`: the logits of {name} are more than a linear map of its hidden states.")
    return copy.deepcopy(policy.get_output_embeddings()).requires_grad_(False)


def add_lora(model: PreTrainedModel, peft_config: "PeftConfig", *, task_type: str) -> "PeftModel":
    """The model with a new adapter; only the adapter is trained."""
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
        # The names are those of the policy, which has a head, and its trunk under a prefix.
        peft_config.modules_to_save = None
        prefix = f"{model.base_model_prefix}."
        modules = peft_config.target_modules
        if isinstance(modules, str):  # "all-linear", or a regular expression of a full name in the policy
            names = [name for name, _ in model.named_modules()]
            modules = {name for name in names if re.fullmatch(modules, prefix + name)} or modules
            peft_config.target_modules = modules
        elif isinstance(modules, list | set):
            peft_config.target_modules = {name.removeprefix(prefix) for name in modules}
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = getattr(peft_config, name, None) or {}
            setattr(peft_config, name, {key.removeprefix(prefix): value for key, value in pattern.items()})
    try:
        with quiet():
            return get_peft_model(model, peft_config)
    except ValueError as error:
        whose = "" if task_type == "CAUSAL_LM" else "for the critic, the same model without its head: "
        raise InputError(f"`peft_config`: {whose}{' '.join(str(error).split())}") from error


def switches_off(peft_config: "PeftConfig") -> bool:
    """Whether turning the adapter off gives the original model back; one that trains biases does not."""
    init = getattr(peft_config, "init_lora_weights", True)
    return getattr(peft_config, "bias", "none") == "none" and init in (True, False, "gaussian", "orthogonal")
