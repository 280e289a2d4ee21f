"""The contrastive loss (Eq. 9) with hard sampling and prototype-guided negative sampling (Sec. 3.4).

C: classes, Q: anchors per class, N: negatives, D: channels, M = B * h * w: pixels. On a GPU all classes are computed together
in tensors of fixed shape, so that nothing waits for the host, and those that do not take part weigh 0; a CPU leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32
from css_ray.types import IGNORE_INDEX

_ON_HOST = ("cpu",)
"""Devices on which asking how many classes take part costs nothing."""

Negatives = Literal["shared", "per_anchor"]
ClassMean = Literal["present", "active"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share a batch. rank: this one's index; size: how many; sum: adds up a tensor over all of them."""

    rank: int = 0
    size: int = 1
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def rows_and_chance(self, row: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
        """[N] -> [size, N]: the rows of all ranks; and rank 0's random numbers, on each rank. One sum for both."""
        rows = torch.zeros(self.size, len(row), dtype=torch.float64, device=row.device)  # counts of pixels, exact
        rows[self.rank] = row.double()
        mine = random.double() if self.rank == 0 else torch.zeros_like(random, dtype=torch.float64)
        total = self.sum(torch.cat([rows.flatten(), mine.flatten()]))
        found = total[: rows.numel()].view_as(rows), total[rows.numel() :].view_as(random)
        return found[0].to(row.dtype), found[1].to(random.dtype)


ALONE = Ranks()


def negative_class_distribution(prototypes: Tensor, present: Tensor, temperature: float) -> Tensor:
    """[C, D], [C] bool -> [C, C]: row c is the distribution of the classes that c's negatives come from.

    The softmax over the cosines between prototypes / temperature, without c itself and without absent classes, so that classes
    easily taken for c are met more often (Sec. 3.4, negative sampling). A row without any candidate is uniform, and so is one
    of prototypes that are not finite: the loss then becomes NaN, whereas drawing from the row would fail.
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
    ranks: Ranks = ALONE,
) -> Tensor:
    """Scalar: mean over classes of the cross entropy that separates each hard anchor's prototype from its negatives (Eq. 9).

    representations: [B, D, h, w]; the gradient flows through the anchors only.
    labels: [B, h, w], IGNORE_INDEX where a pixel is not valid. hard: [B, h, w] bool: which valid pixels may be anchors.
    prototypes, seen: [C, D], [C] bool. A class is present if it has a valid pixel and a prototype.

    Departs from Eq. 9 where the published code does: 1 / temperature also in the numerator (its absence is a misprint); Q
    anchors and N negatives are drawn with replacement instead of taking all; the mean counts the present classes, with hard
    pixels or without, instead of all C. With fewer than two present classes there is nothing to separate: 0 with a zero
    gradient.
    negatives: shared draws one set of N per class, the literal reading of Eq. 9; per_anchor N for each anchor, as published.
    mean_over: present as above; active counts only the present classes that have hard pixels.
    ranks: the mean of the ranks' results is, in expectation, the loss of their joined batch: which classes are present, what
    negatives are drawn from and what is averaged are the pixels of all. Prototypes are the same on each rank. N * D numbers a
    class cross the network: its negatives; or, of per_anchor, N pixels of that class, which all anchors draw theirs from (so
    that its loss is a little lower: by half a percent at N = 8).
    """
    with torch.autocast(representations.device.type, enabled=False):
        num_classes, channels = len(prototypes), representations.shape[1]
        labelled = labels != IGNORE_INDEX
        known = labelled & seen[torch.where(labelled, labels, 0)]
        pixels = PixelsByClass(torch.where(known, labels, IGNORE_INDEX).flatten(), hard.flatten(), num_classes)
        own = torch.cat([pixels.counts, pixels.hard_counts])
        if ranks.size > 1:
            random = torch.rand(2, num_classes, num_negatives, device=labels.device)
            joint_counts, (class_chance, pixel_chance) = ranks.rows_and_chance(own, random)
        else:
            joint_counts = own.unsqueeze(0)
        counts, hard_counts = joint_counts.chunk(2, dim=1)  # [ranks, C] each
        present = counts.sum(dim=0) > 0
        active = (hard_counts.sum(dim=0) > 0) & (present.sum() > 1)
        classes = torch.arange(num_classes, device=labels.device)
        if labels.device.type in _ON_HOST:
            classes = classes[active]
            if not len(classes):
                return 0 * at_least_float32(representations).sum()

        rows = at_least_float32(representations.flatten(2).transpose(1, 2).reshape(-1, channels))  # [M, D]
        drawn = pixels.draw(classes[:, None].expand(-1, num_queries), pixels.hard_counts)
        anchors = rows.index_select(0, drawn.flatten()).view(len(classes), num_queries, channels)
        with torch.no_grad():
            positives = F.normalize(at_least_float32(prototypes), dim=1)[classes].unsqueeze(1)
            distribution = negative_class_distribution(prototypes, present, temperature)[classes]
            draws = num_negatives if negatives == "shared" else num_queries * num_negatives
            index: Tensor | None = None
            lengths: Tensor | None = None
            if ranks.size > 1:
                joint = _JointPixels(pixels, rows, counts, ranks)
                if negatives == "shared":
                    drawn_classes = _categories(distribution, class_chance[classes].to(distribution.dtype))
                    keys = joint.draw(drawn_classes, pixel_chance[classes])
                else:
                    each = torch.arange(num_classes, device=labels.device)[:, None].expand(-1, num_negatives)
                    keys = joint.draw(each, pixel_chance).flatten(0, 1)
                    within = torch.randint(num_negatives, (len(classes), draws), device=labels.device)
                    drawn = _categories(distribution, _random(distribution, draws)) * num_negatives + within
                    index = drawn.view(-1, num_negatives)
            else:
                places = pixels.draw(_categories(distribution, _random(distribution, draws)), pixels.counts)
                if negatives == "shared":
                    keys = _unit(rows.index_select(0, places.flatten())).view(len(classes), draws, channels)
                else:
                    index, keys = places.view(-1, num_negatives), rows
                    lengths = torch.linalg.vector_norm(rows, dim=1).clamp_(min=1e-12)
        if negatives == "per_anchor":
            positives = positives.expand_as(anchors).flatten(0, 1).unsqueeze(1)
            anchors = anchors.flatten(0, 1).unsqueeze(1)
        losses = noise_contrast(anchors, positives, keys, index, temperature, lengths)
        loss_by_class = losses.view(len(classes), num_queries).mean(dim=1)
        if ranks.size > 1:  # by how many of a class's hard pixels are this rank's; DDP takes the mean over the ranks
            share = hard_counts[ranks.rank] / hard_counts.sum(dim=0).clamp(min=1)
            loss_by_class = loss_by_class * (ranks.size * share)[classes]
        counted = present if mean_over == "present" else active
        return torch.where(active[classes], loss_by_class, 0).sum() / counted.sum().clamp(min=1)


def noise_contrast(
    anchors: Tensor, positives: Tensor, keys: Tensor, index: Tensor | None, temperature: float, lengths: Tensor | None = None
) -> Tensor:
    """[G, Q, D], [G, Q or 1, D], [M, D], [G, N] -> [G, Q]: minus the logarithm in Eq. 9, for each anchor of each group.

    The anchors of group g are compared with their positives and the rows `index[g]` of `keys`, or from `keys[g]` of keys [G, N,
    D] without an index. Positives are unit vectors, and so are keys, unless `lengths` [M] come with an index; anchors have any
    length, and cosines are taken. A group is a class if its anchors share the negatives, and one anchor if they do not.

    Positives and keys get no gradient. That of a unit anchor, (sum_j softmax_j k_j - k_positive) / temperature, is found in the
    same pass, so that keys are gathered once and exist for a block of groups at a time.
    """
    losses: Tensor = _NoiseContrast.apply(anchors, positives, keys, index, temperature, lengths)
    return losses


def _unit(rows: Tensor) -> Tensor:
    """Makes the rows of [M, D], which are the caller's own, unit vectors in place."""
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=1e-12))


_BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""The size of a block of gathered keys: what a CPU's cache holds; on a GPU, enough that launching kernels costs nothing."""


class _NoiseContrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        keys: Tensor,
        index: Tensor | None,
        temperature: float,
        lengths: Tensor | None,
    ) -> Tensor:
        losses, slopes = torch.empty_like(anchors[..., 0]), torch.empty_like(anchors)
        num_negatives, channels = keys.shape[1] if index is None else index.shape[1], keys.shape[-1]
        block_bytes = _BLOCK_BYTES.get(anchors.device.type, _BLOCK_BYTES["cuda"])
        block = max(1, block_bytes // (num_negatives * channels * keys.element_size()))
        for start in range(0, len(anchors), block):
            groups = slice(start, start + block)
            length = torch.linalg.vector_norm(anchors[groups], dim=2, keepdim=True).clamp_(min=1e-12)
            anchor, positive = anchors[groups] / length, positives[groups]
            if index is None:
                negatives = keys[groups]
            else:  # index_select copies whole rows; indexing by a tensor takes four times as long on a CPU
                negatives = keys.index_select(0, index[groups].flatten()).view(-1, num_negatives, channels).to(anchor.dtype)
            away = torch.bmm(anchor, negatives.mT).div_(temperature)  # [block, Q, N], the one large tensor, changed in place
            # The lengths divide N numbers an anchor; unit keys would be a second copy of all rows.
            length_of_key = None if index is None or lengths is None else lengths[index[groups]].unsqueeze(1)
            if length_of_key is not None:
                away.div_(length_of_key)
            towards = (anchor * positive).sum(dim=2, keepdim=True) / temperature
            largest = torch.maximum(away.amax(dim=2, keepdim=True), towards)
            away, own = away.sub_(largest).exp_(), (towards - largest).exp()
            total = away.sum(dim=2, keepdim=True) + own
            losses[groups] = (total.log() + largest - towards).squeeze(2)
            if length_of_key is not None:
                away.div_(length_of_key)
            pull = torch.bmm(away, negatives) + own * positive
            slope = pull.div_(total).sub_(positive)
            slope -= (slope * anchor).sum(dim=2, keepdim=True) * anchor  # along the anchor a unit vector cannot move
            slopes[groups] = slope.div_(length * temperature)
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return gradient.unsqueeze(2) * slopes, None, None, None, None, None


def draw_classes(distribution: Tensor, draws: int) -> Tensor:
    """[K, C] rows of probabilities -> [K, draws] classes, drawn from each row."""
    return _categories(distribution, _random(distribution, draws))


def _random(distribution: Tensor, draws: int) -> Tensor:
    return torch.rand(len(distribution), draws, dtype=distribution.dtype, device=distribution.device)


def _categories(distribution: Tensor, random: Tensor) -> Tensor:
    """[K, C] rows of probabilities, [K, draws] in [0, 1) -> [K, draws] classes: by the inverse of the distribution function."""
    steps = distribution.cumsum(dim=1)
    # Right: a draw of exactly 0 must not fall on a class whose probability is 0.
    return torch.searchsorted(steps, random * steps[:, -1:], right=True).clamp(max=steps.shape[1] - 1)


class PixelsByClass:
    """The indices of the pixels of each class, side by side in one sorted array, the hard ones of a class first."""

    def __init__(self, labels: Tensor, hard: Tensor, num_classes: int) -> None:
        ranks = 2 * labels + ~hard
        self.order = ranks.argsort(stable=True)
        bounds = torch.arange(2 * num_classes + 1, device=labels.device)
        bounds = torch.searchsorted(ranks[self.order], bounds)
        self.offsets = bounds[:-1:2]
        self.counts, self.hard_counts = bounds[2::2] - self.offsets, bounds[1::2] - self.offsets

    def draw(self, classes: Tensor, counts: Tensor) -> Tensor:
        """[...] classes -> [...] indices, each uniform among the first `counts` [C] of its class; any where it has none."""
        count = counts[classes]
        within = (torch.rand(classes.shape, device=classes.device) * count).long().clamp_(max=(count - 1).clamp_(min=0))
        return self.order[(self.offsets[classes] + within).clamp_(max=len(self.order) - 1)]


class _JointPixels:
    """The pixels of each class on all ranks, rank 0's first. rows: [M, D] of this rank; counts: [ranks, C]."""

    def __init__(self, pixels: PixelsByClass, rows: Tensor, counts: Tensor, ranks: Ranks) -> None:
        self.pixels, self.rows, self.counts, self.ranks = pixels, rows, counts, ranks

    def draw(self, classes: Tensor, random: Tensor) -> Tensor:
        """[K, N] classes -> [K, N, D]: for each the unit vector of one of its pixels, chosen by a number in [0, 1).

        Both are the same on all ranks.
        """
        count = self.counts.sum(dim=0)[classes]
        place = (random * count).long().clamp_(max=(count - 1).clamp_(min=0))
        place = place - self.counts[: self.ranks.rank].sum(dim=0)[classes]
        mine = (place >= 0) & (place < self.counts[self.ranks.rank][classes])
        index = self.pixels.order[torch.where(mine, self.pixels.offsets[classes] + place, 0)]
        found = _unit(self.rows.index_select(0, index.flatten())).view(*classes.shape, -1)
        return self.ranks.sum(torch.where(mine.unsqueeze(-1), found, 0))
