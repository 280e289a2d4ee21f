"""A queue of representations for each class, the same on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.distributed import all_gather, world_size


class FeatureQueue(nn.Module):
    """The last `capacity` unit vectors of each of C classes, in half precision: 2 C capacity D bytes, on the device and in each
    checkpoint.

    length: [C], how many a class has. The rows of a class stand side by side; the newest overwrite the oldest.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, num_classes: int, capacity: int, channels: int) -> None:
        super().__init__()
        self.num_classes, self.capacity = num_classes, capacity
        # One more row takes what no class has: where rows are chosen, a GPU must not report which to the host.
        self.register_buffer("rows", torch.zeros(num_classes * capacity + 1, channels, dtype=torch.float16))
        self.register_buffer("pushed", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def length(self) -> Tensor:
        return self.pushed.clamp(max=self.capacity)

    @torch.no_grad()
    def push(self, features: Tensor, members: Tensor, most: int) -> None:
        """Append for each class up to `most` of the rows [M, D] that are `members` [C, M] bool, chosen by chance, of all ranks.

        A row may enter the queues of several classes.
        """
        most = min(most, self.capacity // world_size(), members.shape[1])
        chance = torch.rand(members.shape, device=members.device).masked_fill(~members, -1)
        chance, index = chance.topk(most, dim=1)
        found = F.normalize(features[index].float(), dim=2).to(self.rows.dtype)  # [C, most, D]
        there = chance >= 0
        if world_size() > 1:
            found = all_gather(found.unsqueeze(0)).transpose(0, 1).flatten(1, 2)
            there = all_gather(there.unsqueeze(0)).transpose(0, 1).flatten(1, 2)
        place = (self.pushed.unsqueeze(1) + there.cumsum(dim=1) - 1) % self.capacity
        place = place + torch.arange(self.num_classes, device=place.device).unsqueeze(1) * self.capacity
        place = torch.where(there, place, len(self.rows) - 1)
        self.rows[place.flatten()] = found.flatten(0, 1)
        self.rows[-1] = 0
        self.pushed += there.sum(dim=1)

    def draw(self, classes: Tensor) -> Tensor:
        """[...] classes -> [...] places in `rows`, each uniform among those of its class; any where it has none."""
        within = (torch.rand(classes.shape, device=classes.device) * self.length[classes]).long()
        return classes * self.capacity + within.clamp(max=self.capacity - 1)
