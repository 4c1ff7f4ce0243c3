"""What reward functions report besides scores: `log_metric` and `log_extra`, as TRL's trainers pass them."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerState

from ..errors import InputError
from ..scoring.reward_functions import Calling
from .config import PPOConfig
from .metrics import Metrics

# What Trainer and the end of PPO's log add to a log, besides the metrics that `joined` knows.
TRAINERS_OWN = (
    *("loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "kl_coef", "total_flos"),
    *("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
)


class RewardLog:
    """Numbers for the logs and columns for the table of completions; all processes call `keep` and `columns_of_all`.

    `taken` are the names of the table's own columns.
    """

    def __init__(self, args: PPOConfig, accelerator: Accelerator, *, taken: Iterable[str]):
        self.args, self.accelerator, self.taken = args, accelerator, {*taken}
        self.metrics = Metrics(accelerator)  # of training, since the last log
        self.columns: dict[str, list] = {}  # of the last training rollout, one value per response

    def calling(self, trainer_state: TrainerState, *, count: int) -> Calling:
        """How reward functions are called for `count` responses; what they reported before and nobody kept is gone."""
        self._numbers, self._columns, self._count = defaultdict(list), {}, count
        return Calling(
            trainer_state,
            self._log_metric,
            self._log_extra,
            timeout=self.args.reward_timeout,
            retries=self.args.reward_retries,
        )

    def _log_metric(self, name: str, value: float) -> None:
        if name in TRAINERS_OWN or name.startswith("eval_"):
            raise InputError(f"`log_metric`: `{name}` is a name of the trainer's own; rename it.")
        self._numbers[name].append(float(value))

    def _log_extra(self, column: str, values: Iterable) -> None:
        values = [_plain(value) for value in values]
        if len({type(value) for value in values if value is not None}) > 1:  # a column has one type
            values = [None if value is None else str(value) for value in values]
        if column in self.taken or column in self._columns:
            raise InputError(f"`log_extra`: the table of completions has a column `{column}` already; rename it.")
        if len(values) != self._count:
            raise InputError(
                f"`log_extra`: the column `{column}` has {len(values)} values for {self._count} responses."
            )
        self._columns[column] = values

    def keep(self) -> None:
        """Take what the functions reported of a training rollout."""
        self.columns = self._columns
        self.record(self.metrics)

    def record(self, metrics: Metrics, *, is_mine: bool = True) -> None:
        """Add the numbers that the functions reported last to `metrics`, in one order on all processes.

        Those of a process whose responses are not its own, but fill a gap, do not count.
        """
        for name in sorted({*gather_object(list(self._numbers))}):
            metrics.record(**{name: torch.tensor(self._numbers[name] if is_mine else [])})

    def columns_of_all(self, kept: torch.Tensor) -> dict[str, list]:
        """The columns of the last training rollout, of kept responses `(B,)`; all processes get all names."""
        names = sorted({*gather_object(list(self.columns))})
        rows = kept.nonzero().flatten().tolist()
        return {name: [self.columns[name][row] if name in self.columns else None for row in rows] for name in names}

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics.state_dict(), "columns": self.columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics.load_state_dict(state["metrics"])
        self.columns = state["columns"]


def joined(own: dict[str, float], reported: dict[str, float]) -> dict[str, float]:
    """PPO's own metrics and those of reward functions, which must not have the same names."""
    if both := sorted(own.keys() & reported.keys()):
        raise InputError(f"`log_metric`: `{both[0]}` is a metric of PPO's own; rename it.")
    return own | reported


def _plain(value: Any) -> str | int | float | bool | None:
    """A value that a table and a checkpoint can hold; others as text."""
    if getattr(value, "ndim", None) == 0 or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return str(value).encode("utf-8", "replace").decode("utf-8")
