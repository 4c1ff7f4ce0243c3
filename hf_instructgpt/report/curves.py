"""What a trainer logged, as a picture; labelled in English so that no font lacks a glyph."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")
# Of each stage: the panels, and in each the lines by what Trainer logs them as.
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
        "KL to the reference, nats a response": {"kl": "sampled responses", "eval_kl": "validation prompts"},
        "tokens per response": {
            "completion_length": "sampled responses",
            "eval_completion_length": "validation prompts",
        },
    },
}


def draw_training(log_history: list[dict], stage: str, path: Path) -> bool:
    """Draw a stage's curves over the optimizer steps. Returns whether there was anything to draw.

    Args:
        log_history (`list[dict]`): Trainer's.
        stage (`str`): "sft", "reward" or "ppo".
        path (`Path`): The PNG file.
    """
    panels = training_panels(log_history, stage)
    if panels:
        draw_panels(path, "Training", "optimizer step", panels)
    return bool(panels)


def training_panels(log_history: list[dict], stage: str) -> list[tuple[str, dict[str, list[tuple[float, float]]]]]:
    """A stage's panels, each with a label and its lines of points over the optimizer steps; none without points."""
    panels = []
    for ylabel, names in PANELS[stage].items():
        lines = {
            label: [(entry["step"], entry[key]) for entry in log_history if key in entry]
            for key, label in names.items()
        }
        if any(lines.values()):
            panels.append((ylabel, lines))
    return panels


def draw_panels(
    path: Path, title: str, xlabel: str, panels: list[tuple[str, dict[str, list[tuple[float, float]]]]]
) -> None:
    """Draw panels side by side, each with a label and its lines of points."""
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, (ylabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, points in lines.items():
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if any(lines.values()):
            axes.legend()
    figure.savefig(path, dpi=120)
