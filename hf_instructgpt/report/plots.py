"""The curves of the three stages as PNG files, labelled in English so that no font lacks a glyph."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.preference import ScoredRanking
from .curves import draw_panels

MAX_POINTS = 5000


def draw_plots(metrics: dict, histories: dict[str, list[dict]], folder: Path) -> None:
    """Write `sft_loss.png`, `reward_model.png` and `ppo.png`; with a stage `ppo_init`, `ppo_init_loss.png` too.

    Args:
        metrics (`dict`): The run's `metrics.json`.
        histories (`dict`): Trainer's `log_history` of each stage.
        folder (`Path`): Where the files go; it exists.
    """
    titles = {"sft": "Supervised fine-tuning", "ppo_init": "Supervised fine-tuning of what PPO starts from"}
    for stage in titles.keys() & metrics.keys():
        panels, scores = [("loss", _losses(metrics[stage]))], metrics[stage].get("eval_score", [])
        if scores:
            panels.append(("mean score", {"answers to validation prompts": list(enumerate(scores, start=1))}))
        draw_panels(folder / f"{stage}_loss.png", titles[stage], "epoch", panels)
    accuracy = [(x["epoch"], x["accuracy"]) for x in histories["reward"] if "accuracy" in x]
    held_out = [(x["epoch"], x["eval_accuracy"]) for x in histories["reward"] if "eval_accuracy" in x]
    panels = [("loss", _losses(metrics["reward"])), ("pair accuracy", {"training": accuracy, "validation": held_out})]
    draw_panels(folder / "reward_model.png", "Reward model", "epoch", panels)
    kl = f"KL to {'ppo_init' if 'ppo_init' in metrics else 'SFT'}, nats a response"
    panels = [
        (label, {"sampled responses": list(enumerate(metrics["ppo"][name], start=1))})
        for label, name in (("score", "score"), (kl, "kl"))
    ]
    draw_panels(folder / "ppo.png", "PPO", "rollout", panels)


def _losses(stage: dict) -> dict[str, list[tuple[float, float]]]:
    return {
        "training": list(enumerate(stage["train_loss"], start=1)),
        "validation": list(enumerate(stage.get("eval_loss", []), start=1)),
    }


# ---- The report card of a reward model -----------------------------------------------------------------------------


def draw_reward_card(card: dict, rankings: list[ScoredRanking], folder: Path) -> None:
    """Write `report_card_accuracy.png`, `report_card_calibration.png` and `report_card_length.png`.

    Args:
        card (`dict`): A report card, see [`measure_rewards`].
        rankings (`list[ScoredRanking]`): The rows it was measured on.
        folder (`Path`): Where the files go; it exists.
    """
    _draw_accuracies(card, folder / "report_card_accuracy.png")
    _draw_calibration(card["calibration"]["bins"], folder / "report_card_calibration.png")
    _draw_length(rankings, folder / "report_card_length.png")


def _draw_accuracies(card: dict, path: Path) -> None:
    margins = [(f"{some['from']:.2f}\nto {some['to']:.2f}", some) for some in card["by_margin"]]
    panels = {
        "responses in the ranking": [(str(some["num_responses"]), some) for some in card["by_num_responses"]],
        "steps of rank between the two": [(str(some["rank_gap"]), some) for some in card["by_rank_gap"]],
        "difference of the two scores": margins,
    }
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle("Share of pairs right, with 95 % intervals (none of fewer than six prompts) and numbers of pairs")
    rule = card["length"][card["length"]["better_baseline"]]["value"]
    for axes, (xlabel, bars) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        if rule is not None:
            axes.axhline(rule, color="tab:red", linestyle="--", linewidth=1, label="better rule of length")
        for x, (_, some) in enumerate(bars):
            _point(axes, x, some)
            axes.annotate(some["num"], (x, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        axes.set_xticks(range(len(bars)), [name for name, _ in bars])
        axes.set_xlabel(xlabel)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3, axis="y")
        axes.axhline(0.5, color="grey", linestyle=":", linewidth=1, label="coin")
    figure.axes[0].set_ylabel("share right")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def _point(axes: Axes, x: float, some: dict) -> None:
    """A share and its interval."""
    low, high = some["ci95"] or (some["value"], some["value"])
    axes.plot([x, x], [low, high], color="tab:blue")
    axes.plot(x, some["value"], "o", color="tab:blue", markersize=5)


def _draw_calibration(bins: list[dict], path: Path) -> None:
    figure = Figure(figsize=(5, 5.2), layout="constrained")
    figure.suptitle("Calibration")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":", label="calibrated")
    for some in bins:
        _point(upper, some["confidence"], some)
    upper.set_ylabel("share right")
    upper.grid(alpha=0.3)
    upper.legend()
    widths = [some["to"] - some["from"] for some in bins]
    lower.bar([some["from"] for some in bins], [some["num"] for some in bins], widths, align="edge", edgecolor="white")
    lower.set_xlabel("probability claimed for the preferred response")
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
    points = axes.scatter(lengths, scores, c=ranks, cmap="viridis_r", s=10, alpha=0.6, linewidths=0)
    figure.colorbar(points, label="rank in its row: 0 best, 1 worst").ax.invert_yaxis()
    if max(lengths) > 10 * median(lengths):
        axes.set_xscale("log")
    axes.set_xlabel("characters of the response")
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
