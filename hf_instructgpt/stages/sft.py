"""Stage 1: supervised fine-tuning on demonstrations, by TRL's SFTTrainer."""

import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig, SFTConfig
from trl.chat_template_utils import get_training_chat_template

from ..char_gpt import CharGPTConfig, CharGPTTokenizer
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..data.by_column import kind_of, lengths_and_last, role_sequences, strings
from ..data.columns import form_of
from ..data.pretraining_text import PretrainingText
from ..errors import InputError
from ..models.checks import ensure_precision
from ..models.forward import context_length
from ..models.loading import load_policy, load_reward_model
from ..scoring.checks import check_reward_funcs, foreign_tokenizers
from ..text import TEMPLATE_COLUMNS, encode_row, encode_text, template_options, whole_text
from .adapters import new_adapter, peft_errors
from .arguments import SFTArguments
from .load_data import check_fits, load_text
from .load_models import apply_template_options, check_reward_model, load_options, load_tokenizer_and_config
from .run_stage import run_stage
from .sft_trainer import CardSFTTrainer, SelectingSFTTrainer
from .stage_data import StageData

logger = logging.get_logger(__name__)

# Prompts answered at each evaluation for `selection_reward_model`, drawn from the evaluation split by the seed.
NUM_SELECTION_PROMPTS = 256
# What SFTTrainer makes of a row.
TOKEN_COLUMNS = ("input_ids", "labels", "completion_mask", "assistant_masks")


def run_sft(
    args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, data: StageData | None = None
) -> Path:
    """Train on demonstrations, by default a new CharGPT over their characters, and return `output_dir`."""
    return run_stage("sft", _make_trainer, args, training_args, model_args, data)


def _make_trainer(
    args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, data: StageData
) -> CardSFTTrainer:
    tokenizer, config = tokenizer_and_config(args, training_args, model_args, data.train)
    train_dataset, eval_dataset = data.read_by(tokenizer, config, training_args)
    eval_dataset = eval_dataset if data.is_evaluated else None
    check_sft(args, training_args, eval_dataset, tokenizer, config)
    options = load_options(training_args, model_args)
    if model_args.model_name_or_path is not None:
        model = load_policy(model_args.model_name_or_path, tokenizer, **options)
    else:
        options = {name: options[name] for name in ("dtype", "attn_implementation")}
        model = AutoModelForCausalLM.from_config(config, **options)
    trainer = make_sft_trainer(args, training_args, model_args, model, tokenizer, train_dataset, eval_dataset)
    if args.pretraining_dataset_name is None and not training_args.packing:
        tokens = [name for name in TOKEN_COLUMNS if name in trainer.train_dataset.column_names]
        data.tokenized = trainer.train_dataset.select_columns(tokens)
    return trainer


def tokenizer_and_config(
    args: SFTArguments, training_args: SFTConfig, model_args: ModelConfig, train_dataset: Dataset
) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """Load them for the model of that name, or make them for a new CharGPT."""
    if model_args.model_name_or_path is not None:
        if args.vocabulary != "characters":
            raise InputError("`vocabulary` is of a new CharGPT: leave it out, or `model_name_or_path`.")
        return load_tokenizer_and_config(training_args, model_args)
    if model_args.use_peft:
        raise InputError(
            "`use_peft` needs `model_name_or_path`: an adapter is saved without its base model, and a new CharGPT is "
            "saved nowhere else."
        )
    if training_args.chat_template_path is not None:
        raise InputError("`chat_template_path` needs `model_name_or_path`: a new CharGPT reads text, not messages.")
    tokenizer = CharGPTTokenizer.from_texts(_texts(args, train_dataset), words=args.vocabulary == "words")
    apply_template_options(tokenizer, training_args)
    init_kwargs = training_args.model_init_kwargs or {}
    if unknown := set(init_kwargs) - set(CharGPTConfig().to_dict()):
        raise InputError(f"`model_init_kwargs`: CharGPTConfig has no field {', '.join(sorted(unknown))}.")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    try:
        return tokenizer, CharGPTConfig(**{"vocab_size": len(tokenizer), **ids, **init_kwargs})
    except (ValueError, TypeError) as error:
        raise InputError(f"`model_init_kwargs`: {error}") from error


