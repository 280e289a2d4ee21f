"""The prototypes: one moving mean of the representations per class, the same on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from css_ray.distributed import all_reduce_sum
from css_ray.functional.similarity import class_sums, moving_average


class Prototypes(nn.Module):
    """value: [C, D] float32; seen: [C] bool, False until a class has had its first pixel.

    joint: one set for all ranks, the same bits on each. Otherwise, as in the released code, a rank without a pixel of a class
    leaves that class alone, and the ranks' sets drift apart; at each evaluation all take over rank 0's.
    """

    value: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, representation_dim: int, decay: float, *, joint: bool = True) -> None:
        super().__init__()
        self.decay, self.joint = decay, joint
        self.register_buffer("value", torch.zeros(num_classes, representation_dim))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, *views: tuple[Tensor, Tensor], also: Tensor | None = None) -> Tensor:
        """One step of Eq. 2 and 3 with all `views`, pairs of representations [B, D, h, w] and labels [B, h, w], of all ranks.

        Sums and counts are reduced, C * (D + 1) numbers; means of means would weigh ranks instead of pixels. also: [N] numbers
        that are reduced with them, so that the ranks wait for each other once; returns their sums.
        """
        parts = [class_sums(representations, labels, len(self.seen)) for representations, labels in views]
        sums, counts = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
        own = torch.cat([sums, counts.unsqueeze(1)], dim=1)
        also = own.new_zeros(0) if also is None else also.to(own.dtype)
        total = all_reduce_sum(torch.cat([own.flatten(), also]))
        reduced = total[: own.numel()].view_as(own)
        present = reduced[:, -1] if self.joint else torch.where(counts > 0, reduced[:, -1], 0)
        value, seen = moving_average(self.value, self.seen, reduced[:, :-1], present, self.decay)
        self.value.copy_(value)
        self.seen.copy_(seen)
        return total[own.numel() :]
