"""Means and maxima of metrics over all processes."""

import math
from collections import defaultdict

import torch
from accelerate import Accelerator

from ..functional import in_float64


def sum_over_processes(x: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Sum of a tensor over all processes, on the device that `x` is on."""
    if accelerator.num_processes == 1:  # here x may be in float64 where the device (MPS) cannot hold it
        return x
    return accelerator.reduce(x.to(accelerator.device), reduction="sum").to(x.device)


class Metrics:
    """Means, or maxima, over all numbers recorded since the last `take`, on all processes."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, list[torch.Tensor]] = defaultdict(list)  # of each metric, its sums and counts (2,)
        self.maxima: dict[str, torch.Tensor] = {}  # of each metric, the largest number ()

    def record(self, **metrics: torch.Tensor) -> None:
        """Take the numbers of each metric into its mean."""
        for name, values in metrics.items():
            values = values.detach().float().to(self.accelerator.device)
            count = torch.tensor(float(values.numel()), device=values.device)
            self.sums[name].append(torch.stack([values.sum(), count]))

    def record_latest(self, **metrics: torch.Tensor) -> None:
        """Take the numbers of each metric in the place of those recorded before."""
        for name in metrics:
            self.sums.pop(name, None)
        self.record(**metrics)

    def record_max(self, **metrics: torch.Tensor) -> None:
        """Take the numbers of each metric into its maximum; without any, it stays what it is."""
        for name, values in metrics.items():
            values = values.detach().float().flatten().to(self.accelerator.device)
            before = self.maxima.get(name, values.new_tensor(-torch.inf))
            self.maxima[name] = torch.cat([values, before[None]]).max()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.sums.clear()
        self.maxima.clear()

    def take(self) -> dict[str, float]:
        """The means and maxima, without metrics of which nothing was recorded; all processes record the same names."""
        found = {}
        if self.sums:
            sums = torch.stack([in_float64(torch.stack(sums)).sum(0) for sums in self.sums.values()])
            for name, (total, count) in zip(
                self.sums, sum_over_processes(sums, self.accelerator).tolist(), strict=True
            ):
                if count:
                    found[name] = total / count
        if self.maxima:
            largest = self.accelerator.gather(torch.stack([*self.maxima.values()])).view(-1, len(self.maxima))
            for name, x in zip(self.maxima, largest.amax(0).tolist(), strict=True):
                if x > -math.inf:
                    found[name] = x
        self.clear()
        return found

    def state_dict(self) -> dict[str, torch.Tensor]:
        """By name the sums and counts `(N, 2)`, or the maximum `()`."""
        sums = {name: torch.stack(sums).cpu() for name, sums in self.sums.items()}
        return sums | {name: x.cpu() for name, x in self.maxima.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, x in state.items():
            x = x.to(self.accelerator.device)
            if x.dim():
                self.sums[name] = list(x)
            else:
                self.maxima[name] = x
