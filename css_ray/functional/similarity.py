"""Prototypes and the similarity to them (Eq. 2 to 5). In float32, also under autocast; float64 stays.

B, D, h, w: batch, representation channels, height and width at the decoder's stride; C: classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32


def class_sums(representations: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """[B, D, h, w], [B, h, w] -> sums [C, D] and counts [C], float32: the numerator and denominator of Eq. 2.

    Apart, because they add up over batches and ranks, which means do not.
    """
    with torch.autocast(representations.device.type, enabled=False):
        classes = torch.arange(num_classes, device=labels.device)
        # One-hot rows and a matrix product give the same bits at every call; atomic additions on a GPU do not.
        rows = at_least_float32(representations).flatten(2).transpose(1, 2)  # [B, hw, D]
        members = (labels.flatten(1).unsqueeze(1) == classes[:, None]).to(rows.dtype)  # [B, C, hw]
        sums = torch.bmm(members, rows).sum(dim=0)
        return sums, members.sum(dim=(0, 2))


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """[C, D], [C] -> [C, D]: Eq. 2; the zero vector for a class without pixels."""
    return sums / counts.clamp(min=1).unsqueeze(1)


def moving_average(value: Tensor, seen: Tensor, sums: Tensor, counts: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Eq. 3: prototypes [C, D] and `seen` [C] bool after one more step with the sums and counts of `class_sums`.

    A class met for the first time takes its mean whole; a class absent from the step keeps its prototype.
    """
    present = counts > 0
    means = class_means(sums, counts)
    moved = torch.where(seen.unsqueeze(1), decay * value + (1 - decay) * means, means)
    return torch.where(present.unsqueeze(1), moved, value), seen | present


def cosine_similarity(representations: Tensor, prototypes: Tensor) -> Tensor:
    """[B, D, h, w], [C, D] -> [B, C, h, w]: sim(z, prototype) of Eq. 4, in [-1, 1]; 0 for a prototype of zeros."""
    with torch.autocast(representations.device.type, enabled=False):
        rows = at_least_float32(representations)
        # Squares and a sum: ten times as fast on a CPU as vector_norm over a dimension that is not the last.
        length = rows.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        # The lengths divide C numbers per pixel, not D; and matmul, unlike einsum, takes the maps as they lie in memory.
        cosines = torch.matmul(F.normalize(at_least_float32(prototypes), dim=1), rows.flatten(2))
        return cosines.unflatten(2, rows.shape[2:]) / length  # type: ignore[no-untyped-call, no-any-return]


def softmax_similarity(similarity: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """[B, C, h, w] cosines, [C] bool -> [B, C, h, w] float32: the indicator (Eq. 5) of every class.

    Classes not seen yet get 0 (the published code lets their zero vectors compete at cosine 0); with none seen, all get 1 / C.
    Interpolate the cosines before, never the result: a masked class has no value between pixels.
    """
    masked = ~seen & seen.any()
    return (at_least_float32(similarity) / temperature).masked_fill_(masked[:, None, None], -torch.inf).softmax(dim=1)


def indicator_bound(num_classes: int, temperature: float) -> float:
    """The largest value that Eq. 5 can take: cosine 1 to one prototype and -1 to all others.

    A threshold above it rejects (or, for hard sampling, accepts) every pixel. At temperature 0.5 it is 0.73 for 21 classes.
    """
    return 1 / (1 + (num_classes - 1) * math.exp(-2 / temperature))


def highest_temperature(num_classes: int, threshold: float) -> float:
    """The temperature below which `indicator_bound` lies above `threshold`; infinite if every temperature does."""
    odds = (num_classes - 1) * threshold / (1 - threshold)
    return 2 / math.log(odds) if odds > 1 else math.inf


def closest_prototypes(prototypes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[C, D], [C] bool -> the largest cosine between two seen prototypes, and their classes; NaN with fewer than two."""
    unit = F.normalize(at_least_float32(prototypes), dim=1)
    pairs = torch.ones_like(unit @ unit.T, dtype=torch.bool).triu(1) & seen & seen.unsqueeze(1)
    cosine, place = (unit @ unit.T).masked_fill(~pairs, -torch.inf).flatten().max(dim=0)
    return torch.where(pairs.any(), cosine, torch.nan), place // len(seen), place % len(seen)
