r"""Compare the policy before and after PPO on held-out prompts: scores of the reward models, KL, length, samples.

    python -m recipes.real_preferences.compare_policies runs/real_preferences/sft runs/real_preferences/ppo \
        --reward runs/real_preferences/plain-0 \
        --gold runs/real_preferences/gold runs/real_preferences/gold-linear/mean \
        --data runs/real_preferences/data/reward

Both policies sample with the same seed. Intervals are bootstrapped over prompts.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch
from datasets import load_dataset
from transformers import PreTrainedModel

from hf_instructgpt.evaluation.comparison import Answers, Rewards, answer_prompts
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.models.loading import load_policy, load_reward_model
from hf_instructgpt.stages.load_models import load_tokenizer
from hf_instructgpt.text import encode_row

from .linear_head import HEAD_FILE, LinearHead

NUM_SHOWN = 30


def load(name: str, tokenizer) -> PreTrainedModel | LinearHead:
    """A reward model by its folder."""
    if (Path(name) / HEAD_FILE).exists():
        return LinearHead.load(Path(name))
    return load_reward_model(name, tokenizer, dtype=torch.bfloat16).eval()


def held_out_prompts(data: Path, tokenizer, *, max_prompt_length: int, num_prompts: int) -> list[dict]:
    """The first different prompts of the test pairs that are short enough."""
    rows = load_dataset("json", data_files={"test": str(data / "test.jsonl")}, split="test")
    prompts = {str(row["prompt"]): {"prompt": row["prompt"]} for row in rows}
    short = [row for row in prompts.values() if len(encode_row(tokenizer, row)) <= max_prompt_length]
    return short[:num_prompts]


def figures(start: Answers, tuned: Answers, *, num_samples: int) -> list[str]:
    """Markdown lines with each figure before and after PPO, and the paired difference."""

    def by_prompt(values: list[float]) -> list[float]:
        return [fmean(values[i : i + num_samples]) for i in range(0, len(values), num_samples)]

    def row(name: str, before: list[float], after: list[float]) -> str:
        change = [b - a for a, b in zip(by_prompt(before), by_prompt(after), strict=True)]
        low, high = bootstrap_ci(change)
        return (
            f"| {name} | {fmean(before):.3f} | {fmean(after):.3f} | {fmean(change):+.3f} [{low:+.3f}, {high:+.3f}] |"
        )

    lines = ["| | before | after | difference |", "| --- | --- | --- | --- |"]
    for name in start.terms:
        lines.append(row(name, start.terms[name], tuned.terms[name]))
    lengths = [[float(len(ids)) for ids in some.samples.completion_ids] for some in (start, tuned)]
    lines.append(row("tokens per response", *lengths))
    lines.append(row("responses that end", *([float(end) for end in some.samples.ended] for some in (start, tuned))))
    lines.append(row("KL from before, nats per response", [0.0] * len(tuned.kl), tuned.kl))
    return lines


def main() -> None:
    """Print the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="the policy before PPO, a folder")
    parser.add_argument("tuned", help="the policy after PPO, a folder")
    parser.add_argument("--reward", required=True, help="the reward model that PPO optimised")
    parser.add_argument("--gold", nargs="+", required=True, help="reward models that PPO did not see, which judge")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=2, help="responses per prompt (default: 2)")
    parser.add_argument("--max_prompt_length", type=int, default=160)
    parser.add_argument("--max_completion_length", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.start)
    rows = held_out_prompts(
        args.data, tokenizer, max_prompt_length=args.max_prompt_length, num_prompts=args.num_prompts
    )
    policies = [load_policy(name, tokenizer, dtype=torch.bfloat16) for name in (args.start, args.tuned)]
    models = {f"reward model {args.reward}": args.reward, **{f"gold {path}": path for path in args.gold}}
    models = {name: load(path, tokenizer) for name, path in models.items()}
    rewards = Rewards(models, [None] * len(models), [1.0] * len(models))
    answers = []
    for policy in policies:
        made = answer_prompts(
            policy,
            tokenizer,
            rows,
            max_completion_length=args.max_completion_length,
            do_sample=True,
            num_samples=args.num_samples,
            reference=None if policy is policies[0] else policies[0],
            seed=args.seed,
            batch_size=16,
        )
        made.scores, made.terms = rewards.score(made.samples, tokenizer, batch_size=16)
        answers.append(made)
    print(f"{len(rows)} held-out prompts, {args.num_samples} responses to each.\n")
    print(*figures(*answers, num_samples=args.num_samples), sep="\n")
    print("\n| last message | before | after |\n| --- | --- | --- |")
    for i in range(0, min(NUM_SHOWN, len(rows)) * args.num_samples, args.num_samples):
        texts = [rows[i // args.num_samples]["prompt"][-1]["content"], *(made.samples.texts[i] for made in answers)]
        print(f"| {' | '.join(' '.join(text.split()).replace('|', '/') for text in texts)} |")


if __name__ == "__main__":
    main()
