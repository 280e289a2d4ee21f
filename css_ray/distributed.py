"""What the ranks of one training share. Without a process group each function does nothing, so any code may call it."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process in its group, 0 without a group."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Number of processes in the group, 1 without a group."""
    return dist.get_world_size() if _grouped() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, the same on each. The argument is left as it is; no gradient flows."""
    if not _grouped():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast_from_rank_zero(tensor: Tensor) -> None:
    """Overwrites `tensor` on every rank with rank 0's."""
    if _grouped():
        dist.broadcast(tensor, src=0)
