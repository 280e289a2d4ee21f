"""Losses in logit space: supervised (Eq. 7), with hard example mining, and unsupervised (Eq. 8 and three other reductions).

All take logits [B, C, H, W] at the size of the labels [B, H, W], work in float32 (float64 stays), never see IGNORE_INDEX, never
ask the host, and are 0 with a zero gradient if no pixel is left.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32
from css_ray.types import IGNORE_INDEX

UnsupReduction = Literal["image_fraction", "pixel", "pixel_fixmatch", "image_fraction_overcounted"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Scalar: mean cross entropy over the labelled pixels of the batch (Eq. 7).

    Eq. 7 averages over images; here each labelled pixel weighs the same, as in the published code.
    """
    total = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def ohem_cross_entropy(logits: Tensor, labels: Tensor, *, threshold: float, min_kept: int) -> Tensor:
    """Scalar: mean cross entropy over the hard pixels, those whose own class has a probability of at most `threshold`.

    At least the `min_kept` hardest pixels of the batch count (all pixels, if there are fewer). Shrivastava et al., CVPR 2016.
    """
    losses = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="none")
    labelled = labels != IGNORE_INDEX
    probability = torch.exp(-losses.detach()).masked_fill(~labelled, torch.inf)
    # The min_kept-th smallest probability is infinite if fewer pixels are labelled: then all of them count.
    least = probability.flatten().kthvalue(min(min_kept, probability.numel())).values
    kept = labelled & (probability <= least.clamp(min=threshold))
    return torch.where(kept, losses, 0).sum() / kept.sum().clamp(min=1)


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Scalar: mean cross entropy over the pixels whose own class has a probability below `threshold` (Pohlen et al., 2017)."""
    losses = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="none")
    kept = (labels != IGNORE_INDEX) & (torch.exp(-losses.detach()) < threshold)
    return torch.where(kept, losses, 0).sum() / kept.sum().clamp(min=1)


def unsupervised_cross_entropy(
    logits: Tensor, pseudo_labels: Tensor, passed: Tensor, reduction: UnsupReduction = "image_fraction"
) -> Tensor:
    """Scalar: cross entropy against pseudo-labels [B, H, W]; `passed` [B, H, W] bool marks an indicator above delta_u.

    With V the pixels that have a pseudo-label:
    pixel: mean over V that passed (Eq. 8).
    pixel_fixmatch: sum over V that passed / |V| (Sohn et al., NeurIPS 2020).
    image_fraction: all of V, each image weighted by the share of its V that passed, / |V|. Departs from Eq. 8 as the published
    code does (French et al., BMVC 2020): pixels are not selected, their image is weighted.
    image_fraction_overcounted: the same, but ignored pixels that passed count in the numerator of the share, though not in its
    denominator, as in the published code: with most pixels ignored the loss is scaled up many times. As there, V are the pixels
    with a loss above 0: one that is predicted so surely that its loss is rounded to 0 leaves V.
    """
    losses = F.cross_entropy(at_least_float32(logits), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none")
    labelled = pseudo_labels != IGNORE_INDEX
    counted, passed = passed, passed & labelled
    if reduction == "pixel":
        return torch.where(passed, losses, 0).sum() / passed.sum().clamp(min=1)
    if reduction == "pixel_fixmatch":
        return torch.where(passed, losses, 0).sum() / labelled.sum().clamp(min=1)
    numerator = passed
    if reduction == "image_fraction_overcounted":
        numerator, labelled = counted, losses > 0
    share = numerator.sum(dim=(1, 2)).to(losses.dtype) / labelled.sum(dim=(1, 2)).clamp(min=1)
    return (share * losses.sum(dim=(1, 2))).sum() / labelled.sum().clamp(min=1)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Scalar: sum of weight * CE over the labelled pixels / their number. weights: [B, H, W]; 0 if no pixel is labelled.

    logits: [B, C, H, W], labels: [B, H, W], IGNORE_INDEX where none.
    """
    losses = F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses * weights).sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)


def probability_consistency(logits: Tensor, probabilities: Tensor, valid: Tensor) -> Tensor:
    """Scalar: mean squared difference of softmax(logits) and `probabilities` [B, C, H, W] over the pixels `valid` [B, H, W].

    Tarvainen & Valpola, NeurIPS 2017: the mean is over pixels and classes.
    """
    difference = ((at_least_float32(logits).softmax(dim=1) - probabilities) * valid.unsqueeze(1)).flatten()
    return difference.dot(difference) / (valid.sum().clamp(min=1) * logits.shape[1])
