"""What the over-optimisation lab found: curves over seeds, where the judge turns, the plot and the words."""

import math
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import InputError
from ..evaluation.intervals import seed_interval

matplotlib.use("Agg")

# ---- Analysis ------------------------------------------------------------------------------------------------------


def analyse(
    samples: list[dict], proxies: dict[int, list[dict]], policies: dict[tuple[int, float], list[dict]]
) -> dict:
    """Curves over seeds, and which point of them is best.

    Scores count from the SFT model's mean, in standard deviations of the scores of its own responses to the held-out
    prompts: proxies of different seeds and sizes, and the judge, then have one scale.

    Args:
        samples (`list[dict]`): Of each seed `judge_mean` and `judge_std`.
        proxies (`dict[int, list[dict]]`): By number of rankings, of each seed what `measure_proxy` returns.
        policies (`dict[tuple[int, float], list[dict]]`): By number of rankings and KL coefficient, of each seed the
            `points` of its run, and whether it `diverged`. A coefficient of which a seed did has no curve.

    Returns:
        `dict`: `sft`, `proxies`, `curves`, `diverged` and `suggested`, as they stand in `overopt.json`.

    Raises:
        InputError: There is no curve of PPO to suggest a point of.
    """
    curves, accuracies = [], []
    diverged = [
        {"num_rankings": size, "kl_coef": coef, "reasons": [run["diverged"] for run in runs]}
        for (size, coef), runs in policies.items()
        if any(run["diverged"] is not None for run in runs)
    ]
    lost = [(row["num_rankings"], row["kl_coef"]) for row in diverged]
    for size, of_size in proxies.items():
        accuracy = [proxy["accuracy"] for proxy in of_size]
        accuracies.append(
            {"num_rankings": size, "accuracy": fmean(accuracy), "accuracy_ci95": seed_interval(accuracy)}
        )
        runs = {coef: runs for (other, coef), runs in policies.items() if other == size and (size, coef) not in lost}
        runs = {("ppo", coef): [run["points"] for run in some] for coef, some in runs.items()}
        runs["best_of_n", None] = [proxy["best_of_n"] for proxy in of_size]
        for (method, coef), some in runs.items():
            gains = [
                [_gain(point, sample, proxy) for point in points]
                for points, sample, proxy in zip(some, samples, of_size, strict=True)
            ]
            curves.append({"num_rankings": size, "method": method, "kl_coef": coef, **curve(gains)})
    return {
        "sft": {name: fmean(sample[name] for sample in samples) for name in ("judge_mean", "judge_std")},
        "proxies": accuracies,
        "curves": curves,
        "diverged": diverged,
        "suggested": suggest(curves),
    }


def _gain(point: dict, sample: dict, proxy: dict) -> dict:
    """A point with its scores counted from SFT's mean, in SFT's standard deviations."""
    return {
        **point,
        "judge": (point["judge"] - sample["judge_mean"]) / (sample["judge_std"] or 1),
        "proxy": (point["proxy"] - proxy["proxy_mean"]) / (proxy["proxy_std"] or 1),
    }


def curve(runs: list[list[dict]]) -> dict:
    """The mean of several seeds' curves, and whether the judge turns.

    Args:
        runs (`list[list[dict]]`): Of each seed the points, at the same `step` or `n`: `kl` (nats), `proxy`, `judge`.

    Returns:
        `dict`: `points` with `kl`, `sqrt_kl`, `proxy`, `judge` and 95 % intervals over seeds; `peak`, the index of the
        highest mean judge; and what [`turn`] returns.
    """
    points = []
    for some in zip(*runs, strict=True):
        kl = fmean(point["kl"] for point in some)
        point = {name: some[0][name] for name in ("step", "n") if name in some[0]}
        point |= {"kl": kl, "sqrt_kl": math.sqrt(max(kl, 0))}  # an estimate by sampling can be below 0
        for name in ("proxy", "judge"):
            values = [seed_point[name] for seed_point in some]
            point |= {name: fmean(values), f"{name}_ci95": seed_interval(values)}
        points.append(point)
    peak = max(range(len(points)), key=lambda i: points[i]["judge"])
    return {"points": points, "peak": peak, **turn([[point["judge"] for point in run] for run in runs])}


