"""SFT against PPO on held-out prompts: scored by what PPO optimised and, where there is one, by a judge."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from ..data import judge as lab_judge
from ..evaluation.comparison import Answers, Rewards, answer_prompts, compare
from ..models.loading import load_reward_func as load_scorer
from ..ppo.config import PPOConfig
from ..scoring.checks import foreign_tokenizers
from ..scoring.reward_functions import as_judge
from .arguments import PPOArguments, SFTArguments
from .load_data import load_stage_datasets, rows_to_read
from .load_models import load_reward_func
from .sft import make_sft_trainer

# How answers are made, and what `metrics.json` calls the comparison.
HOWS = {"comparison": True, "comparison_greedy": False}


def load_rewards(
    args: PPOArguments,
    training_args: PPOConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Rewards:
    """What a PPO stage was optimised against, on the policy's device; a name that comes twice gets its number."""
    trust, funcs = {"trust_remote_code": training_args.trust_remote_code}, {}
    for i, name in enumerate(args.reward_funcs):
        func = load_scorer(load_reward_func(name, **trust), **trust)
        short = Path(name).name if isinstance(func, nn.Module) else re.split("[.:]", name)[-1]
        funcs[f"{short}_{i}" if short in funcs else short] = func
    for model in funcs.values():
        if isinstance(model, nn.Module):
            model.to(policy.device).eval()
    tokenizers = foreign_tokenizers(
        list(funcs.values()),
        [None] * len(funcs),
        names=args.reward_funcs,
        policy=policy,
        policy_tokenizer=tokenizer,
        **trust,
    )
    return Rewards(funcs, tokenizers, training_args.reward_weights or [1.0] * len(funcs))


def train_control(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sft: tuple[SFTArguments, SFTConfig, ModelConfig],
    ppo_config: PPOConfig,
    *,
    num_steps: int,
    folder: Path,
) -> None:
    """Train the SFT model on, by its stage's options, for as long as PPO was trained in `num_steps` steps.

    The budget is counted in forward passes over a text (a backward pass counts as two), so that a repeated run gives
    the same numbers; `seconds` in `metrics.json` shows both times. A PPO response costs one pass to sample, one each
    for policy, reference, reward model and critic, and three for each model trained, every epoch; PPO-ptx trains the
    policy on text besides. `folder` is used meanwhile.
    """
    args, training_args, model_args = sft
    training_args.model_init_kwargs = None  # the model is there already
    num_rollouts = num_steps / (ppo_config.num_ppo_epochs * ppo_config.num_mini_batches)
    trained = 2 if ppo_config.advantage_estimator == "gae" else 1
    num_texts = trained + (ppo_config.ptx_ratio if ppo_config.ptx_coef else 0)
    passes = num_rollouts * ppo_config.rollout_size * (3 + trained + 3 * num_texts * ppo_config.num_ppo_epochs)
    rows_a_step = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    training_args.max_steps = max(1, round(passes / 3 / rows_a_step))
    training_args.output_dir = str(folder)
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(training_args, name, "no")
    training_args.load_best_model_at_end = False
    train_dataset = rows_to_read(load_stage_datasets(args, "sft", needs_eval=False)[0], args, tokenizer)
    make_sft_trainer(args, training_args, model_args, model, tokenizer, train_dataset, None).train()
    shutil.rmtree(folder, ignore_errors=True)


def compare_policies(
    policies: list[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    rewards: Rewards,
    judge: Callable | None,
    is_lab: bool,
    max_completion_length: int,
    num_samples: int,
    reference: PreTrainedModel,
    seed: int,
) -> tuple[dict[str, dict], list[Answers]]:
    """SFT, PPO and the control on the same prompts, sampled and greedy.

    Args:
        policies (`list[PreTrainedModel]`): SFT, PPO, and SFT trained for as long as PPO.
        tokenizer (`PreTrainedTokenizerBase`): Theirs.
        rows ([`~datasets.Dataset`]): PPO's held-out rows.
        rewards ([`Rewards`]): What PPO optimised.
        judge (`Callable`, *optional*): A judge, called as a reward function is.
        is_lab (`bool`): Whether the rows are the sample data `lab`, whose rules judge where no other judge is named.
        max_completion_length (`int`): Maximum number of tokens per answer.
        num_samples (`int`): Answers per prompt.
        reference (`PreTrainedModel`): What PPO's KL is measured from.
        seed (`int`): Of the sampling.

    Returns:
        `tuple`: what [`compare`] says, by the name in `metrics.json`; and the greedy answers of all three.
    """
    rows = list(rows)
    results = {}
    for name, do_sample in HOWS.items():
        answers = []
        for policy in policies:
            made = answer_prompts(
                policy,
                tokenizer,
                rows,
                judge=lab_judge if is_lab and judge is None else None,
                max_completion_length=max_completion_length,
                do_sample=do_sample,
                num_samples=num_samples,
                reference=reference if policy is policies[1] and do_sample else None,
                seed=seed,
            )
            made.scores, made.terms = rewards.score(made.samples, tokenizer)
            if judge is not None:
                with as_judge():
                    made.gold, _ = Rewards({"judge": judge}, [None], [1.0]).score(made.samples, tokenizer)
            answers.append(made)
        results[name] = compare(*answers, num_samples=num_samples)
    return results, answers
