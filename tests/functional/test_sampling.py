"""One pixel of each cell, and some rows of each class."""

from __future__ import annotations

import pytest
import torch

from css_ray.functional.sampling import grid_points, some_of_each
from css_ray.types import IGNORE_INDEX

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (513, 513), (33, 47)])
def test_a_grid_has_one_pixel_of_each_cell(height: int, width: int) -> None:
    torch.manual_seed(0)
    points = grid_points(height, width, 32, CPU)
    assert points.shape == (32 * 32,)
    for index, point in enumerate(points.tolist()):
        row, column = divmod(index, 32)
        y, x = divmod(point, width)
        assert row * height // 32 <= y < (row + 1) * height // 32
        assert column * width // 32 <= x < (column + 1) * width // 32


def test_every_pixel_of_a_cell_is_as_likely() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(6 * 9)
    for _ in range(3000):
        counts[grid_points(6, 9, 3, CPU)] += 1  # cells of 2 x 3 pixels
    assert counts.sum() == 9 * 3000
    assert (counts - 500).abs().max() < 5 * 21  # five standard deviations


def test_a_side_shorter_than_the_grid_has_a_cell_for_each_pixel() -> None:
    assert grid_points(5, 7, 32, CPU).tolist() == list(range(35))
    assert sorted(grid_points(1, 64, 32, CPU).tolist())[:2] in [[a, b] for a in (0, 1) for b in (2, 3)]


def test_masked_pixels_are_fewer() -> None:
    torch.manual_seed(0)
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 32:] = False
    assert valid.flatten()[grid_points(64, 64, 32, CPU)].sum() == 32 * 16


def test_the_likeliest_rows_of_each_class_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator)
    labels[labels == 2] = IGNORE_INDEX
    chance = torch.rand(60, generator=generator)
    expected = set()
    for label in (0, 1, 3):
        places = [place for place in range(60) if labels[place] == label]
        expected |= set(sorted(places, key=lambda place: -float(chance[place]))[:7])
    found = some_of_each(labels, chance, 7)
    assert len(found) == 21 and set(found.tolist()) == expected
    assert labels[found].tolist() == sorted(labels[found].tolist())
    # In two parts, joined and thinned again: the same rows.
    parts = [some_of_each(labels[part], chance[part], 7) + part.start for part in (slice(0, 25), slice(25, 60))]
    joined = torch.cat(parts)
    assert set(joined[some_of_each(labels[joined], chance[joined], 7)].tolist()) == expected


def test_what_there_is_none_of() -> None:
    nothing = torch.zeros(0)
    assert some_of_each(nothing.long(), nothing, 5).tolist() == []
    assert some_of_each(torch.full((3,), IGNORE_INDEX), torch.rand(3), 5).tolist() == []
