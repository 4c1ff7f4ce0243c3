"""Which prompts a rollout takes."""

from collections.abc import Callable

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler

from ..data.reading import dataset_of
from ..errors import InputError
from .config import PPOConfig


def prompts_in_memory(stream: Dataset | IterableDataset | None, args: PPOConfig) -> Dataset | None:
    """Of a stream, the rows that a run of `max_steps` reads, since a resumed run must read the same ones."""
    if not isinstance(stream, IterableDataset):
        return stream
    if args.max_steps < 1:
        raise InputError("`train_dataset` is a stream and has no length: set `max_steps`.")
    rows = list(stream.take(args.num_prompts))
    if not rows:
        raise InputError("`train_dataset` has no rows.")
    return dataset_of(rows)


class RolloutSampler(Sampler[int]):
    """Indices in blocks of one rollout, each block repeated for every micro-batch made from it.

    A block holds the prompts of one rollout on all processes. The permutation depends on the seed and the epoch alone;
    the last block is filled from its start, also where the data set is smaller than a block. `epoch_fn` gives the
    epoch at each start, since `set_epoch` does not reach a sampler under several processes when a run is resumed.
    """

    def __init__(self, num_rows: int, *, block_size: int, repeats: int, seed: int, epoch_fn: Callable[[], int]):
        self.num_rows, self.block_size, self.repeats = num_rows, block_size, repeats
        self.seed, self.epoch_fn = seed, epoch_fn
        self.num_blocks = -(-num_rows // block_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch_fn())
        order = torch.randperm(self.num_rows, generator=generator)
        for block in range(self.num_blocks):
            start = block * self.block_size
            indices = order[torch.arange(start, start + self.block_size) % self.num_rows].tolist()
            for _ in range(self.repeats):
                yield from indices

    def __len__(self) -> int:
        return self.num_blocks * self.block_size * self.repeats
