"""The contrastive loss and the prototypes against the published algorithm, written out plainly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import Row, compare
from css_ray.functional.contrast import contrastive_loss
from css_ray.functional.similarity import class_sums, moving_average

CLASSES, PRESENT, QUERIES, NEGATIVES, TEMPERATURE = 21, 7, 256, 512, 0.5


def rows() -> Iterator[Row]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    representations = torch.randn(4, 256, 64, 64)
    labels = torch.randint(PRESENT, (4, 64, 64)).masked_fill(torch.rand(4, 64, 64) < 0.05, 255)
    hard = torch.rand(4, 64, 64) < 0.7

    def ours() -> None:
        anchors = representations.clone().requires_grad_()
        sums, counts = class_sums(anchors.detach(), labels, CLASSES)
        value, seen = moving_average(torch.zeros(CLASSES, 256), torch.zeros(CLASSES, dtype=torch.bool), sums, counts, 0.99)
        contrastive_loss(
            anchors, labels, hard, value, seen, temperature=TEMPERATURE, num_queries=QUERIES, num_negatives=NEGATIVES,
            negatives="shared",
        ).backward()  # fmt: skip

    name = f"contrast + prototypes, [4,256,64,64], {QUERIES}/{NEGATIVES}, vs the published algorithm"
    yield compare(name, ours, lambda: published(representations, labels, hard), 1 / 20, repeats=3)


def published(representations: Tensor, labels: Tensor, hard: Tensor) -> None:
    """One step as the released code computes it: a loop over classes, [Q, N + 1, D] gathered, cosines by broadcasting."""
    rows_ = representations.clone().requires_grad_()
    pixels = rows_.permute(0, 2, 3, 1)
    present = [label for label in range(CLASSES) if (labels == label).any()]
    by_class = [pixels[labels == label] for label in present]
    prototypes = torch.stack([found.detach().mean(dim=0) for found in by_class])
    similarity = F.cosine_similarity(prototypes[:, None], prototypes[None], dim=2) / TEMPERATURE
    loss = torch.zeros(())
    for number, label in enumerate(present):
        candidates = pixels[(labels == label) & hard]
        anchors = candidates[torch.randint(len(candidates), (QUERIES,))]
        with torch.no_grad():
            others = [other for other in range(len(present)) if other != number]
            distribution = similarity[number, others].softmax(dim=0)
            drawn = torch.distributions.Categorical(distribution).sample((QUERIES, NEGATIVES))
            flat = torch.empty(QUERIES * NEGATIVES, rows_.shape[1])
            for position, other in enumerate(others):
                places = (drawn == position).flatten()
                pool = by_class[other].detach()
                flat[places] = pool[torch.randint(len(pool), (int(places.sum()),))]
            keys = torch.cat([prototypes[number].expand(QUERIES, 1, -1), flat.view(QUERIES, NEGATIVES, -1)], dim=1)
        logits = F.cosine_similarity(anchors[:, None], keys, dim=2) / TEMPERATURE
        loss = loss + F.cross_entropy(logits, torch.zeros(QUERIES, dtype=torch.long))
    (loss / len(present)).backward()
