"""Several prototypes per class: how features come to theirs, how these follow, and where they start (PCR, NeurIPS 2022).

N: features; D: their channels; C: classes; K: prototypes of each. In float32, also under autocast; float64 stays.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32
from css_ray.functional.similarity import class_means, class_sums
from css_ray.types import IGNORE_INDEX

APART = 1e-3
"""The noise between prototypes of a class that start from the same feature, without which one would take all features."""


def cosines_to(features: Tensor, prototypes: Tensor) -> Tensor:
    """[N, D], [C, K, D] -> [N, C, K]: the cosine between each feature and each prototype."""
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(at_least_float32(features), dim=1)
        other = F.normalize(at_least_float32(prototypes), dim=2)
        return torch.matmul(own, other.flatten(0, 1).T).view(len(own), *prototypes.shape[:2])


def cluster_sums(features: Tensor, cosines: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D], [N, C, K], [N] -> sums [C, K, D] and counts [C, K] of the features that each prototype is the nearest for.

    A feature belongs to the nearest prototype of its own class; one with IGNORE_INDEX to none.
    """
    _, num_classes, count = cosines.shape
    known = labels != IGNORE_INDEX
    own = cosines.gather(1, torch.where(known, labels, 0).view(-1, 1, 1).expand(-1, 1, count)).squeeze(1)
    cluster = torch.where(known, labels * count + own.argmax(dim=1), -1)
    sums, counts = class_sums(features.T[None, :, None], cluster[None, None], num_classes * count)
    return sums.unflatten(0, (num_classes, count)), counts.view(num_classes, count)  # type: ignore[no-untyped-call]


def move_clusters(value: Tensor, seen: Tensor, sums: Tensor, counts: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Prototypes [C, K, D] and `seen` [C] bool after one more step with the sums and counts of `cluster_sums`.

    value <- decay * value + (1 - decay) * mean of its features; a prototype without any stays. The prototypes of a class that
    is met for the first time go to the mean of all its features, all but the first APART times their old value from it.
    """
    means = class_means(sums.flatten(0, 1), counts.flatten()).view_as(sums)
    moved = torch.where((counts > 0).unsqueeze(2), decay * value + (1 - decay) * means, value)
    of_class = counts.sum(dim=1)
    middle = class_means(sums.sum(dim=1), of_class).unsqueeze(1)
    begun = middle + APART * value * (torch.arange(value.shape[1], device=value.device) > 0).unsqueeze(1)
    met = of_class > 0
    moved = torch.where(seen[:, None, None], moved, torch.where(met[:, None, None], begun, value))
    return moved, seen | met


def kmeans(features: Tensor, count: int, rounds: int = 20) -> Tensor:
    """[N, D] -> [K, D] float64: the centres of `count` clusters after `rounds` of Lloyd's algorithm, in float64.

    It begins with features far from each other (k-means++, Arthur & Vassilvitskii, SODA 2007). A cluster that loses its last
    feature keeps its centre. Fewer features than clusters are repeated, the repeats with a noise of APART.
    """
    rows = features.double()
    if len(rows) < count:
        place = torch.arange(count, device=rows.device)
        noise = APART * torch.randn(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
        return rows[place % len(rows)] + noise * (place >= len(rows)).unsqueeze(1)
    centres = rows[torch.randint(len(rows), (1,), device=rows.device)]
    while len(centres) < count:
        squares = torch.cdist(rows, centres).amin(dim=1).square()
        further = squares.clamp(min=torch.finfo(rows.dtype).tiny).multinomial(1)  # any, if all are where a centre is
        centres = torch.cat([centres, rows[further]])
    for _ in range(rounds):
        members = F.one_hot(torch.cdist(rows, centres).argmin(dim=1), count).to(rows.dtype)
        sizes = members.sum(dim=0).unsqueeze(1)
        centres = torch.where(sizes > 0, members.T @ rows / sizes.clamp(min=1), centres)
    return centres
