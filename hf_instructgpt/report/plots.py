"""PNG plots of a training, a run and a reward model's report; labelled in English so that no font lacks a glyph."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.preference import ScoredRanking

MAX_POINTS = 5000
# Per stage: the panels, and in each the lines by the names under which Trainer logs them.
PANELS = {
    "sft": {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "mean score": {"eval_score": "answers to validation prompts"},
    },
    "reward": {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "pair accuracy": {"accuracy": "training", "eval_accuracy": "validation"},
    },
    "ppo": {
        "score": {"score": "sampled responses", "eval_score": "validation prompts"},
        "KL to the reference, nats per response": {"kl": "sampled responses", "eval_kl": "validation prompts"},
        "tokens per response": {
            "completion_length": "sampled responses",
            "eval_completion_length": "validation prompts",
        },
    },
}
# Per stage of a run: the file, the stage whose panels it has, and a title.
RUN_PLOTS = {
    "sft": ("sft_loss.png", "sft", "Supervised fine-tuning"),
    "ppo_init": ("ppo_init_loss.png", "sft", "Supervised fine-tuning of the model that PPO starts from"),
    "reward": ("reward_model.png", "reward", "Reward model"),
    "ppo": ("ppo.png", "ppo", "PPO"),
}
# A panel: its y label, and its lines of points by their labels.
Panel = tuple[str, dict[str, list[tuple[float, float]]]]


def draw_training(log_history: list[dict], stage: str, path: Path) -> None:
    """Draw the curves of a stage ("sft", "reward" or "ppo") from Trainer's `log_history`, if it has any."""
    panels = training_panels(log_history, stage)
    if panels:
        draw_panels(path, "Training", "optimizer step", panels)


def training_panels(log_history: list[dict], stage: str) -> list[Panel]:
    """A stage's panels over the optimizer steps; those without points are skipped."""
    panels = []
    for ylabel, names in PANELS[stage].items():
        lines = {
            label: [(entry["step"], entry[key]) for entry in log_history if key in entry]
            for key, label in names.items()
        }
        if any(lines.values()):
            panels.append((ylabel, lines))
    return panels


def draw_panels(path: Path, title: str, xlabel: str, panels: list[Panel]) -> None:
    """Draw panels side by side."""
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, (ylabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, line in lines.items():
            if line:
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if any(lines.values()):
            axes.legend()
    figure.savefig(path, dpi=120)


def draw_run(histories: dict[str, list[dict]], folder: Path) -> None:
    """Draw the curves of a run's stages from each `log_history`, also of a stage that logged nothing."""
    for stage, log_history in histories.items():
        name, kind, title = RUN_PLOTS[stage]
        panels = training_panels(log_history, kind) or [("nothing was logged", {})]
        draw_panels(folder / name, title, "optimizer step", panels)


# ---- A reward model's report ---------------------------------------------------------------------------------------


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
