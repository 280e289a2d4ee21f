"""The decoder of DeepLabv3+ (Chen et al., ECCV 2018) and its heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.models.base import Decoder

ASPP_RATES = {2: (2, 4, 8), 4: (1, 2, 4), 8: (12, 24, 36), 16: (6, 12, 18)}
"""Dilations by output stride. At strides 2 and 4, which serve small images, the large ones would see only padding."""


def _conv(channels: int, out_channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, size, padding=dilation * (size // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _resize(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [B, K, h, w] -> [B, channels, h, w] from 1x1, three dilated 3x3, and the image's mean."""

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_conv(in_channels, channels, 1), *(_conv(in_channels, channels, 3, r) for r in rates)])
        self.image_branch = _conv(in_channels, channels, 1)
        self.project = _conv(channels * (len(rates) + 2), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        image = self.image_branch(features.mean(dim=(2, 3), keepdim=True))
        parts = [branch(features) for branch in self.branches]
        projected: Tensor = self.project(torch.cat([*parts, image.expand_as(parts[0])], dim=1))
        return projected


class DeepLabV3PlusDecoder(Decoder):
    """Low-level [B, K_l, H/s, W/s] and deep [B, K_d, h, w] features -> [B, low_level_channels + channels, H/s, W/s].

    stride: s. channels: of the pyramid pooling and of the heads. head_convs: 3 x 3 convolutions of a head.
    """

    name = "deeplabv3plus"

    def __init__(
        self,
        low_level_in: int,
        deep_in: int,
        stride: int,
        *,
        low_level_channels: int,
        channels: int,
        rates: tuple[int, ...],
        head_convs: int = 1,
    ) -> None:
        super().__init__()
        self.stride, self.channels, self.head_convs = stride, channels, head_convs
        self.low_level = _conv(low_level_in, low_level_channels, 1)
        self.aspp = ASPP(deep_in, channels, rates)
        self.out_channels = low_level_channels + channels

    def forward(self, *levels: Tensor) -> Tensor:
        low_level, deep = levels
        low_level = self.low_level(low_level)
        return torch.cat([low_level, _resize(self.aspp(deep), low_level)], dim=1)

    def make_head(self, out_channels: int) -> nn.Sequential:
        """Conv-BN-ReLU-Conv, as the paper's segmentation and representation heads, or with `head_convs` of the first three."""
        inputs = [self.out_channels, *[self.channels] * (self.head_convs - 1)]
        layers = [layer for each in inputs for layer in _conv(each, self.channels, 3)]
        return nn.Sequential(*layers, nn.Conv2d(self.channels, out_channels, 1))
