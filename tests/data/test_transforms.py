"""Geometry of the views, against NumPy's padding and Pillow's resizing. Each pixel says where it comes from."""

from __future__ import annotations

from random import Random
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from css_ray.data.transforms import labelled_view, unlabelled_view
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

STILL = Views(scale=(1.0, 1.0), flip=False)


def view_of(image: Tensor, mask: Tensor, *, crop: int, views: Views, random: Random) -> tuple[Tensor, Tensor]:
    """An image and its labels."""
    view, (labels,) = labelled_view(image, [mask], [IGNORE_INDEX], crop=crop, views=views, random=random)
    return view, labels


def coordinates(height: int, width: int) -> Tensor:
    """[3, H, W]: the row, the column, and 7."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)


def mirrored(image: Tensor, crop: int) -> Tensor:
    """NumPy's reflection to at least `crop` at the right and the bottom, also over several lengths of the image."""
    _, height, width = image.shape
    pad = ((0, 0), (0, max(0, crop - height)), (0, max(0, crop - width)))
    return torch.from_numpy(np.pad(image.numpy(), pad, mode="reflect"))


@pytest.mark.parametrize("size", [(9, 9), (5, 14), (14, 5), (3, 4), (2, 2), (1, 4), (1, 1), (8, 8)])
def test_padding_is_mirrored_and_never_a_label(size: tuple[int, int]) -> None:
    height, width = size
    image = coordinates(height, width)
    mask = (image[0] * 16 + image[1]).to(torch.uint8)  # unlike at every place, and below 255
    padded = mirrored(image, 8)
    for seed in range(20):
        view, labels = view_of(image, mask, crop=8, views=STILL, random=Random(seed))
        weak, valid = unlabelled_view(image, crop=8, views=Views(), random=Random(seed))
        for seen, inside in ((view, labels != IGNORE_INDEX), (weak, valid)):
            top, left = int(seen[0, 0, 0]), int(seen[1, 0, 0])
            assert torch.equal(seen, padded[:, top : top + 8, left : left + 8])
            rows, columns = min(height - top, 8), min(width - left, 8)
            expected = torch.zeros(8, 8, dtype=torch.bool)
            expected[:rows, :columns] = True
            assert torch.equal(inside, expected)
        there = labels != IGNORE_INDEX
        assert torch.equal(labels[there], (view[0] * 16 + view[1])[there])
        assert view.dtype == weak.dtype == labels.dtype == torch.uint8


def test_crops_reach_every_place_alike() -> None:
    image = coordinates(8, 10)
    places = [unlabelled_view(image, crop=6, views=Views(), random=Random(seed))[0][:2, 0, 0].tolist() for seed in range(3000)]
    _, counts = np.unique(places, axis=0, return_counts=True)
    # 3 x 5 places, each 200 times expected; 5 standard deviations are 68.
    assert len(counts) == 15
    assert counts.min() > 132 and counts.max() < 268


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25, 1.5, 2.0])
def test_scaling_is_pillows(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # Odd sides: no centre falls on the border of two pixels, where the nearest one is a matter of rounding.
    image = torch.randint(0, 256, (3, 23, 31), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 5, (23, 31), dtype=torch.uint8, generator=generator)
    size = (round(31 * factor), round(23 * factor))
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    nearest = Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST)
    view, labels = view_of(image, mask, crop=64, views=Views(scale=(factor, factor), flip=False), random=Random(0))
    difference = view[:, : size[1], : size[0]].int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()
    assert difference.abs().max() <= 1  # both round fixed-point sums
    assert torch.equal(labels[: size[1], : size[0]], torch.from_numpy(np.array(nearest)))
    assert (labels != IGNORE_INDEX).sum() == size[0] * size[1]


def test_scales_fill_their_range() -> None:
    image, mask = coordinates(40, 40), torch.zeros(40, 40, dtype=torch.uint8)
    views = Views(scale=(0.5, 1.5), flip=False)
    sides = []
    for seed in range(500):
        _, labels = view_of(image, mask, crop=64, views=views, random=Random(seed))
        sides.append(int((labels[0] == 0).sum()))
    assert (min(sides), max(sides)) == (20, 60)
    assert 38 < np.mean(sides) < 42  # 40 expected, with a standard error of 0.5


def test_an_image_never_scales_away() -> None:
    view, labels = view_of(
        coordinates(1, 3), torch.zeros(1, 3, dtype=torch.uint8), crop=4, views=Views(scale=(0.1, 0.1)), random=Random(0)
    )
    assert (view.shape, int((labels == 0).sum())) == ((3, 4, 4), 1)


def test_flip_mirrors_image_and_labels_together() -> None:
    image = coordinates(5, 6)
    flipped = 0
    for seed in range(200):
        view, labels = view_of(image, image[1], crop=8, views=Views(scale=(1.0, 1.0), flip=True), random=Random(seed))
        still, still_labels = view_of(image, image[1], crop=8, views=STILL, random=Random(seed))
        mirror = not torch.equal(labels, still_labels)
        assert torch.equal(view, torch.from_numpy(still.numpy()[..., ::-1].copy()) if mirror else still)
        assert torch.equal(labels, torch.from_numpy(still_labels.numpy()[..., ::-1].copy()) if mirror else still_labels)
        flipped += mirror
    assert 65 < flipped < 135  # 5 standard deviations around 100


def test_the_ignored_label_stays() -> None:
    mask = torch.full((12, 12), IGNORE_INDEX, dtype=torch.uint8)
    _, labels = view_of(coordinates(12, 12), mask, crop=8, views=Views(), random=Random(1))
    assert (labels == IGNORE_INDEX).all()


def test_all_maps_follow_the_pixels_whatever_their_type() -> None:
    # Three maps that say the same of a pixel: its class, an index beyond 8 bits, and a confidence.
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 23, 31), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 200, (23, 31), dtype=torch.uint8, generator=generator)
    maps, fills = [mask, mask.long() * 1000, mask / 1000], [IGNORE_INDEX, -1, 0.25]
    alone = []
    for seed in range(40):
        view, (labels, indices, confidence) = labelled_view(image, maps, fills, crop=24, views=Views(), random=Random(seed))
        padding = labels == IGNORE_INDEX
        assert (labels.dtype, indices.dtype, confidence.dtype) == (torch.uint8, torch.int64, torch.float32)
        assert torch.equal(indices, torch.where(padding, -1, labels.long() * 1000))
        assert torch.equal(confidence, torch.where(padding, 0.25, labels / 1000))  # no value that was between two pixels'
        alone.append((view, labels))
    assert any(bool((labels == IGNORE_INDEX).any()) for _, labels in alone)
    for seed, (view, labels) in enumerate(alone):  # how many maps there are changes neither the image nor the other maps
        without, none = labelled_view(image, [], [], crop=24, views=Views(), random=Random(seed))
        assert torch.equal(view, without) and none == []
        assert torch.equal(labels, view_of(image, mask, crop=24, views=Views(), random=Random(seed))[1])


def test_each_map_needs_its_fill() -> None:
    image = coordinates(4, 4)
    with pytest.raises(ValueError, match="shorter"):
        labelled_view(image, [image[0], image[1]], [IGNORE_INDEX], crop=4, views=STILL, random=Random(0))


def test_the_weak_view_scales_and_mirrors_what_lies_in_it() -> None:
    """An image whose values are its columns: a view twice as large shows them half as fast, mirrored from right to left."""
    image = torch.arange(40, dtype=torch.uint8).expand(3, 30, 40).contiguous()
    views = Views(weak_scale=(2.0, 2.0), weak_flip=True)
    mirrored = 0
    for seed in range(40):
        view, valid = unlabelled_view(image, crop=20, views=views, random=Random(seed))
        assert valid.all()
        steps = view[0, 0].int().diff()
        mirrored += int((steps <= 0).all())
        assert (steps >= 0).all() or (steps <= 0).all()
        assert abs(int(view[0, 0, -1]) - int(view[0, 0, 0])) in (9, 10)
    assert 10 < mirrored < 30


def test_without_weak_changes_nothing_more_is_drawn() -> None:
    image = torch.randint(256, (3, 30, 40), dtype=torch.uint8)
    random, expected = Random(3), Random(3)
    unlabelled_view(image, crop=20, views=Views(), random=random)
    for _ in range(2):
        expected.random()
    assert random.random() == expected.random()


def test_padding_can_be_black_and_counts_as_padding_either_way() -> None:
    image = torch.full((3, 10, 12), 200, dtype=torch.uint8)
    paddings: list[tuple[Literal["black", "mirror"], int]] = [("black", 0), ("mirror", 200)]
    for padding, value in paddings:
        views = Views(weak_scale=(0.5, 0.5), padding=padding)
        view, valid = unlabelled_view(image, crop=8, views=views, random=Random(0))
        assert valid[:5, :6].all() and valid.sum() == 30
        assert (view[:, ~valid] == value).all() and (view[:, valid] == 200).all()
        labelled, (labels,) = labelled_view(
            image,
            [image[0].clone()],
            [IGNORE_INDEX],
            crop=20,
            views=Views(scale=(1.0, 1.0), flip=False, padding=padding),
            random=Random(0),
        )
        assert (labelled[:, labels == IGNORE_INDEX] == value).all() and (labels != IGNORE_INDEX).sum() == 120
