"""Random changes of a batch on its own device: geometry for images and maps together, colour and blur for images.

Images are [B, 3, H, W] float in [0, 1] and stay floats: nothing is rounded to 8 bits on the way. Each draws its own change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.mixing import area_boxes, mix
from css_ray.types import IGNORE_INDEX

_GREY = (0.299, 0.587, 0.114)  # the luma of Rec. 601, which PIL uses too
_TO_YIQ = torch.tensor([_GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
# The inverse of the above, written out: the last bits of an inverse computed here would depend on the machine's LAPACK.
_FROM_YIQ = torch.tensor([(1.0, 0.95605022, 0.62075502), (1.0, -0.27205232, -0.64720571), (1.0, -1.10670435, 1.70442140)])


def scale_and_crop(
    images: Tensor,
    maps: Sequence[Tensor],
    fills: Sequence[float],
    scale: tuple[float, float],
    padding: Literal["mirror", "black"] = "mirror",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Resize by a random factor, pad at the right and the bottom, crop back to H x W; maps [B, ..., H, W] follow the pixels.

    Images are interpolated bilinearly and mirrored into the padding, or black there; maps take the nearest value, and in the
    padding their own entry of `fills`. Departs from the published code by resizing down without a low-pass filter.
    """
    if scale == (1, 1):
        return images, tuple(maps)
    (num_images, height, width), device = (images.shape[0], *images.shape[-2:]), images.device
    factor = scale[0] + (scale[1] - scale[0]) * torch.rand(num_images, 1, device=device)

    def source(size: int) -> Tensor:  # [B, size]: the input coordinate, in pixels from the edge, of each output pixel's centre
        offset = torch.rand(num_images, 1, device=device) * (size * factor - size).clamp(min=0)
        return (torch.arange(size, device=device) + 0.5 + offset) / factor

    y, x = source(height), source(width)
    across, down = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    grid = torch.stack([across * (2 / width) - 1, down * (2 / height) - 1], dim=-1)
    scaled = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="reflection", align_corners=False)
    outside = (y >= height)[:, :, None] | (x >= width)[:, None, :]
    row, column = y.long().clamp(max=height - 1), x.long().clamp(max=width - 1)
    image = torch.arange(num_images, device=device)[:, None]
    if padding == "black":  # not by grid_sample, which would darken the last row and column too
        scaled = scaled.masked_fill(outside[:, None], 0)
    moved = []
    for item, fill in zip(maps, fills, strict=True):
        between = [1] * (item.dim() - 3)
        rows = item.movedim(-2, 1)[image, row]  # [B, H, ..., W]: whole rows first, which is fast
        taken = rows.gather(-1, column.view(num_images, 1, *between, width).expand_as(rows)).movedim(1, -2)
        moved.append(taken.masked_fill_(outside.view(num_images, *between, height, width), fill))
    return scaled, tuple(moved)


def horizontal_flip(images: Tensor, maps: Sequence[Tensor], probability: float = 0.5) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Mirror a random share of the images left to right, and their maps [B, ..., H, W] with them."""
    flipped = torch.rand(images.shape[0], device=images.device) < probability

    def mirror(item: Tensor) -> Tensor:
        return _change_some(item, flipped, lambda chosen, _: chosen.flip(-1))

    return mirror(images), tuple(mirror(item) for item in maps)


def _change_some(items: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[B, ...] with `change(items, places)` where `chosen` [B] bool; `places` are the indices of the items it is given.

    A CPU changes the chosen ones only; a GPU, which would have to report to the host which they are, changes all and selects.
    """
    if chosen.device.type != "cpu":
        changed = change(items, torch.arange(len(items), device=items.device))
        return torch.where(chosen.view(-1, *[1] * (items.dim() - 1)), changed, items)
    places = chosen.nonzero().squeeze(1)
    return items.index_copy(0, places, change(items[places], places)) if len(places) else items


