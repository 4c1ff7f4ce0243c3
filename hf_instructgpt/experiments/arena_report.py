"""What the arena found, in numbers, words and a plot."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure

from ..evaluation.intervals import seed_interval

matplotlib.use("Agg")

LARGE_EXCESS = 0.05  # of the budget: a pass over the prompts, or a rollout, is never broken off
NAMES = {"sft": "SFT", "best_of_n": "best-of-n", "dpo": "DPO", "rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO"}


def analyse(cells: list[dict]) -> list[dict]:
    """A row for each method and learning rate.

    Args:
        cells (`list[dict]`): What [`~hf_instructgpt.experiments.arena_methods.run_method`] gave.

    Returns:
        `list[dict]`: `method`, `learning_rate`, `seeds`, `diverged` (reasons by seed), `chosen` (of a method's
        learning rates the one with the highest mean validation score), and `numbers`: by name the `values`, one a
        seed, their `mean` and its `interval`. A row in which a seed diverged has no numbers; where there is one seed,
        there are no intervals.
    """
    sft = {cell["seed"]: cell for cell in cells if cell["method"] == "sft"}
    groups: dict[tuple, list[dict]] = {}
    for cell in cells:
        groups.setdefault((cell["method"], cell["learning_rate"]), []).append(cell)
    rows = []
    for (method, learning_rate), mine in groups.items():
        diverged = {str(cell["seed"]): cell["diverged"] for cell in mine if cell["diverged"] is not None}
        parts = [] if diverged else [_numbers(cell, sft[cell["seed"]]) for cell in mine]
        numbers = {name: _over_seeds([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        row = {"method": method, "learning_rate": learning_rate, "seeds": [cell["seed"] for cell in mine]}
        rows.append({**row, "diverged": diverged, "chosen": False, "numbers": numbers})
    for method in {row["method"] for row in rows if row["learning_rate"]}:
        if _alive(rows, method):
            _best(rows, method, "validation_score")["chosen"] = True
    return rows


def _numbers(cell: dict, sft: dict) -> dict[str, float | None]:
    """What is told of a cell; wins are over the SFT model's answers with the same seed."""
    told = ("validation_score", "tokens", "trainer_tokens", "seconds", "processor_seconds", "pairs", "n")
    numbers = {name: cell.get(name) for name in told}
    for how, prefix in (("sampled", ""), ("greedy", "greedy_")):
        mine, its = cell.get(how), sft[how]
        if mine is None:  # best-of-n
            numbers |= {f"{prefix}{name}": None for name in ("judge", "win_rate", "correct", "score")}
            continue
        gaps = [a - b for a, b in zip(mine["gold"], its["gold"], strict=True)]
        numbers[f"{prefix}judge"] = fmean(mine["gold"])
        numbers[f"{prefix}win_rate"] = fmean((gap > 0) + 0.5 * (gap == 0) for gap in gaps)
        numbers[f"{prefix}correct"], numbers[f"{prefix}score"] = mine["correct"], mine["score"]
    return numbers | {name: cell["sampled"][name] for name in ("kl", "length")}


def _over_seeds(values: list[float | None]) -> dict | None:
    if None in values:
        return None
    return {"values": values, "mean": fmean(values), "interval": seed_interval(values) if len(values) > 1 else None}


def _alive(rows: list[dict], method: str) -> list[dict]:
    return [row for row in rows if row["method"] == method and row["numbers"]]


def _best(rows: list[dict], method: str, name: str) -> dict:
    """A method's row with the highest mean."""
    return max(_alive(rows, method), key=lambda row: row["numbers"][name]["mean"])


def findings(results: dict) -> list[str]:
    """What the rows say, one sentence each."""
    rows, lines = results["rows"], []
    for method in ("sft", "best_of_n"):
        lines.append(f"{NAMES[method]}: the judge's mean is {_shown(_alive(rows, method)[0], 'judge')}.")
    for method in results["methods"]:
        for row in rows:
            if row["method"] == method and row["diverged"]:
                seeds = ", ".join(row["diverged"])
                lines.append(f"{_name(row)} diverged with seed {seeds}: {next(iter(row['diverged'].values()))}")
        if not _alive(rows, method):
            continue
        chosen, best = _best(rows, method, "validation_score"), _best(rows, method, "judge")
        line = f"{_name(chosen)}, chosen by the reward model: the judge's mean is {_shown(chosen, 'judge')}"
        if best is not chosen:
            line += f"; it is highest at {best['learning_rate']:g}, {_shown(best, 'judge')}"
        rates = [row["learning_rate"] for row in rows if row["method"] == method]
        if len(rates) > 1 and chosen["learning_rate"] in (min(rates), max(rates)):
            line += "; the choice stands at the edge of the learning rates tried, so a better one may lie beyond"
        lines.append(f"{line}.")
    return lines + [line for row in rows for line in _token_warnings(row, results["budget_tokens"])]


def _token_warnings(row: dict, budget: int) -> Iterator[str]:
    """Where the comparison is not on equal numbers of tokens, or the count cannot be trusted."""
    counted, theirs = (row["numbers"].get(name) for name in ("tokens", "trainer_tokens"))
    excess = counted["mean"] / budget - 1 if counted and row["method"] != "sft" else 0
    if abs(excess) > LARGE_EXCESS:
        yield f"WARNING: {_name(row)} sampled {counted['mean']:.0f} tokens: {excess:+.0%} beside the budget."
    if theirs is not None and theirs["values"] != counted["values"]:
        yield f"WARNING: {_name(row)}: tokens counted here and by its trainer differ."


