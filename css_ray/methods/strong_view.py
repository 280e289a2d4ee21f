"""The student's view of the unlabelled images, and the teacher's predictions for them, moved with the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from css_ray import distributed
from css_ray.functional.augmentation import horizontal_flip, scale_and_crop
from css_ray.functional.mixing import half_area_boxes, mix
from css_ray.methods.base import Method

Partner = Literal["local", "global", "rank_zero"]
"""Whose images CutMix pastes: the next one of the rank's batch, the next of all ranks' batches, or rank 0's (as published)."""


def strong_view(
    method: Method, images: Tensor, maps: Sequence[Tensor], fills: Sequence[float], *, partner: Partner | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Scale and crop, then CutMix, then colours, blur and flip, in the order of the published code.

    images: [B, 3, H, W]. maps: [B, ..., H, W] each, moved and mixed like the images; `fills` are their values in padding.
    partner: None leaves CutMix out.
    """
    # A label fits into a byte, IGNORE_INDEX being the largest; moving eight for each would cost as much as the images.
    slim = [item.to(torch.uint8) if item.dtype == torch.int64 else item for item in maps]
    images, moved = _strong_view(method, images, slim, fills, partner)
    return images, tuple(item.to(given.dtype) for item, given in zip(moved, maps, strict=True))


def _strong_view(
    method: Method, images: Tensor, maps: Sequence[Tensor], fills: Sequence[float], partner: Partner | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    images, moved = scale_and_crop(images, maps, fills, method.views.strong_scale, method.views.padding)
    if partner is not None:
        boxes = half_area_boxes(images.shape[0], images.shape[2], images.shape[3], images.device)
        images, *rest = (mix(boxes, item, next_items(item, partner)) for item in (images, *moved))
        moved = tuple(rest)
    images = method.strong_colours(images)
    return horizontal_flip(images, moved) if method.views.flip else (images, moved)


def next_items(items: Tensor, partner: Partner) -> Tensor:
    """[B, ...] -> [B, ...]: what each item is mixed with. On one rank all kinds are the same: the next item, in a ring."""
    if partner == "local" or distributed.world_size() == 1:
        return items.roll(-1, dims=0)
    everyone = distributed.all_gather(items)
    first = 0 if partner == "rank_zero" else distributed.rank() * len(items)
    ring = len(items) if partner == "rank_zero" else len(everyone)
    return everyone[(torch.arange(len(items), device=items.device) + first + 1) % ring]
