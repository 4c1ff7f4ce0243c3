"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from ..char_gpt import CharGPTConfig, CharGPTTokenizer
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..errors import InputError
from .arguments import SFTArguments
from .inputs import (
    check_fits,
    load_causal_lm,
    load_config,
    load_options,
    load_stage_datasets,
    load_tokenizer,
    peft_errors,
)
from .output import run_stage

logger = logging.get_logger(__name__)


def run_sft(args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> Path:
    """Train on demonstrations and leave model, tokenizer and `trainer_state.json` in `output_dir`.

    Without `model_name_or_path` the model is a new CharGPT over the characters of the training data, of the sizes in
    `model_init_kwargs`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        InputError: Data, model or options do not fit.
    """
    return run_stage(_make_trainer, args, training_args, model_args)


def _make_trainer(args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig) -> SFTTrainer:
    needs_eval = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_stage_datasets(args, "sft", needs_eval=needs_eval)
    eval_dataset = eval_dataset if needs_eval else None
    tokenizer, config = tokenizer_and_config(args, training_args, model_args, train_dataset)
    for rows in filter(None, (train_dataset, eval_dataset)):
        check_fits(rows, "sft", tokenizer, config, training_args, source=args.dataset_name)
    options = load_options(training_args, model_args)
    if model_args.model_name_or_path is not None:
        model = load_causal_lm(model_args.model_name_or_path, tokenizer, **options)
    else:
        loading = {name: options[name] for name in ("dtype", "attn_implementation")}
        model = AutoModelForCausalLM.from_config(config, **loading)
    return make_sft_trainer(model, tokenizer, training_args, train_dataset, eval_dataset, model_args)


def make_sft_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_args: SFTConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    model_args: ModelConfig,
) -> SFTTrainer:
    """SFTTrainer on a loaded model, texts cut to the model's context at most."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        training_args.max_length = min(training_args.max_length or context, context)
    with peft_errors(model_args):
        trainer = SFTTrainer(
            model=model,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
        )
    if training_args.max_length is not None and not training_args.packing:
        rows = trainer.train_dataset["input_ids"]
        cut = sum(len(ids) == training_args.max_length and ids[-1] != tokenizer.eos_token_id for ids in rows)
        if cut:
            logger.warning(
                f"{cut} of {len(rows)} texts were cut to `max_length` = {training_args.max_length} tokens: their "
                "answers do not end."
            )
    return trainer


def tokenizer_and_config(
    args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, train_dataset: Dataset
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Those of the named model, else of a new CharGPT. Raises `InputError` if there are none."""
    if model_args.model_name_or_path is not None:
        source = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
        name = model_args.model_name_or_path
        return load_tokenizer(name, **source), load_config(name, **source)
    tokenizer = CharGPTTokenizer.from_texts(_texts(args, train_dataset))
    init_kwargs = training_args.model_init_kwargs or {}
    unknown = set(init_kwargs) - set(CharGPTConfig().to_dict())
    if unknown:
        raise InputError(f"`model_init_kwargs`: CharGPTConfig has no field {', '.join(sorted(unknown))}.")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    try:
        return tokenizer, CharGPTConfig(**{"vocab_size": len(tokenizer), **ids, **init_kwargs})
    except (ValueError, TypeError) as error:
        raise InputError(f"`model_init_kwargs`: {error}") from error


def _texts(args: SFTArguments, train_dataset: Dataset) -> Iterator[str]:
    """All texts a new vocabulary must cover; of a sample data set, those of its other stages too."""
    # The lab's preferences are made of its rankings' texts.
    datasets = [train_dataset]
    if args.dataset_name in SAMPLE_DATASETS:
        configs = SAMPLE_DATASETS[args.dataset_name]
        configs = [config for config in configs if config != "preference" or "ranking" not in configs]
        datasets = [load_sample_dataset(args.dataset_name, config)["train"] for config in configs]
    return (text for dataset in datasets for row in dataset for text in _strings(list(row.values())))


def _strings(value) -> Iterator[str]:
    """The texts in a row: strings, and the contents of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(value.get("content"))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
