"""ViTs with DPT: sizes and parameters of the published networks, a DPT written out, weights, and images of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.config import ConfigError
from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.models.dpt import DPTDecoder, dpt_channels
from css_ray.models.encoders import WeightsError, make_encoder
from css_ray.models.vit import ViTEncoder, patch_size, taps


def make(encoder: str = "test_vit", representation: bool = True, classes: int = 5, **changes: Any) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(encoder=encoder, pretrained=False, representation_dim=12, **changes)
    return make_segmenter(config, classes, representation=representation)


def outline(encoder: str) -> Segmenter:
    with torch.device("meta"):
        return make(encoder, representation=False, classes=21)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(6, (1, 2, 4, 5)), (12, (2, 5, 8, 11)), (24, (4, 11, 17, 23)), (40, (9, 19, 29, 39)), (4, (0, 1, 2, 3))],
)
def test_the_blocks_that_are_read(depth: int, expected: tuple[int, ...]) -> None:
    assert taps(depth) == expected


def test_fewer_blocks_than_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 4 blocks to read 4 levels from, got 3"):
        taps(3)


@pytest.mark.parametrize(
    ("width", "channels", "features"),
    [
        (384, (48, 96, 192, 384), 64),
        (768, (96, 192, 384, 768), 128),
        (1024, (256, 512, 1024, 1024), 256),
        (64, (8, 16, 32, 64), 16),  # 64 / 6 = 10.7
        (192, (24, 48, 96, 192), 32),
    ],
)
def test_channels_follow_from_the_width(width: int, channels: tuple[int, ...], features: int) -> None:
    assert dpt_channels(width) == (channels, features)


@pytest.mark.parametrize(
    ("encoder", "in_encoder", "in_dpt", "unused"),
    [
        ("vit_small_patch14_dinov2", 22.06, 2.74, 73_856),
        ("vit_base_patch14_dinov2.lvd142m", 86.58, 10.95, 295_168),
    ],
)
def test_parameters_are_those_of_the_published_networks_without_the_unused_ones(
    encoder: str, in_encoder: float, in_dpt: float, unused: int
) -> None:
    """In millions, of 21 classes; published: with the residual unit of the deepest fusion that nothing goes through."""
    segmenter = outline(encoder)
    features = segmenter.decoder.out_channels
    assert unused == 2 * (9 * features * features + features)
    assert round(count(segmenter.encoder) / 1e6, 2) == in_encoder
    assert round((count(segmenter.decoder, segmenter.logits_head) + unused) / 1e6, 2) == in_dpt


@pytest.mark.parametrize(("encoder", "patch"), [("vit_small_patch14_dinov2", 14), ("vit_small_patch16_dinov3", 16)])
def test_the_published_sizes(encoder: str, patch: int) -> None:
    segmenter = outline(encoder)
    assert segmenter.multiple == patch == patch_size(encoder) and segmenter.decoder.stride == patch / 8
    images = torch.empty(1, 3, 37 * patch, 30 * patch, device="meta")
    assert [tuple(level.shape) for level in segmenter.encode(images)] == [(1, 384, 37, 30)] * 4
    assert segmenter(images).logits.shape == (1, 21, 8 * 37, 8 * 30)


@pytest.mark.parametrize(
    "name", ["tiny", "resnet50", "maxvit_tiny_tf_224", "vit_base_r50_s16_224", "vit_smal", "beit_base_patch16_224"]
)
def test_what_is_no_plain_vit(name: str) -> None:
    assert patch_size(name) is None


def test_levels_are_blocks_through_the_final_norm() -> None:
    """All of timm's network, block by block."""
    torch.manual_seed(0)
    encoder = make_encoder("test_vit", 8, False).eval()
    assert isinstance(encoder, ViTEncoder)
    network: Any = encoder.network
    images = torch.randn(2, 3, 160, 160)  # of the size that its position embedding is for
    tokens = network.patch_embed(images).flatten(1, 2)
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], dim=1) + network.pos_embed
    expected = []
    for index, block in enumerate(network.blocks):
        tokens = block(tokens)
        if index in (1, 2, 4, 5):
            expected.append(network.norm(tokens)[:, 1:].transpose(1, 2).reshape(2, 64, 10, 10))
    for level, by_hand in zip(encoder(images), expected, strict=True):
        torch.testing.assert_close(level, by_hand)


