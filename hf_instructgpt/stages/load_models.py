"""Load the models and reward functions that a stage's options name."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ..resuming.run_folder import check_finished
from .arguments import TrainerConfig
from .functions import load_function

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# Fixed for a model that is loaded.
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def load_tokenizer(name: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer and give it a padding token if it has none."""
    check_model_path(name)
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end-of-text token (`eos_token`): answers could never end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str, **options: Any) -> PreTrainedConfig:
    """Load a model's configuration; for an adapter, its base model's."""
    check_model_path(name)
    with loading(name):
        if find_adapter_config_file(name, revision=options.get("revision")) is not None:
            from peft import PeftConfig

            adapter = PeftConfig.from_pretrained(name, revision=options.get("revision"))
            name, options["revision"] = adapter.base_model_name_or_path, adapter.revision or "main"
        return AutoConfig.from_pretrained(name, **options)


def load_base(
    training_args: TrainerConfig, model_args: ModelConfig
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Load the tokenizer and configuration of the model that a stage starts from, and apply its template options."""
    name, source = model_args.model_name_or_path, model_source(training_args, model_args)
    tokenizer, config = load_tokenizer(name, **source), load_config(name, **source)
    _check_sizes(name, config, training_args.model_init_kwargs or {})
    if isinstance(training_args, SFTConfig | RewardConfig):
        apply_template_options(tokenizer, training_args)
    return tokenizer, config


def apply_template_options(tokenizer: PreTrainedTokenizerBase, training_args: SFTConfig | RewardConfig) -> None:
    """Apply `chat_template_path` and `eos_token` before rows are checked; TRL itself applies them in its trainers."""
    path, eos_token = training_args.chat_template_path, training_args.eos_token
    if path is not None and path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"`chat_template_path`: {path} cannot be read: {error}") from error
    elif path is not None:
        try:
            source = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            message = f"`chat_template_path`: {path} is neither a .jinja file nor a model with a tokenizer."
            raise InputError(message) from error
        tokenizer.chat_template = source.chat_template
        if tokenizer.chat_template is None:
            raise InputError(f"`chat_template_path`: the tokenizer of {path} has no chat template.")
        if source.eos_token in tokenizer.get_vocab():
            tokenizer.eos_token = source.eos_token
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise InputError(f"`eos_token`: the tokenizer has no token {eos_token!r}.")
        tokenizer.eos_token = eos_token


def _check_sizes(name: str, config: PreTrainedConfig, init_kwargs: dict) -> None:
    """Refuse `model_init_kwargs` that would change the architecture of an existing model."""
    config = config.get_text_config()
    for key in init_kwargs.keys() & {*SIZES, "dropout"}:
        wanted, known = init_kwargs[key], getattr(config, key, None)
        if wanted != known and (key in SIZES or known is None):
            has = "has none" if known is None else f"has {known!r}"
            raise InputError(
                f"`model_init_kwargs`: `{key}` = {wanted!r} is for a new model, and {name} {has}: leave it out. If "
                "the file was written for another model, look at its `max_length`, `learning_rate` and epochs too."
            )


def load_causal_lm(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
    """Load a causal language model, full or an adapter, and check that it fits its tokenizer."""
    check_model_path(name)
    if find_adapter_config_file(name, revision=options.get("revision")) is not None:
        return load_policy(name, **options)
    with loading(name), quiet():
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise InputError(f"{name} holds no causal language model: {sorted(info['missing_keys'])[0]} is missing.")
    check_vocabulary(name, tokenizer, model)
    return model


def load_new_reward_model(name: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
    """Load a model to train as a reward model, with a new score head if it has none; an adapter stays an adapter."""
    with loading(name), quiet():
        if find_adapter_config_file(name, revision=options.get("revision")) is None:
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **options)
        else:
            model = _reward_model_on(name, **options)
    check_vocabulary(name, tokenizer, model)
    return model


def _reward_model_on(name: str, *, revision: str | None = None, **options: Any) -> "PeftModel":
    """Load any adapter onto its base model with a score head, which becomes part of the adapter."""
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
        config.base_model_name_or_path, num_labels=1, revision=config.revision, **options
    )
    model = get_peft_model(base, config)
    new, weights = get_peft_model_state_dict(model), load_peft_weights(name, device="cpu", revision=revision)
    trunk = f"base_model.model.{base.base_model_prefix}."
    if lost := sorted(name for name in weights.keys() - new.keys() if name.startswith(trunk)):
        raise InputError(f"the adapter {name} does not fit a reward model, which has no weight {lost[0]}.")
    set_peft_model_state_dict(model, {**new, **{key: x for key, x in weights.items() if key in new}})
    return model


def model_source(training_args: TrainerConfig, model_args: ModelConfig) -> dict:
    """The `from_pretrained` options that a model shares with its tokenizer and configuration."""
    options = {"revision": model_args.model_revision, **loading_options(training_args)}
    return {key: options[key] for key in ("revision", "trust_remote_code")}


def load_options(training_args: TrainerConfig, model_args: ModelConfig) -> dict:
    """Keyword arguments of a model's `from_pretrained`; resets `model_init_kwargs`, which TRL must not apply again."""
    options = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **loading_options(training_args),
    }
    training_args.model_init_kwargs = None
    return options


def lora_config(model_args: ModelConfig) -> "PeftConfig | None":
    """The PEFT configuration that the options ask for."""
    config = get_peft_config(model_args)
    modules = config and config.target_modules
    # ModelConfig unpacks a list of one module; PEFT would read the string as a regular expression of a full name.
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):
        config.target_modules = {modules}
    return config


@contextmanager
def peft_errors(model_args: ModelConfig) -> Iterator[None]:
    """Turn what PEFT refuses while a trainer is made, such as unknown modules, into an `InputError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if not model_args.use_peft or isinstance(error, InputError):
            raise
        raise InputError(f"`use_peft`: {' '.join(str(error).split())}") from error


def check_model_path(name: str | None) -> None:
    """Refuse a missing name, an unfinished stage, and a path without a model."""
    if name is None:
        raise InputError("`model_name_or_path` is missing: a Hub id or a folder.")
    path = Path(name)
    if path.is_dir():
        check_finished(path)
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise InputError(f"{name} holds no model: it has no config.json.")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"there is no model at {name}: it is neither a folder nor a Hub id (user/name).")


def check_reward_model(name: str, *, option: str, **trust: bool) -> None:
    """Refuse a model, named by `option`, that does not have exactly one label."""
    check_model_path(name)
    if find_adapter_config_file(name) is not None:
        return
    num_labels = load_config(name, **trust).num_labels
    if num_labels != 1:
        raise InputError(
            f"`{option}`: {name} has num_labels = {num_labels}; a reward model has 1, such as `hf-instructgpt reward` "
            "makes it."
        )


def resolve_reward(name: str, **trust: bool) -> str | Callable:
    """Return the name of a reward model, checked, or the Python function of that name."""
    if ".py:" not in name:
        if Path(name).is_dir() or "/" in name:
            check_reward_model(name, option="reward_funcs", **trust)
            return name
        if "." not in name:
            raise InputError(
                f"`reward_funcs`: {name} is neither a folder, nor a Hub id, nor a dotted path of a function."
            )
    return load_function(name, option="reward_funcs")
