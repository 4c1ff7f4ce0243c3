"""The arena in numbers and a plot: a row for each method and learning rate."""

from itertools import groupby
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from ..evaluation.intervals import seed_interval

NAMES = {"sft": "SFT", "best_of_n": "best-of-n", "dpo": "DPO", "rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO"}


def analyse(jobs: list[dict]) -> list[dict]:
    """A row for each method and learning rate, from what the jobs returned (the seeds of a row side by side).

    A row has `method`, `learning_rate`, `seeds`, `diverged` (reasons by seed), `chosen` (whether it has the highest
    mean validation score of its method) and `numbers`: by name the `values` by seed, their `mean` and its `interval`
    (None with one seed). A row in which a seed diverged has no numbers.
    """
    sft = {job["seed"]: job for job in jobs if job["method"] == "sft"}
    rows = []
    for (method, learning_rate), some in groupby(jobs, key=lambda job: (job["method"], job["learning_rate"])):
        mine = list(some)
        diverged = {str(job["seed"]): job["diverged"] for job in mine if job["diverged"] is not None}
        parts = [] if diverged else [_numbers(job, sft[job["seed"]]) for job in mine]
        rows.append(
            {
                "method": method,
                "learning_rate": learning_rate,
                "seeds": [job["seed"] for job in mine],
                "diverged": diverged,
                "chosen": False,
                "numbers": {name: _over_seeds([part[name] for part in parts]) for name in (parts[0] if parts else ())},
            }
        )
    for method in {row["method"] for row in rows if row["learning_rate"]}:
        if alive := [row for row in rows if row["method"] == method and row["numbers"]]:
            max(alive, key=lambda row: row["numbers"]["validation_score"]["mean"])["chosen"] = True
    return rows


def _numbers(job: dict, sft: dict) -> dict[str, float | None]:
    """The numbers of a job; wins are over the SFT model's answers with the same seed."""
    told = ("validation_score", "tokens", "trainer_tokens", "seconds", "processor_seconds", "pairs", "n")
    numbers = {name: job.get(name) for name in told}
    for how, prefix in (("sampled", ""), ("greedy", "greedy_")):
        mine, its = job.get(how), sft[how]
        if mine is None:  # best-of-n
            numbers |= {f"{prefix}{name}": None for name in ("judge", "win_rate", "correct", "score")}
            continue
        gaps = [a - b for a, b in zip(mine["gold"], its["gold"], strict=True)]
        numbers[f"{prefix}judge"] = fmean(mine["gold"])
        numbers[f"{prefix}win_rate"] = fmean((gap > 0) + 0.5 * (gap == 0) for gap in gaps)
        numbers[f"{prefix}correct"], numbers[f"{prefix}score"] = mine["correct"], mine["score"]
    return numbers | {name: job["sampled"][name] for name in ("kl", "length")}


def _over_seeds(values: list[float | None]) -> dict | None:
    if None in values:
        return None
    return {"values": values, "mean": fmean(values), "interval": seed_interval(values) if len(values) > 1 else None}


def draw_plot(results: dict, path: Path) -> None:
    """Draw the judge's mean against the KL, a point per row, on a scale of square roots as in Gao et al. 2022."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("function", functions=(lambda x: x.clip(0) ** 0.5, lambda x: x**2))
    for i, method in enumerate(("sft", "best_of_n", *results["methods"])):
        rows = [row for row in results["rows"] if row["method"] == method and row["numbers"]]
        points = [tuple(row["numbers"][name]["mean"] for name in ("kl", "judge")) for row in rows]
        name = NAMES[method] + (" (KL: upper bound)" if method == "best_of_n" else "")
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
    axes.set_xlabel("KL to the SFT model, nats per response")
    axes.set_ylabel("judge's mean on held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _half(number: dict) -> float:
    return 0.0 if number["interval"] is None else number["interval"][1] - number["mean"]
