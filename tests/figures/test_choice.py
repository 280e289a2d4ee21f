"""The rules by which images are chosen and marked, against values by hand and plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from css_ray.figures.choice import Box, binned, difference_boxes, evenly_ranked, evenly_spaced, image_scores
from css_ray.matrices import ImageMatrices


def matrices_of(dense: np.ndarray[Any, Any]) -> ImageMatrices:
    classes = dense.shape[1]
    images, cells = np.nonzero(dense.reshape(len(dense), -1))
    pixels = dense.reshape(len(dense), -1)[images, cells]
    names = tuple(f"class {index}" for index in range(classes))
    return ImageMatrices(tuple(f"image {index}" for index in range(len(dense))), names, images, cells, pixels)


def test_an_images_score_is_the_mean_iou_over_the_classes_in_its_label() -> None:
    random = np.random.RandomState(0)
    dense = random.poisson(0.7, (40, 4, 4))
    dense[3] = 0  # an image without a label
    dense[4] = np.diag([5, 0, 7, 0])  # two classes, all right
    dense[5, 1:] = 0  # class 0 alone is in the label
    found = image_scores(matrices_of(dense))
    for index, matrix in enumerate(dense.tolist()):
        ious = []
        for each in range(4):
            labelled = sum(matrix[each])
            if labelled:
                predicted = sum(row[each] for row in matrix)
                ious.append(matrix[each][each] / (labelled + predicted - matrix[each][each]))
        expected = 100 * sum(ious) / len(ious) if ious else math.nan
        assert found[index] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found[3]) and found[4] == 100


@pytest.mark.parametrize(
    ("values", "count", "chosen"),
    [
        ([5.0, 1.0, 4.0, 2.0, 3.0], 3, [0, 4, 1]),  # highest, median, lowest
        ([5.0, 1.0, 4.0, 2.0, 3.0], 5, [0, 2, 4, 3, 1]),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 1, [4]),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 2, [0, 1]),
        ([1.0, 2.0], 3, [1, 0]),  # all, if there are fewer
        ([1.0, 1.0, 1.0], 2, [0, 2]),  # ties in their order
        ([math.nan, 1.0, 3.0, math.nan, 2.0], 3, [2, 4, 1]),
        ([math.nan], 2, []),
        ([], 2, []),
    ],
)
def test_images_are_taken_at_evenly_spaced_ranks(values: list[float], count: int, chosen: list[int]) -> None:
    assert evenly_ranked(values, count) == chosen


def test_what_is_examined_is_spread_over_all() -> None:
    assert evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(7, 3) == [0, 2, 4]
    assert evenly_spaced(0, 3) == []
    for length in range(1, 40):
        found = evenly_spaced(length, 7)
        assert len(found) == len(set(found)) == min(length, 7) and found[0] == 0 and max(found) < length


def test_boxes_are_around_the_largest_regions_in_which_one_alone_is_right() -> None:
    truth = np.zeros((20, 30), np.uint8)
    first, other = truth.copy(), truth.copy()
    first[2:6, 3:10] = 1  # 28 pixels: the first is wrong
    other[10:16, 20:29] = 2  # 54 pixels: the other is wrong
    first[18, 0] = 1  # one pixel, which is less than SMALLEST of 600
    both = slice(0, 2)
    first[both, 20:], other[both, 20:] = 1, 2  # both wrong: not marked
    truth[12, 22] = 255  # void inside a region
    assert difference_boxes(truth, first, other) == [Box(20, 10, 9, 6), Box(3, 2, 7, 4)]
    assert difference_boxes(truth, first, other, most=1) == [Box(20, 10, 9, 6)]
    assert difference_boxes(truth, first, first) == []
    truth[:] = 255
    assert difference_boxes(truth, first, other) == []


def test_regions_that_touch_at_a_corner_are_one() -> None:
    truth, other = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    other[1:3, 1:3] = other[3:5, 3:5] = 1
    assert difference_boxes(truth, truth, other) == [Box(1, 1, 4, 4)]


def test_the_mean_of_each_interval_by_a_plain_loop() -> None:
    random = np.random.RandomState(1)
    places = np.concatenate([random.rand(500) ** 3, [0.0, 1.0, 0.25]]).astype(np.float32)
    values = random.randn(len(places)).astype(np.float32)
    found = binned(places, values, 8)
    assert found.edges.tolist() == [index / 8 for index in range(9)]
    for index in range(8):
        low, high = index / 8, (index + 1) / 8
        members = [
            float(value) for place, value in zip(places.tolist(), values, strict=True)
            if low <= place < high or (index == 7 and place == 1)
        ]  # fmt: skip
        assert found.share[index] == pytest.approx(len(members) / len(places))
        assert found.mean[index] == pytest.approx(np.mean(members))
        assert found.std[index] == pytest.approx(np.std(members))


def test_an_interval_without_a_pixel_has_no_mean() -> None:
    found = binned(np.array([0.9, 0.95]), np.array([1.0, 3.0]), 2)
    assert math.isnan(found.mean[0]) and math.isnan(found.std[0]) and found.share.tolist() == [0, 1]
    assert (found.mean[1], found.std[1]) == (2, 1)
    nothing = binned(np.empty(0), np.empty(0), 2)
    assert nothing.share.tolist() == [0, 0] and np.isnan(nothing.mean).all()
