"""Stage 2: the reward model, by TRL's RewardTrainer, or by ours for rankings of several responses."""

from pathlib import Path

from transformers import AutoConfig
from trl import ModelConfig, RewardConfig, RewardTrainer, get_peft_config

from ..errors import InputError
from ..reward.ranking_trainer import RankingRewardTrainer
from .arguments import RewardArguments
from .inputs import load_stage_datasets, load_tokenizer
from .output import stage_output


def run_reward(args: RewardArguments, training_args: RewardConfig, model_args: ModelConfig) -> Path:
    """Train a reward model on preferences or rankings; leave it and `trainer_state.json` in `output_dir`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        InputError: Data, model or options do not fit.
    """
    output_dir = Path(training_args.output_dir)
    if args.resume and output_dir.is_dir():
        return output_dir
    needs_eval = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_stage_datasets(args, "reward", needs_eval=needs_eval)
    name, trust = model_args.model_name_or_path, training_args.trust_remote_code
    tokenizer = load_tokenizer(name, revision=model_args.model_revision, trust_remote_code=trust)
    config = AutoConfig.from_pretrained(name, revision=model_args.model_revision, trust_remote_code=trust)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        training_args.max_length = min(training_args.max_length or context, context)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    ranking = "ranks" in train_dataset.column_names
    if not ranking and training_args.max_length is not None:
        _check_lengths(train_dataset, tokenizer, training_args.max_length)
    with stage_output(output_dir, overwrite=args.overwrite_output_dir, resume=args.resume) as (folder, checkpoint):
        training_args.output_dir = str(folder)
        trainer = (RankingRewardTrainer if ranking else RewardTrainer)(
            model=name,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset if needs_eval else None,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
    return output_dir


def _check_lengths(dataset, tokenizer, max_length: int) -> None:
    """Raise an `InputError` for a pair that RewardTrainer would drop without a word."""
    for number, row in enumerate(dataset):
        for column in ("chosen", "rejected"):
            text = row.get("prompt", row[column][:0]) + row[column]
            ids = tokenizer(text)["input_ids"] if isinstance(text, str) else tokenizer.apply_chat_template(text)
            if len(ids) > max_length:
                raise InputError(
                    f"row {number}, `{column}`: {len(ids)} tokens are more than `max_length` = {max_length}. "
                    "Shorten or drop the row, or raise `max_length` up to the model's context."
                )
