"""The contrastive loss (Eq. 9) with hard sampling and prototype-guided negative sampling (Sec. 3.4).

All classes are computed at once in tensors of fixed shape, so that nothing waits for the host; classes that do not take part
weigh 0. C: classes, Q: anchors a class, N: negatives, D: channels, M = B * h * w: pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from css_ray.types import IGNORE_INDEX

Negatives = Literal["shared", "per_anchor"]


def negative_class_distribution(prototypes: Tensor, present: Tensor, temperature: float) -> Tensor:
    """[C, D], [C] bool -> [C, C]: row c is the distribution of the classes that c's negatives come from.

    The softmax over the cosines between prototypes / temperature, without c itself and without absent classes, so that classes
    easily taken for c are met more often (Sec. 3.4, negative sampling). A row without any candidate is uniform, and so is one
    of prototypes that are not finite: the loss then says so, where drawing from the row would fail.
    """
    unit = F.normalize(prototypes.float(), dim=1)
    allowed = present & ~torch.eye(len(present), dtype=torch.bool, device=present.device)
    allowed = allowed | ~allowed.any(dim=1, keepdim=True)
    return (unit @ unit.T / temperature).masked_fill(~allowed, -torch.inf).softmax(dim=1).nan_to_num(1.0)


def contrastive_loss(
    representations: Tensor,
    labels: Tensor,
    hard: Tensor,
    prototypes: Tensor,
    seen: Tensor,
    *,
    temperature: float,
    num_queries: int,
    num_negatives: int,
    negatives: Negatives = "shared",
) -> Tensor:
    """Scalar: mean over the present classes of the cross entropy that tells each hard anchor's prototype from its negatives.

    representations: [B, D, h, w]; the gradient flows through the anchors only.
    labels: [B, h, w], IGNORE_INDEX where a pixel is not valid. hard: [B, h, w] bool: which valid pixels may be anchors.
    prototypes, seen: [C, D], [C] bool. A class is present if it has a valid pixel and a prototype.

    Departs from Eq. 9 where the published code does: 1 / temperature also in the numerator (its absence is a misprint); Q
    anchors and N negatives are drawn with replacement instead of taking all; the mean counts present classes, with hard pixels
    or without. With fewer than two present classes there is nothing to tell apart: 0 with a zero gradient.
    negatives: shared draws one set of N a class, the literal reading of Eq. 9; per_anchor N for each anchor, as published.
    """
    with torch.autocast(representations.device.type, enabled=False):
        num_classes, height_width = len(prototypes), labels[0].numel()
        labelled = labels != IGNORE_INDEX
        known = labelled & seen[torch.where(labelled, labels, 0)]
        labels = torch.where(known, labels, IGNORE_INDEX).flatten()
        pixels = _PixelsByClass(labels, num_classes)
        hard_pixels = _PixelsByClass(torch.where(hard.flatten(), labels, IGNORE_INDEX), num_classes)
        present = pixels.counts > 0
        num_present = present.sum()
        classes = torch.arange(num_classes, device=labels.device)

        rows = representations.flatten(2).transpose(1, 2)  # [B, hw, D], a view: only the drawn rows are copied

        def unit_rows(index: Tensor, source: Tensor) -> Tensor:
            return F.normalize(source[index // height_width, index % height_width].float(), dim=-1)

        anchors = unit_rows(hard_pixels.draw(classes[:, None].expand(-1, num_queries)), rows)  # [C, Q, D]
        with torch.no_grad():
            positives = F.normalize(prototypes.float(), dim=1)
            distribution = negative_class_distribution(prototypes, present, temperature)
            draws = num_negatives if negatives == "shared" else num_queries * num_negatives
            index = pixels.draw(torch.multinomial(distribution, draws, replacement=True))

        towards = torch.einsum("cqd,cd->cq", anchors, positives)
        if negatives == "shared":
            away = torch.bmm(anchors, unit_rows(index, rows.detach()).transpose(1, 2))  # [C, Q, N]
        else:
            # [Q, N, D] a class is large: it is gathered again in the backward pass instead of kept.
            def similarities(anchors_of_class: Tensor, index_of_class: Tensor) -> Tensor:
                return torch.einsum("qd,qnd->qn", anchors_of_class, unit_rows(index_of_class, rows.detach()))

            per_class = zip(anchors, index.view(num_classes, num_queries, num_negatives), strict=True)
            # Nothing random happens inside, and saving the generator's state would wait for the device.
            away = torch.stack(
                [checkpoint(similarities, *pair, use_reentrant=False, preserve_rng_state=False) for pair in per_class]
            )
        scores = torch.cat([towards.unsqueeze(2), away], dim=2) / temperature
        loss_by_class = (scores.logsumexp(dim=2) - scores[..., 0]).mean(dim=1)
        counted = (hard_pixels.counts > 0) & (num_present > 1)
        return torch.where(counted, loss_by_class, 0).sum() / num_present.clamp(min=1)


class _PixelsByClass:
    """The indices of the pixels of each class, side by side in one sorted array."""

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.order = labels.argsort(stable=True)
        classes = torch.arange(num_classes, device=labels.device)
        self.offsets = torch.searchsorted(labels[self.order], classes)
        self.counts = torch.searchsorted(labels[self.order], classes, right=True) - self.offsets

    def draw(self, classes: Tensor) -> Tensor:
        """[...] classes -> [...] indices, each uniform among the pixels of its class; any pixel where the class has none."""
        counts = self.counts[classes]
        within = (torch.rand(classes.shape, device=classes.device) * counts).long().clamp(max=(counts - 1).clamp(min=0))
        return self.order[(self.offsets[classes] + within).clamp(max=len(self.order) - 1)]
