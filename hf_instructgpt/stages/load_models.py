"""Options of a stage that say which model, tokenizer or reward function it loads, and their checks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from .. import char_gpt  # noqa: F401  (registers the tiny model with the Auto classes)
from ..errors import InputError
from ..files import check_is_there
from ..models.loading import check_bitsandbytes, classifies_tokens, loading, loading_options
from ..resuming.run_folder import check_finished
from ..scoring.checks import check_num_labels
from .user_functions import is_function, load_function

if TYPE_CHECKING:
    from trl import ModelConfig

    from .parsing import TrainerConfig

# Fields that an existing model already has.
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token."""
    check_model_path(name)
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end-of-text token (`eos_token`): answers could never end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model; for an adapter, its base model's."""
    check_model_path(name)
    with loading(name):
        if find_adapter_config_file(name, revision=revision) is not None:
            from peft import PeftConfig

            adapter = PeftConfig.from_pretrained(name, revision=revision)
            name, revision = adapter.base_model_name_or_path, adapter.revision or "main"
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def load_tokenizer_and_config(
    training_args: "TrainerConfig", model_args: "ModelConfig"
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Tokenizer, with the template options applied, and configuration of the model that a stage starts from."""
    name, source = model_args.model_name_or_path, model_source(training_args, model_args)
    tokenizer, config = load_tokenizer(name, **source), load_config(name, **source)
    _check_sizes(name, config, training_args.model_init_kwargs)
    apply_template_options(tokenizer, training_args)
    return tokenizer, config


def model_source(training_args: "TrainerConfig", model_args: "ModelConfig") -> dict:
    """`revision` and `trust_remote_code`, which hold for a model, its configuration and its tokenizer."""
    options = loading_options(training_args, revision=model_args.model_revision)
    return {key: options[key] for key in ("revision", "trust_remote_code")}


def load_options(training_args: "TrainerConfig", model_args: "ModelConfig") -> dict:
    """Keyword arguments of `from_pretrained` from a stage's options; uses up `model_init_kwargs`."""
    defaults = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
    if model_args.load_in_4bit or model_args.load_in_8bit:
        check_bitsandbytes("load_in_4bit" if model_args.load_in_4bit else "load_in_8bit")
        from trl import get_quantization_config  # slow to import, and only training uses it

        with loading(str(model_args.model_name_or_path)):
            defaults["quantization_config"] = get_quantization_config(model_args)
        defaults["device_map"] = {"": training_args.device}
    options = loading_options(training_args, revision=model_args.model_revision, **defaults)
    training_args.model_init_kwargs = None  # TRL would warn that it is ignored
    return options


def _check_sizes(name: str, config: PreTrainedConfig, init_kwargs: dict | None) -> None:
    """Refuse `model_init_kwargs` that contradict the configuration of an existing model."""
    config = config.get_text_config()
    for key in (init_kwargs or {}).keys() & {*SIZES, "dropout"}:
        wanted, known = init_kwargs[key], getattr(config, key, None)
        if wanted != known and (key in SIZES or known is None):
            has = "has none" if known is None else f"has {known!r}"
            raise InputError(
                f"`model_init_kwargs`: `{key}` = {wanted!r} is for a new model, and {name} {has}: leave it out. If "
                "the file was written for another model, check its `max_length`, `learning_rate` and epochs too."
            )


def apply_template_options(tokenizer: PreTrainedTokenizerBase, training_args: "TrainerConfig") -> None:
    """Apply `chat_template_path` and `eos_token` to the tokenizer now; TRL does so only when it trains."""
    path = getattr(training_args, "chat_template_path", None)
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
                f"`chat_template_path`: {path} is neither a .jinja file nor a model with a tokenizer."
            ) from error
        tokenizer.chat_template = source.chat_template
        if tokenizer.chat_template is None:
            raise InputError(f"`chat_template_path`: the tokenizer of {path} has no chat template.")
        if source.eos_token in tokenizer.get_vocab():
            tokenizer.eos_token = source.eos_token
    eos_token = getattr(training_args, "eos_token", None)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise InputError(f"`eos_token`: the tokenizer has no token {eos_token!r}.")
        tokenizer.eos_token = eos_token


def check_model_path(name: str | None) -> None:
    """Refuse a missing name, an unfinished stage, and a path without a model."""
    if name is None:
        raise InputError("`model_name_or_path` is missing: a Hub id or a folder.")
    path = Path(name)
    if path.is_dir():
        check_finished(path)
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise InputError(f"{name} holds no model: it has no config.json.")
    check_is_there(name)


def check_reward_model(name: str, *, option: str, trust_remote_code: bool) -> None:
    """Refuse a model, named by `option`, that does not have the label of a reward model."""
    check_model_path(name)
    if find_adapter_config_file(name) is not None:
        return
    config = load_config(name, trust_remote_code=trust_remote_code)
    num_labels = config.num_labels
    if classifies_tokens(config.architectures):
        if option != "reward_funcs":
            raise InputError(f"`{option}`: {name} classifies tokens; a model with one score per text is needed.")
        check_num_labels(f"`{option}`: {name}", num_labels, of_tokens=True)
    elif num_labels != 1:
        raise InputError(
            f"`{option}`: {name} has num_labels = {num_labels}; a reward model has 1. `hf-instructgpt reward` trains "
            "one."
        )


def is_model(name: str) -> bool:
    """Whether a name of a reward is a model's, not a function's."""
    return not is_function(name) and (Path(name).is_dir() or "/" in name)


def resolve_reward(name: str, *, trust_remote_code: bool = False, option: str = "reward_funcs") -> str | Callable:
    """The name itself, given by `option`, if it is a reward model's, else the Python function of that name."""
    if is_function(name):
        return load_function(name, option=option)
    if is_model(name):
        check_reward_model(name, option=option, trust_remote_code=trust_remote_code)
        return name
    if "." not in name:
        raise InputError(f"`{option}`: {name} is neither a folder, nor a Hub id, nor a dotted path of a function.")
    return load_function(name, option=option)
