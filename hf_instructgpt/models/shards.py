"""Sharded parameters (FSDP2, ZeRO-3)."""

import torch
from torch import nn


def stored(p: nn.Parameter) -> torch.Tensor:
    """This process's part of a parameter; with ZeRO-3 its flat shard."""
    return getattr(p, "ds_tensor", p)


def gathered(p: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
    """The complete tensor from every process's shard of parameter `p`; a collective call."""
    if hasattr(shard, "full_tensor"):  # FSDP2's
        return shard.full_tensor()
    if not hasattr(p, "ds_tensor"):
        return shard
    shards = [torch.empty_like(shard) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shards, shard)
    return torch.cat(shards)[: p.ds_numel].view(p.ds_shape)
