"""Pseudo-labels from the logit space (Eq. 1), from the representation space (Eq. 4), and from both together (Sec. 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.metrics import class_iou, confusion_matrix
from css_ray.functional.resizing import upsample
from css_ray.types import IGNORE_INDEX

PseudoLabelling = Literal["logits", "representations", "mix", "cross"]


def most_likely(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> the largest entry and its class, both [B, H, W].

    Of the softmax of the logits: confidence and Eq. 1. Of the softmax similarity (Eq. 5): the indicator and Eq. 4, since the
    softmax keeps the order of the cosines. Of equal entries the first wins.
    """
    num_classes = probabilities.shape[1]
    value = probabilities.amax(dim=1, keepdim=True)
    # The class by a second maximum: on a CPU both together take a quarter of the time of max(dim=1).
    places = torch.arange(num_classes, 0, -1, dtype=torch.int16, device=probabilities.device).view(-1, 1, 1)
    labels = num_classes - ((probabilities == value) * places).amax(dim=1).long()
    return value.squeeze(1), labels.clamp(max=num_classes - 1)  # NaN equals nothing; the loss then becomes NaN as well


def sure_labels(logits: Tensor, threshold: float) -> Tensor:
    """[B, C, H, W] -> [B, H, W]: the likeliest class of each pixel, IGNORE_INDEX if its confidence is below the threshold."""
    confidence, labels = most_likely(logits.softmax(dim=1))
    return torch.where(confidence >= threshold, labels, IGNORE_INDEX)


def at_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    """[B, C, H, W], [B, H, W] -> [B, H, W]: the entry of each pixel's own class; 0 where it has none."""
    labelled = labels != IGNORE_INDEX
    own = probabilities.gather(1, torch.where(labelled, labels, 0).unsqueeze(1)).squeeze(1)
    return torch.where(labelled, own, 0)


def entropy(probabilities: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W]: the entropy of each pixel's distribution, in nats."""
    terms: Tensor = torch.special.xlogy(probabilities, probabilities)
    return -terms.sum(dim=1)


def image_confidence(probabilities: Tensor, valid: Tensor) -> Tensor:
    """[B, C, H, W], [B, H, W] bool -> [B] in [0, 1]: how sure a network is of each image (AugSeg, Zhao et al., CVPR 2023).

    The mean over the valid pixels of max p * (1 - H(p) / log C): 0 if all classes are as likely, 1 if one is certain, and 1 for
    an image without a valid pixel.
    """
    scores = probabilities.amax(dim=1) * (1 - entropy(probabilities) / math.log(probabilities.shape[1]))
    count = valid.sum(dim=(1, 2))
    mean = torch.where(valid, scores, 0).sum(dim=(1, 2)) / count.clamp(min=1)
    return torch.where(count > 0, mean, 1)


def percentile(values: Tensor, percent: float, mask: Tensor) -> Tensor:
    """Scalar: the percentile of the values where `mask`, interpolated linearly as NumPy's; found on the device.

    Infinite if no value is there.
    """
    ordered = values.masked_fill(~mask, torch.inf).flatten().sort().values
    last = (mask.sum() - 1).clamp(min=0)
    place = last * (percent / 100)
    below = place.floor().long()
    # An index that is a tensor of one number would be read by the host, which then waits for the device.
    low, high = ordered.gather(0, torch.stack([below, torch.minimum(below + 1, last)])).unbind()
    return torch.where(low.isfinite(), low + (high - low) * (place - below), low)


def overwrite_unlikely(core: Tensor, assist: Tensor, top_k: int) -> Tensor:
    """[B, C, H, W] twice: `assist` with the logits of all but its own `top_k` likeliest classes taken from `core`.

    PS-MT, Sec. 3.2. `assist` as it is if top_k >= C. Classes as likely as the last of the top k are among them.
    """
    if top_k >= assist.shape[1]:
        return assist
    least = assist.topk(top_k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    return torch.where(assist >= least, assist, core)


def rank_of_classes(probabilities: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H, W] int64: how many classes are likelier than each, 0 for the likeliest."""
    return probabilities.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def reliability(earlier: Sequence[Tensor], final: Tensor, num_classes: int) -> Tensor:
    """Predictions [B, H, W] of earlier networks and of the final one -> [B] float64 in [0, 1]: how stable each image's are.

    ST++, Sec. 3.2: the mean over the earlier networks of the image's mean IoU with the final prediction, over the classes that
    either of the two shows. 1 if all agree.
    """
    scores = [
        torch.stack(
            [class_iou(confusion_matrix(before, now, num_classes)).nanmean() for before, now in zip(each, final, strict=True)]
        )
        for each in earlier
    ]
    return torch.stack(scores).mean(dim=0)


def augmented_probabilities(
    predict: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float], *, flip: bool
) -> Tensor:
    """Images [B, 3, H, W] -> [B, C, H, W]: the mean of the softmax over resized copies and, with `flip`, mirrored ones.

    predict: images of any size -> logits of that size. A copy's sides are cut down to whole pixels. At scales above 1 fewer
    images are predicted together, so that no more memory is needed than at 1.
    """
    size = (images.shape[2], images.shape[3])
    total: Tensor | None = None
    for scale in scales:
        sides = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
        found = []
        for part in torch.split(images, max(1, int(len(images) / max(1.0, scale) ** 2))):
            copies = part if sides == size else F.interpolate(part, sides, mode="bilinear", antialias=True)
            probabilities = predict(copies).softmax(dim=1)
            if flip:
                probabilities = (probabilities + predict(copies.flip(-1)).softmax(dim=1).flip(-1)) / 2
            found.append(probabilities if sides == size else upsample(probabilities, size))
        joined = torch.cat(found)
        total = joined if total is None else total + joined
    assert total is not None
    return total / len(scales)


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """The labels on which `a` and `b` agree, IGNORE_INDEX elsewhere: the mix strategy, in which both spaces must agree."""
    return torch.where(a == b, a, IGNORE_INDEX)


def collaborate(strategy: PseudoLabelling, from_logits: Tensor, from_representations: Tensor) -> tuple[Tensor, Tensor]:
    """The targets of the unsupervised and of the contrastive loss (Sec. 3.3; the rows of Tables 5 and 7).

    logits, representations: one space teaches both. mix: their agreement teaches both. cross: each teaches the other.
    """
    if strategy == "logits":
        return from_logits, from_logits
    if strategy == "representations":
        return from_representations, from_representations
    if strategy == "cross":
        return from_representations, from_logits
    agreed = agreement(from_logits, from_representations)
    return agreed, agreed
