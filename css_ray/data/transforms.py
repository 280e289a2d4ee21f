"""The geometry of one training image: scale, pad, crop, flip. Colours change later, on the batch's device.

All chance comes from a `random.Random` that the caller seeds, and only from its `random()`, whose numbers Python freezes.
"""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from css_ray.types import IGNORE_INDEX
from css_ray.views import Views


def labelled_view(image: Tensor, mask: Tensor, *, crop: int, views: Views, random: Random) -> tuple[Tensor, Tensor]:
    """Scale by a factor from `views.scale`, pad to the crop, crop at random, mirror left to right (`views.flip`).

    image: uint8 [3, H, W]; mask: uint8 [H, W]; crop: side of the result in pixels.
    Returns the image, uint8 [3, crop, crop], and its labels, int64 [crop, crop], IGNORE_INDEX where the image is padded.
    """
    low, high = views.scale
    image, mask = _scaled(image, mask, low + (high - low) * random.random())
    rows, columns = _window(mask.shape[0], crop, random), _window(mask.shape[1], crop, random)
    image = _padded(image[:, rows, columns], crop)
    seen = mask[rows, columns]
    labels = torch.full((crop, crop), IGNORE_INDEX, dtype=torch.int64)
    labels[: seen.shape[0], : seen.shape[1]] = seen
    if views.flip and random.random() < 0.5:
        return image.flip(-1), labels.flip(-1)
    return image, labels


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


def _scaled(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Both resized: the image bilinearly and antialiased, as Pillow does; the mask to the nearest pixel's class."""
    size = [max(1, round(side * factor)) for side in mask.shape]
    if size == list(mask.shape):
        return image, mask
    image = F.interpolate(image.unsqueeze(0), size, mode="bilinear", antialias=True).squeeze(0)
    # "nearest" samples the upper left corner of a pixel, "nearest-exact" its centre, as the bilinear image does.
    mask = F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]
    return image, mask


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