def turn(judge: list[list[float]]) -> dict:
    """Whether the judge turns down: whether its fall from the peak to the last point is more than noise.

    A peak is in part luck, and the more points there are the more so. So each seed's fall is taken from the point that
    is best on average over the *other* seeds: chance does not choose it for this one. Of curves that are flat but for
    noise one in 25 or so is then said to turn; with one common peak and any later point, one in two to four.

    Args:
        judge (`list[list[float]]`): Of each seed the judge's score at each point.

    Returns:
        `dict`: `fall`, its mean over seeds; `fall_ci95`; `turns`, whether that interval lies above 0. Where the
        mean is highest at the first point, the judge never rose: it falls from the start.
    """
    falls = []
    for i, mine in enumerate(judge):
        others = [fmean(scores) for scores in zip(*judge[:i], *judge[i + 1 :], strict=True)]
        falls.append(mine[others.index(max(others))] - mine[-1])
    interval = seed_interval(falls)
    return {"fall": fmean(falls), "fall_ci95": interval, "turns": interval[0] > 0}


def suggest(curves: list[dict]) -> dict:
    """The point with the highest mean judge among those of PPO with the most rankings.

    Raises:
        InputError: There is none.
    """
    size = max(curve["num_rankings"] for curve in curves)
    points = [
        {"num_rankings": size, "kl_coef": curve["kl_coef"], **point}
        for curve in curves
        if curve["num_rankings"] == size and curve["method"] == "ppo"
        for point in curve["points"]
    ]
    if not points:
        raise InputError(
            f"at each KL coefficient a run of PPO against the proxies of {size} rankings diverged: numbers became NaN "
            "or infinite. Lower `ppo.learning_rate` and start anew with --overwrite_output_dir."
        )
    return max(points, key=lambda point: point["judge"])


# ---- Words ---------------------------------------------------------------------------------------------------------


def findings(results: dict) -> list[str]:
    """What was found, one sentence each; where the proxy rises while the judge falls, that comes first."""
    warnings, lines = [], []
    for proxy in results["proxies"]:
        low, high = proxy["accuracy_ci95"]
        lines.append(
            f"The proxies of {proxy['num_rankings']} rankings agree with the judge on {proxy['accuracy']:.1%} of the "
            f"pairs of held-out samples (95 % interval over seeds {low:.1%} to {high:.1%})."
        )
    for row in results["diverged"]:
        reasons = dict(zip(results["seeds"], row["reasons"], strict=True))
        seeds = [str(seed) for seed, reason in reasons.items() if reason is not None]
        warnings.append(
            f"WARNING, {_name({**row, 'method': 'ppo'})}: numbers became NaN or infinite with seed {', '.join(seeds)} "
            f"({next(filter(None, row['reasons']))}); it has no curve."
        )
    for c in results["curves"]:
        peak, end = c["points"][c["peak"]], c["points"][-1]
        fall = f"{c['fall']:.2f} [{c['fall_ci95'][0]:.2f}, {c['fall_ci95'][1]:.2f}]"
        if not c["turns"]:
            end = "it is highest at its end" if c["peak"] == len(c["points"]) - 1 else f"fall to its end {fall}"
            lines.append(f"{_name(c)}: the judge does not turn within this run ({end}).")
            continue
        how = "only falls,"
        if c["peak"]:
            how = f"turns. It is highest, {peak['judge']:+.2f}, at {_place(peak)}, and falls"
        line = f"{_name(c)}: the judge {how} by {fall} to the end of the run, at {_place(end)}"
        if end["proxy"] > peak["proxy"]:
            line = f"WARNING, {line}, while the proxy rises from {peak['proxy']:+.2f} to {end['proxy']:+.2f}"
        (warnings if line.startswith("WARNING") else lines).append(line + ".")
    best = results["suggested"]
    low, high = best["judge_ci95"]
    if best["step"] == 0:
        lines.append("Suggested: the SFT model as it is. No point of PPO is better by the judge.")
    else:
        lines.append(
            f"Suggested: KL coefficient {best['kl_coef']:g} and {best['step']} optimizer steps, where the judge is at "
            f"{best['judge']:+.2f} [{low:.2f}, {high:.2f}]: `{best['policy']}`, of the first seed. The judge chose it "
            "on these held-out prompts, so that number is a little optimistic"
            f"{'; these seeds do not tell it from the SFT model' if low <= 0 else ''}."
        )
    return warnings + lines


def _name(c: dict) -> str:
    method = "Best-of-n" if c["method"] == "best_of_n" else f"PPO with KL coefficient {c['kl_coef']:g}"
    return f"{method} against the proxies of {c['num_rankings']} rankings"