def _texts(args: SFTArguments, train_dataset: Dataset) -> Iterator[str]:
    """All texts that a new vocabulary must cover; for a sample data set, those of its other stages too."""
    datasets = [train_dataset]
    if args.dataset_name in SAMPLE_DATASETS:
        configs = SAMPLE_DATASETS[args.dataset_name]
        if "ranking" in configs:  # its preferences have the same texts
            configs = [config for config in configs if config != "preference"]
        datasets = [load_sample_dataset(args.dataset_name, config)["train"] for config in configs]
    if args.pretraining_dataset_name is not None:
        datasets.append(load_text("pretraining_dataset_name", args))
    return (text for dataset in datasets for column in dataset.column_names for text in _column_texts(dataset, column))


def _column_texts(dataset: Dataset, column: str) -> Iterator[str]:
    if kind_of(dataset, column) in ("text", "texts", "messages"):
        return (text for array in strings(dataset, column) for text in array.to_pylist() if text is not None)
    return _strings(list(dataset.with_format(None)[column]))


def _strings(value) -> Iterator[str]:
    """The texts in a row: strings, and the contents of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(value.get("content"))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def check_sft(
    args: SFTArguments,
    training_args: SFTConfig,
    eval_dataset: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    is_made_later: bool = False,
) -> None:
    """Refuse SFT options that contradict each other, the data or the models, of which some may be made later."""
    if args.selection_max_new_tokens < 1:
        raise InputError(f"`selection_max_new_tokens` must be 1 or more, not {args.selection_max_new_tokens}.")
    if not 0 <= args.pretraining_fraction < 1:
        raise InputError(f"`pretraining_fraction` must be 0 or more and below 1, not {args.pretraining_fraction}.")
    if args.pretraining_dataset_name is not None:
        if training_args.packing and args.pretraining_fraction > 0:
            raise InputError("`packing` does not work with `pretraining_dataset_name`: leave one of them out.")
        text = load_text("pretraining_dataset_name", args, tokenizer)
        check_fits(text, "sft", tokenizer, config, training_args, source=args.pretraining_dataset_name)
    if args.selection_reward_model is None:
        return
    if eval_dataset is None:
        raise InputError("`selection_reward_model` scores answers at evaluations: set `eval_strategy`.")
    if "prompt" not in eval_dataset.column_names:
        raise InputError(
            f"`selection_reward_model` needs prompts to answer: {args.dataset_name} must have `prompt` and "
            f"`completion`; it has {', '.join(eval_dataset.column_names)}."
        )
    if not is_made_later:
        trust = training_args.trust_remote_code
        check_reward_model(args.selection_reward_model, option="selection_reward_model", trust_remote_code=trust)


def make_sft_trainer(
    args: SFTArguments,
    training_args: SFTConfig,
    model_args: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
) -> CardSFTTrainer:
    """A trainer of a loaded model: texts are truncated to its context, and pretraining text is mixed in."""
    training_args.max_length = min(filter(None, (training_args.max_length, context_length(model))), default=None)
    if training_args.assistant_only_loss and not _is_tokenized(train_dataset):
        _check_assistant_loss(train_dataset, tokenizer)
    kind, selection = CardSFTTrainer, {}
    if args.selection_reward_model is not None and eval_dataset is not None:
        kind, selection = SelectingSFTTrainer, _selection(args, training_args, model, tokenizer, eval_dataset)
    train_dataset, eval_dataset = (
        rows and _as_read_by_trl(rows, training_args, tokenizer) for rows in (train_dataset, eval_dataset)
    )
    with peft_errors(model_args):
        trainer = kind(
            model=model,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=new_adapter(model, model_args),
            **selection,
        )
    ensure_precision("the model", trainer.model, training_args)
    if not training_args.packing and (cut := _num_cut(trainer.train_dataset, training_args, tokenizer)):
        logger.warning(
            f"{cut} of {len(trainer.train_dataset)} texts were cut to `max_length` = {training_args.max_length} "
            "tokens: their answers do not end."
        )
    if args.pretraining_dataset_name is not None and args.pretraining_fraction > 0:
        trainer.train_dataset = _with_pretraining(trainer.train_dataset, args, training_args, tokenizer)
    return trainer


def _check_assistant_loss(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse data for which TRL cannot tell which tokens are the assistant's."""
    if not isinstance(rows[0][form_of(rows.column_names, "sft")[0]], list):
        raise InputError("`assistant_only_loss` needs messages, and the rows are text; leave it out.")
    if re.search(r"\{%-?\s*generation\b", tokenizer.chat_template):
        return
    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        raise InputError(
            "`assistant_only_loss`: the chat template does not mark the assistant's tokens with {% generation %}. Use "
            "one that does (`chat_template_path`), or data with `prompt` and `completion`."
        ) from error


