"""What the ranks of one training share. Without a process group each function does nothing, so any code may call it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # DistributedDataParallel imports this at its first use, and its functions then keep the process group of that moment as
    # their default argument: gloo's threads outlive destroy_process_group and can abort the process when it exits
    # ("terminate called without an active exception"). Imported before there is a group, they keep nothing.
    import torch.distributed.nn.functional


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


def all_gather(tensor: Tensor) -> Tensor:
    """[B, ...] of equal shape on all ranks -> [ranks * B, ...], rank 0's first; no gradient flows."""
    if not _grouped():
        return tensor
    numbers = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    parts = [torch.empty_like(numbers, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, numbers.contiguous())
    return torch.cat(parts).to(tensor.dtype)


def gather_on_rank_zero(item: Any) -> list[Any]:
    """On rank 0 the items of all ranks, its own first; none on the others. They may be large, and travel as pickles."""
    if not _grouped():
        return [item]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(item, gathered)
    return gathered or []


def share_of_rank(count: Tensor) -> Tensor:
    """This rank's `count` over the mean count of all ranks: the weight that makes a mean of ranks' means the joint mean.

    DDP averages the gradients of ranks, which would let a rank with few labelled pixels weigh as much as one with many.
    """
    return share_of_total(count, all_reduce_sum(count.float())) if _grouped() else torch.ones_like(count, dtype=torch.float32)


def share_of_total(count: Tensor, total: Tensor) -> Tensor:
    """`share_of_rank` where the sum of the ranks' counts is known; 1 without a group."""
    if not _grouped():
        return torch.ones_like(count, dtype=torch.float32)
    return count * (world_size() / total.clamp(min=1))


def broadcast_from_rank_zero(tensor: Tensor) -> None:
    """Overwrites `tensor` on every rank with rank 0's."""
    if _grouped():
        dist.broadcast(tensor, src=0)
