"""SFT against PPO on held-out prompts, scored by what PPO optimised and, if there is one, by a judge."""

import re
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from ..display.training import show_training
from ..evaluation.comparison import Answers, Rewards, answer_prompts, compare
from ..models.loading import load_reward_model
from ..ppo.config import PPOConfig
from ..scoring.checks import foreign_tokenizers
from .arguments import PPOArguments, SFTArguments
from .load_models import resolve_reward
from .policy_judge import PolicyJudge
from .sft import make_sft_trainer
from .user_functions import name_and_arguments

# Comparisons by their names in `metrics.json`, and whether the answers are sampled.
HOWS = {"comparison": True, "comparison_greedy": False}


def load_rewards(
    args: PPOArguments,
    training_args: PPOConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Rewards:
    """What a PPO stage was optimised against, on the policy's device; a repeated name gets its number."""
    trust, funcs = {"trust_remote_code": training_args.trust_remote_code}, {}
    for i, name in enumerate(args.reward_funcs):
        func = load_reward_model(resolve_reward(name, **trust), **trust)
        short = Path(name).name if isinstance(func, nn.Module) else re.split("[.:]", name_and_arguments(name)[0])[-1]
        funcs[f"{short}_{i}" if short in funcs else short] = func
    for model in funcs.values():
        if isinstance(model, nn.Module):
            model.to(policy.device).eval()
    tokenizers = foreign_tokenizers(
        list(funcs.values()),
        [None] * len(funcs),
        policy=policy,
        policy_tokenizer=tokenizer,
        **trust,
    )
    return Rewards(
        funcs,
        tokenizers,
        weights=training_args.reward_weights or [1.0] * len(funcs),
        aggregation=training_args.reward_aggregation,
        uncertainty_coef=training_args.reward_uncertainty_coef,
        step_separator=training_args.step_separator,
    )


def train_control(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sft: tuple[SFTArguments, SFTConfig, ModelConfig],
    rows: Dataset,
    *,
    num_passes: float,
    folder: Path,
) -> None:
    """Train the SFT model on `rows`, by its stage's options, for `num_passes` forward passes (backward: two).

    Counting passes rather than seconds gives a repeated run the same numbers. `folder` is used meanwhile.
    """
    args, training_args, model_args = sft
    training_args.model_init_kwargs = None  # the model is there already
    rows_per_step = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    training_args.max_steps = max(1, round(num_passes / 3 / rows_per_step))
    training_args.output_dir = str(folder)
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(training_args, name, "no")
    training_args.load_best_model_at_end = False
    trainer = make_sft_trainer(args, training_args, model_args, model, tokenizer, rows, None)
    show_training(trainer)
    trainer.train()
    shutil.rmtree(folder, ignore_errors=True)


def num_passes(ppo_config: PPOConfig, *, num_steps: int) -> float:
    """Forward passes over a text in `num_steps` steps of PPO, a backward pass counted as two.

    A response costs one pass to sample, one each for policy, reference, reward model and critic, and three in each
    epoch for each model trained; PPO-ptx also trains the policy on text.
    """
    num_rollouts = num_steps / (ppo_config.num_ppo_epochs * ppo_config.num_mini_batches)
    trained = 2 if ppo_config.has_critic else 1
    num_texts = trained + (ppo_config.ptx_ratio if ppo_config.ptx_coef else 0)
    return num_rollouts * ppo_config.rollout_size * (3 + trained + 3 * num_texts * ppo_config.num_ppo_epochs)


def answer_and_score(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    *,
    rewards: Rewards | None,
    judge: PolicyJudge | None,
    **settings: Any,
) -> Answers:
    """Answers of [`answer_prompts`], with `settings`, scored by `rewards`, which PPO optimised, and by the judge."""
    made = answer_prompts(policy, tokenizer, rows, judge=judge and judge.rules, **settings)
    if rewards is not None:
        made.scores, made.terms = rewards.score(made.samples, tokenizer)
    if judge is not None and judge.rewards is not None:
        made.gold = judge.scores(made.samples, tokenizer)
    return made


def compare_policies(
    policies: list[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    num_samples: int,
    reference: PreTrainedModel,
    judge: PolicyJudge | None,
    **settings: Any,
) -> tuple[dict[str, dict], dict[str, list[Answers]]]:
    """Compare SFT, PPO and the control on the same prompts, sampled and greedy.

    `reference` is what PPO's KL is measured from; `settings` are those of [`answer_and_score`]. Returns what
    [`compare`] found and the answers of all three, both by their names in `metrics.json`.
    """
    rows = list(rows)
    results, answers = {}, {}
    for name, do_sample in HOWS.items():
        settings |= {"judge": judge, "do_sample": do_sample, "num_samples": num_samples}
        answers[name] = [
            answer_and_score(
                policy,
                tokenizer,
                rows,
                reference=reference if policy is policies[1] and do_sample else None,
                **settings,
            )
            for policy in policies
        ]
        results[name] = compare(*answers[name], num_samples=num_samples, rank=judge and judge.rank)
    return results, answers
