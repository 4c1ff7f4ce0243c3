"""A Trainer on the screen, in place of its own bar and its dictionaries."""

import time
from math import ceil, isfinite
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ..language import say
from .screen import Bar, Screen, screen, spark
from .time_left import duration

if TYPE_CHECKING:
    from transformers import Trainer, TrainerState, TrainingArguments

# Of each stage, the logged numbers that are shown, in this order: names and format, and in lines that stay the units.
NUMBERS = {
    "sft": {
        "loss": ("loss", "损失", "z.3f"),
        "eval_loss": ("validation loss", "验证损失", "z.3f"),
        "eval_score": ("score", "分数", "+z.2f"),
    },
    "reward": {
        "loss": ("loss", "损失", "z.3f"),
        "eval_loss": ("validation loss", "验证损失", "z.3f"),
        "accuracy": ("pair accuracy", "偏好对准确率", "z.1%"),
        "eval_accuracy": ("validation", "验证", "z.1%"),
    },
    "ppo": {
        "score": ("score", "分数", "+z.2f"),
        "kl": ("KL", "KL", "z.2f", " nats", " nat"),
        "completion_length": ("length", "长度", "z.1f", " tokens", " token"),
        "eval_score": ("validation score", "验证分数", "+z.2f"),
        "eval_kl": ("KL", "KL", "z.2f", " nats", " nat"),
    },
}
READ_EVERY = 0.25  # seconds between two readings of the loss, which may wait for the device
PLAIN_EVERY = 60.0  # seconds between two plain lines within an epoch


def show_training(trainer: "Trainer") -> None:
    """Show a trainer on the open screen, if there is one that does so."""
    if not screen().replaces_trainer:
        return
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(TrainingDisplay(screen(), trainer))


class TrainingDisplay(TrainerCallback):
    """The bar of a stage, and a line for each epoch (of PPO, without a terminal, for each rollout)."""

    def __init__(self, screen: Screen, trainer: "Trainer"):
        self.screen, self.trainer, self.stage = screen, trainer, trainer.card_stage
        args = trainer.args
        self.is_ppo = self.stage == "ppo"
        self.steps_per_rollout = args.num_ppo_epochs * args.num_mini_batches if self.is_ppo else 1
        self.new: dict[str, float] = {}  # logged since the last line
        self.latest: dict[str, float] = {}
        self.scores: list[float] = []
        self.bar = Bar(0)
        self._step_loss = self._loss = None
        if not self.is_ppo:  # of which no loss is shown
            self._watch_losses(trainer)

    def _watch_losses(self, trainer: "Trainer") -> None:
        """Note each step's loss, which Trainer tells its callbacks only when it logs."""
        training_step = trainer.training_step

        def watched(*args, **kwargs) -> torch.Tensor:
            loss = training_step(*args, **kwargs)
            self._step_loss = loss if self._step_loss is None else self._step_loss + loss
            return loss

        trainer.training_step = watched

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.read = self.printed = time.perf_counter()
        self.scores = [entry["score"] for entry in state.log_history if isfinite(entry.get("score", float("nan")))]
        self.bar.total, self.bar.done = state.max_steps, state.global_step
        self.bar.label = self._label(args, state, is_running=True)
        self.screen.time.begin(self.screen.part, done=state.global_step / max(1, state.max_steps))
        if not args.disable_tqdm:
            self.screen.show(self.bar)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._keep(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        loss, self._step_loss = self._step_loss, None
        if loss is not None:
            self._loss = loss if self._loss is None else torch.lerp(loss, self._loss, 0.9)
        self.bar.done = state.global_step
        if (now := time.perf_counter()) - self.read < READ_EVERY:
            return
        self.read = now
        self.bar.label = self._label(args, state, is_running=True)
        live = {name: x for name, x in (self.latest | self._live()).items() if not name.startswith("eval_")}
        self.bar.numbers = self._numbers(live, has_units=False)
        self.bar.left = self.screen.time.in_words(state.global_step / max(1, state.max_steps))

    def on_log(self, args, state, control, logs, **kwargs):
        logged = {name: logs[name] for name in NUMBERS[self.stage] if name in logs}
        self.new |= logged
        self.latest |= logged
        if isfinite(logs.get("score", float("nan"))):
            self.scores.append(logs["score"])
            self.bar.trend = spark(self.scores)
        is_due = time.perf_counter() - self.printed > PLAIN_EVERY or "score" in logs
        if self.screen.console is None and is_due:
            self._keep(args, state)

    def on_evaluate(self, args, state, control, **kwargs):
        if args.eval_strategy == "steps":
            self._keep(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._keep(args, state, trend=self.bar.trend if self.screen.has_bar else "")
        self.screen.time.end()
        self.screen.hide()

    def _live(self) -> dict[str, float]:
        """What is known between two logs: a running mean of the loss, and of the pairs that are ordered right."""
        live = {} if self._loss is None else {"loss": self._loss.item()}
        if self.stage == "reward" and (accuracies := self.trainer._metrics["train"].get("accuracy")):
            live["accuracy"] = fmean(accuracies[-50:])
        return live

    def _keep(self, args: "TrainingArguments", state: "TrainerState", *, trend: str = "") -> None:
        """A line of what was logged since the last one."""
        numbers, self.new = self._numbers(self.new), {}
        if not numbers:
            return
        self.printed = time.perf_counter()
        parts = self._label(args, state), numbers, trend, duration(self.printed - self.start)
        self.screen.line("  ".join(filter(None, parts)), is_cut=True)

    def _label(self, args: "TrainingArguments", state: "TrainerState", *, is_running: bool = False) -> str:
        """Where training is, or what has just ended."""
        if self.is_ppo:
            total = ceil(state.max_steps / self.steps_per_rollout)
            now = ceil((state.global_step + is_running) / self.steps_per_rollout)
            return _of(say("rollout {}", "第 {} 次采样"), now, total)
        epoch, epochs = state.epoch or 0.0, ceil(state.num_train_epochs)
        if epochs == 1:
            return _of(say("step {}", "第 {} 步"), state.global_step, state.max_steps)
        now = int(epoch + 1e-6) + 1 if is_running else ceil(epoch - 1e-6)
        return _of(say("epoch {}", "第 {} 轮"), now, epochs)

    def _numbers(self, numbers: dict[str, float], *, has_units: bool = True) -> str:
        """Numbers in words."""
        shown = []
        for name, (en, zh, spec, *units) in NUMBERS[self.stage].items():
            if name in numbers:
                number = format(numbers[name], spec).replace("%", say(" %", "%"))
                shown.append(f"{say(en, zh)} {number}{say(*units) if units and has_units else ''}")
        return "  ".join(shown)


def _of(label: str, now: int, total: int) -> str:
    """A label with its count, as wide for every count."""
    return label.format(f"{min(now, total):>{len(str(total))}}/{total}")
