"""The segmenter: encoder, decoder, a head for logits, and one for representations if a method needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.config import Config, Problem, knob
from css_ray.models.deeplabv3plus import ASPP_RATES, DeepLabV3PlusDecoder, make_head
from css_ray.models.encoders import Encoder, make_encoder
from css_ray.types import Prediction


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The network of a study. The defaults are the paper's."""

    encoder: str = knob(
        "resnet101",
        help="tiny, or a timm network by name: resnet101.tv_in1k has the weights that the published code starts from, "
        "resnet101s the deep stem of Tables 2 and 3",
    )
    output_stride: Literal[2, 4, 8, 16] = knob(
        8, help="stride of the deep feature; 2 and 4 serve the tiny encoder on small images"
    )
    pretrained: bool | str = knob(True, help="true downloads timm's weights; a path loads a .safetensors or .pth file")
    decoder_channels: int = knob(256, help="channels of the pyramid pooling and of the heads", ge=1, le=65_536)
    low_level_channels: int = knob(48, help="channels that the low-level feature is reduced to", ge=1, le=65_536)
    head_convs: Literal[1, 2] = knob(1, help="3 x 3 convolutions of a head before its last 1 x 1: the paper's one, or two")
    representation_dim: int = knob(256, help="channels of a representation (D)", ge=1, le=65_536)
    aspp_rates: tuple[int, ...] | None = knob(
        None,
        help="dilations of the pyramid; null: 12, 24, 36 at output stride 8, 6, 12, 18 at 16, 1, 2, 4 at 4, 2, 4, 8 at 2",
        ge=1,
        le=1_024,
    )

    def problems(self) -> Iterator[Problem]:
        """Adds to the bounds: the tiny encoder alone has no trained weights and output stride 2; a pyramid has dilations."""
        yield from super().problems()
        if self.aspp_rates is not None and not 1 <= len(self.aspp_rates) <= 16:
            yield Problem("aspp_rates", f"must have 1 to 16 entries, got {len(self.aspp_rates)}")
        if self.pretrained == "":
            yield Problem("pretrained", "must be true, false or the path of a file, got ''")
        if self.encoder == "tiny" and self.pretrained:
            yield Problem("pretrained", f"must be false (the encoder tiny has no pretrained weights), got {self.pretrained!r}")
        if self.encoder != "tiny" and self.output_stride == 2:
            yield Problem("output_stride", f"must be one of 4, 8, 16 for the encoder {self.encoder} (2 is for tiny), got 2")


class Segmenter(nn.Module):
    """Images [B, 3, H, W] in [0, 1] of any size -> Prediction at the encoder's low-level stride. Normalises its input itself.

    num_classes: C. representation_dim: D, or None without a representation head.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        decoder: DeepLabV3PlusDecoder,
        channels: int,
        num_classes: int,
        representation_dim: int | None,
        head_convs: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes, self.representation_dim = num_classes, representation_dim
        self.register_buffer("mean", torch.tensor(encoder.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(-1, 1, 1))
        self.encoder, self.decoder = encoder, decoder
        self.logits_head = make_head(decoder.out_channels, channels, num_classes, head_convs)
        self.representation_head = (
            None if representation_dim is None else make_head(decoder.out_channels, channels, representation_dim, head_convs)
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> the encoder's levels: the low-level feature [B, K_l, h, w], and the deep one."""
        levels: tuple[Tensor, Tensor] = self.encoder((images - self.mean) / self.std)
        return levels

    def decode(self, levels: tuple[Tensor, Tensor]) -> Tensor:
        """The levels of `encode` -> the decoder's features [B, F, h, w], which the heads read."""
        features: Tensor = self.decoder(*levels)
        return features

    def before_classifier(self, features: Tensor) -> Tensor:
        """The decoder's features [B, F, h, w] -> those that the last convolution of the head for logits reads."""
        read: Tensor = self.logits_head[:-1](features)
        return read

    def classify(self, features: Tensor) -> Prediction:
        """The decoder's features [B, F, h, w] -> logits, and representations if there is a head for them."""
        head = self.representation_head
        return Prediction(self.logits_head(features), None if head is None else head(features))

    def forward(self, images: Tensor) -> Prediction:
        return self.classify(self.decode(self.encode(images)))

    def predict(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> logits [B, C, H, W] at the images' size, in float32."""
        logits = self.logits_head(self.decode(self.encode(images)))
        return F.interpolate(logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=True)


def make_segmenter(config: ModelConfig, num_classes: int, *, representation: bool = True) -> Segmenter:
    """A new segmenter with random heads; representation: with one for representations.

    Raises ValueError as `make_encoder` does.
    """
    encoder = make_encoder(config.encoder, config.output_stride, config.pretrained)
    decoder = DeepLabV3PlusDecoder(
        encoder.low_level_channels,
        encoder.deep_channels,
        low_level_channels=config.low_level_channels,
        channels=config.decoder_channels,
        rates=config.aspp_rates or ASPP_RATES[config.output_stride],
    )
    return Segmenter(
        encoder,
        decoder,
        config.decoder_channels,
        num_classes,
        config.representation_dim if representation else None,
        config.head_convs,
    )


def synchronise(module: nn.Module) -> None:
    """Let every BatchNorm inside `module` take its statistics over all ranks, each on its GPU."""
    # timm's own conversion: torch's would drop the activation inside an EfficientNet's normalisation layers.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
