"""Windows: where they lie, and that overlaps are averaged, against plain loops over pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from css_ray.functional.windows import sliding_window, window_starts


@pytest.mark.parametrize(
    ("size", "window", "starts"),
    [
        (5, 8, [0]),  # smaller than the window
        (8, 8, [0]),
        (9, 8, [0, 1]),  # the last one is shifted inside
        (14, 8, [0, 6]),  # ceil(16 / 3) = 6: fits exactly
        (15, 8, [0, 6, 7]),
        (3, 1, [0, 1, 2]),
        (1024, 769, [0, 255]),  # Cityscapes: crops of 769 on images of 1024 x 2048, stride 513
        (2048, 769, [0, 513, 1026, 1279]),
    ],
)
def test_where_windows_begin(size: int, window: int, starts: list[int]) -> None:
    assert window_starts(size, window) == starts


def test_windows_cover_each_side_without_a_gap() -> None:
    for size in range(1, 40):
        for window in range(1, 20):
            starts = window_starts(size, window)
            covered = {pixel for start in starts for pixel in range(start, min(start + window, size))}
            assert covered == set(range(size))
            assert starts == sorted(set(starts)) and starts[-1] + window <= max(size, window)
            # No more of them than the stride asks for.
            assert len(starts) == max(0, math.ceil((size - window) / math.ceil(2 * window / 3))) + 1


def predict(images: Tensor) -> Tensor:
    """Three classes; what a window says of a pixel depends on all of the window, as a network's does."""
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [-0.7, 0.2, 2.0]])
    position = torch.arange(images.shape[-1]) / images.shape[-1]
    return torch.einsum("ck,bkhw->bchw", weights, images) * (1 + position) + images.mean(dim=(1, 2, 3), keepdim=True)


def by_pixel(images: Tensor, tops: list[int], lefts: list[int], window: int, average: str) -> Tensor:
    """The mean of the windows' scores, pixel by pixel and in plain Python."""
    batch, _, height, width = images.shape
    result = torch.zeros(batch, 3, height, width)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                found = []
                for top in tops:
                    for left in lefts:
                        if top <= y < top + window and left <= x < left + window:
                            logits = predict(images[b : b + 1, :, top : top + window, left : left + window])[
                                0, :, y - top, x - left
                            ]
                            exponentials = [math.exp(value) for value in logits.tolist()]
                            found.append(
                                [value / sum(exponentials) for value in exponentials]
                                if average == "probabilities"
                                else logits.tolist()
                            )
                for c in range(3):
                    result[b, c, y, x] = sum(scores[c] for scores in found) / len(found)
    return result


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_overlaps_are_averaged(average: Any) -> None:
    images = torch.rand(2, 3, 7, 11, generator=torch.Generator().manual_seed(0))
    # A stride of ceil(2/3 * 5) = 4: rows at 0 and 2, columns at 0, 4 and 6.
    expected = by_pixel(images, [0, 2], [0, 4, 6], 5, average)
    assert torch.allclose(sliding_window(predict, images, 5, average), expected, atol=1e-6)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("size", [(4, 6), (4, 13)])
def test_a_side_shorter_than_the_window_is_one_window(size: tuple[int, int], average: Any) -> None:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, int]] = []

    def watched(window: Tensor) -> Tensor:
        seen.append((window.shape[2], window.shape[3]))
        return predict(window)

    scores = sliding_window(watched, images, 8, average)
    assert scores.shape == (1, 3, *size)
    assert seen == ([(4, 6)] if size == (4, 6) else [(4, 8), (4, 8)])
    if size == (4, 6):
        logits = predict(images)
        assert torch.equal(scores, logits.softmax(dim=1) if average == "probabilities" else logits)


def test_half_precision_logits_are_averaged_in_float32() -> None:
    images = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(2))
    scores = sliding_window(lambda window: predict(window).bfloat16(), images, 5)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.sum(dim=1), torch.ones(1, 6, 9), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "window", "message"), [(0, 4, "size must be >= 1, got 0"), (4, 0, "window must be >= 1, got 0")]
)
def test_bad_sizes_are_named(size: int, window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        window_starts(size, window)