def colour_jitter(images: Tensor, strength: float, probability: float, hue: float | None = None) -> Tensor:
    """Change brightness, contrast and saturation by factors in 1 +- strength, and the hue by +- `hue` turns (None: strength).

    All four together are one affine map of the colours per image, applied and clamped to [0, 1] once. Departs from the
    published code, which clamps after each: the order is fixed, and the hue turns in the YIQ plane instead of HSV.
    """
    with torch.autocast(images.device.type, enabled=False):  # its bfloat16 has no more steps than 8 bits
        num_images, device = images.shape[0], images.device
        applied = torch.rand(num_images, device=device) < probability
        noise = 2 * torch.rand(4, num_images, device=device) - 1
        brightness, contrast, saturation = (1 + noise[:3] * strength * applied)[..., None, None]
        angle = 2 * math.pi * (noise[3] * (strength if hue is None else hue) * applied)
        to_yiq, from_yiq = (matrix.to(device, images.dtype, non_blocking=True) for matrix in (_TO_YIQ, _FROM_YIQ))
        identity, grey = torch.eye(3, device=device), to_yiq[0].expand(3, 3)
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], dim=1).view(-1, 3, 3)
        turned = from_yiq @ turn @ to_yiq
        recolour = turned @ (saturation * identity + (1 - saturation) * grey)
        mean_grey = grey @ images.mean(dim=(2, 3)).unsqueeze(2)  # [B, 3, 1]
        matrix = recolour @ (contrast * brightness * identity)
        offset = recolour @ ((1 - contrast) * brightness * mean_grey)
        changed = torch.baddbmm(offset, matrix, images.flatten(2)).view_as(images).clamp_(0, 1)
        return torch.where(applied[:, None, None, None], changed, images)


def grey(images: Tensor, probability: float) -> Tensor:
    """Replace a random share of the images by their luma, three channels of it."""
    chosen = torch.rand(images.shape[0], device=images.device) < probability
    weights = torch.tensor(_GREY, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return torch.where(chosen.view(-1, 1, 1, 1), (images * weights).sum(dim=1, keepdim=True), images)


def gaussian_blur(images: Tensor, sigma: tuple[float, float], probability: float) -> Tensor:
    """Blur a random share of the images, each with its own sigma (in pixels) from the range; borders are mirrored."""
    with torch.autocast(images.device.type, enabled=False):
        num_images, _, height, width = images.shape
        device = images.device
        radius = min(math.ceil(3 * sigma[1]), height - 1, width - 1)
        sigmas = sigma[0] + (sigma[1] - sigma[0]) * torch.rand(num_images, 1, device=device)
        distance = torch.arange(-radius, radius + 1, device=device)
        kernel = torch.exp(-(distance**2) / (2 * sigmas**2))
        kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [B, taps]

        def blur(chosen: Tensor, places: Tensor) -> Tensor:
            padded = F.pad(chosen, (radius, radius, radius, radius), mode="reflect")
            return _weighted_sum(_weighted_sum(padded, kernel[places], 3), kernel[places], 2)

        return _change_some(images, torch.rand(num_images, device=device) < probability, blur)


def cutout(
    images: Tensor, labels: Tensor, *, probability: float, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Fill a box in a random share of the images with random colours, its labels [B, H, W] IGNORE_INDEX; see `area_boxes`."""
    count, _, height, width = images.shape
    boxes = area_boxes(count, height, width, images.device, probability=probability, area=area, aspect=aspect)
    return mix(boxes, images, torch.rand_like(images)), labels.masked_fill(boxes, IGNORE_INDEX)


def _weighted_sum(images: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """[B, 3, H, W], [B, taps] -> the correlation along `dim`, which gets shorter by taps - 1.

    Shifted sums: a grouped convolution with one kernel per image takes many times as long on a CPU.
    """
    size = images.shape[dim] - kernel.shape[1] + 1
    weights = kernel.T[:, :, None, None, None]  # [taps, B, 1, 1, 1]
    total = images.narrow(dim, 0, size) * weights[0]
    for tap in range(1, len(weights)):
        total.addcmul_(images.narrow(dim, tap, size), weights[tap])
    return total
