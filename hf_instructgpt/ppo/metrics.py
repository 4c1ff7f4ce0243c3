"""Means of metrics over all processes."""

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
    """Means over all numbers recorded since the last `take`, on all processes."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums: dict[str, list[torch.Tensor]] = defaultdict(list)  # of each metric, its sums and counts (2,)

    def record(self, **metrics: torch.Tensor) -> None:
        """Take the numbers of each metric into its mean."""
        for name, values in metrics.items():
            values = values.detach().float().to(self.accelerator.device)
            count = torch.tensor(float(values.numel()), device=values.device)
            self.sums[name].append(torch.stack([values.sum(), count]))

    def take(self) -> dict[str, float]:
        """The means, without metrics of which nothing was recorded; all processes call it, with the same names."""
        means = {}
        for name, sums in self.sums.items():
            total, count = sum_over_processes(in_float64(torch.stack(sums)).sum(0), self.accelerator).tolist()
            if count:
                means[name] = total / count
        self.sums.clear()
        return means

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The sums and counts `(N, 2)` by name."""
        return {name: torch.stack(sums).cpu() for name, sums in self.sums.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.sums.update({name: list(sums.to(self.accelerator.device)) for name, sums in state.items()})
