"""What every encoder and every decoder is, so that any segmenter is an encoder, a decoder that fits it, and heads."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Encoder(nn.Module):
    """Images [B, 3, H, W], normalised -> its levels, which a decoder reads together.

    mean, std: the normalisation of images in [0, 1] that it expects. multiple: H and W must be multiples of it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple: int = 1

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError


class Decoder(nn.Module):
    """The levels of an encoder -> features [B, out_channels, h, w], which heads read.

    name: in `ModelConfig`. stride: of the features, in pixels of the image; not always a whole number.
    """

    name: ClassVar[str]
    out_channels: int
    stride: float

    def forward(self, *levels: Tensor) -> Tensor:
        raise NotImplementedError

    def make_head(self, out_channels: int) -> nn.Sequential:
        """A new head: [B, self.out_channels, h, w] -> [B, out_channels, h, w]; its last layer is a 1 x 1 convolution."""
        raise NotImplementedError
