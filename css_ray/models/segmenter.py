"""The segmenter: encoder, decoder, a head for logits, and one for representations if a method needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.config import Config, Problem, knob
from css_ray.models.base import Decoder, Encoder
from css_ray.models.deeplabv3plus import ASPP_RATES, DeepLabV3PlusDecoder
from css_ray.models.dpt import DPTDecoder
from css_ray.models.encoders import make_encoder, unknown_encoder
from css_ray.models.vit import ViTEncoder, patch_size
from css_ray.types import Prediction


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The network of a study. The defaults are the paper's.

    The encoder decides the decoder. A ViT with dpt has the stride of its patches, and channels that follow from its width: it
    reads none of `output_stride`, `decoder_channels`, `low_level_channels` and `aspp_rates`, so that one study can vary its
    encoder over both kinds.
    """

    encoder: str = knob(
        "resnet101",
        help="tiny, or a timm network by name: resnet101.tv_in1k has the weights that the published code starts from, "
        "resnet101s the deep stem of Tables 2 and 3; vit_small_patch14_dinov2.lvd142m is a ViT",
    )
    decoder: Literal["auto", "deeplabv3plus", "dpt"] = knob(
        "auto", help="what reads the encoder's levels; auto: dpt for a ViT, deeplabv3plus for any other encoder"
    )
    output_stride: Literal[2, 4, 8, 16] = knob(
        8, help="stride of the deep feature of deeplabv3plus; 2 and 4 serve the tiny encoder on small images"
    )
    pretrained: bool | str = knob(True, help="true downloads timm's weights; a path loads a .safetensors or .pth file")
    decoder_channels: int = knob(256, help="channels of the pyramid pooling of deeplabv3plus and of its heads", ge=1, le=65_536)
    low_level_channels: int = knob(48, help="channels that deeplabv3plus reduces the low-level feature to", ge=1, le=65_536)
    head_convs: Literal[1, 2] = knob(1, help="3 x 3 convolutions of a head before its last 1 x 1: the paper's one, or two")
    representation_dim: int = knob(256, help="channels of a representation (D)", ge=1, le=65_536)
    aspp_rates: tuple[int, ...] | None = knob(
        None,
        help="dilations of the pyramid of deeplabv3plus; null: 12, 24, 36 at output stride 8, 6, 12, 18 at 16, 1, 2, 4 at 4, "
        "2, 4, 8 at 2",
        ge=1,
        le=1_024,
    )

    def problems(self) -> Iterator[Problem]:
        """Adds to the bounds: the tiny encoder alone has no trained weights and output stride 2; a pyramid has dilations; dpt
        reads a ViT, and deeplabv3plus any other encoder.
        """
        yield from super().problems()
        if self.aspp_rates is not None and not 1 <= len(self.aspp_rates) <= 16:
            yield Problem("aspp_rates", f"must have 1 to 16 entries, got {len(self.aspp_rates)}")
        if self.pretrained == "":
            yield Problem("pretrained", "must be true, false or the path of a file, got ''")
        if self.encoder == "tiny" and self.pretrained:
            yield Problem("pretrained", f"must be false (the encoder tiny has no pretrained weights), got {self.pretrained!r}")
        if self.encoder != "tiny" and self.output_stride == 2 and patch_size(self.encoder) is None:
            yield Problem("output_stride", f"must be one of 4, 8, 16 for the encoder {self.encoder} (2 is for tiny), got 2")
        if self.decoder == "deeplabv3plus" and patch_size(self.encoder) is not None:
            sentence = f"deeplabv3plus needs features at stride 4, and the ViT {self.encoder} has none; use dpt or auto"
            yield Problem("decoder", sentence)
        if self.decoder == "dpt" and patch_size(self.encoder) is None and unknown_encoder(self.encoder) is None:
            sentence = f"dpt needs a plain ViT, which the encoder {self.encoder} is not; use deeplabv3plus or auto"
            yield Problem("decoder", sentence)


class Segmenter(nn.Module):
    """Images [B, 3, H, W] in [0, 1] of any size -> Prediction at the decoder's stride. Normalises its input itself.

    num_classes: C. representation_dim: D, or None without a representation head.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, decoder: Decoder, num_classes: int, representation_dim: int | None) -> None:
        super().__init__()
        self.num_classes, self.representation_dim = num_classes, representation_dim
        self.register_buffer("mean", torch.tensor(encoder.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(-1, 1, 1))
        self.encoder, self.decoder = encoder, decoder
        self.logits_head = decoder.make_head(num_classes)
        self.representation_head = None if representation_dim is None else decoder.make_head(representation_dim)

    @property
    def multiple(self) -> int:
        """What the sides of an image are rounded to: the patch of a ViT, 1 for other encoders."""
        return self.encoder.multiple

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] in [0, 1] -> the encoder's levels [B, K, h, w] each, the finest or earliest first.

        Sides that are no multiples of `multiple` are resized to the nearest ones, int(H / multiple + 1/2) * multiple.
        """
        if self.multiple > 1:  # else an exported network would be bound to the sizes that it was exported with
            height, width = (_nearest_multiple(side, self.multiple) for side in images.shape[-2:])
            if (height, width) != tuple(images.shape[-2:]):
                images = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=True)
        levels: tuple[Tensor, ...] = self.encoder((images - self.mean) / self.std)
        return levels

    def decode(self, levels: tuple[Tensor, ...]) -> Tensor:
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


def _nearest_multiple(side: int, multiple: int) -> int:
    return max(int(side / multiple + 0.5), 1) * multiple


def make_segmenter(config: ModelConfig, num_classes: int, *, representation: bool = True) -> Segmenter:
    """A new segmenter with random heads; representation: with one for representations.

    Raises ValueError as `make_encoder` does.
    """
    encoder = make_encoder(config.encoder, config.output_stride, config.pretrained)
    decoder: Decoder
    if isinstance(encoder, ViTEncoder):
        decoder = DPTDecoder(encoder.channels, encoder.multiple, config.head_convs)
    else:
        decoder = DeepLabV3PlusDecoder(
            encoder.low_level_channels,
            encoder.deep_channels,
            encoder.low_level_stride,
            low_level_channels=config.low_level_channels,
            channels=config.decoder_channels,
            rates=config.aspp_rates or ASPP_RATES[config.output_stride],
            head_convs=config.head_convs,
        )
    return Segmenter(encoder, decoder, num_classes, config.representation_dim if representation else None)


def synchronise(module: nn.Module) -> None:
    """Let every BatchNorm inside `module` take its statistics over all ranks, each on its GPU."""
    # timm's own conversion: torch's would drop the activation inside an EfficientNet's normalisation layers.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
