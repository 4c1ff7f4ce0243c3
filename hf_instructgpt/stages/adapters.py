"""LoRA adapters between stages: train an incoming one further, or merge it into its base model."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file, is_peft_available, logging
from trl import ModelConfig, get_peft_config

from ..errors import InputError
from ..files import new_folder
from ..hub.model_card import Made
from ..layout import STATE_FILE
from ..models.checks import check_weights
from ..models.loading import load_policy, load_reward_model
from ..models.surgery import has_adapter
from .load_models import check_model_path, load_tokenizer
from .model_cards import write_stage_card

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)

# Options of an adapter that PEFT calls by the same name, and those it calls by another.
LORA_OPTIONS = {name: name for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")}
LORA_OPTIONS |= {"lora_r": "r", "lora_target_modules": "target_modules"}


def lora_config(model_args: ModelConfig) -> "PeftConfig | None":
    """The adapter that the options ask for."""
    if model_args.use_peft and not is_peft_available():
        raise InputError("`use_peft` needs PEFT, which is not installed: `pip install peft`.")
    config = get_peft_config(model_args)
    modules = config and config.target_modules
    # `ModelConfig` turns a list of one name into a string, which PEFT would read as a regular expression.
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):
        config.target_modules = {modules}
    return config


@contextmanager
def peft_errors(model_args: ModelConfig) -> Iterator[None]:
    """Turn what PEFT refuses while a trainer is made, such as modules that the model lacks, into an `InputError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if not model_args.use_peft or isinstance(error, InputError):
            raise
        raise InputError(f"`use_peft`: {' '.join(str(error).split())}") from error


def new_adapter(model: PreTrainedModel, model_args: ModelConfig) -> "PeftConfig | None":
    """The adapter that the options ask for; None if the model comes with one, which is then trained further."""
    if not has_adapter(model):
        check_weights("the model", model, is_trained=not model_args.use_peft)
        return lora_config(model_args)
    name = str(model_args.model_name_or_path)
    check_same_adapter(model_args, model.active_peft_config, name=name)
    if not model_args.use_peft:
        logger.warning(
            f"{name} is an adapter: it is trained on, and the rest of the model is frozen. To train the full model, "
            f"merge the adapter first (`hf-instructgpt merge {name}`)."
        )
    return None


def check_same_adapter(model_args: ModelConfig, adapter: "PeftConfig", *, name: str) -> None:
    """Refuse options that ask for another adapter than the incoming one, `adapter`."""
    if not model_args.use_peft:
        return
    mine, defaults = lora_config(model_args), lora_config(ModelConfig(use_peft=True))
    for option, attribute in LORA_OPTIONS.items():
        wanted, default, known = (getattr(config, attribute) for config in (mine, defaults, adapter))
        if wanted not in (default, known):
            raise InputError(
                f"`{option}`: {name} is an adapter with {known!r}, and it is trained on: leave the option out, or "
                f"merge the adapter first (`hf-instructgpt merge {name}`)."
            )


def merge(model: str, *, output_dir: str | None, trust_remote_code: bool) -> Path:
    """Merge an adapter into its base model; save the result with tokenizer and card in `output_dir`, returned."""
    check_model_path(model)
    if not Path(model).is_dir() or find_adapter_config_file(model) is None:
        raise InputError(f"{model} is not the folder of an adapter: it has no adapter_config.json.")
    from peft import PeftConfig

    folder = Path(model).absolute()
    target = folder.with_name(f"{folder.name}-merged") if output_dir is None else Path(output_dir)
    trust = {"trust_remote_code": trust_remote_code}
    with new_folder(target) as aside:
        tokenizer = load_tokenizer(model, **trust)
        load = load_reward_model if PeftConfig.from_pretrained(model).task_type == "SEQ_CLS" else load_policy
        merged = load(model, tokenizer, **trust).merge_and_unload()
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        made = Made.load(folder)
        if made is not None:
            base = made.base_model
            if base is not None and base.path is not None:  # as seen from its new folder
                base = type(base).of(str(base.place(folder)), folder=target)
            shutil.copy2(folder / STATE_FILE, aside)
            made = replace(made, is_adapter=False, base_model=base, hub_id=None, readme_sha256=None)
            write_stage_card(aside, made, name=str(target))
    return target
