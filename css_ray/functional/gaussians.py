"""Pixels as Gaussians with a variance for each channel: how alike two are, and what many make (Xie et al., AAAI 2023)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from css_ray.functional.precision import at_least_float32
from css_ray.functional.similarity import class_sums

Reduce = Literal["sum", "mean"]

LEAST_VARIANCE = 1e-6

_CHUNK = {"cpu": 2**17, "cuda": 2**23}
"""Numbers of a pairwise table that are worked on together: three tables of them stay in a processor's cache."""


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


def separation(
    means: Tensor, variances: Tensor, keys: Tensor, key_variances: Tensor, reduce: Reduce, temperature: float
) -> Tensor:
    """Means and variances of anchors [Q, D] and of keys [K, D], the positive key first -> the mean cross entropy [].

    An anchor's logits are its mutual likelihoods with the keys / temperature. Anchors' variances are at least 1e-6. Gradients
    reach the anchors alone, and once: they are found with the value, a few anchors at a time, so that no table of Q x K x D
    numbers is kept or computed a second time.
    """
    loss: Tensor = _Separation.apply(means, variances, keys, key_variances, reduce, temperature)
    return loss


class _Separation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, variances: Tensor, keys: Tensor, key_variances: Tensor, reduce: Reduce, temperature: float
    ) -> Tensor:
        (count, channels), num_keys = means.shape, len(keys)
        scale = -0.5 / temperature / (channels if reduce == "mean" else 1)
        step = max(_CHUNK.get(means.device.type, _CHUNK["cuda"]) // (num_keys * channels), 1)
        tables = [means.new_empty(min(step, count), num_keys, channels) for _ in range(3)]
        gradients = torch.empty_like(means), torch.empty_like(variances)
        total = means.new_zeros(())
        for start in range(0, count, step):
            part = slice(start, start + step)
            together, inverse, moved = (table[: len(means[part])] for table in tables)
            torch.add(variances[part, None], key_variances, out=together)
            torch.reciprocal(together, out=inverse)
            terms = _sum_of_logs_(together)
            torch.sub(means[part, None], keys, out=together)
            torch.mul(together, inverse, out=moved)  # (a - b) / (s_a + s_b)
            logits = terms.add_(together.mul_(moved).sum(dim=-1)).mul_(scale)
            total += (logits.logsumexp(dim=1) - logits[:, 0]).sum()
            weights = logits.softmax(dim=1)
            weights[:, 0] -= 1
            weights = weights.mul_(scale / count).unsqueeze(1)
            gradients[0][part] = 2 * torch.bmm(weights, moved)[:, 0]
            gradients[1][part] = torch.bmm(weights, inverse.addcmul_(moved, moved, value=-1))[:, 0]
        ctx.save_for_backward(*gradients)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_means, of_variances = ctx.saved_tensors
        return gradient * of_means, gradient * of_variances, None, None, None, None


def _sum_of_logs_(numbers: Tensor) -> Tensor:
    """[..., D] -> [...], and `numbers` are overwritten. One logarithm for four of them: (1e-6)^4 is still a normal number."""
    width = numbers.shape[-1]
    for _ in range(2):
        if width % 2:
            break
        width //= 2
        numbers[..., :width].mul_(numbers[..., width : 2 * width])
    return numbers[..., :width].log().sum(dim=-1)
