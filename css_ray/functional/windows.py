"""Predictions of an image larger than the training crop, from windows of that size whose overlaps are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

WindowAverage = Literal["probabilities", "logits"]


def window_starts(size: int, window: int) -> list[int]:
    """Where windows begin along a side of `size` pixels: every ceil(2/3 * window) pixels, the last one shifted inside.

    A side that one window covers gives [0]. Raises ValueError if size or window is below 1.
    """
    for name, value in (("size", size), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}; it is a number of pixels")
    if size <= window:
        return [0]
    stride = -(-2 * window // 3)
    last = size - window
    return [*range(0, last, stride), last]


def whole_or_windows(
    predict: Callable[[Tensor], Tensor], images: Tensor, window: int | None, average: WindowAverage = "probabilities"
) -> Tensor:
    """[B, 3, H, W] -> scores [B, C, H, W] in float32, whose argmax are the classes that an evaluation counts.

    predict: [B, 3, h, w] -> logits [B, C, h, w]. window, average: as of `sliding_window`; without a window the scores are the
    logits of the whole images.
    """
    return predict(images) if window is None else sliding_window(predict, images, window, average)


def sliding_window(
    predict: Callable[[Tensor], Tensor], images: Tensor, window: int, average: WindowAverage = "probabilities"
) -> Tensor:
    """[B, 3, H, W] -> scores [B, C, H, W] in float32: at each pixel the mean over the windows that cover it.

    predict: [B, 3, h, w] -> logits [B, C, h, w]. window: its side in pixels; along a shorter side of the image it is that long.
    average: what is averaged, each window's softmax or its logits.
    """
    height, width = images.shape[-2:]
    sums: Tensor | None = None
    counts = images.new_zeros(height, width, dtype=torch.float32)
    for top in window_starts(height, window):
        for left in window_starts(width, window):
            # A slice ends at the border by itself if the image is smaller than the window.
            rows, columns = slice(top, top + window), slice(left, left + window)
            scores = predict(images[..., rows, columns]).float()
            if average == "probabilities":
                scores = scores.softmax(dim=1)
            if sums is None:
                sums = scores.new_zeros(*scores.shape[:2], height, width)
            sums[..., rows, columns] += scores
            counts[rows, columns] += 1
    assert sums is not None  # there is a window at least
    return sums.div_(counts)
