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
    Returns the image, uint8 [3, crop, crop], with `views.padding` beyond its own, and the maps [crop, crop].
    """
    low, high = views.scale
    factor = low + (high - low) * random.random()
    height, width = _times(image, factor)
    rows, columns = _window(height, crop, random), _window(width, crop, random)
    mirrored = views.flip and random.random() < 0.5

    view = _padded(_scaled(image, (height, width))[:, rows, columns], crop, views)
    from_rows, from_columns = _nearest(image.shape[1], height)[rows], _nearest(image.shape[2], width)[columns]
    moved = []
    for item, fill in zip(maps, fills, strict=True):
        seen = item.index_select(0, from_rows).index_select(1, from_columns)
        padded = item.new_full((crop, crop), fill)
        padded[: seen.shape[0], : seen.shape[1]] = seen
        moved.append(padded)
    return (view.flip(-1), [item.flip(-1) for item in moved]) if mirrored else (view, moved)


def unlabelled_view(image: Tensor, *, crop: int, views: Views, random: Random) -> tuple[Tensor, Tensor]:
    """The weak view: scale by a factor from `views.weak_scale`, pad to the crop, crop, mirror (`views.weak_flip`).

    image: uint8 [3, H, W]; crop: side of the result in pixels.
    Returns the image, uint8 [3, crop, crop], and bool [crop, crop], False where it is padded.
    """
    low, high = views.weak_scale
    if low < high or low != 1:  # without scaling a view is the one that earlier versions drew
        image = _scaled(image, _times(image, low + (high - low) * random.random()))
    rows, columns = _window(image.shape[1], crop, random), _window(image.shape[2], crop, random)
    seen = image[:, rows, columns]
    valid = torch.zeros(crop, crop, dtype=torch.bool)
    valid[: seen.shape[1], : seen.shape[2]] = True
    view = _padded(seen, crop, views)
    return (view.flip(-1), valid.flip(-1)) if views.weak_flip and random.random() < 0.5 else (view, valid)


def _times(image: Tensor, factor: float) -> tuple[int, int]:
    """The height and width of an image that is resized by a factor."""
    return max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))


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


def _padded(image: Tensor, crop: int, views: Views) -> Tensor:
    """[3, h, w] -> [3, crop, crop]: mirrored beyond its right and lower edge, back and forth if need be, or black there."""
    if views.padding == "black":
        return F.pad(image, (0, crop - image.shape[2], 0, crop - image.shape[1]))
    for axis in (1, 2):
        if (side := image.shape[axis]) < crop:
            image = image.index_select(axis, _mirrored(side, crop))
    return image


def _mirrored(side: int, length: int) -> Tensor:
    """Indices 0, 1, .., side-1, side-2, .., 1, 0, 1, ..: int64 [length]. The edge pixel itself is not repeated."""
    period = max(1, 2 * (side - 1))
    there = torch.arange(length) % period
    return torch.minimum(there, period - there)