def _selection(
    args: SFTArguments,
    training_args: SFTConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    eval_dataset: Dataset,
) -> dict:
    """Arguments of `SelectingSFTTrainer`."""
    name, trust = args.selection_reward_model, {"trust_remote_code": training_args.trust_remote_code}
    reward_model = load_reward_model(name, **trust).requires_grad_(False).eval()
    policy = {"policy": model, "policy_tokenizer": tokenizer}
    [reward_tokenizer] = foreign_tokenizers([reward_model], [None], **policy, **trust)
    check_reward_funcs(model, [reward_model], [1.0])
    columns = [name for name in ("prompt", *TEMPLATE_COLUMNS) if name in eval_dataset.column_names]
    rows = list(eval_dataset.shuffle(seed=training_args.seed).select_columns(columns).take(NUM_SELECTION_PROMPTS))
    max_new_tokens = args.selection_max_new_tokens
    if training_args.max_length is not None:
        longest = max(len(encode_row(tokenizer, row)) for row in rows)
        max_new_tokens = min(max_new_tokens, training_args.max_length - longest)
    reward = {"reward_model": reward_model, "reward_tokenizer": reward_tokenizer}
    return {**reward, "rows": rows, "max_new_tokens": max_new_tokens}


def _is_tokenized(rows: Dataset) -> bool:
    """Whether another trainer has tokenized the rows; a user's rows have a text as well, whatever else they have."""
    return set(rows.column_names) <= {*TOKEN_COLUMNS}


def _as_read_by_trl(rows: Dataset, training_args: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows that TRL reads as we do: columns of one form only, or ids and labels if a prompt ends with an answer."""
    if _is_tokenized(rows):
        return rows
    names = (*form_of(rows.column_names, "sft"), *TEMPLATE_COLUMNS)
    rows = rows.select_columns([name for name in names if name in rows.column_names])
    # TRL would open another turn after a prompt that ends with the assistant's message.
    if "prompt" not in rows.column_names or not _are_continued(rows):
        return rows
    if training_args.assistant_only_loss:
        raise InputError(
            "`assistant_only_loss`: some prompts end with a message of the assistant, so the loss is on the "
            "completion alone; leave it out."
        )

    def tokenize(row: dict) -> dict[str, list[int]]:
        prompt, text = encode_row(tokenizer, row), whole_text(row["prompt"], row["completion"])
        ids = encode_text(tokenizer, text, ended=True, **template_options(row))
        start = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        start = 0 if training_args.completion_only_loss is False else start
        return {"input_ids": ids, "labels": [-100] * start + ids[start:]}

    return rows.map(tokenize, remove_columns=rows.column_names, desc="Tokenizing")


def _are_continued(rows: Dataset) -> bool:
    """Whether some prompts end with a message of the assistant."""
    if kind_of(rows, "prompt") != "other":
        return any(roles and roles[-1] == "assistant" for roles in role_sequences(rows, "prompt")[1])
    return any(isinstance(prompt, list) and prompt[-1]["role"] == "assistant" for prompt in rows["prompt"])


def _with_pretraining(
    demonstrations: Dataset, args: SFTArguments, training_args: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> Dataset:
    """Tokenised demonstrations, followed by pretraining text (all its tokens are labels) as a fraction of all rows."""
    name, fraction, max_length = "pretraining_dataset_name", args.pretraining_fraction, training_args.max_length
    text = load_text(name, args, tokenizer)
    text = PretrainingText(text, tokenizer=tokenizer, max_length=max_length, seed=training_args.seed, option=name)
    rows = text.rows(0, round(len(demonstrations) * fraction / (1 - fraction)))
    demonstrations = demonstrations.select_columns(["input_ids", "labels"])
    rows = Dataset.from_dict({"input_ids": rows, "labels": rows}, features=demonstrations.features)
    logger.warning(
        f"{len(rows)} rows of pretraining text are mixed into {len(demonstrations)} demonstrations; "
        f"{_num_cut(rows, training_args, tokenizer)} of the rows were cut to `max_length` = {max_length} tokens."
    )
    return concatenate_datasets([demonstrations, rows])


def _num_cut(rows: Dataset, training_args: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of `input_ids` have the maximum length and do not end with the end-of-text token."""
    lengths, last = lengths_and_last(rows, "input_ids")
    return int(((lengths == training_args.max_length) & (last != tokenizer.eos_token_id)).sum())
