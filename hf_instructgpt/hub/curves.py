"""PNG plots of a stage's curves and of a run's; labelled in English so that no font lacks a glyph."""

from pathlib import Path

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
# Small panels of a report's page that tell why a stage's curves are what they are.
DIAGNOSTICS = {
    "ppo": {
        "SD of the scores": {"score_std": "rollout"},
        "KL per token, nats": {"kl_per_token": "mean", "kl_per_token_p99": "99th percentile"},
        "entropy, nats per token": {"entropy": "mean"},
        "length, tokens": {"completions/median_length": "median", "completions/p95_length": "95th percentile"},
        "clipped tokens": {"clip_fraction": "share"},
        "explained variance": {"explained_variance": "critic"},
        "gradient norm": {"policy_grad_norm": "policy", "critic_grad_norm": "critic"},
        "tokens per second": {
            "system/sampling_tokens_per_second": "sampling",
            "system/updating_tokens_per_second": "updating",
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


def training_panels(log_history: list[dict], stage: str, kinds: dict = PANELS) -> list[Panel]:
    """A stage's panels (or its `DIAGNOSTICS`) over the optimizer steps; those without points are skipped."""
    panels = []
    for ylabel, names in kinds.get(stage, {}).items():
        lines = {
            label: [(entry["step"], entry[key]) for entry in log_history if key in entry]
            for key, label in names.items()
        }
        if any(lines.values()):
            panels.append((ylabel, lines))
    return panels


def draw_panels(path: Path, title: str, xlabel: str, panels: list[Panel]) -> None:
    """Draw panels side by side."""
    # Slow to import, and the points alone do not need them.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, (ylabel, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, line in lines.items():
            if line:
                axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=label)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # no half steps
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
