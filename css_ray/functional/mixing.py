"""CutMix: a box of each image is replaced by its neighbour's (French et al., BMVC 2020)."""

from __future__ import annotations

import torch
from torch import Tensor


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
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)
    across = (x >= left[:, None]) & (x < (left + box_width)[:, None])
    down = (y >= top[:, None]) & (y < (top + box_height)[:, None])
    return down[:, :, None] & across[:, None, :]


def mix(boxes: Tensor, items: Tensor, partners: Tensor) -> Tensor:
    """[B, H, W] bool, [B, ..., H, W] twice -> `items` with the inside of the boxes taken from `partners`.

    The same boxes serve images and maps of any meaning, so that labels follow their pixels.
    """
    inside = boxes.view(boxes.shape[0], *[1] * (items.dim() - 3), *boxes.shape[1:])
    return torch.where(inside, partners, items)
