"""Several prototypes for each class, the same on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.distributed import all_gather, all_reduce_sum, broadcast_from_rank_zero, rank
from css_ray.functional.clusters import cluster_sums, cosines_to, kmeans, move_clusters
from css_ray.functional.sampling import some_of_each
from css_ray.types import IGNORE_INDEX

PIXELS = 1000
"""Features of a class among which its first prototypes are found, at most."""


class Clusters(nn.Module):
    """K prototypes for each of C classes: means of features, of which only the direction is compared.

    value: [C, K, D]; seen: [C] bool, False until a class has had its first pixel; its prototypes are then random unit vectors.
    """

    value: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, count: int, channels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", F.normalize(torch.randn(num_classes, count, channels), dim=2))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def start(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """K-means, by rank 0, on up to PIXELS features of each class. parts: features [N, D] and labels [N] of this rank.

        Which features is chance, each being as likely as any other of its class on any rank. A class without any keeps its
        random prototypes.
        """
        features, chance = self.value.new_zeros(0, self.value.shape[2]), self.value.new_zeros(0)
        kept = features, chance.long(), chance
        for features, labels in parts:
            new = features, labels, torch.rand(labels.shape, device=labels.device)
            kept = _thinned([torch.cat(pair) for pair in zip(kept, new, strict=True)])
        features, labels, _ = _thinned(_of_all_ranks(kept))
        if rank() == 0:
            for label in set(labels.tolist()):
                self.value[label] = kmeans(features[labels == label], self.value.shape[1])
                self.seen[label] = True
        for buffer in (self.value, self.seen):
            broadcast_from_rank_zero(buffer)

    def forward(self, features: Tensor) -> Tensor:
        """[N, D] -> cosines [N, C, K]. The prototypes get no gradient."""
        return cosines_to(features, self.value)

    @torch.no_grad()
    def update(self, features: Tensor, cosines: Tensor, labels: Tensor, also: Tensor) -> Tensor:
        """One step of the moving averages with features [N, D], their cosines [N, C, K] and labels [N] of all ranks.

        Sums and counts are reduced, C K (D + 1) numbers. also: [M] numbers that are reduced with them, so that the ranks wait
        for each other once; returns their sums.
        """
        sums, counts = cluster_sums(features, cosines, labels)
        own = torch.cat([sums, counts.unsqueeze(2)], dim=2)
        total = all_reduce_sum(torch.cat([own.flatten(), also.to(own.dtype)]))
        reduced = total[: own.numel()].view_as(own)
        value, seen = move_clusters(self.value, self.seen, reduced[..., :-1], reduced[..., -1], self.decay)
        self.value.copy_(value)
        self.seen.copy_(seen)
        return total[own.numel() :]


def _thinned(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and random numbers of up to PIXELS rows of each class."""
    features, labels, chance = rows
    places = some_of_each(labels, chance, PIXELS)
    return features[places], labels[places], chance[places]


def _of_all_ranks(rows: Sequence[Tensor]) -> list[Tensor]:
    """Those of all ranks, each rank's filled up to the same length with rows that have no label."""
    lengths = all_gather(torch.tensor([len(rows[0])], device=rows[0].device))
    spare = int(lengths.max()) - len(rows[0])
    fills = ((0, 0, 0, spare), 0), ((0, spare), IGNORE_INDEX), ((0, spare), 0)
    return [all_gather(F.pad(item, sides, value=value)) for item, (sides, value) in zip(rows, fills, strict=True)]
