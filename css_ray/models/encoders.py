"""Encoders: any timm network that gives features at stride 4 and at the output stride, and a tiny one for a CPU."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from css_ray.messages import did_you_mean

LOW_LEVEL_STRIDE = 4
"""Of the feature that a timm network gives the decoder, and so of logits and representations."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Images [B, 3, H, W], normalised -> the low-level feature at its stride and the deep feature at the output stride.

    low_level_channels, deep_channels: their channels. mean, std: the normalisation of images in [0, 1] that it expects.
    """

    low_level_stride: int = LOW_LEVEL_STRIDE
    low_level_channels: int
    deep_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class TimmEncoder(Encoder):
    """A convolutional network of timm; strides beyond `output_stride` become dilations."""

    def __init__(self, name: str, output_stride: int, pretrained: bool) -> None:
        super().__init__()
        import timm  # takes seconds, and the tiny encoder does without

        network: Any = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=pretrained)
        self.network: nn.Module = network
        reductions = network.feature_info.reduction()
        if LOW_LEVEL_STRIDE not in reductions:
            raise ValueError(f"encoder {name} has features at strides {reductions}, but the decoder needs one at stride 4")
        self.low_level_index = reductions.index(LOW_LEVEL_STRIDE)
        channels = network.feature_info.channels()
        self.low_level_channels, self.deep_channels = channels[self.low_level_index], channels[-1]
        self.mean, self.std = tuple(network.default_cfg["mean"]), tuple(network.default_cfg["std"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images)
        return features[self.low_level_index], features[-1]


class TinyEncoder(Encoder):
    """A residual network of widths 16, 32 and 64, small enough for hundreds of steps a minute on one CPU core.

    At output stride 2 the low-level feature, too, is at stride 2: small images then have maps of some detail.
    """

    low_level_channels, deep_channels = 32, 64
    mean, std = _IMAGENET_MEAN, _IMAGENET_STD

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.low_level_stride = min(output_stride, LOW_LEVEL_STRIDE)
        convolution = nn.Conv2d(3, 16, 3, stride=self.low_level_stride // 2, padding=1, bias=False)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.low_level = _Residual(16, 32, stride=2)
        strides = {2: (1, 1), 4: (1, 1), 8: (2, 1), 16: (2, 2)}[output_stride]
        self.deep = nn.Sequential(_Residual(32, 64, stride=strides[0]), _Residual(64, 64, stride=strides[1]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        low_level = self.low_level(self.stem(images))
        return low_level, self.deep(low_level)


class _Residual(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.branch(features) + self.shortcut(features))


def unknown_encoder(name: str) -> str | None:
    """Why `name` is not an encoder; None if it is one. Builds no network and downloads nothing.

    Args:
        name: `tiny`, or the name of a timm network, with or without a tag of its weights (`resnet101.tv_in1k`).

    Returns:
        A sentence with the closest name, or None.
    """
    if name == "tiny":
        return None
    import timm  # takes seconds, and the tiny encoder does without

    if timm.is_model(name):
        return None
    close = difflib.get_close_matches(name, ["tiny", *timm.list_models(), *timm.list_pretrained()], n=1)
    return f"unknown encoder {name!r}{did_you_mean(name, close) or '; known: tiny, and what timm.list_models() lists'}"


def make_encoder(name: str, output_stride: int, pretrained: bool | str) -> Encoder:
    """`tiny`, or a timm network by name. pretrained: True downloads timm's weights, a path loads a .safetensors or .pth file.

    Raises ValueError for an unknown name (with close ones), for weights that lack keys of the encoder, and if a network has
    no features at stride 4 or at the output stride.
    """
    if name == "tiny":
        if pretrained:
            raise ValueError(f"the encoder tiny has no pretrained weights, got pretrained={pretrained!r}; set it to false")
        return TinyEncoder(output_stride)
    if unknown := unknown_encoder(name):
        raise ValueError(unknown)
    try:
        encoder = TimmEncoder(name, output_stride, pretrained is True)
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"encoder {name} gives no features at output_stride {output_stride} ({error}); take a ResNet or an EfficientNet"
        ) from error
    if isinstance(pretrained, str):
        _load(encoder.network, Path(pretrained))
    return encoder


def _load(network: nn.Module, path: Path) -> None:
    """Weights from a file. Keys that the network does not have (a classifier's) are fine, missing ones are not."""
    if not path.is_file():
        raise ValueError(f"pretrained: there is no file {path}; give a .safetensors or .pth file, or true or false")
    weights: Mapping[str, Tensor]
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the encoder's {len(network.state_dict())} keys, among them "
            f"{', '.join(missing[:5])}; is it for another network?"
        )
