"""Pixels as Gaussians with a variance for each channel: how alike two are, and what many make (Xie et al., AAAI 2023)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from css_ray.functional.precision import at_least_float32
from css_ray.functional.similarity import class_sums

Reduce = Literal["sum", "mean"]

LEAST_VARIANCE = 1e-6


def variance_of(numbers: Tensor) -> Tensor:
    """Variances in [1e-6, 1): sigmoid(log(exp(y) + 1e-6)), without the overflow of the released code from y = 89 on."""
    numbers = at_least_float32(numbers)
    return torch.logaddexp(numbers, torch.full_like(numbers, math.log(LEAST_VARIANCE))).sigmoid()


def mutual_likelihood(means: Tensor, variances: Tensor, other_means: Tensor, other_variances: Tensor, reduce: Reduce) -> Tensor:
    """[..., D] each, of shapes that fit -> [...]: -1/2 of the sum over channels of (a - b)² / (s_a + s_b) + log(s_a + s_b).

    The mutual likelihood score of Shi & Jain, ICCV 2019. mean: over the channels, as the released code of PRCL; divided by its
    temperature of 100 the scores of all classes are then alike.
    """
    together = variances + other_variances
    terms = (means - other_means).square() / together + together.log()
    return -0.5 * (terms.sum(dim=-1) if reduce == "sum" else terms.mean(dim=-1))


def fusion_sums(means: Tensor, variances: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, D, h, w] twice, [B, h, w] -> sums [C, D] of mean / variance and of 1 / variance, and counts [C].

    Apart, because they add up over batches and ranks.
    """
    precisions = at_least_float32(variances).reciprocal()
    weighted, counts = class_sums(at_least_float32(means) * precisions, labels, num_classes)
    return weighted, class_sums(precisions, labels, num_classes)[0], counts


def fuse(weighted: Tensor, precisions: Tensor) -> tuple[Tensor, Tensor]:
    """[C, D] twice -> mean and variance of each class: the product of its pixels' Gaussians. 0 and 1 where there is none."""
    there = precisions > 0
    variances = torch.where(there, precisions, 1).reciprocal()
    return torch.where(there, weighted * variances, 0), variances
