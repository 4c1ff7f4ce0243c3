"""The over-optimisation experiment in numbers and a plot: curves over seeds, and where the judge turns."""

import math
from itertools import product
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import InputError
from ..evaluation.intervals import seed_interval


def analyse(
    samples: list[dict],
    proxies: dict[tuple[int, str], list[dict]],
    policies: dict[tuple[int, str, float], list[dict]],
) -> dict:
    """The curves over seeds, and the best point among them: `sft`, `proxies`, `curves`, `diverged` and `suggested`.

    Scores count from the SFT model's mean, in standard deviations of the scores of its own responses to the held-out
    prompts, so that proxies of all seeds and sizes, and the judge, share one scale. The arguments hold, for each seed,
    what the jobs returned: `samples`; `proxies` by number of rankings and variant; `policies` by these and the KL
    coefficient. A coefficient that diverged with any seed has no curve.
    """
    curves, accuracies, diverged = [], [], []
    for (size, variant), of_kind in proxies.items():
        kind = {"num_rankings": size, "variant": variant}
        accuracy = [proxy["accuracy"] for proxy in of_kind]
        accuracies.append({**kind, "accuracy": fmean(accuracy), "accuracy_ci95": seed_interval(accuracy)})
        runs = {}
        for coef, some in ((x, some) for (*other, x), some in policies.items() if other == [size, variant]):
            reasons = [run["diverged"] for run in some]
            if any(reasons):
                diverged.append({**kind, "kl_coef": coef, "reasons": reasons})
            else:
                runs["ppo", coef] = [run["points"] for run in some]
        runs["best_of_n", None] = [proxy["best_of_n"] for proxy in of_kind]
        for (method, coef), some in runs.items():
            gains = [
                [_gain(point, sample, proxy) for point in points]
                for points, sample, proxy in zip(some, samples, of_kind, strict=True)
            ]
            curves.append({**kind, "method": method, "kl_coef": coef, **curve(gains)})
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
    """The mean of the seeds' curves: `points` with 95 % intervals, `peak` (an index), and what [`turn`] returns."""
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
    """Whether the judge (`judge[seed][point]`) falls by more than noise from its peak to the last point.

    A peak is in part luck, the more so the more points there are. So each seed's fall is measured from the point that
    is best on average over the *other* seeds: chance does not choose it for this one. Of curves that are flat but for
    noise, one in 25 or so is then said to turn; with one common peak, one in two to four.

    Returns `fall`, the mean over seeds; `fall_ci95`; and `turns`, whether that interval lies above 0.
    """
    falls = []
    for i, mine in enumerate(judge):
        others = [fmean(scores) for scores in zip(*judge[:i], *judge[i + 1 :], strict=True)]
        falls.append(mine[others.index(max(others))] - mine[-1])
    interval = seed_interval(falls)
    return {"fall": fmean(falls), "fall_ci95": interval, "turns": interval[0] > 0}


def suggest(curves: list[dict]) -> dict:
    """The point of PPO with the highest mean judge among those with the most rankings."""
    size = max(curve["num_rankings"] for curve in curves)
    points = [
        {**{name: curve[name] for name in ("num_rankings", "variant", "kl_coef")}, **point}
        for curve in curves
        if curve["num_rankings"] == size and curve["method"] == "ppo"
        for point in curve["points"]
    ]
    if not points:
        raise InputError(
            f"PPO diverged against the proxies of {size} rankings with every KL coefficient: numbers became NaN or "
            "infinite. Lower `ppo.learning_rate` and start again with --overwrite_output_dir."
        )
    return max(points, key=lambda point: point["judge"])


COLOURS, MARKERS = ("C3", "C0", "C2", "C1", "C4"), "osD^vP"


def draw_plot(results: dict, path: Path) -> None:
    """Draw judge (solid) and proxy (dashed) against √KL, PPO and best-of-n side by side.

    Variants of the proxies are side by side, with PPO above best-of-n.
    """
    variants = list(dict.fromkeys(proxy["variant"] for proxy in results["proxies"]))
    shape, size = ((1, 2), (11, 5.5)) if len(variants) == 1 else ((2, len(variants)), (1 + 3 * len(variants), 9))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(*shape, sharex=True, sharey=True).reshape(2, -1)
    sizes = dict.fromkeys(proxy["num_rankings"] for proxy in results["proxies"])
    coefs = list(dict.fromkeys(c["kl_coef"] for c in results["curves"] if c["method"] == "ppo"))
    colours = {size: COLOURS[i % len(COLOURS)] for i, size in enumerate(sizes)}
    markers = {coef: MARKERS[i % len(MARKERS)] for i, coef in enumerate(coefs)}
    for c in results["curves"]:
        axes = panels[0 if c["method"] == "ppo" else 1, variants.index(c["variant"])]
        style = {"color": colours[c["num_rankings"]], "marker": markers.get(c["kl_coef"], "x"), "markersize": 4}
        x, proxy, judge = ([point[name] for point in c["points"]] for name in ("sqrt_kl", "proxy", "judge"))
        half = [point["judge_ci95"][1] - point["judge"] for point in c["points"]]
        axes.plot(x, proxy, linestyle="--", alpha=0.5, **style)
        axes.plot(x, judge, **style)
        axes.errorbar(x, judge, yerr=half, fmt="none", ecolor=style["color"], alpha=0.4, elinewidth=1, capsize=2)
        if c["turns"] and c["peak"]:
            star = {"marker": "*", "markersize": 14, "markeredgecolor": "black"}
            axes.plot(x[c["peak"]], judge[c["peak"]], **{**style, **star})
    for axes, (method, variant) in zip(panels.flat, product(("PPO", "best-of-n"), variants), strict=True):
        axes.set(title=", ".join(filter(None, (method, variant))), xlabel="√KL to SFT (KL in nats per response)")
        axes.label_outer()
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    figure.supylabel("gain over SFT, in standard deviations of SFT's responses", fontsize="medium")
    styles = [
        {"label": "judge, 95 % interval over seeds"},
        {"label": "proxy", "linestyle": "--"},
        *({"label": f"{size} rankings", "color": colour, "linewidth": 4} for size, colour in colours.items()),
        *({"label": f"KL coefficient {x:g}", "linestyle": "", "marker": mark} for x, mark in markers.items()),
        {"label": "peak of a judge that turns", "linestyle": "", "marker": "*", "markersize": 12},
    ]
    handles = [Line2D([], [], **{"color": "black", **style}) for style in styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
