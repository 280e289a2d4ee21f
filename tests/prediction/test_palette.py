"""Colours that the colour-blind tell apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from css_ray.prediction.palette import FIRST, distances, perceived, safe_palette


@pytest.mark.parametrize("count", [1, 8, 21, 150, 255])
def test_as_many_colours_as_classes_all_distinct(count: int) -> None:
    palette = safe_palette(count)
    assert len(set(palette)) == count and palette[:8] == FIRST[:count]
    assert all(0 <= value <= 255 for colour in palette for value in colour)


def test_lab_of_white_black_and_red() -> None:
    """Against the values of sRGB red, white and black under D65."""
    normal = perceived(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))[0]
    assert np.allclose(normal, np.array([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]]), atol=0.1)


def test_red_and_green_of_one_lightness_look_alike_to_some_and_our_colours_do_not() -> None:
    def apart(first: tuple[int, int, int], other: tuple[int, int, int]) -> float:
        return float(distances(perceived(np.array([first])), perceived(np.array([other])))[0])

    assert apart((200, 100, 60), (118, 128, 60)) < 12  # to normal sight they are 60 apart
    assert min(apart(*pair) for pair in itertools.combinations(safe_palette(21), 2)) > 12
