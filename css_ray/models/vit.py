"""Plain vision transformers of timm as encoders: DINOv2, DINOv3 and others of one width and one stride."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from css_ray.models.base import Encoder

_FAMILIES = tuple(f"timm.models.{name}" for name in ("vision_transformer", "deit", "eva"))
"""The modules of timm whose networks are a stem of patches and a row of equal blocks."""

LEVELS = 4


def taps(depth: int) -> tuple[int, ...]:
    """The blocks whose outputs are read, counted from 0: the ends of the quarters of the network.

    2, 5, 8, 11 of 12, as UniMatch V2 has them (Yang et al., TPAMI 2025). Of 24 it reads 4, 11, 17, 23, which is kept.
    Raises ValueError below 4 blocks.
    """
    if depth < LEVELS:
        raise ValueError(f"a vision transformer needs at least {LEVELS} blocks to read {LEVELS} levels from, got {depth}")
    if depth == 24:
        return 4, 11, 17, 23
    return tuple(-(-quarter * depth // LEVELS) - 1 for quarter in range(1, LEVELS + 1))


@cache
def patch_size(name: str) -> int | None:
    """Side in pixels of the patches of a plain vision transformer, by its name in timm; None of any other network.

    Takes no memory and downloads nothing. timm, whose import takes seconds, is asked only about names that are like one's.
    """
    network, _, _ = name.partition(".")  # without the tag of its weights, which may be wrong
    if not re.search("vit|^deit|^eva", network):
        return None
    import timm

    if not timm.is_model(network) or timm.models.model_entrypoint(network).__module__ not in _FAMILIES:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # a question must not change what is drawn afterwards
        height, width = _build(network, pretrained=False).patch_embed.patch_size
    return int(height) if height == width else None


class ViTEncoder(Encoder):
    """Four levels [B, K, H / patch, W / patch], each through the final normalisation; tokens of patches alone.

    channels: K, the width. The position embedding is resampled to the image's number of patches, and so H and W may be any
    multiples of the patch. Head, pooling and blocks that no level needs are not kept: every parameter has a gradient.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        network = _build(name, pretrained)
        self.taps = taps(len(network.blocks))
        network.prune_intermediate_layers(list(self.taps), prune_norm=False, prune_head=True)
        self.network: nn.Module = network
        self.channels = int(network.embed_dim)
        self.multiple = int(network.patch_embed.patch_size[0])
        self.mean, self.std = tuple(network.default_cfg["mean"]), tuple(network.default_cfg["std"])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        network: Any = self.network
        return tuple(network.forward_intermediates(images, indices=list(self.taps), norm=True, intermediates_only=True))


def _build(name: str, pretrained: bool) -> Any:
    import timm

    return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
