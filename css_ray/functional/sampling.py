"""Some pixels instead of all: one of each cell of a grid, and at most a given number of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from css_ray.types import IGNORE_INDEX


def grid_points(height: int, width: int, cells: int, device: torch.device) -> Tensor:
    """[S] int64: one random pixel y * W + x of each cell of a grid of `cells` x `cells` over H x W pixels; S = cells².

    Cells are as equal as whole pixels allow. A side of fewer pixels than `cells` has a cell for each.
    """

    def spans(size: int) -> tuple[Tensor, Tensor]:
        """Where the cells of a side begin, and how many pixels they have."""
        count = min(cells, size)
        edges = torch.arange(count + 1, device=device) * size // count
        return edges[:-1], edges.diff()

    (top, tall), (left, wide) = spans(height), spans(width)
    top, tall = (item.unsqueeze(1).expand(-1, len(left)) for item in (top, tall))

    def within(count: Tensor) -> Tensor:
        chance = torch.rand(top.shape, device=device)
        return torch.minimum((chance * count).long(), count - 1)  # the product may be rounded up to the count

    return ((top + within(tall)) * width + left + within(wide.expand(top.shape))).flatten()


def some_of_each(labels: Tensor, chance: Tensor, most: int) -> Tensor:
    """[N] twice -> the places of up to `most` rows of each class, those of the largest `chance`; none of IGNORE_INDEX.

    Sorted by class. With random numbers as `chance`, what is kept of a part may be joined with more rows and thinned again:
    each row is then as likely to stay as if all had been there from the start.
    """
    order = chance.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    classes = labels[order]
    place = torch.arange(len(classes), device=classes.device) - torch.searchsorted(classes, classes)
    return order[(place < most) & (classes != IGNORE_INDEX)]
