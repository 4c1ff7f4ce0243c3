"""How long the phases of training take, how many tokens they handle in a second, and how much memory there was."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from .metrics import sum_over_processes

PHASES = ("sampling", "scoring", "measuring", "updating")
GIB = 2**30


class Clock(TrainerCallback):
    """Seconds of each phase since the last `take`, and response tokens that it has handled on all processes.

    Updating is all of an optimizer step but its rollout: forward, backward, clip and optimizer. A callback, because
    Trainer's step goes on behind `training_step`.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.clear()

    def clear(self) -> None:
        """Begin at 0."""
        self.seconds = dict.fromkeys((*PHASES, "rollout"), 0.0)
        self.tokens = dict.fromkeys(PHASES, 0)

    @contextmanager
    def phase(self, name: str, *, is_on: bool = True) -> Iterator[None]:
        """Count the seconds of what is done within; not if `is_on` is False, as in evaluations."""
        start = self._now() if is_on else 0.0
        yield
        if is_on:
            self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":  # its kernels run behind Python
            torch.cuda.synchronize(self.accelerator.device)
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self._start, self._rollout = self._now(), self.seconds["rollout"]

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds["updating"] += self._now() - self._start - (self.seconds["rollout"] - self._rollout)

    def add_rollout(self, num_tokens: int) -> None:
        """Count a rollout's response tokens."""
        for phase in PHASES[:3]:
            self.tokens[phase] += num_tokens

    def add_update(self, num_tokens: int) -> None:
        """Count an optimizer step's response tokens."""
        self.tokens["updating"] += num_tokens

    def take(self) -> dict[str, float]:
        """The numbers, seconds as means over the processes; all processes call it together."""
        seconds = torch.tensor([self.seconds[name] for name in PHASES], dtype=torch.float64)
        seconds = sum_over_processes(seconds, self.accelerator) / self.accelerator.num_processes
        found = {}
        for name, some in zip(PHASES, seconds.tolist(), strict=True):
            if self.tokens[name]:
                found[f"system/{name}_seconds"] = some
                found[f"system/{name}_tokens_per_second"] = self.tokens[name] / max(some, 1e-9)
        self.clear()
        return found

    def state_dict(self) -> dict[str, dict]:
        """What was counted since the last `take`."""
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.seconds, self.tokens = state["seconds"], state["tokens"]


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has used so far, in GiB: on a GPU what PyTorch held there, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB
