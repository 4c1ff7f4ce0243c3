r"""Compare reward models on the same held-out pairs, with each other and with the better length rule.

    python -m recipes.real_preferences.compare_rewards --data runs/real_preferences/data/reward \
        plain=runs/real_preferences/plain-0,runs/real_preferences/plain-1 \
        noise=runs/real_preferences/noise-0,runs/real_preferences/noise-1

A row of the table is a group of models that differ in their seed. Its accuracy is the mean of theirs, and the
differences are paired: each pair of responses counts with the group's mean, and prompts are resampled. The length
rule, "the longer wins" or "the shorter wins", is the one that is better on the training pairs. Scores are computed in
bfloat16, and kept beside each model in `pair_scores_SPLIT.json`.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from datasets import load_dataset

from hf_instructgpt.evaluation.preference import ScoredRanking, response_text, score_rankings
from hf_instructgpt.evaluation.reward_report import pair_table, share, wins
from hf_instructgpt.files import to_json, write_whole
from hf_instructgpt.models.loading import load_reward_model
from hf_instructgpt.stages.load_models import load_tokenizer

BATCH_SIZE = 8


def pair_scores(folder: Path, data: Path, split: str, *, max_length: int) -> list[list[float]]:
    """A model's scores of the chosen and of the rejected response of each pair, from its file if there is one."""
    kept = folder / f"pair_scores_{split}.json"
    if not kept.exists():
        tokenizer = load_tokenizer(str(folder))
        model = load_reward_model(str(folder), tokenizer, dtype=torch.bfloat16)
        rows = read_pairs(data, split)
        order = sorted(range(len(rows)), key=lambda i: len(str(rows[i])))  # less padding
        options = {"max_length": max_length, "batch_size": BATCH_SIZE}
        scored, _ = score_rankings(model, tokenizer, rows.select(order), **options)
        scores = [row.scores for _, row in sorted(zip(order, scored, strict=True), key=lambda pair: pair[0])]
        write_whole(kept, to_json(scores))
    return json.loads(kept.read_text(encoding="utf-8"))


def read_pairs(data: Path, split: str):
    """The pairs of one split."""
    return load_dataset("json", data_files={split: str(data / f"{split}.jsonl")}, split=split)


def scored(rows, scores: list[list[float]]) -> list[ScoredRanking]:
    """The pairs as rankings of two responses, with their scores."""
    texts = [[response_text(row[name]) for name in ("chosen", "rejected")] for row in rows]
    prompts = [json.dumps(row["prompt"], sort_keys=True) for row in rows]
    return [ScoredRanking(p, t, [1, 2], s) for p, t, s in zip(prompts, texts, scores, strict=True)]


def length_rule(rows) -> int:
    """1 if "the longer wins" is right for most of the pairs, else -1: "the shorter wins"."""
    table = pair_table(scored(rows, [[0.0, 0.0]] * len(rows)))
    return 1 if wins(table["length_gap"]).mean() >= 0.5 else -1


def table(rows, groups: dict[str, list[list[list[float]]]], *, rule: int) -> list[str]:
    """Markdown lines that compare groups of models, each given by its models' scores of the same pairs `(N, 2)`."""
    columns = ["accuracy of each", "mean", "minus the length rule", "minus the first row", "mean of scores"]
    lines = [f"| | {' | '.join(columns)} | prefers the longer | log-loss |", "| --- " * 8 + "|"]
    pairs = pair_table(scored(rows, [[0.0, 0.0]] * len(rows)))
    by_rule, prompts, first = wins(rule * pairs["length_gap"]), pairs["prompt"], None
    name, figure = f'"the {"longer" if rule == 1 else "shorter"} wins"', interval(share(prompts, by_rule))
    lines.append(f"| {name} | {by_rule.mean():.3f} | {figure} | | | | | |")
    for name, models in groups.items():
        tables = [pair_table(scored(rows, scores)) for scores in models]
        hits = [wins(some["margin"]) for some in tables]
        mean = np.mean(hits, axis=0)
        first = mean if first is None else first
        unequal = pairs["length_gap"] != 0
        longer = [np.where(pairs["length_gap"] > 0, mine, 1 - mine)[unequal].mean() for mine in hits]
        cells = [" ".join(f"{mine.mean():.3f}" for mine in hits), interval(share(prompts, mean))]
        cells += [interval(share(prompts, mean - by_rule), sign="+")]
        cells += ["" if first is mean else interval(share(prompts, mean - first), sign="+")]
        cells += [f"{wins(np.mean([some['margin'] for some in tables], axis=0)).mean():.3f}" if len(hits) > 1 else ""]
        cells += [f"{fmean(longer):.1%}", f"{fmean(np.logaddexp(0, -some['margin']).mean() for some in tables):.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def interval(figure: dict, *, sign: str = "") -> str:
    """A figure with its 95 % interval."""
    low, high = figure["ci95"]
    return f"{figure['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main() -> None:
    """Score what has no scores yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", help="NAME=FOLDER,FOLDER...: reward models that differ in their seed")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--max_length", type=int, default=256, help="that the models were trained with (default: 256)")
    args = parser.parse_args()
    groups, options = {}, {"max_length": args.max_length}
    for group in args.groups:
        name, _, folders = group.partition("=")
        groups[name] = [pair_scores(Path(folder), args.data, args.split, **options) for folder in folders.split(",")]
    rule = length_rule(read_pairs(args.data, "train"))
    print(*table(read_pairs(args.data, args.split), groups, rule=rule), sep="\n")


if __name__ == "__main__":
    main()
