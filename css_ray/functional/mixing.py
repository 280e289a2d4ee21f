"""Mixing: a part of each image is replaced by another's (CutMix, French et al., BMVC 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Partners = Literal["roll", "reverse", "permute"]
"""Whose part an image gets: that of the next one, of the one as far from the other end, or of any, itself included."""


def partners(count: int, how: Partners, device: torch.device) -> Tensor:
    """[count] int64: the partner of each image of a batch; with `roll` never itself if there are two or more."""
    if how == "permute":
        return torch.randperm(count, device=device)
    order = torch.arange(count, device=device)
    return order.flip(0) if how == "reverse" else order.roll(-1)


def half_area_boxes(num_images: int, height: int, width: int, device: torch.device) -> Tensor:
    """[B, H, W] bool: one random box per image of half the area, wider than half the image, True inside.

    The width is uniform in {W // 2 + 1 .. W - 1}, the height round(H W / (2 width)), the position uniform.
    """

    def up_to(count: Tensor) -> Tensor:  # uniform in {0 .. count - 1}
        return (torch.rand(num_images, device=device) * count).long().clamp(max=count - 1)

    narrowest = width // 2 + 1
    box_width = narrowest + up_to(torch.full((num_images,), max(width - narrowest, 1), device=device))
    box_height = (height * width / (2 * box_width)).round().long().clamp(max=height)
    left, top = up_to(width - box_width + 1), up_to(height - box_height + 1)
    return _inside(top[:, None], left[:, None], box_height[:, None], box_width[:, None], height, width)


_CANDIDATES = 128
"""Of how many shapes and places of a box the first that fits is taken: with FixMatch's settings one nearly always does."""


def area_boxes(
    num_images: int,
    height: int,
    width: int,
    device: torch.device,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Tensor:
    """[B, H, W] bool: with `probability` one box per image, True inside; FixMatch for segmentation (Yang et al., CVPR 2023).

    Its share of the image is uniform in `area`. Its height / width, uniform in `aspect`, and its corner, uniform in the image,
    are drawn again until it fits; an image where none fits has no box.
    """

    def uniform(low: float, high: float, draws: int = _CANDIDATES) -> Tensor:
        return low + (high - low) * torch.rand(num_images, draws, device=device)

    size, ratio = uniform(*area, draws=1) * (height * width), uniform(*aspect)
    box_height, box_width = (size * ratio).sqrt().long(), (size / ratio).sqrt().long()
    top, left = uniform(0, height).long(), uniform(0, width).long()
    fits = (top + box_height <= height) & (left + box_width <= width)
    first = fits.int().argmax(dim=1, keepdim=True)
    top, left, box_height, box_width = (each.gather(1, first) for each in (top, left, box_height, box_width))
    chosen = fits.any(dim=1) & (torch.rand(num_images, device=device) < probability)
    return _inside(top, left, box_height, box_width, height, width) & chosen[:, None, None]


def beta_boxes(
    num_images: int,
    height: int,
    width: int,
    device: torch.device,
    *,
    concentration: float | Sequence[float],
    clipped: bool = False,
) -> Tensor:
    """[B, H, W] bool: one box per image, of the image's shape, that covers 1 - λ of it, λ ~ Beta(a, b) (Yun et al., ICCV 2019).

    concentration: a and b, or one number for both. The box lies anywhere inside of the image; clipped: its centre is anywhere
    in the image, and what lies outside is cut off, as in the code of CutMix.
    """
    both = (concentration, concentration) if isinstance(concentration, int | float) else concentration
    a, b = (torch.full((num_images, 1), float(each), device=device) for each in both)
    # Its check of the concentrations would ask the host.
    side = (1 - torch.distributions.Beta(a, b, validate_args=False).sample()).sqrt()

    def span(length: int) -> tuple[Tensor, Tensor]:
        """Where a box begins along a side of the image, and how long it is."""
        box, place = (side * length).round().long().clamp(1, length), torch.rand(num_images, 1, device=device)
        return ((place * length).long() - box // 2 if clipped else (place * (length - box + 1)).long()), box

    (top, box_height), (left, box_width) = span(height), span(width)
    return _inside(top, left, box_height, box_width, height, width)


def xor_boxes(
    num_images: int, height: int, width: int, device: torch.device, *, boxes: int, area: tuple[float, float]
) -> Tensor:
    """[B, H, W] bool: where an odd number of `boxes` random boxes lies; CPS with CutMix (Chen et al., CVPR 2021).

    Each box draws its q, uniform in `area`, covers q / boxes of the image, and lies anywhere inside of it. Its height is the
    share q^v / sqrt(boxes) of the image's, v uniform in [0, 1], its width what is left.
    """
    inside = torch.zeros(num_images, height, width, dtype=torch.bool, device=device)
    for _ in range(boxes):
        q = area[0] + (area[1] - area[0]) * torch.rand(num_images, 1, device=device)
        tall = q ** torch.rand(num_images, 1, device=device)
        box_height = (tall / boxes**0.5 * height).round().long().clamp(1, height)
        box_width = (q / tall / boxes**0.5 * width).round().long().clamp(1, width)
        top = (torch.rand(num_images, 1, device=device) * (height - box_height + 1)).long()
        left = (torch.rand(num_images, 1, device=device) * (width - box_width + 1)).long()
        inside = inside ^ _inside(top, left, box_height, box_width, height, width)
    return inside


def _inside(top: Tensor, left: Tensor, box_height: Tensor, box_width: Tensor, height: int, width: int) -> Tensor:
    """[B, 1] each -> [B, H, W] bool, True inside of the boxes."""
    y, x = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    down = (y >= top) & (y < top + box_height)
    across = (x >= left) & (x < left + box_width)
    return down[:, :, None] & across[:, None, :]


def mix(boxes: Tensor, items: Tensor, partners: Tensor) -> Tensor:
    """[B, H, W] bool, [B, ..., H, W] twice -> `items` with the inside of the boxes taken from `partners`.

    The same boxes serve images and maps of any meaning, so that labels follow their pixels.
    """
    inside = boxes.view(boxes.shape[0], *[1] * (items.dim() - 3), *boxes.shape[1:])
    return torch.where(inside, partners, items)
