"""The geometry of one training image: scale, pad, crop, flip. Colours change later, on the batch's device.

All chance comes from a `random.Random` that the caller seeds, and only from its `random()`, whose numbers Python freezes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from css_ray.views import Views


def labelled_view(
    image: Tensor, maps: Sequence[Tensor], fills: Sequence[float], *, crop: int, views: Views, random: Random
) -> tuple[Tensor, list[Tensor]]:
    """Scale by a factor from `views.scale`, pad to the crop, crop at random, mirror left to right (`views.flip`).

    image: uint8 [3, H, W]. maps: [H, W] each, of any type; the value of a pixel (its label, a confidence) follows it.
    fills: one number per map, its value in padding: IGNORE_INDEX for labels. crop: side of the result in pixels.
    Returns the image, uint8 [3, crop, crop], mirrored into the padding, and the maps [crop, crop].
    """
    low, high = views.scale
    factor = low + (high - low) * random.random()
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    rows, columns = _window(height, crop, random), _window(width, crop, random)
    mirrored = views.flip and random.random() < 0.5

    scaled = _scaled(image, (height, width))
    view = _padded(scaled[:, rows, columns], crop)
    from_rows, from_columns = _nearest(image.shape[1], height)[rows], _nearest(image.shape[2], width)[columns]
    moved = []
    for item, fill in zip(maps, fills, strict=True):
        seen = item.index_select(0, from_rows).index_select(1, from_columns)
        padded = item.new_full((crop, crop), fill)
        padded[: seen.shape[0], : seen.shape[1]] = seen
        moved.append(padded)
    return (view.flip(-1), [item.flip(-1) for item in moved]) if mirrored else (view, moved)


def unlabelled_view(image: Tensor, *, crop: int, random: Random) -> tuple[Tensor, Tensor]:
    """Pad to the crop and crop at random: the weak view.

    image: uint8 [3, H, W]; crop: side of the result in pixels.
    Returns the image, uint8 [3, crop, crop], and bool [crop, crop], False where it is padded.
    """
    rows, columns = _window(image.shape[1], crop, random), _window(image.shape[2], crop, random)
    seen = image[:, rows, columns]
    valid = torch.zeros(crop, crop, dtype=torch.bool)
    valid[: seen.shape[1], : seen.shape[2]] = True
    return _padded(seen, crop), valid


def _scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] resized to `size` (height, width) bilinearly and antialiased, as Pillow does."""
    if size == tuple(image.shape[1:]):
        return image
    return F.interpolate(image.unsqueeze(0), size, mode="bilinear", antialias=True).squeeze(0)


def _nearest(side: int, size: int) -> Tensor:
    """Which of `side` pixels lies below the centre of each of `size`: int64 [size]."""
    # "nearest" would sample at the upper left corner of a pixel; the bilinear image, too, is sampled at the centre.
    return F.interpolate(torch.arange(float(side))[None, None], size, mode="nearest-exact")[0, 0].long()


def _window(side: int, crop: int, random: Random) -> slice:
    """Where a crop lies on a side of `side` pixels; all of it if the crop is longer. Draws one number in either case."""
    start = int(random.random() * (max(side, crop) - crop + 1))
    return slice(start, start + crop)


def _padded(image: Tensor, crop: int) -> Tensor:
    """[3, h, w] mirrored beyond its right and lower edge to [3, crop, crop], back and forth if need be."""
    for axis in (1, 2):
        if (side := image.shape[axis]) < crop:
            image = image.index_select(axis, _mirrored(side, crop))
    return image


def _mirrored(side: int, length: int) -> Tensor:
    """Indices 0, 1, .., side-1, side-2, .., 1, 0, 1, ..: int64 [length]. The edge pixel itself is not repeated."""
    period = max(1, 2 * (side - 1))
    there = torch.arange(length) % period
    return torch.minimum(there, period - there)
