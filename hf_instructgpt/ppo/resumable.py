"""A Trainer whose checkpoints are whole or not there, and whose resumed runs report what unbroken ones do."""

import shutil
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from ..errors import InputError
from .checkpoint import ASIDE_FOLDER, check_resumable, last_whole_checkpoint, write_manifest


class ResumableTrainer(Trainer):
    """`transformers.Trainer` with checkpoints that are written aside and moved into place when all processes are done.

    Overrides `_get_output_dir`, `_save_checkpoint` and `_push_from_checkpoint`, private hooks each with a test.
    """

    _is_saving_aside = False

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
        if self.state.best_model_checkpoint == str(aside):
            self.state.best_model_checkpoint = str(target)
        if should_save:
            self.state.save_to_json(str(aside / "trainer_state.json"))
            write_manifest(aside, num_processes=self.args.world_size)
            if target.exists():
                shutil.rmtree(target)
            aside.rename(target)
            aside.parent.rmdir()
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if should_save:
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving_aside:  # Trainer would push before the checkpoint stands in its place
            super()._push_from_checkpoint(checkpoint_folder)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train, or go on from a checkpoint so that the run ends as if it had never been broken off.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint's folder; True takes the last whole one
                in `output_dir` and names damaged ones on the way.
            kwargs: For `Trainer.train`.

        Raises:
            InputError: There is no such checkpoint, it is damaged, it was saved with `save_only_model`, or by another
                number of processes.
        """
        if resume_from_checkpoint:
            resume_from_checkpoint = self._find_checkpoint(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _find_checkpoint(self, given: str | bool) -> str:
        """A checkpoint that can be resumed, looked at by the main process alone and told to all."""
        output_dir, found = self.args.output_dir, [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = last_whole_checkpoint(output_dir) if given is True else str(given)
                if found[0] is None:
                    raise InputError(f"`resume_from_checkpoint`: there is no whole checkpoint in {output_dir}.")
                check_resumable(found[0], num_processes=self.args.world_size)
            except InputError as error:
                found[1] = str(error)
        checkpoint, error = broadcast_object_list(found)
        if error is not None:
            raise InputError(error)
        return checkpoint

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log; the summary's mean loss is that of the whole run, also when it was resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _loss_state(self) -> list[float]:
        """What Trainer knows of the loss since its last log and before, to be kept in a checkpoint."""
        return [self._tr_loss.item(), self._total_loss_scalar, self._globalstep_last_logged]

    def _load_loss_state(self, state: list[float]) -> None:
        loss, self._total_loss_scalar, self._globalstep_last_logged = state
        self._tr_loss.fill_(loss)
