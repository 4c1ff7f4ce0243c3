"""The rounds in numbers and a plot: a row per policy, and whether later rounds beat the first one."""

from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.intervals import bootstrap_ci, seed_interval


def analyse(found: dict[str, list[dict]], trained: dict[str, list[dict]]) -> dict:
    """The table and the comparisons from what the jobs returned: by policy a result for each seed.

    `rows`: per policy `numbers`, by name a `mean` over the seeds and its 95 % `interval` (over the seeds; with one
    seed, bootstrapped over prompts; None where there is neither). `accuracy`: by reward model and policy, the pair
    accuracy on the policy's answers, as such a number. `comparisons`: see [`compare_policies`].
    """
    rows = []
    for policy, mine in found.items():
        numbers = {name: _over_seeds([(result[name], None) for result in mine]) for name in ("kl", "length")}
        numbers |= {name: _over_prompts([result[name] for result in mine]) for name in ("judge", "wins", "correct")}
        for name, reward_model in (("own", policy), ("before", before(policy))):
            numbers[name] = _over_seeds([_measured(result["accuracy"].get(reward_model)) for result in mine])
        learned = trained.get(policy, [])
        new = [result["accuracy_on_new"] for result in learned] or [None]
        numbers["new"] = _over_seeds(list(map(_measured, new)))
        counts = {x: fmean(job[x] for job in learned) if learned else 0 for x in ("num_rankings", "num_pairs")}
        rows.append({"policy": policy, **counts, "numbers": numbers})
    measure = next((name for name in ("judge", "wins") if found["round-1"][0][name] is not None), None)
    pairs = contests(list(trained)) if measure else []
    return {
        "num_prompts": found["sft"][0]["num_prompts"],
        "rows": rows,
        "accuracy": {
            name: {policy: _over_seeds([_measured(x["accuracy"][name]) for x in found[policy]]) for policy in found}
            for name in (trained if measure else ())
        },
        "measure": measure,
        "comparisons": [compare_policies(found, *pair, measure) for pair in pairs],
    }


def before(policy: str) -> str | None:
    """The round before a round."""
    name, _, number = policy.partition("-")
    return f"{name}-{int(number) - 1}" if number else None


def contests(names: list[str]) -> list[tuple[str, str]]:
    """Each later round against the first; with a control, the last round and the first against it."""
    rounds = [name for name in names if name != "control"]
    pairs = [(name, rounds[0]) for name in rounds[1:]]
    return pairs if rounds == names else [*pairs, (rounds[-1], "control"), ("control", rounds[0])]


def compare_policies(found: dict[str, list[dict]], policy: str, other: str, measure: str) -> dict:
    """How much higher one policy's `measure` ("judge" or "wins") is than another's, prompt by prompt and seed by seed.

    `rise`, with two 95 % intervals: `ci95`, bootstrapped over the prompts (with the mean over the seeds of each), and
    `seeds_ci95` over the seeds, None with one. `verdict`: "better" or "worse" if no interval contains 0, else "open".
    """
    mine, its = (np.array([result[measure] for result in found[name]], dtype=float) for name in (policy, other))
    gaps = (mine - its)[:, np.isfinite(mine - its).all(0)]  # (seeds, prompts) without those that were not judged
    intervals = [bootstrap_ci(gaps.mean(0).tolist())]
    intervals += [seed_interval(gaps.mean(1).tolist())] if len(gaps) > 1 else []
    verdict = "better" if min(low for low, _ in intervals) > 0 else "open"
    verdict = "worse" if max(high for _, high in intervals) < 0 else verdict
    return {
        "policy": policy,
        "other": other,
        "rise": float(gaps.mean()),
        "ci95": intervals[0],
        "seeds_ci95": intervals[1] if len(gaps) > 1 else None,
        "verdict": verdict,
    }


def _over_prompts(parts: list[list[float | None] | None]) -> dict:
    """What [`_over_seeds`] gives of the means over the prompts that have a value."""
    known = [[value for value in part or () if value is not None] or None for part in parts]
    is_alone = len(parts) == 1
    return _over_seeds([part and (fmean(part), bootstrap_ci(part) if is_alone else None) for part in known])


def _measured(accuracy: dict | None) -> tuple[float, list[float] | None] | None:
    """A pair accuracy and its interval, None without pairs."""
    return None if accuracy is None or accuracy["value"] is None else (accuracy["value"], accuracy["ci95"])


def _over_seeds(parts: list[tuple[float, list[float] | None] | None]) -> dict:
    """The mean of each seed's value, and the interval over the seeds, or that of the only one."""
    if None in parts:
        return {"mean": None, "interval": None}
    values = [value for value, _ in parts]
    interval = seed_interval(values) if len(values) > 1 else parts[0][1]
    return {"mean": fmean(values), "interval": interval}


# What the plot shows of the reward models, beside the policies.
LABELS = {"own": "of its reward model", "before": "of the one before", "new": "of the one before, on new rankings"}


def draw_plot(results: dict, path: Path) -> None:
    """Draw the judge's mean (or the wins) and the reward models' accuracy by round, and the control as a star."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    judge, accuracy = figure.subplots(1, 2)
    rounds = [row["numbers"] for row in results["rows"] if row["policy"] != "control"]
    control = [row["numbers"] for row in results["rows"] if row["policy"] == "control"]
    measure = results["measure"] or "judge"
    for number, (name, label) in enumerate({measure: "rounds", **LABELS}.items()):
        axes, shift = (judge if name == measure else accuracy), 0.06 * number
        points = [(i + shift, row[name]) for i, row in enumerate(rounds)]
        points += [(len(rounds) - 1 + shift, row[name]) for row in control]
        points = [(place, x["mean"], _half(x)) for place, x in points if x["mean"] is not None]
        stars = points[-1:] if control and name in (measure, "own") else []
        style = {"color": f"C{number}", "capsize": 2}
        for some, marker in ((points[: len(points) - len(stars)], "o-"), (stars, "*")):
            if some:
                size = {"markersize": 14, "label": "control"} if marker == "*" else {"label": label}
                places, means, halves = zip(*some, strict=True)
                axes.errorbar(places, means, yerr=halves, fmt=marker, **style, **size)
    judge.set(title="the judge's mean" if measure == "judge" else "wins over SFT", xlabel="round (0: SFT)")
    accuracy.set(title="pair accuracy on the policy's answers", xlabel="round")
    for axes in (judge, accuracy):
        axes.set_xticks(range(len(rounds)))
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=120)


def _half(number: dict) -> float:
    return 0.0 if number["interval"] is None else max(0.0, number["interval"][1] - number["mean"])
