"""The contrastive loss (Eq. 9) with hard sampling and prototype-guided negative sampling (Sec. 3.4).

C: classes, Q: anchors a class, N: negatives, D: channels, M = B * h * w: pixels. On a GPU all classes are computed at once in
tensors of fixed shape, so that nothing waits for the host, and those that do not take part weigh 0; a CPU leaves them out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32
from css_ray.types import IGNORE_INDEX

_ON_HOST = ("cpu",)
"""Devices where asking how many classes take part costs nothing."""

Negatives = Literal["shared", "per_anchor"]
ClassMean = Literal["present", "active"]


def negative_class_distribution(prototypes: Tensor, present: Tensor, temperature: float) -> Tensor:
    """[C, D], [C] bool -> [C, C]: row c is the distribution of the classes that c's negatives come from.

    The softmax over the cosines between prototypes / temperature, without c itself and without absent classes, so that classes
    easily taken for c are met more often (Sec. 3.4, negative sampling). A row without any candidate is uniform, and so is one
    of prototypes that are not finite: the loss then says so, where drawing from the row would fail.
    """
    unit = F.normalize(at_least_float32(prototypes), dim=1)
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
    mean_over: ClassMean = "present",
) -> Tensor:
    """Scalar: mean over classes of the cross entropy that tells each hard anchor's prototype from its negatives (Eq. 9).

    representations: [B, D, h, w]; the gradient flows through the anchors only.
    labels: [B, h, w], IGNORE_INDEX where a pixel is not valid. hard: [B, h, w] bool: which valid pixels may be anchors.
    prototypes, seen: [C, D], [C] bool. A class is present if it has a valid pixel and a prototype.

    Departs from Eq. 9 where the published code does: 1 / temperature also in the numerator (its absence is a misprint); Q
    anchors and N negatives are drawn with replacement instead of taking all; the mean counts the present classes, with hard
    pixels or without, instead of all C. With fewer than two present classes there is nothing to tell apart: 0 with a zero
    gradient.
    negatives: shared draws one set of N a class, the literal reading of Eq. 9; per_anchor N for each anchor, as published.
    mean_over: present as said; active counts only the present classes that have hard pixels.
    """
    with torch.autocast(representations.device.type, enabled=False):
        num_classes, channels = len(prototypes), representations.shape[1]
        labelled = labels != IGNORE_INDEX
        known = labelled & seen[torch.where(labelled, labels, 0)]
        labels = torch.where(known, labels, IGNORE_INDEX).flatten()
        pixels = _PixelsByClass(labels, num_classes)
        hard_pixels = _PixelsByClass(torch.where(hard.flatten(), labels, IGNORE_INDEX), num_classes)
        present = pixels.counts > 0
        active = (hard_pixels.counts > 0) & (present.sum() > 1)
        classes = torch.arange(num_classes, device=labels.device)
        if labels.device.type in _ON_HOST:
            classes = classes[active]
            if not len(classes):
                return 0 * at_least_float32(representations).sum()

        rows = representations.flatten(2).transpose(1, 2).reshape(-1, channels)  # [M, D]

        def unit_rows(index: Tensor, source: Tensor) -> Tensor:
            drawn = at_least_float32(source.index_select(0, index.flatten()))
            return F.normalize(drawn, dim=1).view(*index.shape, channels)

        anchors = unit_rows(hard_pixels.draw(classes[:, None].expand(-1, num_queries)), rows)  # [C, Q, D]
        with torch.no_grad():
            positives = F.normalize(at_least_float32(prototypes), dim=1)[classes].unsqueeze(1)
            distribution = negative_class_distribution(prototypes, present, temperature)[classes]
            draws = num_negatives if negatives == "shared" else num_queries * num_negatives
            index = pixels.draw(_categories(distribution, draws))
            if negatives == "shared":
                keys = unit_rows(index, rows.detach())
                index = torch.arange(index.numel(), device=index.device).view_as(index)
            else:
                keys = F.normalize(at_least_float32(rows.detach()), dim=1)
                index = index.view(-1, num_negatives)
        if negatives == "per_anchor":
            positives = positives.expand_as(anchors).flatten(0, 1).unsqueeze(1)
            anchors = anchors.flatten(0, 1).unsqueeze(1)
        losses = noise_contrast(anchors, positives, keys.flatten(0, -2), index, temperature)
        loss_by_class = losses.view(len(classes), num_queries).mean(dim=1)
        counted = present if mean_over == "present" else active
        return torch.where(active[classes], loss_by_class, 0).sum() / counted.sum().clamp(min=1)


def noise_contrast(anchors: Tensor, positives: Tensor, keys: Tensor, index: Tensor, temperature: float) -> Tensor:
    """[G, Q, D], [G, Q or 1, D], [M, D], [G, N] -> [G, Q]: minus the logarithm in Eq. 9, for each anchor of each group.

    The anchors of group g are told from their positives and the rows `index[g]` of `keys`; all rows are unit vectors. A group
    is a class where its anchors share the negatives, and one anchor where they do not. Positives and keys get no gradient. The
    anchors', (sum_j softmax_j k_j - k_positive) / temperature, is found in the same pass, so that keys are gathered once and
    exist for a block of groups at a time.
    """
    losses: Tensor = _NoiseContrast.apply(anchors, positives, keys, index, temperature)  # type: ignore[no-untyped-call]
    return losses


_BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Of gathered keys: what a CPU's cache holds; on a GPU, enough that launching kernels costs nothing."""


class _NoiseContrast(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, anchors: Tensor, positives: Tensor, keys: Tensor, index: Tensor, temperature: float
    ) -> Tensor:
        losses, slopes = torch.empty_like(anchors[..., 0]), torch.empty_like(anchors)
        num_negatives, channels = index.shape[1], keys.shape[1]
        block_bytes = _BLOCK_BYTES.get(anchors.device.type, _BLOCK_BYTES["cuda"])
        block = max(1, block_bytes // (num_negatives * channels * keys.element_size()))
        for start in range(0, len(anchors), block):
            groups = slice(start, start + block)
            anchor, positive = anchors[groups], positives[groups]
            # index_select copies whole rows; indexing by a tensor takes four times as long on a CPU.
            negatives = keys.index_select(0, index[groups].flatten()).view(-1, num_negatives, channels)
            scores = torch.bmm(anchor, negatives.mT).div_(temperature)  # [block, Q, N]
            towards = (anchor * positive).sum(dim=2, keepdim=True) / temperature
            total = torch.logaddexp(scores.logsumexp(dim=2, keepdim=True), towards)
            losses[groups] = (total - towards).squeeze(2)
            pull = torch.bmm(scores.sub_(total).exp_(), negatives)
            slopes[groups] = (pull + ((towards - total).exp() - 1) * positive).div_(temperature)
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return gradient.unsqueeze(2) * slopes, None, None, None, None


def _categories(distribution: Tensor, draws: int) -> Tensor:
    """[K, C] rows of probabilities -> [K, draws] classes: by the inverse of the distribution function."""
    steps = distribution.cumsum(dim=1)
    drawn = torch.rand(len(steps), draws, dtype=steps.dtype, device=steps.device) * steps[:, -1:]
    # Right: a draw of exactly 0 must not fall on a class whose probability is 0.
    return torch.searchsorted(steps, drawn, right=True).clamp(max=steps.shape[1] - 1)


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
