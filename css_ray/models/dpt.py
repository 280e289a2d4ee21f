"""The decoder of dense prediction transformers (Ranftl et al., ICCV 2021), as UniMatch V2 has it: without BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.models.base import Decoder

_WIDTHS: dict[int, tuple[tuple[int, int, int, int], int]] = {1024: ((256, 512, 1024, 1024), 256)}
"""Channels of the levels and of the features by the encoder's width, where they are not those of `dpt_channels`' rule."""

_FINEST = 8
"""The side of the finest map, in that of the tokens'."""


def dpt_channels(width: int) -> tuple[tuple[int, int, int, int], int]:
    """Channels of the four levels, and of the features, for an encoder of this width.

    An eighth, a quarter, a half and all of the width; features of a sixth of it, rounded up to a multiple of 8. That is
    UniMatch V2's table for 384 (ViT-S) and 768 (ViT-B); its line for 1024 (ViT-L) is kept as it is.
    """
    if width in _WIDTHS:
        return _WIDTHS[width]
    return (width // 8, width // 4, width // 2, width), -(-width // 48) * 8


class DPTDecoder(Decoder):
    """Four levels [B, K, h, w] -> features [B, out_channels, 8 h, 8 w].

    The levels are brought to the sides 4 h, 2 h, h and h / 2, and fused from the deepest on. width: K. patch: the stride of
    the levels in pixels. head_convs: 3 x 3 convolutions of a head before its last 1 x 1.

    Departs from the published code: the deepest fusion has no second input, and so not the unit for one, which there exists
    unused (DDP would wait for its gradient); a fusion's 1 x 1 convolution comes before its upsampling instead of after, which
    is the same function at a quarter of the cost.
    """

    name = "dpt"

    def __init__(self, width: int, patch: int, head_convs: int = 1) -> None:
        super().__init__()
        channels, features = dpt_channels(width)
        self.out_channels, self.stride, self.head_convs = features, patch / _FINEST, head_convs
        self.project = nn.ModuleList(nn.Conv2d(width, each, 1) for each in channels)
        first, second, _, last = channels
        self.resize = nn.ModuleList(
            (
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            )
        )
        self.reduce = nn.ModuleList(nn.Conv2d(each, features, 3, padding=1, bias=False) for each in channels)
        self.fuse = nn.ModuleList(_Fusion(features, second_input=level < len(channels) - 1) for level in range(len(channels)))

    def forward(self, *levels: Tensor) -> Tensor:
        parts = zip(self.project, self.resize, self.reduce, levels, strict=True)
        maps = [reduce(resize(project(level))) for project, resize, reduce, level in parts]
        fused: Tensor | None = None
        for place in reversed(range(len(maps))):
            height, width = maps[place - 1 if place else 0].shape[-2:]
            size = (height, width) if place else (2 * height, 2 * width)
            fused = self.fuse[place](maps[place], fused, size)
        assert fused is not None
        return fused

    def make_head(self, out_channels: int) -> nn.Sequential:
        """3 x 3 convolution and ReLU, `head_convs` times, and a 1 x 1 convolution."""
        layers: list[nn.Module] = []
        for _ in range(self.head_convs):
            layers += [nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Conv2d(self.out_channels, out_channels, 1))


class _Fusion(nn.Module):
    """The map of a level and, if there is one, what was fused of the deeper levels -> both together at `size`."""

    def __init__(self, features: int, second_input: bool) -> None:
        super().__init__()
        self.lateral = _Unit(features) if second_input else None
        self.unit = _Unit(features)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, level: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> Tensor:
        joined = level if self.lateral is None or deeper is None else deeper + self.lateral(level)
        return F.interpolate(self.out(self.unit(joined)), size=size, mode="bilinear", align_corners=True)


class _Unit(nn.Module):
    """ReLU, 3 x 3, ReLU, 3 x 3, and the input added."""

    def __init__(self, features: int) -> None:
        super().__init__()
        # Not in place: the first ReLU's input is added at the end.
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.branch(features)
        return added
