"""Prototypes and the similarity to them (Eq. 2 to 5). In float32, also under autocast.

B, D, h, w: batch, representation channels, height and width at the decoder's stride; C: classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.types import IGNORE_INDEX


def class_sums(representations: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """[B, D, h, w], [B, h, w] -> sums [C, D] and counts [C], float32: the numerator and denominator of Eq. 2.

    Apart, because they add up over batches and ranks, which means do not.
    """
    with torch.autocast(representations.device.type, enabled=False):
        classes = torch.arange(num_classes, device=labels.device)
        # One-hot rows and a matrix product give the same bits at every call; atomic additions on a GPU do not.
        members = (labels.flatten(1).unsqueeze(1) == classes[:, None]).float()  # [B, C, hw]
        sums = torch.bmm(members, representations.float().flatten(2).transpose(1, 2)).sum(dim=0)
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
        unit = F.normalize(representations.float(), dim=1)
        return torch.einsum("bdhw,cd->bchw", unit, F.normalize(prototypes.float(), dim=1))


def softmax_similarity(similarity: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """[B, C, h, w] cosines, [C] bool -> [B, C, h, w] float32: the indicator (Eq. 5) of every class.

    Classes not seen yet get 0 (the published code lets their zero vectors compete at cosine 0); with none seen, all get 1 / C.
    Interpolate the cosines before, never the result: a masked class has no value between pixels.
    """
    masked = ~seen & seen.any()
    return (similarity.float() / temperature).masked_fill(masked[:, None, None], -torch.inf).softmax(dim=1)


def indicator_bound(num_classes: int, temperature: float) -> float:
    """The largest value that Eq. 5 can take: cosine 1 to one prototype and -1 to all others.

    A threshold above it rejects (or, for hard sampling, accepts) every pixel. At temperature 0.5 it is 0.73 for 21 classes.
    """
    return 1 / (1 + (num_classes - 1) * math.exp(-2 / temperature))


def present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Labels of any shape -> [C] bool: the classes that occur."""
    found = labels.new_zeros(max(num_classes, IGNORE_INDEX) + 1, dtype=torch.bool)
    return found.index_fill(0, labels.flatten(), True)[:num_classes]
