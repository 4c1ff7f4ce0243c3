"""The curves of the three stages as PNG files, labelled in English so that no font lacks a glyph."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")


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
        _draw(folder / f"{stage}_loss.png", titles[stage], "epoch", panels)
    accuracy = [(x["epoch"], x["accuracy"]) for x in histories["reward"] if "accuracy" in x]
    held_out = [(x["epoch"], x["eval_accuracy"]) for x in histories["reward"] if "eval_accuracy" in x]
    panels = [("loss", _losses(metrics["reward"])), ("pair accuracy", {"training": accuracy, "validation": held_out})]
    _draw(folder / "reward_model.png", "Reward model", "epoch", panels)
    kl = f"KL to {'ppo_init' if 'ppo_init' in metrics else 'SFT'}, nats a response"
    panels = [
        (label, {"sampled responses": list(enumerate(metrics["ppo"][name], start=1))})
        for label, name in (("score", "score"), (kl, "kl"))
    ]
    _draw(folder / "ppo.png", "PPO", "rollout", panels)


def _losses(stage: dict) -> dict[str, list[tuple[float, float]]]:
    return {
        "training": list(enumerate(stage["train_loss"], start=1)),
        "validation": list(enumerate(stage.get("eval_loss", []), start=1)),
    }


def _draw(path: Path, title: str, xlabel: str, panels: list[tuple[str, dict[str, list[tuple[float, float]]]]]) -> None:
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