def reference(decoder: DPTDecoder, levels: tuple[Tensor, ...]) -> Tensor:
    """The fusions in the published order: upsampling first, then the 1 x 1 convolution."""

    def unit(module: nn.Module, features: Tensor) -> Tensor:
        first, second = (part for part in module.modules() if isinstance(part, nn.Conv2d))
        return features + convolved(second, F.relu(first(F.relu(features))))

    def convolved(module: nn.Module, features: Tensor) -> Tensor:
        found: Tensor = module(features)
        return found

    maps = []
    for place, level in enumerate(levels):
        projected = decoder.project[place](level)
        maps.append(decoder.reduce[place](decoder.resize[place](projected)))
    height, width = levels[0].shape[-2:]
    assert [tuple(each.shape[-2:]) for each in maps] == [
        (4 * height, 4 * width),
        (2 * height, 2 * width),
        (height, width),
        (-(-height // 2), -(-width // 2)),
    ]
    sizes = [(8 * height, 8 * width), *(tuple(each.shape[-2:]) for each in maps[:3])]
    path: Tensor | None = None
    for place in (3, 2, 1, 0):
        block: Any = decoder.fuse[place]
        joined = maps[place] if path is None else path + unit(block.lateral, maps[place])
        path = convolved(block.out, F.interpolate(unit(block.unit, joined), sizes[place], mode="bilinear", align_corners=True))
    assert path is not None
    return path


@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 1), (5, 2)])
def test_the_decoder_is_the_published_one(height: int, width: int) -> None:
    torch.manual_seed(0)
    decoder = DPTDecoder(64, 16)
    levels = tuple(torch.randn(2, 64, height, width) for _ in range(4))
    torch.testing.assert_close(decoder(*levels), reference(decoder, levels), atol=1e-5, rtol=1e-4)
    assert not [module for module in decoder.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("convs", [1, 2])
def test_heads_of_dpt(convs: Any) -> None:
    segmenter = make(head_convs=convs)
    for head, channels in ((segmenter.logits_head, 5), (segmenter.representation_head, 12)):
        assert head is not None and [type(part) for part in head] == [nn.Conv2d, nn.ReLU] * convs + [nn.Conv2d]
        shapes = [tuple(part.weight.shape) for part in head if isinstance(part, nn.Conv2d)]
        assert shapes == [(16, 16, 3, 3)] * convs + [(channels, 16, 1, 1)]


@pytest.mark.parametrize(
    "encoder",
    ["test_vit", "vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "test_vit3"],
)
def test_every_parameter_has_a_gradient(encoder: str) -> None:
    """Tokens of classes and registers, pooling heads of timm's networks among them: DDP waits for each."""
    segmenter = make(encoder)
    side = 2 * segmenter.multiple
    prediction = segmenter(torch.rand(2, 3, side, side))
    assert prediction.representations is not None
    (prediction.logits.square().mean() + prediction.representations.square().mean()).backward()
    without = [name for name, value in segmenter.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize(
    ("encoder", "size", "rounded"),
    [
        ("vit_small_patch14_dinov2", (375, 500), (378, 504)),
        ("vit_small_patch14_dinov2", (518, 518), (518, 518)),
        ("vit_small_patch14_dinov2", (5, 21), (14, 28)),  # at least one patch; half a patch is rounded up
        ("test_vit", (375, 500), (368, 496)),  # 375 / 16 = 23.4, 500 / 16 = 31.25
    ],
)
def test_sides_are_rounded_to_whole_patches(encoder: str, size: tuple[int, int], rounded: tuple[int, int]) -> None:
    segmenter = outline(encoder)
    seen: list[Tensor] = []
    segmenter.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.empty(1, 3, *size, device="meta")
    assert segmenter.predict(images).shape == (1, 21, *size)
    assert tuple(seen[0].shape[-2:]) == rounded
    assert segmenter(images).logits.shape[-2:] == tuple(8 * side // segmenter.multiple for side in rounded)


def test_a_prediction_of_another_size_is_that_of_the_resized_image() -> None:
    segmenter = make().eval()
    images = torch.rand(1, 3, 37, 58)
    resized = F.interpolate(images, (32, 64), mode="bilinear", align_corners=True)  # 37 / 16 = 2.3, 58 / 16 = 3.6
    with torch.no_grad():
        logits = segmenter(resized).logits
        expected = F.interpolate(logits, (37, 58), mode="bilinear", align_corners=True)
        torch.testing.assert_close(segmenter.predict(images), expected)
        assert torch.equal(segmenter(images).logits, logits)
        # What needs no resizing is not resized.
        torch.testing.assert_close(
            segmenter.predict(resized), F.interpolate(logits, (32, 64), mode="bilinear", align_corners=True)
        )


def test_weights_of_an_official_file_fit(tmp_path: Path) -> None:
    """Their names are timm's; a mask token and a classifier are left out."""
    torch.manual_seed(1)
    donor = timm.create_model("test_vit", pretrained=False).state_dict()
    assert "head.weight" in donor
    torch.save({**donor, "mask_token": torch.zeros(1, 64)}, tmp_path / "official.pth")
    found = make_encoder("test_vit", 8, str(tmp_path / "official.pth")).get_submodule("network").state_dict()
    assert not [name for name in found if name.startswith(("head", "fc_norm", "mask"))]
    assert all(torch.equal(value, donor[name]) for name, value in found.items())
    del donor["blocks.3.attn.qkv.weight"]
    torch.save(donor, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"lacks 1 of .* blocks\.3\.attn\.qkv\.weight"):
        make_encoder("test_vit", 8, str(tmp_path / "cut.pth"))


def test_a_small_dinov2_has_the_keys_of_its_official_file() -> None:
    encoder = outline("vit_small_patch14_dinov2").encoder
    shapes = {name.removeprefix("network."): tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert {name for name in shapes if not name.startswith("blocks.")} == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"
    }  # fmt: skip
    assert {name.removeprefix("blocks.11.") for name in shapes if name.startswith("blocks.11.")} == {
        f"{part}.{kind}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    } | {"ls1.gamma", "ls2.gamma"}  # fmt: skip
    assert shapes["pos_embed"] == (1, 1 + 37 * 37, 384) and len([name for name in shapes if name.endswith("ls1.gamma")]) == 12


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"encoder": "resnet50", "decoder": "dpt"}, "decoder dpt needs a plain ViT, which the encoder resnet50 is not; use deeplabv3plus or auto"),
        ({"encoder": "tiny", "decoder": "dpt"}, "decoder dpt needs a plain ViT, which the encoder tiny is not"),
        ({"encoder": "test_vit", "decoder": "deeplabv3plus"}, "decoder deeplabv3plus needs features at stride 4, and the ViT test_vit has none; use dpt or auto"),
        ({"decoder": "fpn"}, "decoder must be one of auto, deeplabv3plus, dpt, got 'fpn'"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(pretrained=False, **settings)
    assert sentence in str(caught.value)


def test_a_decoder_may_be_named_and_knobs_of_the_other_are_not_read() -> None:
    named = make(decoder="dpt", output_stride=2, decoder_channels=7, low_level_channels=3, aspp_rates=(1,))
    auto = make()
    assert {name: value.shape for name, value in named.state_dict().items()} == {
        name: value.shape for name, value in auto.state_dict().items()
    }
    assert make("resnet18", decoder="deeplabv3plus").decoder.name == "deeplabv3plus"
    # An encoder that nobody knows is reported where it is built, not as one without a ViT.
    assert ModelConfig(encoder="vit_smal", decoder="dpt", pretrained=False).decoder == "dpt"


def test_unknown_weights_of_a_known_network_are_reported_where_it_is_built() -> None:
    assert patch_size("vit_small_patch14_dinov2.nonsense") == 14
    with pytest.raises(ValueError, match=r"encoder vit_small_patch14_dinov2 has no weights 'nonsense' \(did you mean"):
        make_encoder("vit_small_patch14_dinov2.nonsense", 8, False)


def test_a_question_draws_nothing() -> None:
    state = torch.get_rng_state()
    patch_size.cache_clear()
    assert patch_size("test_vit") == 16
    assert torch.equal(torch.get_rng_state(), state)
