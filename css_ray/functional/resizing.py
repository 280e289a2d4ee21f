"""Between the decoder's stride and the pixels of the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32

Grid = Literal["aligned", "corner"]


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W] float32 or float64 for `size` (H, W): bilinear, corners aligned, as the decoder does it."""
    return F.interpolate(at_least_float32(maps), size=size, mode="bilinear", align_corners=True)


def upsampled_at(maps: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """[B, K, h, w], [S] pixels y * W + x -> [B, S, K]: what `upsample` to `size` (H, W) shows at the points, of each image."""
    (num_images, channels, height, width), maps = maps.shape, at_least_float32(maps)

    def between(place: Tensor, given: int, wanted: int) -> tuple[Tensor, Tensor]:
        """[S, 2] each: the two cells of a side that a point lies between, and their weights."""
        source = place.to(maps.dtype) * ((given - 1) / max(wanted - 1, 1))
        first = source.long().clamp(max=max(given - 2, 0))
        share = source - first
        return torch.stack([first, (first + 1).clamp(max=given - 1)], dim=1), torch.stack([1 - share, share], dim=1)

    (row, down), (column, across) = (
        between(points // size[1], height, size[0]),
        between(points % size[1], width, size[1]),
    )
    cells = (row.unsqueeze(2) * width + column.unsqueeze(1)).flatten(1)  # [S, 4]
    weights = (down.unsqueeze(2) * across.unsqueeze(1)).flatten(1)
    image = torch.arange(num_images, device=maps.device).view(-1, 1, 1) * (height * width)
    # A bag gathers and adds up without a copy of four cells per point, and its gradient on a GPU repeats its bits.
    found = F.embedding_bag(
        (cells + image).flatten(0, 1),
        maps.flatten(2).transpose(1, 2).reshape(-1, channels),
        mode="sum",
        per_sample_weights=weights.repeat(num_images, 1),
    )
    return found.view(num_images, len(points), channels)


def nearest(maps: Tensor, size: tuple[int, int], grid: Grid = "aligned") -> Tensor:
    """[..., H, W] -> [..., h, w] of any dtype for `size` (h, w): the pixels at which `upsample` shows the cells of a map.

    aligned: cell j reads pixel round(j (H - 1) / (h - 1)), half upwards, where `upsample` puts it; a single cell, shown
    everywhere, reads the middle. corner: cell j reads pixel floor(j H / h), as the published code does, although it shows the
    cells where `upsample` does: up to three quarters of a cell away, at stride 4 three pixels.
    """
    read = _corners if grid == "corner" else _shown
    rows, columns = (read(given, wanted, maps.device) for given, wanted in zip(maps.shape[-2:], size, strict=True))
    return maps.index_select(-2, rows).index_select(-1, columns)


def _shown(given: int, wanted: int, device: torch.device) -> Tensor:
    if wanted == 1:
        return torch.tensor([(given - 1) // 2], device=device)
    cells = torch.arange(wanted, device=device)
    return (2 * cells * (given - 1) + wanted - 1) // (2 * (wanted - 1))  # of whole numbers: no rounding of a quotient


def _corners(given: int, wanted: int, device: torch.device) -> Tensor:
    return torch.arange(wanted, device=device) * given // wanted