COLUMNS = {
    "judge": "judge",
    "win_rate": "wins over SFT",
    "correct": "correct",
    "greedy_judge": "judge, greedy",
    "greedy_correct": "correct, greedy",
    "score": "reward model",
    "validation_score": "reward model, choice",
    "kl": "KL",
    "length": "length",
    "tokens": "tokens sampled",
    "seconds": "seconds",
    "processor_seconds": "processor seconds",
}
PERCENT = ("win_rate", "correct", "greedy_correct")
WHOLE = ("tokens", "seconds", "processor_seconds")


def arena_markdown(results: dict) -> str:
    """`arena.md`: one table, a row for each method and learning rate."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    seeds = results["seeds"]
    lines = [
        "# The arena: the same SFT model, reward model and number of sampled tokens",
        "",
        f"{results['budget_tokens']} response tokens for each method and seed; seeds {', '.join(map(str, seeds))}; "
        f"judge `{results['judge']}`; {results['num_prompts']} held-out prompts; {versions}.",
        "",
        f"| method | learning rate | {' | '.join(COLUMNS.values())} |",
        "| --- " * (len(COLUMNS) + 2) + "|",
    ]
    for row in results["rows"]:
        rate = "–" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        rate = f"**{rate}**" if row["chosen"] else rate
        cells = [_shown(row, name) for name in COLUMNS]
        if row["diverged"]:
            cells[0] = f"diverged, {len(row['diverged'])} of {len(row['seeds'])} seeds"
        name = NAMES[row["method"]]
        if row["method"] == "best_of_n":
            name += f", n = {row['numbers']['n']['mean']:g}"
        lines.append(f"| {name} | {rate} | {' | '.join(cells)} |")
    notes = [note.format(chosen_on=results["chosen_on"]) for note in NOTES]
    return "\n".join([*lines, "", *notes, "", *(f"- {line}" for line in findings(results)), ""])


NOTES = (
    "Means over the seeds; behind ± half of the 95 % interval over the seeds (Student's t), which holds the chance of "
    "sampling and training, not that of another SFT model, reward model or set of prompts. The learning rate in bold "
    "has the highest mean reward-model score, less the penalty for a missing end, on the prompts of the split "
    "`{chosen_on}`: one would choose it without a judge.",
    "",
    "- judge, wins over SFT's answers (a tie counts half), correct, reward model, KL to the SFT model (nats a "
    "response) and length (tokens of a response): on the held-out prompts, answered once at temperature 1; greedy "
    "where it says so.",
    "- The KL of best-of-n is its bound, log n - (n - 1) / n. It samples its tokens for these prompts alone, and as "
    "many again for every new one; the other methods sample theirs once.",
    "- Seconds are those of sampling and training, on one core, without loading and measuring.",
)


def _name(row: dict) -> str:
    rate = row["learning_rate"]
    return NAMES[row["method"]] + (f" at {rate:g}" if rate is not None else "")


def _shown(row: dict, name: str) -> str:
    """A number with half its interval, for people."""
    number = row["numbers"].get(name)
    if number is None:
        return "–"
    half = None if number["interval"] is None else number["interval"][1] - number["mean"]
    if name in WHOLE:
        return f"{number['mean']:.0f}"
    if name in PERCENT:
        return f"{number['mean']:.0%}" + (f" ± {100 * half:.0f}" if half is not None else "")
    return f"{number['mean']:.2f}" + (f" ± {half:.2f}" if half is not None else "")


def draw_plot(results: dict, path: Path) -> None:
    """The judge's mean against the KL, on a scale of square roots as in Gao et al. 2022: a point for each row."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("function", functions=(lambda x: x.clip(0) ** 0.5, lambda x: x**2))
    for i, method in enumerate(("sft", "best_of_n", *results["methods"])):
        rows = _alive(results["rows"], method)
        points = [tuple(row["numbers"][name]["mean"] for name in ("kl", "judge")) for row in rows]
        name = NAMES[method] + " (KL: bound)" * (method == "best_of_n")
        axes.plot([kl for kl, _ in points], [judge for _, judge in points], color=f"C{i}", linewidth=0.5)
        for row, point in zip(rows, points, strict=True):
            marker = {"fmt": "*", "markersize": 14} if row["chosen"] else {"fmt": "o", "markersize": 5}
            errors = {"xerr": _half(row["numbers"]["kl"]), "yerr": _half(row["numbers"]["judge"])}
            label = name if row is rows[0] else None
            axes.errorbar(*point, **errors, **marker, color=f"C{i}", elinewidth=0.8, label=label)
            if row["learning_rate"] is not None:
                text = {"xytext": (6, -9), "textcoords": "offset points", "fontsize": 7, "color": f"C{i}"}
                axes.annotate(f"{row['learning_rate']:g}", point, **text)
    high = axes.get_xlim()[1]
    axes.set_xticks([root**2 for root in (0, 0.5, 1, 1.5, *range(2, 2 + int(high**0.5)))])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, high)
    axes.set_title(f"{results['budget_tokens']} sampled tokens each; star: the reward model's choice of learning rate")
    axes.set_xlabel("KL to the SFT model, nats a response")
    axes.set_ylabel("judge's mean on held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _half(number: dict) -> float:
    return 0.0 if number["interval"] is None else number["interval"][1] - number["mean"]
