"""Stage 3: train the policy against reward functions with PPOTrainer."""

from pathlib import Path

from accelerate import PartialState
from transformers.utils import logging
from trl import ModelConfig

from ..errors import InputError
from ..files import fields_of, read_json, weights_sha256
from ..layout import REWARD_REPORT_FILE
from ..models.loading import classifies_tokens, load_policy
from ..ppo.checks import check_aggregation, check_processes
from ..ppo.config import PPOConfig
from ..ppo.models import QUANTISED
from ..ppo.trainer import PPOTrainer
from ..report.reward_summary import main_figures, weakness
from ..scoring.reward_functions import check_signatures
from .adapters import new_adapter, peft_errors
from .arguments import PPOArguments
from .load_data import load_text
from .load_models import check_model_path, load_options, load_tokenizer_and_config, resolve_reward
from .run_stage import run_stage
from .stage_data import StageData
from .user_functions import is_function

logger = logging.get_logger(__name__)


def run_ppo(
    args: PPOArguments, training_args: PPOConfig, model_args: ModelConfig, data: StageData | None = None
) -> Path:
    """Train policy and critic against reward functions and return `output_dir`."""
    check_ppo_options(args, training_args, model_args)
    return run_stage("prompts", _make_trainer, args, training_args, model_args, data)


def check_ppo_options(args: PPOArguments, training_args: PPOConfig, model_args: ModelConfig) -> None:
    """Refuse options that contradict each other."""
    if not args.reward_funcs:
        raise InputError("`reward_funcs` is missing: at least one reward model or Python function.")
    weights = training_args.reward_weights
    if weights is not None and len(weights) != len(args.reward_funcs):
        raise InputError(f"`reward_weights` has {len(weights)} entries for {len(args.reward_funcs)} reward functions.")
    check_aggregation(training_args, len(args.reward_funcs))
    if (args.ptx_dataset_name is None) != (training_args.ptx_coef == 0):
        raise InputError("PPO-ptx needs both `ptx_dataset_name` and a `ptx_coef` above 0; leave out both or none.")


def check_reward_reports(args: PPOArguments) -> None:
    """Warn about reward models with a weak report or none; with `on_weak_reward="raise"`, refuse them."""
    for name in args.reward_funcs:
        problem = _weakness(name) if has_report(name) else None
        if problem and args.on_weak_reward == "raise":
            raise InputError(f"`on_weak_reward`: {problem}")
        if problem and PartialState().is_main_process:
            logger.warning(problem)


def has_report(name: str) -> bool:
    """Whether a reward function should have a report: a model in a folder that gives one score per text."""
    if is_function(name) or not Path(name).is_dir():
        return False
    return not classifies_tokens((read_json(Path(name) / "config.json") or {}).get("architectures"))


def read_report(name: str) -> tuple[dict, str | None]:
    """The report of a reward model, and what is wrong if it has none, or one of other weights."""
    report = read_json(Path(name) / REWARD_REPORT_FILE) or {}
    if report.get("weights_sha256") == weights_sha256(name):
        return report, None
    what = "a report of other weights" if report else "no report"
    return report, f"{name} has {what}; `hf-instructgpt evaluate reward {name}` makes one."


def _weakness(name: str) -> str | None:
    report, problem = read_report(name)
    if problem:
        return problem
    with fields_of(Path(name) / REWARD_REPORT_FILE):
        problem = weakness(main_figures(report))
    return problem and f"{name}: {problem}; see {Path(name) / 'reward_report.md'}."


def _make_trainer(
    args: PPOArguments, training_args: PPOConfig, model_args: ModelConfig, data: StageData
) -> PPOTrainer:
    check_processes(training_args)  # before models are loaded
    tokenizer, config = load_tokenizer_and_config(training_args, model_args)
    options = load_options(training_args, model_args)
    train_dataset, eval_dataset = data.read_by(tokenizer, config, training_args)
    trust = {"trust_remote_code": training_args.trust_remote_code}
    reward_funcs = [resolve_reward(name, **trust) for name in args.reward_funcs]
    check_signatures(reward_funcs, (train_dataset, eval_dataset))
    check_reward_reports(args)
    if args.value_model not in (None, "shared"):
        check_model_path(args.value_model)
    model = load_policy(model_args.model_name_or_path, tokenizer, **options)
    with peft_errors(model_args):
        peft_config, ref_model = new_adapter(model, model_args), None
        if training_args.frozen_dtype in QUANTISED and peft_config is None and model_args.model_revision == "main":
            ref_model = model_args.model_name_or_path  # in few bits it cannot be a copy of the policy
        return PPOTrainer(
            model,
            reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            value_model=args.value_model,
            ptx_dataset=load_text("ptx_dataset_name", args, tokenizer) if args.ptx_dataset_name is not None else None,
            ref_model=ref_model,
            peft_config=peft_config,
        )
