"""LoRA adapters between stages: continue to train one, or merge it into its base model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file, logging
from trl import ModelConfig

from ..errors import InputError
from ..files import make_directory
from ..hub.model_card import Made
from ..models.loading import load_reward_model
from ..models.surgery import has_adapter
from ..resuming.resumable import STATE_FILE
from .load_models import check_model_path, load_causal_lm, load_tokenizer, lora_config
from .model_cards import write_stage_card

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)

# Options of an adapter and their names in PEFT.
LORA_OPTIONS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
LORA_OPTIONS |= {"use_rslora": "use_rslora", "use_dora": "use_dora", "lora_target_modules": "target_modules"}


def new_adapter(model: PreTrainedModel, model_args: ModelConfig) -> "PeftConfig | None":
    """The adapter that the options ask for; None if the model has one, which is trained further."""
    if not has_adapter(model):
        return lora_config(model_args)
    check_same_adapter(model_args, model.active_peft_config, name=str(model_args.model_name_or_path))
    if not model_args.use_peft:
        logger.warning(
            f"{model_args.model_name_or_path} is an adapter: it is trained on, and the rest of the model stays as it "
            f"is. To train all of it, merge it first (`hf-instructgpt merge {model_args.model_name_or_path}`)."
        )
    return None


def check_same_adapter(model_args: ModelConfig, adapter: "PeftConfig", *, name: str) -> None:
    """Refuse options that ask for another adapter than the given one, which is trained further."""
    if not model_args.use_peft:
        return
    mine, defaults = lora_config(model_args), lora_config(ModelConfig(use_peft=True))
    for option, attribute in LORA_OPTIONS.items():
        wanted, default, known = (getattr(config, attribute) for config in (mine, defaults, adapter))
        if wanted not in (default, known):
            raise InputError(
                f"`{option}`: {name} is an adapter with {known!r}, which is trained further: leave the option out, or "
                f"merge the adapter first (`hf-instructgpt merge {name}`)."
            )


def merge(model: str, *, output_dir: str | None, trust_remote_code: bool) -> Path:
    """Write an adapter and its base model as one model with tokenizer and card (default: FOLDER-merged beside it)."""
    check_model_path(model)
    if not Path(model).is_dir() or find_adapter_config_file(model) is None:
        raise InputError(f"{model} is not a folder with an adapter: it has no adapter_config.json.")
    from peft import PeftConfig

    folder = Path(model).absolute()
    target = folder.with_name(f"{folder.name}-merged") if output_dir is None else Path(output_dir)
    if target.exists():
        raise InputError(f"`--output_dir`: {target} exists already. Choose another, or remove it.")
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(model, **trust)
    load = load_reward_model if PeftConfig.from_pretrained(model).task_type == "SEQ_CLS" else load_causal_lm
    merged = load(model, tokenizer=tokenizer, **trust).merge_and_unload()
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    make_directory(aside)
    try:
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        made = Made.load(folder)
        if made is not None:
            base = made.base_model
            if base is not None and base.path is not None:  # seen from its new place
                base = type(base).of(str(base.place(folder)), folder=target)
            shutil.copy2(folder / STATE_FILE, aside)
            made = replace(made, is_adapter=False, base_model=base, hub_id=None, readme_sha256=None)
            write_stage_card(aside, made, name=str(target))
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
