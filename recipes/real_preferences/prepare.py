r"""Split human preferences by prompt: for the reward model, for the gold reward model, for validation and for testing.

    python -m recipes.real_preferences.prepare pairs.jsonl --output_dir runs/real_preferences/data

`pairs.jsonl` has `prompt`, `chosen` and `rejected`, or rankings with `prompt`, `responses` and `ranks`, of which all
pairs are taken. Each of the three folders written is a data set with the splits `train`, `validation` and `test`; the
last two are the same pairs in all folders.

- `reward/train.jsonl`: a random sample of the pairs that the reward model may see.
- `balanced/train.jsonl`: as many of them, such that the longer response is the chosen one in half of the pairs, among
  pairs with a small and with a large difference of length alike.
- `gold/train.jsonl`: other prompts, for the reward model that judges.
"""

import argparse
import json
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random

from hf_instructgpt.data.columns import ranked_pairs

# Where the shares of the prompts end; the rest is for the gold reward model.
PARTS = {"test": 0.2, "validation": 0.3, "reward": 0.7, "gold": 1.0}


def part_of(prompt: str | list) -> str:
    """The part that a prompt belongs to, by a hash, so that all pairs of a prompt are in one part.

    The test prompts are those that the option `dataset_test_fraction: 0.2` holds out.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    place = int.from_bytes(sha256(json.dumps(prompt, sort_keys=True).encode()).digest()[:8]) / 2**64
    return next(part for part, end in PARTS.items() if place < end)


def pairs_of(row: dict) -> list[dict]:
    """A pair as it is; of a ranking, all pairs of different texts that it orders."""
    if "responses" not in row:
        return [row]
    responses = row["responses"]
    return [
        {"prompt": row["prompt"], "chosen": responses[better], "rejected": responses[worse]}
        for better, worse in ranked_pairs(responses, row["ranks"])
    ]


def length_gap(pair: dict) -> int:
    """Characters of the chosen response minus those of the rejected one."""
    chosen, rejected = (
        sum(len(message["content"]) for message in response) if isinstance(response, list) else len(response)
        for response in (pair["chosen"], pair["rejected"])
    )
    return chosen - rejected


def balanced(pairs: list[dict], *, seed: int, num_bins: int = 5) -> list[dict]:
    """The pairs without as many as it takes, drawn at random, for the longer response to be chosen in half of them.

    The pairs are sorted into `num_bins` bins of equal size by the absolute difference of length, and each bin is
    balanced, so that a small and a large difference tell equally little. Pairs of equal length are kept.
    """
    rng, kept = Random(seed), []
    order = sorted(range(len(pairs)), key=lambda i: abs(length_gap(pairs[i])))
    ends = [len(pairs) * k // num_bins for k in range(num_bins + 1)]
    for start, end in pairwise(ends):
        mine = order[start:end]
        longer = [i for i in mine if length_gap(pairs[i]) > 0]
        shorter = [i for i in mine if length_gap(pairs[i]) < 0]
        few = min(len(longer), len(shorter))
        kept += rng.sample(longer, few) + rng.sample(shorter, few)
        kept += [i for i in mine if length_gap(pairs[i]) == 0]
    return [pairs[i] for i in sorted(kept)]


def longer_share(pairs: list[dict]) -> float:
    """The share of pairs in which the longer response is the chosen one; equal lengths count half."""
    return sum(0.5 if length_gap(pair) == 0 else float(length_gap(pair) > 0) for pair in pairs) / len(pairs)


def prepare(pairs: list[dict], *, seed: int) -> dict[str, dict[str, list[dict]]]:
    """The three data sets, each with its splits."""
    parts: dict[str, list[dict]] = {part: [] for part in PARTS}
    for pair in pairs:
        parts[part_of(pair["prompt"])].append(pair)
    even = balanced(parts["reward"], seed=seed)
    some = sorted(Random(seed).sample(range(len(parts["reward"])), len(even)))
    trained_on = {"reward": [parts["reward"][i] for i in some], "balanced": even, "gold": parts["gold"]}
    held_out = {split: parts[split] for split in ("validation", "test")}
    return {name: {"train": rows, **held_out} for name, rows in trained_on.items()}


def main() -> None:
    """Write the data sets, and print how many pairs each split has and how often the longer response is chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="JSON Lines file with prompt, chosen and rejected")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    args = parser.parse_args()
    lines = args.pairs.read_text(encoding="utf-8").splitlines()
    rows = [pair for line in lines if line.strip() for pair in pairs_of(json.loads(line))]
    print("| data set | split | pairs | the longer is chosen |\n| --- | --- | --- | --- |")
    for name, splits in prepare(rows, seed=args.seed).items():
        (args.output_dir / name).mkdir(parents=True, exist_ok=True)
        for split, pairs in splits.items():
            if not pairs:
                parser.error(f"{args.pairs}: {len(rows)} pairs leave the split {split} of {name} without any")
            lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
            (args.output_dir / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"| {name} | {split} | {len(pairs)} | {longer_share(pairs):.1%} |")


if __name__ == "__main__":
    main()
