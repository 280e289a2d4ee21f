"""Random intensity augmentation: each image goes through a few operations of a pool (AugSeg, Zhao et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Operation = Callable[[Tensor, float], Tensor]
"""Images [1, 3, H, W] in [0, 1] and a draw in [0, 1) -> changed ones; the draw decides how much."""


def _ops() -> Any:
    """Imported where an image is changed: it takes as long as torch itself, and commands that show a study need none of it."""
    from torchvision.transforms.v2 import functional

    return functional


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _whole(low: int, high: int, draw: float) -> int:
    """One of low .. high, both included."""
    return low + min(int(draw * (high - low + 1)), high - low)


def _blur(image: Tensor, draw: float) -> Tensor:
    sigma = _between(0.1, 2.0, draw)
    # Three sigmas to each side; a border is mirrored, so it has to be shorter than the image.
    height, width = (min(2 * round(3 * sigma) + 1, 2 * side - 1) for side in image.shape[-2:])
    blurred: Tensor = _ops().gaussian_blur(image, [width, height], [sigma, sigma])
    return blurred.clamp(0, 1)  # weights add up to 1 but for their last bits


def _solarize(image: Tensor, draw: float) -> Tensor:
    """Inverts what reaches 1 .. 255 of 255."""
    return torch.where(image >= _whole(1, 255, draw) / 255, 1 - image, image)


def _soften(image: Tensor, draw: float) -> Tensor:
    """Pillow's sharpness: between the image and its smoothed self, borders as they are.

    Not torchvision's, which copies its kernel to the device and waits for it.
    """
    if min(image.shape[-2:]) <= 2:
        return image
    inside = image[..., 1:-1, 1:-1]
    smooth = (9 * F.avg_pool2d(image, 3, stride=1) + 4 * inside) / 13  # weights 1, and 5 in the middle
    softened = image.clone()
    softened[..., 1:-1, 1:-1] = torch.lerp(smooth, inside, _between(0.05, 0.95, draw)).clamp(0, 1)
    return softened


POOL: dict[str, Operation] = {
    "identity": lambda image, draw: image,
    "autocontrast": lambda image, draw: _ops().autocontrast(image),
    "equalize": lambda image, draw: _ops().equalize(image),
    "blur": _blur,
    "contrast": lambda image, draw: _ops().adjust_contrast(image, _between(0.05, 0.95, draw)),
    "brightness": lambda image, draw: _ops().adjust_brightness(image, _between(0.05, 0.95, draw)),
    "saturation": lambda image, draw: _ops().adjust_saturation(image, _between(0.05, 0.95, draw)),
    "sharpness": _soften,
    "posterize": lambda image, draw: _ops().posterize(image, _whole(4, 7, draw)),
    "solarize": _solarize,
    "hue": lambda image, draw: _ops().adjust_hue(image, _between(-0.5, 0.5, draw)),
}
"""The operations of AugSeg's released code with its ranges: contrast, brightness, saturation and sharpness are only lowered."""


def random_intensity(images: Tensor, how_many: tuple[int, int]) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, H, W]: each image after k operations of POOL, k uniform in how_many[0] .. how_many[1].

    The k are drawn with replacement, and applied in the order in which they are drawn. Draws are made on the host, so that a
    device is not asked which operation comes next.
    """
    with torch.autocast(images.device.type, enabled=False):  # its bfloat16 has no more steps than 8 bits
        names, draws = tuple(POOL), torch.rand(len(images), 1 + 2 * how_many[1]).tolist()
        return torch.cat(
            [_changed(image, names, draw, how_many) for image, draw in zip(torch.split(images, 1), draws, strict=True)]
        )


def _changed(image: Tensor, names: Sequence[str], draws: Sequence[float], how_many: tuple[int, int]) -> Tensor:
    for place in range(_whole(*how_many, draws[0])):
        which, much = draws[1 + 2 * place : 3 + 2 * place]
        image = POOL[names[_whole(0, len(names) - 1, which)]](image, much)
    return image
