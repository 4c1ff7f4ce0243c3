"""Stage 2: train the reward model with RankingRewardTrainer."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig

from ..errors import InputError
from ..models.checks import is_sharded
from ..models.forward import context_length
from ..models.loading import load_new_reward_model, load_policy
from ..reward.config import RankingRewardConfig
from ..reward.ranking_trainer import RankingRewardTrainer
from ..sampling.padding import check_padding
from .adapters import new_adapter, peft_errors
from .arguments import RewardArguments
from .load_data import load_text
from .load_models import load_options, load_tokenizer_and_config
from .run_stage import run_stage
from .stage_data import StageData

logger = logging.get_logger(__name__)


def run_reward(
    args: RewardArguments, training_args: RankingRewardConfig, model_args: ModelConfig, data: StageData | None = None
) -> Path:
    """Train a reward model on preferences or rankings and return `output_dir`."""
    return run_stage("reward", _make_trainer, args, training_args, model_args, data)


def _make_trainer(
    args: RewardArguments, training_args: RankingRewardConfig, model_args: ModelConfig, data: StageData
) -> RankingRewardTrainer:
    tokenizer, config = load_tokenizer_and_config(training_args, model_args)
    options = load_options(training_args, model_args)
    train_dataset, eval_dataset = data.read_by(tokenizer, config, training_args)
    calibration_dataset = sft_model = None
    if args.calibration_dataset_name is not None:
        calibration_dataset = load_text("calibration_dataset_name", args, tokenizer)
        is_whole = not is_sharded(training_args)  # otherwise the trainer says that it is not used
        name = model_args.model_name_or_path
        sft_model = _start_as_policy(name, tokenizer, options) if is_whole else name
    if training_args.lm_coef or training_args.logprob_coef:
        sft_model = sft_model or _start_as_language_model(model_args.model_name_or_path, tokenizer, options)
    model = load_new_reward_model(model_args.model_name_or_path, tokenizer, **options)
    training_args.max_length = min(filter(None, (training_args.max_length, context_length(model))), default=None)
    model_args.lora_task_type = "SEQ_CLS"  # PEFT then trains and saves the score head too
    with peft_errors(model_args):
        return RankingRewardTrainer(
            model=model,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset if data.is_evaluated else None,
            processing_class=tokenizer,
            calibration_dataset=calibration_dataset,
            sft_model=sft_model,
            peft_config=new_adapter(model, model_args),
        )


def _start_as_language_model(name: str, tokenizer: PreTrainedTokenizerBase, options: dict) -> PreTrainedModel:
    """The start model for `lm_coef` and `logprob_coef`."""
    try:
        return load_policy(name, tokenizer, **options)
    except InputError as error:
        raise InputError(
            f"`lm_coef` and `logprob_coef` need a language model as `model_name_or_path`: {error} Start from the SFT "
            "model, or set both to 0."
        ) from error


def _start_as_policy(name: str, tokenizer: PreTrainedTokenizerBase, options: dict) -> PreTrainedModel | None:
    """The start model as a policy, whose responses give the scores their unit; None if it cannot be one."""
    try:
        policy = load_policy(name, tokenizer, **options)
        check_padding(policy, tokenizer, generates=True)
    except InputError as error:
        logger.warning(f"Scores are shifted, but keep their unit, because the start model cannot answer: {error}")
        return None
    return policy
