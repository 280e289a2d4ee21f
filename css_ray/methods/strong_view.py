"""The student's view of the unlabelled images, and what the teacher said about them, moved with the pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from css_ray.functional.augmentation import horizontal_flip, scale_and_crop
from css_ray.functional.mixing import half_area_boxes, mix_with_next
from css_ray.methods.base import Method


def strong_view(
    method: Method, images: Tensor, maps: Sequence[Tensor], fills: Sequence[float], *, cutmix: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Scale and crop, then CutMix, then colours, blur and flip, in the order of the published code.

    images: [B, 3, H, W]. maps: [B, ..., H, W] each, moved and mixed like the images; `fills` are their values in padding.
    """
    images, moved = scale_and_crop(images, maps, fills, method.views.strong_scale)
    if cutmix:
        boxes = half_area_boxes(images.shape[0], images.shape[2], images.shape[3], images.device)
        images, *rest = mix_with_next(boxes, images, *moved)
        moved = tuple(rest)
    images = method.strong_colours(images)
    return horizontal_flip(images, moved) if method.views.flip else (images, moved)
