"""Stage 2: the reward model, by our RankingRewardTrainer, a RewardTrainer of TRL's."""

from pathlib import Path

from trl import ModelConfig, RewardConfig

from ..reward.ranking_trainer import RankingRewardTrainer
from .adapters import new_adapter
from .arguments import RewardArguments
from .load_data import check_fits, load_stage_datasets, load_text, rows_to_read
from .load_models import (
    apply_template_options,
    check_sizes,
    load_config,
    load_new_reward_model,
    load_options,
    load_tokenizer,
    model_source,
    peft_errors,
)
from .run_stage import run_stage


def run_reward(args: RewardArguments, training_args: RewardConfig, model_args: ModelConfig) -> Path:
    """Train a reward model on preferences or rankings; leave it and `trainer_state.json` in `output_dir`.

    Returns:
        `Path`: `output_dir`.

    Raises:
        InputError: Data, model or options do not fit.
    """
    return run_stage("reward", _make_trainer, args, training_args, model_args)


def _make_trainer(args: RewardArguments, training_args: RewardConfig, model_args: ModelConfig) -> RankingRewardTrainer:
    needs_eval = training_args.eval_strategy != "no"
    train_dataset, eval_dataset = load_stage_datasets(args, "reward", needs_eval=needs_eval)
    eval_dataset = eval_dataset if needs_eval else None
    name, source = model_args.model_name_or_path, model_source(training_args, model_args)
    tokenizer, config = load_tokenizer(name, **source), load_config(name, **source)
    check_sizes(name, config, training_args.model_init_kwargs)
    apply_template_options(tokenizer, training_args)
    options = load_options(training_args, model_args)
    train_dataset, eval_dataset = (rows_to_read(x, args, tokenizer) for x in (train_dataset, eval_dataset))
    for rows in filter(None, (train_dataset, eval_dataset)):
        check_fits(rows, "reward", tokenizer, config, training_args, source=args.dataset_name)
    calibration_dataset = None
    if args.calibration_dataset_name is not None:
        calibration_dataset = load_text("calibration_dataset_name", args, tokenizer)
    model = load_new_reward_model(name, tokenizer, **options)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None:
        training_args.max_length = min(training_args.max_length or context, context)
    model_args.lora_task_type = "SEQ_CLS"  # its default has no score head, which must be trained and saved
    with peft_errors(model_args):
        return RankingRewardTrainer(
            model=model,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            calibration_dataset=calibration_dataset,
            peft_config=new_adapter(model, model_args),
        )
