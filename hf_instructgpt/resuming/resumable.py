"""A Trainer with atomic checkpoints and bit-exact resume, where this transformers has the hooks for it.

All private names of Trainer that exact resume needs are used in this file only, and compared with the installed
Trainer when the file is imported. If one is missing or has other parameters, `ResumableTrainer` uses Trainer's own
checkpoints and resume, with one warning.
"""

import inspect
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, trainer_utils
from transformers import __version__ as transformers_version
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..errors import InputError
from ..files import make_directory
from ..layout import STATE_FILE
from .checkpoint import ASIDE_FOLDER, RANK_STATE_FILE, alone_in, check_resumable, last_whole_checkpoint, write_manifest

logger = logging.get_logger(__name__)

# Trainer's private methods that are overridden or called below, with their parameters in transformers 5.5 to 5.24.
HOOKS = {
    "_get_output_dir": ("trial",),
    "_init_training_state": (
        *("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
    ),
    "_load_rng_state": ("checkpoint",),
    "_maybe_log_save_evaluate": (
        *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time", "learning_rate"),
    ),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_run_epoch": (
        *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ),
    "_save_checkpoint": ("model", "trial"),
    "_save_rng_state": ("output_dir",),
}
COUNTERS = ("_globalstep_last_logged", "_total_loss_scalar", "_tr_loss")


def changed_hooks(trainer_class: type = Trainer) -> list[str]:
    """The names of `HOOKS` and `COUNTERS` that a Trainer class lacks, or whose parameters differ."""
    methods = {name: inspect.unwrap(method) for name, method in vars(trainer_class).items() if callable(method)}
    changed = [
        name
        for name, parameters in HOOKS.items()
        if name not in methods or tuple(inspect.signature(methods[name]).parameters) != ("self", *parameters)
    ]
    codes = [method.__code__ for method in methods.values() if hasattr(method, "__code__")]
    changed += [name for name in COUNTERS if not any(name in code.co_names for code in codes)]
    return changed if hasattr(trainer_utils, "rotate_checkpoints") else [*changed, "rotate_checkpoints"]


CHANGED_HOOKS = changed_hooks()


def settle_output_dir(args: TrainingArguments) -> None:
    """Make `output_dir`, and its name absolute, so that a later change of the working directory moves nothing."""
    args.output_dir = os.path.realpath(args.output_dir)
    if args.should_save:
        make_directory(Path(args.output_dir))


class _TrainerWithState(Trainer):
    """Hooks for subclasses, with either kind of checkpoint."""

    def __init__(self, model=None, args=None, **kwargs):
        settle_output_dir(args)
        super().__init__(model, args, **kwargs)

    def _begin_training(self) -> None:
        """Called before the first step, after a checkpoint has been loaded."""

    def _begin_epoch(self, epoch: int) -> None:
        """Called at the start of each pass over the data."""

    def _before_push(self, checkpoint: Path) -> None:
        """Called on the main process before a checkpoint is pushed; not with Trainer's own checkpoints."""

    def _training_state(self) -> dict[str, Any]:
        """State of this process in a checkpoint beside Trainer's; by default the counters of TRL's trainers."""
        metrics = {mode: dict(some) for mode, some in self._metrics.items()}
        return {"metrics": metrics, "num_tokens": self._total_train_tokens}

    def _load_training_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Restore that state, right before the first resumed step."""
        for mode, metrics in state["metrics"].items():
            self._metrics[mode].update(metrics)
        self._total_train_tokens = state["num_tokens"]

    def _fixed_options(self) -> dict:
        """Options that a resumed run must not change; not checked with Trainer's own checkpoints."""
        options = self.args.to_dict()
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "optim_args", "learning_rate")
        names += ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm")
        names += ("adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed")
        size = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        precision = {name: bool(options[name]) for name in ("bf16", "fp16")}  # not given is off
        return {**{name: options[name] for name in names}, **precision, "train_dataset": size}


class _PlainBorders(TrainerCallback):
    """Tells a [`PlainTrainer`] when training and epochs begin."""

    def __init__(self, trainer: "PlainTrainer"):
        self.trainer = trainer
        self.epoch = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.epoch = int(state.epoch or 0)
        self.trainer._begin_training()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer._begin_epoch(self.epoch)
        self.epoch += 1


