"""The models and reward functions that a stage reads, by the names its arguments give."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from trl import ModelConfig, RewardConfig, SFTConfig, get_peft_config

from .. import char_gpt  # noqa: F401  (registers the tiny model with the Auto classes)
from ..errors import InputError
from ..models.checks import check_vocabulary
from ..models.loading import load_policy, loading, loading_options, quiet
from ..ppo.config import PPOConfig
from ..resuming.run_folder import check_finished
from .functions import load_function

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# A model that is loaded has these already.
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token. Raises `InputError` if there is none."""
    check_model_path(name)
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end-of-text token (`eos_token`): answers could never end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def apply_template_options(tokenizer: PreTrainedTokenizerBase, training_args: SFTConfig | RewardConfig) -> None:
    """Put `chat_template_path` and `eos_token`, which TRL applies when it trains, into a tokenizer that is checked.

    Raises:
        InputError: There is no such file, model or token.
    """
    path = training_args.chat_template_path
    if path is not None and path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"`chat_template_path`: {path} cannot be read: {error}") from error
    elif path is not None:
        try:
            source = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"`chat_template_path`: {path} is no .jinja file and no model with a tokenizer."
            ) from error
        tokenizer.chat_template = source.chat_template
        if tokenizer.chat_template is None:
            raise InputError(f"`chat_template_path`: the tokenizer of {path} has no chat template.")
        if source.eos_token in tokenizer.get_vocab():
            tokenizer.eos_token = source.eos_token
    if training_args.eos_token is not None:
        if training_args.eos_token not in tokenizer.get_vocab():
            raise InputError(f"`eos_token`: the tokenizer has no token {training_args.eos_token!r}.")
        tokenizer.eos_token = training_args.eos_token


def load_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, of an adapter its base model's. Raises `InputError` if there is none."""
    check_model_path(name)
    with loading(name):
        if find_adapter_config_file(name, revision=revision) is not None:
            from peft import PeftConfig

            adapter = PeftConfig.from_pretrained(name, revision=revision)
            name, revision = adapter.base_model_name_or_path, adapter.revision or "main"
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def check_sizes(name: str, config: PreTrainedConfig, init_kwargs: dict | None) -> None:
    """Raise an `InputError` for `model_init_kwargs` that would make another model of an existing one."""
    config = config.get_text_config()
    for key in (init_kwargs or {}).keys() & {*SIZES, "dropout"}:
        wanted, known = init_kwargs[key], getattr(config, key, None)
        if wanted != known and (key in SIZES or known is None):
            has = "has none" if known is None else f"has {known!r}"
            raise InputError(
                f"`model_init_kwargs`: `{key}` = {wanted!r} is for a new model, and {name} {has}: leave it out. If "
                "the file was written for another model, look at its `max_length`, `learning_rate` and epochs too."
            )


def load_causal_lm(name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A causal language model that fits its tokenizer. Raises `InputError` for anything else at that place."""
    check_model_path(name)
    if find_adapter_config_file(name, revision=kwargs.get("revision")) is not None:
        with loading(name):
            return load_policy(name, **kwargs)
    with loading(name), quiet():
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise InputError(f"{name} holds no causal language model: {sorted(info['missing_keys'])[0]} is missing.")
    check_vocabulary(name, tokenizer, model)
    return model


def load_new_reward_model(name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A model with one score, its head new where it had none; of an adapter, with the adapter, to be trained on.

    Raises `InputError` if it does not fit its tokenizer.
    """
    with loading(name), quiet():
        if find_adapter_config_file(name, revision=kwargs.get("revision")) is None:
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs)
        else:
            model = _reward_model_on(name, **kwargs)
    check_vocabulary(name, tokenizer, model)
    return model


def _reward_model_on(name: str, *, revision: str | None = None, **kwargs) -> "PeftModel":
    """An adapter, whatever it was trained for, on its base model with a score head, which is a part of the adapter."""
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    config = PeftConfig.from_pretrained(name, revision=revision)
    config.task_type, config.inference_mode = "SEQ_CLS", False
    base = AutoModelForSequenceClassification.from_pretrained(
        config.base_model_name_or_path, num_labels=1, revision=config.revision, **kwargs
    )
    model = get_peft_model(base, config)
    new, weights = get_peft_model_state_dict(model), load_peft_weights(name, device="cpu", revision=revision)
    trunk = f"base_model.model.{base.base_model_prefix}."
    if lost := sorted(name for name in weights.keys() - new.keys() if name.startswith(trunk)):
        raise InputError(f"the adapter {name}: a reward model has no place for {lost[0]}.")
    set_peft_model_state_dict(model, {**new, **{key: x for key, x in weights.items() if key in new}})
    return model


def model_source(training_args: SFTConfig | RewardConfig | PPOConfig, model_args: ModelConfig) -> dict:
    """What of `from_pretrained` the model, its configuration and its tokenizer share: revision and trust."""
    options = {"revision": model_args.model_revision, **loading_options(training_args)}
    return {key: options[key] for key in ("revision", "trust_remote_code")}


def load_options(training_args: SFTConfig | RewardConfig | PPOConfig, model_args: ModelConfig) -> dict:
    """Keyword arguments of `from_pretrained` that the options ask for. `model_init_kwargs` is used up by it."""
    options = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **loading_options(training_args),
    }
    training_args.model_init_kwargs = None
    return options


def lora_config(model_args: ModelConfig) -> "PeftConfig | None":
    """The adapter that the options ask for.

    `ModelConfig` turns a list of one module into a string, which PEFT reads as a regular expression of a full name. A
    string without any sign of a regular expression is a module's name again.
    """
    config = get_peft_config(model_args)
    modules = config and config.target_modules
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):
        config.target_modules = {modules}
    return config


@contextmanager
def peft_errors(model_args: ModelConfig) -> Iterator[None]:
    """What PEFT refuses while a trainer is made, such as modules that the model lacks, is an `InputError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if not model_args.use_peft or isinstance(error, InputError):
            raise
        raise InputError(f"`use_peft`: {' '.join(str(error).split())}") from error


def check_model_path(name: str | None) -> None:
    """Raise an `InputError` if a model is missing, or named by a path at which no model stands."""
    if name is None:
        raise InputError("`model_name_or_path` is missing: a Hub id or a folder.")
    path = Path(name)
    if path.is_dir():
        check_finished(path)
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise InputError(f"{name} holds no model: it has no config.json.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise InputError(f"there is no model at {name}: no such folder, and it is no Hub id (user/name).")


def check_reward_model(name: str, *, option: str, trust_remote_code: bool) -> None:
    """Raise an `InputError` that names `option` if there is no reward model of that name."""
    check_model_path(name)
    if find_adapter_config_file(name) is not None:
        return
    num_labels = load_config(name, trust_remote_code=trust_remote_code).num_labels
    if num_labels != 1:
        raise InputError(
            f"`{option}`: {name} has num_labels = {num_labels}; a reward model has 1, such as `hf-instructgpt reward` "
            "makes it."
        )


def resolve_reward(name: str, *, trust_remote_code: bool = False):
    """A reward model's name as it is, or the Python function of that name.

    Raises:
        InputError: No model with one label and no function of that name.
    """
    is_function = ".py:" in name
    if not is_function and (Path(name).is_dir() or "/" in name):
        check_reward_model(name, option="reward_funcs", trust_remote_code=trust_remote_code)
        return name
    if not is_function and "." not in name:
        raise InputError(f"`reward_funcs`: {name} is neither a folder, nor a Hub id, nor a dotted path of a function.")
    return load_function(name, option="reward_funcs")