def _place(point: dict) -> str:
    where = f"step {point['step']}" if "step" in point else f"n = {point['n']}"
    return f"{where} (√KL {point['sqrt_kl']:.2f})"


def overopt_markdown(results: dict) -> str:
    """The report: one table, what was found, and how to read it."""
    lines = [
        "# Over-optimisation",
        "",
        "![proxy and judge against the square root of the KL](overopt.png)",
        "",
        *(f"- {line}" for line in findings(results)),
        "",
        "| rankings | method | √KL at the end | proxy at the end | judge at the end | judge's peak | at | turns |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in results["curves"]:
        peak, end = c["points"][c["peak"]], c["points"][-1]
        method = "best-of-n" if c["method"] == "best_of_n" else f"PPO, {c['kl_coef']:g}"
        cells = [c["num_rankings"], method, f"{end['sqrt_kl']:.2f}", _score(end, "proxy"), _score(end, "judge")]
        cells += [_score(peak, "judge"), _place(peak), ("yes" if c["peak"] else "only falls") if c["turns"] else "no"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    sft = results["sft"]
    lines += [
        "",
        f"Scores count from the SFT model's mean (judge {sft['judge_mean']:.3f}), in standard deviations of its own "
        f"responses' scores (judge {sft['judge_std']:.3f}), on the held-out prompts. In brackets: 95 % intervals over "
        f"{len(results['seeds'])} seeds (Student's t). Every seed has prompts, rankings, proxies and policies of its "
        "own; the SFT model is one for all.",
        "",
        "KL is that of the responses to the SFT model, nats a response; of best-of-n it is log n - (n - 1)/n, exact "
        "where no two scores are equal and in general an upper bound. `turns`: the judge's fall from its peak to the "
        "last point is more than noise, each seed's peak being where the other seeds are best.",
    ]
    return "\n".join(lines) + "\n"


def _score(point: dict, name: str) -> str:
    low, high = point[f"{name}_ci95"]
    return f"{point[name]:+.2f} [{low:.2f}, {high:.2f}]"


# ---- Plot ----------------------------------------------------------------------------------------------------------

COLOURS, MARKERS = ("C3", "C0", "C2", "C1", "C4"), "osD^vP"


def draw_plot(results: dict, path: Path) -> None:
    """`overopt.png`: judge (solid) and proxy (dashed) against √KL, PPO and best-of-n side by side."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    sizes = [proxy["num_rankings"] for proxy in results["proxies"]]
    coefs = list(dict.fromkeys(c["kl_coef"] for c in results["curves"] if c["method"] == "ppo"))
    for c in results["curves"]:
        axes = panels[0 if c["method"] == "ppo" else 1]
        colour = COLOURS[sizes.index(c["num_rankings"]) % len(COLOURS)]
        marker = MARKERS[coefs.index(c["kl_coef"]) % len(MARKERS)] if c["method"] == "ppo" else "x"
        x = [point["sqrt_kl"] for point in c["points"]]
        style = {"color": colour, "marker": marker, "markersize": 4}
        axes.plot(x, [point["proxy"] for point in c["points"]], linestyle="--", alpha=0.5, **style)
        y = [point["judge"] for point in c["points"]]
        half = [point["judge_ci95"][1] - point["judge"] for point in c["points"]]
        axes.plot(x, y, **style)
        axes.errorbar(x, y, yerr=half, fmt="none", ecolor=colour, alpha=0.4, elinewidth=1, capsize=2)
        if c["turns"] and c["peak"]:
            peak = c["points"][c["peak"]]
            axes.plot(peak["sqrt_kl"], peak["judge"], marker="*", markersize=14, color=colour, markeredgecolor="black")
    for axes, title in zip(panels, ("PPO", "best-of-n"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("√KL to SFT, KL in nats a response")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gain over SFT, in standard deviations of SFT's responses")
    black = {"color": "black"}
    handles = [Line2D([], [], label="judge, 95 % interval over seeds", **black)]
    handles += [Line2D([], [], linestyle="--", label="proxy", **black)]
    handles += [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=4, label=f"{size} rankings")
        for i, size in enumerate(sizes)
    ]
    handles += [
        Line2D([], [], linestyle="", marker=MARKERS[i % len(MARKERS)], label=f"KL coefficient {coef:g}", **black)
        for i, coef in enumerate(coefs)
    ]
    handles += [Line2D([], [], linestyle="", marker="*", markersize=12, label="peak of a judge that turns", **black)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
