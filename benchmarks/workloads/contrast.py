"""The contrastive loss and the update of the prototypes, forward and backward: ours, and the published code written plainly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.contrast import Negatives, contrastive_loss
from css_ray.functional.similarity import class_sums, moving_average

CLASSES, PRESENT, DECAY, TEMPERATURE = 21, 7, 0.99, 0.5


class Inputs(NamedTuple):
    """representations: [B, D, h, w]. labels: [B, h, w], 7 of 21 classes and some pixels of none. hard: [B, h, w] bool."""

    representations: Tensor
    labels: Tensor
    hard: Tensor
    queries: int
    negatives: int


def inputs(
    batch: int = 4,
    channels: int = 256,
    size: int = 64,
    queries: int = 256,
    negatives: int = 512,
    device: torch.device | str = "cpu",
) -> Inputs:
    torch.manual_seed(0)
    shape = (batch, size, size)
    labels = torch.randint(PRESENT, shape).masked_fill(torch.rand(shape) < 0.05, 255)
    representations, hard = torch.randn(batch, channels, size, size), torch.rand(shape) < 0.7
    return Inputs(representations.to(device), labels.to(device), hard.to(device), queries, negatives)


def ours(given: Inputs, negatives: Negatives) -> None:
    representations = given.representations.detach().requires_grad_()
    sums, counts = class_sums(representations.detach(), given.labels, CLASSES)
    before = sums.new_zeros(CLASSES, representations.shape[1]), sums.new_zeros(CLASSES, dtype=torch.bool)
    value, seen = moving_average(*before, sums, counts, DECAY)
    contrastive_loss(
        representations, given.labels, given.hard, value, seen, temperature=TEMPERATURE, num_queries=given.queries,
        num_negatives=given.negatives, negatives=negatives,
    ).backward()  # type: ignore[no-untyped-call]  # fmt: skip


def published(given: Inputs) -> None:
    """A loop over the classes, each with [Q, N + 1, D] gathered and cosines by broadcasting.

    The released code draws the negatives' places in a Python loop over queries and classes; here one vectorised draw does it,
    which makes this side faster than that code.
    """
    representations = given.representations.detach().requires_grad_()
    device = representations.device
    pixels = representations.permute(0, 2, 3, 1)  # [B, h, w, D]
    prototypes = torch.zeros(CLASSES, pixels.shape[3], device=device)
    present, all_pixels, hard_pixels = [], [], []
    for label in range(CLASSES):
        of_class = given.labels == label
        if not of_class.any():
            continue
        present.append(label)
        all_pixels.append(pixels[of_class])
        hard_pixels.append(pixels[of_class & given.hard])
        mean = all_pixels[-1].detach().mean(dim=0)
        prototypes[label] = mean if not prototypes[label].any() else DECAY * prototypes[label] + (1 - DECAY) * mean
    loss = torch.zeros((), device=device)
    for number, label in enumerate(present):
        if not len(hard_pixels[number]):
            continue
        anchors = hard_pixels[number][torch.randint(len(hard_pixels[number]), (given.queries,), device=device)]
        with torch.no_grad():
            others = [other for other in range(len(present)) if other != number]
            similarity = F.cosine_similarity(prototypes[label][None], prototypes[[present[other] for other in others]], dim=1)
            distribution = torch.distributions.Categorical((similarity / TEMPERATURE).softmax(dim=0))
            classes = distribution.sample((given.queries, given.negatives))  # type: ignore[no-untyped-call]
            counts = torch.tensor([len(all_pixels[other]) for other in others], device=device)
            within = (torch.rand(classes.shape, device=device) * counts[classes]).long()
            places = (counts.cumsum(dim=0) - counts)[classes] + within
            pool = torch.cat([all_pixels[other] for other in others])
            positive = prototypes[label].expand(given.queries, 1, -1)
            keys = torch.cat([positive, pool[places.flatten()].view(*places.shape, -1)], dim=1)  # [Q, N + 1, D]
        logits = F.cosine_similarity(anchors.unsqueeze(1), keys, dim=2)
        loss = loss + F.cross_entropy(logits / TEMPERATURE, torch.zeros(given.queries, dtype=torch.long, device=device))
    (loss / len(present)).backward()  # type: ignore[no-untyped-call]
