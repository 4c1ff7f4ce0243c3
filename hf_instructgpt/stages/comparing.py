"""SFT against PPO on held-out prompts: scored by what PPO optimised and, where there is one, by a judge."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import judge as lab_judge
from ..evaluation.comparison import Answers, Rewards, answer_prompts, compare
from ..ppo.checks import foreign_tokenizers
from ..ppo.config import PPOConfig
from ..ppo.models import load_reward_func as load_scorer
from .arguments import PPOArguments
from .inputs import load_reward_func

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
        short = Path(name).name if isinstance(func, nn.Module) else name.rpartition(".")[-1]
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
    asked = [row for row in rows for _ in range(num_samples)]
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
            made.scores, made.terms = rewards.score(made, tokenizer, asked)
            if judge is not None:
                made.gold, _ = Rewards({"judge": judge}, [None], [1.0]).score(made, tokenizer, asked)
            answers.append(made)
        results[name] = compare(*answers, num_samples=num_samples)
    return results, answers
