"""Which images a figure shows, and what is marked in them: rules, so that nobody picks the images that suit the claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from css_ray.matrices import ImageMatrices
from css_ray.types import IGNORE_INDEX

Scores = NDArray[np.float64]
Map = NDArray[np.integer]

SMALLEST = 0.002
"""Share of an image's pixels below which a region is not marked."""


def image_scores(matrices: ImageMatrices) -> Scores:
    """[N]: of each image the mean IoU over the classes in its label, in percent; NaN for an image without a label.

    It orders the images of one figure. The mIoU of a table is of all images together.
    """
    right, labelled, predicted = matrices.class_pixels().astype(np.float64)
    present = labelled > 0
    iou = np.divide(right, labelled + predicted - right, out=np.zeros_like(right), where=present)
    count = present.sum(axis=1)
    mean: Scores = np.divide(100 * iou.sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def evenly_ranked(values: Sequence[float] | Scores, count: int) -> list[int]:
    """The indices of `count` values at evenly spaced ranks, from the largest to the smallest; 3: largest, median, smallest.

    Of equal values the earlier one has the higher rank. NaN has no rank. All indices if there are fewer than `count` values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    order = [int(index) for index in np.argsort(-numbers, kind="stable") if not np.isnan(numbers[index])]
    if count >= len(order):
        return order
    if count == 1:
        return [order[(len(order) - 1) // 2]]
    return [order[round(place)] for place in np.linspace(0, len(order) - 1, count)]


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` of the indices 0 to `length` - 1, evenly spaced, the first among them."""
    return list(range(length)) if length <= count else [place * length // count for place in range(count)]


class Box(NamedTuple):
    """A rectangle of pixels: its first column and row, and how many of each it has."""

    left: int
    top: int
    width: int
    height: int


def difference_boxes(truth: Map, first: Map, other: Map, most: int = 2) -> list[Box]:
    """Boxes around the largest connected regions in which exactly one of two predictions [H, W] is right, largest first.

    Pixels without a label do not count; regions of less than `SMALLEST` of the image are left out.
    """
    differ = ((first == truth) != (other == truth)) & (truth != IGNORE_INDEX)
    regions, number = ndimage.label(differ, structure=np.ones((3, 3)))
    if not number:
        return []
    sizes = np.bincount(regions.ravel(), minlength=number + 1)[1:]
    places = ndimage.find_objects(regions)
    largest = [int(index) for index in np.argsort(-sizes, kind="stable")[:most] if sizes[index] >= SMALLEST * truth.size]
    return [
        Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in (places[index] for index in largest)
    ]


class Bins(NamedTuple):
    """How a value varies with another in 0..1: of equal intervals [low, high) the share of pixels, mean and std of the value.

    Without a pixel an interval has NaN as mean and std.
    """

    edges: Scores
    share: Scores
    mean: Scores
    std: Scores


def binned(places: NDArray[np.floating], values: NDArray[np.floating], bins: int) -> Bins:
    """The `values` of pixels by `places`, what decides their interval; 1 belongs to the last one."""
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip((places.astype(np.float64) * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    filled = count > 0

    def means(of: Scores) -> Scores:
        sums = np.bincount(index, weights=of, minlength=bins)
        mean: Scores = np.divide(sums, count, out=np.full(bins, np.nan), where=filled)
        return mean

    mean = means(values.astype(np.float64))
    std = np.sqrt(means((values - mean[index]) ** 2)) if len(values) else mean
    return Bins(edges, count / max(len(values), 1), mean, std)