class PlainTrainer(_TrainerWithState):
    """Trainer with its own checkpoints and its own resume."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(_PlainBorders(self))
        logger.warning_once(
            f"transformers {transformers_version} has changed {', '.join(CHANGED_HOOKS)}, so checkpoints are "
            "Trainer's own: a run killed while it saves can leave a damaged one, and a resumed run counts tokens and "
            "losses anew. Resumed PPO starts with a new rollout, new running statistics of scores and returns and the "
            "first KL coefficient (and a new `ema_decay` average, with FSDP or DeepSpeed). Training itself is not "
            "affected; for exact resume, see the README's versions."
        )

    def train(self, *args, **kwargs) -> TrainOutput:
        """Trainer's. Raises `InputError` if another run is at work in `output_dir`."""
        with alone_in(self.args.output_dir):
            return super().train(*args, **kwargs)


class _EpochBorders(TrainerCallback):
    """Tells the trainer when training begins, and whether the end of an epoch has been handled."""

    def __init__(self, trainer: "ExactTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.trainer._begin_training()
        self.trainer._resume_at_border()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.trainer._epoch_is_closed = False

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.trainer._epoch_is_closed = True


class ExactTrainer(_TrainerWithState):
    """`transformers.Trainer` with atomic checkpoints and bit-exact resume.

    Resumed at the last step of an epoch, Trainer skips what comes at its end (evaluation, a log); at the last step of
    all, it makes one step too many. Here both are as in an uninterrupted run.
    """

    def __init__(self, *args, **kwargs):
        self._is_saving_aside = False
        self._resumed_from: str | None = None
        self._saved_state: TrainerState | None = None
        self._is_finished = self._epoch_is_closed = self._rng_is_loaded = False
        self._last_step = {"grad_norm": None, "learning_rate": None}
        super().__init__(*args, **kwargs)
        self.add_callback(_EpochBorders(self))

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / ASIDE_FOLDER) if self._is_saving_aside else folder

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        folder, should_save = Path(self._get_output_dir(trial)), self.args.should_save
        name = f"checkpoint-{self.state.global_step}"
        aside, target = folder / ASIDE_FOLDER / name, folder / name
        if should_save:
            shutil.rmtree(aside.parent, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._is_saving_aside = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving_aside = False
        self.accelerator.wait_for_everyone()
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir() or best == target:  # Trainer looked for it beside the one that is written aside
            self.state.best_model_checkpoint = str(best)
        if should_save:
            self.state.save_to_json(str(aside / STATE_FILE))
            write_manifest(aside, options=self._all_fixed_options())
            if target.exists():  # of the same run, killed after it
                target.rename(aside.parent / "replaced")
            aside.rename(target)
            shutil.rmtree(aside.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if should_save:
            trainer_utils.rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._is_saving_aside:  # Trainer would push before the checkpoint is in its place
            return
        # While an earlier push still reads in the folder that Trainer pushes from, it pushes nothing.
        pushing = getattr(self, "push_in_progress", None)
        waits = pushing is not None and not pushing.is_done() and not self.args.hub_always_push
        if self.is_world_process_zero() and not waits:
            self._before_push(Path(checkpoint_folder))
        super()._push_from_checkpoint(checkpoint_folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train, or resume from a checkpoint so that the run ends as if it had never been interrupted.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint's folder; True takes the last complete
                one in `output_dir`, and reports and skips corrupt ones.
            kwargs: For `Trainer.train`.

        Raises:
            InputError: There is no such checkpoint, it is damaged, it was saved with `save_only_model` or by a run
                with other options, or another run uses `output_dir`.
        """
        with alone_in(self.args.output_dir):
            return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs) -> TrainOutput:
        self._resumed_from = self._saved_state = None
        if resume_from_checkpoint:
            self._resumed_from = self._find_checkpoint(resume_from_checkpoint)
            self._saved_state = TrainerState.load_from_json(f"{self._resumed_from}/{STATE_FILE}")
        if self.args.should_save:  # a complete one in it has been moved
            shutil.rmtree(Path(self.args.output_dir) / ASIDE_FOLDER, ignore_errors=True)
        eval_on_start = self.args.eval_on_start
        self.args.eval_on_start = eval_on_start and self._resumed_from is None
        try:
            output = super().train(resume_from_checkpoint=self._resumed_from, **kwargs)
        finally:
            self.args.eval_on_start = eval_on_start
        return output._replace(training_loss=output.metrics["train_loss"])

    def _find_checkpoint(self, given: str | bool) -> str:
        """A checkpoint that can be resumed; the main process looks and tells all others."""
        output_dir, found = self.args.output_dir, [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = last_whole_checkpoint(output_dir) if given is True else str(given)
                if found[0] is None:
                    raise InputError(f"`resume_from_checkpoint`: there is no whole checkpoint in {output_dir}.")
                check_resumable(found[0], options=self._all_fixed_options())
            except InputError as error:
                found[1] = str(error)
        checkpoint, error = broadcast_object_list(found)
        if error is not None:
            raise InputError(error)
        return checkpoint

    def _all_fixed_options(self) -> dict:
        return {"number of processes": self.args.world_size, **self._fixed_options()}

    def _resume_at_border(self) -> None:
        """After a step that ended an epoch, or the training: do what was still to be done."""
        self._is_finished = self._epoch_is_closed = self._rng_is_loaded = False
        if self._resumed_from is None:
            return
        # Set by a callback; Trainer's own flag, of a run that was shorter, does not count.
        stopped = self._had_set("should_training_stop") and self._saved_state.global_step < self._saved_state.max_steps
        self._is_finished = stopped or self.state.global_step >= self.state.max_steps
        at_border = float(self.state.epoch).is_integer() or self._had_set("should_epoch_stop")
        if not self._is_finished and not at_border:
            return
        self._load_rng_state(self._resumed_from)
        self._rng_is_loaded = True
        if not self._epoch_is_closed:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(
                self._tr_loss,
                self._last_step["grad_norm"],
                self.model_wrapped,
                trial=None,
                epoch=self.state.epoch,
                ignore_keys_for_eval=None,
                start_time=time.time(),
                learning_rate=self._last_step["learning_rate"],
            )

    def _had_set(self, flag: str) -> bool:
        """Whether a control flag was set when the checkpoint was written."""
        return self._saved_state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get(flag, False)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, *args) -> tuple[int, int]:
        """Trainer's count of epochs and micro-batches to pass over; it takes no epoch for shorter than the others."""
        counted = super()._init_training_state(max_steps, num_update_steps_per_epoch, *args)
        if self._resumed_from is None:
            return counted
        epochs = int(self.state.epoch + 1e-9)
        if self._had_set("should_epoch_stop"):
            return epochs + 1, 0
        steps = round((self.state.epoch - epochs) * num_update_steps_per_epoch)
        return epochs, steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *, epoch: int, epochs_trained: int, resume_from_checkpoint: str | None, **kwargs) -> None:
        if self._is_finished:
            self.control.should_training_stop = True
            return
        if self._rng_is_loaded:  # and random numbers drawn since
            resume_from_checkpoint = None
        self._begin_epoch(epoch)
        super()._run_epoch(
            epoch=epoch, epochs_trained=epochs_trained, resume_from_checkpoint=resume_from_checkpoint, **kwargs
        )

    def _maybe_log_save_evaluate(
        self, tr_loss, grad_norm, *args, learning_rate: float | None = None, **kwargs
    ) -> None:
        grad_norm = grad_norm.item() if isinstance(grad_norm, torch.Tensor) else grad_norm
        self._last_step = {"grad_norm": grad_norm, "learning_rate": learning_rate}
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log; the summary's mean loss is that of the whole run, also when it was resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    # Trainer calls these two on every process, the second right before the first resumed step.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        progress = {
            "loss": [self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged],
            "last_step": self._last_step,
            "epoch_is_closed": self._epoch_is_closed,
        }
        state = {**self._training_state(), "progress": progress}
        if self.accelerator.device.type == "mps":  # which Trainer forgets
            state["mps_rng_state"] = torch.mps.get_rng_state()
        torch.save(state, Path(output_dir) / RANK_STATE_FILE.format(rank=self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / RANK_STATE_FILE.format(rank=self.args.process_index)
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._load_training_state(state, Path(checkpoint))
        loss, self._total_loss_scalar, self._globalstep_last_logged = state["progress"]["loss"]
        self._tr_loss.fill_(loss)
        self._last_step = state["progress"]["last_step"]
        self._epoch_is_closed = state["progress"]["epoch_is_closed"]
        if self.accelerator.device.type == "mps":
            torch.mps.set_rng_state(state["mps_rng_state"])


ResumableTrainer = PlainTrainer if CHANGED_HOOKS else ExactTrainer
