"""PNG plots of a reward model's report, labelled in English."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.preference import ScoredRanking

MAX_POINTS = 5000


def draw_reward_report(report: dict, rankings: list[ScoredRanking], folder: Path) -> None:
    """Draw accuracy, calibration and length of the report measured on `rankings`, as `reward_report_*.png`."""
    _draw_accuracies(report, folder / "reward_report_accuracy.png")
    _draw_calibration(report["calibration"]["bins"], folder / "reward_report_calibration.png")
    _draw_length(rankings, folder / "reward_report_length.png")


def _draw_accuracies(report: dict, path: Path) -> None:
    panels = {
        "responses in the ranking": [(some["num_responses"], some) for some in report["by_num_responses"]],
        "steps of rank between the two": [(some["rank_gap"], some) for some in report["by_rank_gap"]],
        "difference of the two scores": [
            (f"{some['from']:.2f}\nto {some['to']:.2f}", some) for some in report["by_margin"]
        ],
    }
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle("Pair accuracy with 95 % CI (none for fewer than six prompts) and number of pairs")
    baseline = report["length"][report["length"]["better_baseline"]]["value"]
    for axes, (xlabel, bars) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        if baseline is not None:
            axes.axhline(baseline, color="tab:red", linestyle="--", linewidth=1, label="better length baseline")
        for x, (_, some) in enumerate(bars):
            _draw_share(axes, x, some)
            axes.annotate(some["num"], (x, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        axes.set_xticks(range(len(bars)), [str(name) for name, _ in bars])
        axes.set_xlabel(xlabel)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3, axis="y")
        axes.axhline(0.5, color="grey", linestyle=":", linewidth=1, label="chance")
    figure.axes[0].set_ylabel("pair accuracy")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def _draw_share(axes: Axes, x: float, some: dict) -> None:
    low, high = some["ci95"] or (some["value"], some["value"])
    axes.plot([x, x], [low, high], color="tab:blue")
    axes.plot(x, some["value"], "o", color="tab:blue", markersize=5)


def _draw_calibration(bins: list[dict], path: Path) -> None:
    figure = Figure(figsize=(5, 5.2), layout="constrained")
    figure.suptitle("Calibration")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":", label="calibrated")
    for some in bins:
        _draw_share(upper, some["confidence"], some)
    upper.set_ylabel("pair accuracy")
    upper.grid(alpha=0.3)
    upper.legend()
    widths = [some["to"] - some["from"] for some in bins]
    lower.bar([some["from"] for some in bins], [some["num"] for some in bins], widths, align="edge", edgecolor="white")
    lower.set_xlabel("confidence")
    lower.set_ylabel("pairs")
    figure.savefig(path, dpi=120)


def _draw_length(rankings: list[ScoredRanking], path: Path) -> None:
    rows = [
        (len(response), score, (rank - min(r.ranks)) / max(1, max(r.ranks) - min(r.ranks)))
        for r in rankings
        for response, score, rank in zip(r.responses, r.scores, r.ranks, strict=True)
    ]
    rows = rows[:: -(-len(rows) // MAX_POINTS)]
    lengths, scores, ranks = zip(*rows, strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    figure.suptitle("Score against length")
    axes = figure.subplots()
    scatter = axes.scatter(lengths, scores, c=ranks, cmap="viridis_r", s=10, alpha=0.6, linewidths=0)
    figure.colorbar(scatter, label="rank in its row: 0 best, 1 worst").ax.invert_yaxis()
    if max(lengths) > 10 * median(lengths):
        axes.set_xscale("log")
    axes.set_xlabel("characters per response")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
