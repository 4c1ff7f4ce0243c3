"""Parameters of which each process stores a part: FSDP2's and ZeRO-3's."""

import torch
from torch import nn


def stored(p: nn.Parameter) -> torch.Tensor:
    """A parameter as this process stores it: with ZeRO-3 its flat shard."""
    return getattr(p, "ds_tensor", p)


def gathered(p: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
    """The complete tensor from what each process stores of it, for parameter `p`; all processes call it together."""
    if hasattr(shard, "full_tensor"):  # FSDP2's
        return shard.full_tensor()
    if not hasattr(p, "ds_tensor"):
        return shard
    shards = [torch.empty_like(shard) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shards, shard)
    return torch.cat(shards)[: p.ds_numel].view(p.ds_shape)
