"""Between the decoder's stride and the pixels of the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W] float32 or float64 for `size` (H, W): bilinear, corners aligned, as the decoder does it."""
    return F.interpolate(at_least_float32(maps), size=size, mode="bilinear", align_corners=True)


def nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., H, W] -> [..., h, w] of any dtype for `size` (h, w): output pixel i reads input pixel floor(i * H / h)."""
    rows, columns = (
        torch.arange(wanted, device=maps.device) * given // wanted for given, wanted in zip(maps.shape[-2:], size, strict=True)
    )
    return maps.index_select(-2, rows).index_select(-1, columns)
