"""Shapes at every output stride, the normalisation inside, and weights from a file."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.models.deeplabv3plus import DeepLabV3PlusDecoder

LITE0_WEIGHTS = Path(__file__).parents[3] / "shared/weights/tf_efficientnet_lite0.safetensors"


def make(encoder: str = "tiny", output_stride: int = 4, pretrained: bool | str = False, **changes: object) -> Segmenter:
    torch.manual_seed(0)
    small = {"decoder_channels": 16, "low_level_channels": 8, "representation_dim": 12}
    config = ModelConfig(encoder=encoder, output_stride=output_stride, pretrained=pretrained, **(small | changes))  # type: ignore[arg-type]
    return make_segmenter(config, 5)


@pytest.mark.parametrize(
    ("encoder", "output_stride"),
    [("tiny", 4), ("tiny", 8), ("tiny", 16), ("resnet18", 8), ("resnet18", 16), ("tf_efficientnet_lite0", 8)],
)
def test_shapes_also_of_odd_images(encoder: str, output_stride: int) -> None:
    segmenter = make(encoder, output_stride)
    for height, width in ((32, 48), (33, 47)):
        images = torch.rand(2, 3, height, width)
        logits, representations = segmenter(images)
        stride4 = (-(-height // 4), -(-width // 4))
        assert logits.shape == (2, 5, *stride4)
        assert representations is not None and representations.shape == (2, 12, *stride4)
        assert segmenter.predict(images).shape == (2, 5, height, width)
    deep = segmenter.encoder(torch.rand(1, 3, 64, 64))[1]
    assert deep.shape[-2:] == (64 // output_stride, 64 // output_stride)


def test_without_a_representation_head() -> None:
    config = ModelConfig(encoder="tiny", output_stride=4, pretrained=False)
    segmenter = make_segmenter(config, 5, representation=False)
    assert segmenter.representation_dim is None
    assert segmenter(torch.rand(2, 3, 16, 16)).representations is None


def test_the_segmenter_normalises_as_its_encoder_was_trained() -> None:
    # tf_efficientnet_lite0 was trained on (x - .5) / .5: black is -1, white is 1.
    segmenter = make("tf_efficientnet_lite0", 16)
    seen = []
    segmenter.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    segmenter.predict(torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]))
    assert seen[0][0].unique().tolist() == [-1.0] and seen[0][1].unique().tolist() == [1.0]


def test_predict_is_the_prediction_at_the_images_size() -> None:
    segmenter = make().eval()
    images = torch.rand(1, 3, 20, 24)
    predicted, logits = segmenter.predict(images), segmenter(images).logits
    for image_corner, corner in ((0, 0), (-1, -1)):  # aligned corners keep their values
        torch.testing.assert_close(predicted[..., image_corner, image_corner], logits[..., corner, corner])


@pytest.mark.skipif(not LITE0_WEIGHTS.exists(), reason="no ../shared/weights/tf_efficientnet_lite0.safetensors")
def test_weights_from_a_file_arrive(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(LITE0_WEIGHTS)
    state = make("tf_efficientnet_lite0", 8, str(LITE0_WEIGHTS)).encoder.state_dict()
    assert torch.equal(state["network.conv_stem.weight"], stored["conv_stem.weight"])
    del stored["blocks.0.0.conv_dw.weight"]
    save_file(stored, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of .* blocks\.0\.0\.conv_dw\.weight"):
        make("tf_efficientnet_lite0", 8, str(tmp_path / "cut.safetensors"))


def test_weights_from_a_pth_file_leave_out_the_classifier(tmp_path: Path) -> None:
    import timm

    donor = timm.create_model("resnet18", pretrained=False)
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    state = make("resnet18", 8, str(tmp_path / "resnet18.pth")).encoder.state_dict()
    assert torch.equal(state["network.layer4.1.conv2.weight"], donor.state_dict()["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("encoder", "output_stride", "pretrained", "message"),
    [
        ("resnet11", 8, False, r"unknown encoder 'resnet11' \(did you mean resnet1\d+\?\)"),
        ("tiny", 4, True, "tiny has no pretrained weights"),
        (
            "resnet18",
            8,
            "/nowhere/weights.pth",
            "/nowhere/weights.pth does not exist or is not a file; give a .safetensors or .pth file",
        ),
        ("resnet18", 4, False, "resnet18 gives no features at output_stride 4"),
        ("beit_base_patch16_224", 8, False, r"beit_base_patch16_224 gives no .*; take a ResNet, an EfficientNet or a ViT"),
    ],
)
def test_errors_name_the_value_and_the_remedy(encoder: str, output_stride: int, pretrained: bool | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(encoder, output_stride, pretrained)


def test_rates_follow_the_output_stride_unless_given() -> None:
    for changes, rates in (({"output_stride": 8}, [12, 24, 36]), ({"output_stride": 8, "aspp_rates": (2, 3)}, [2, 3])):
        decoder = make("resnet18", **changes).decoder
        assert isinstance(decoder, DeepLabV3PlusDecoder)
        branches = list(decoder.aspp.branches)[1:]
        assert [branch[0].dilation[0] for branch in branches] == rates  # type: ignore[index]


@pytest.mark.parametrize(("output_stride", "stride"), [(2, 2), (4, 4), (8, 4), (16, 4)])
def test_the_map_of_the_tiny_encoder(output_stride: int, stride: int) -> None:
    segmenter = make(output_stride=output_stride)
    assert segmenter.decoder.stride == stride
    for height, width in ((40, 40), (41, 35)):
        prediction = segmenter(torch.rand(2, 3, height, width))
        assert prediction.logits.shape[2:] == (-(-height // stride), -(-width // stride))
        low_level, deep = segmenter.encoder(torch.rand(2, 3, height, width))
        assert low_level.shape[2:] == prediction.logits.shape[2:]
        assert deep.shape[2:] == (-(-height // output_stride), -(-width // output_stride))


def test_only_the_tiny_encoder_has_output_stride_2() -> None:
    with pytest.raises(
        ValueError, match=r"output_stride must be one of 4, 8, 16 for the encoder resnet18 \(2 is for tiny\), got 2"
    ):
        ModelConfig(encoder="resnet18", output_stride=2, pretrained=False)


@pytest.mark.parametrize("convs", [1, 2])
def test_parts_make_the_whole_and_heads_have_their_convolutions(convs: Literal[1, 2]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=6,
        head_convs=convs,
    )  # fmt: skip
    segmenter = make_segmenter(config, 5).eval()
    images = torch.rand(2, 3, 24, 32)
    levels = segmenter.encode(images)
    assert [tuple(level.shape) for level in levels] == [(2, 32, 6, 8), (2, 64, 6, 8)]
    features = segmenter.decode(levels)
    assert tuple(features.shape) == (2, segmenter.decoder.out_channels, 6, 8)
    for part, whole in zip(segmenter.classify(features), segmenter(images), strict=True):
        assert part is not None and torch.equal(part, whole)
    for head, channels in ((segmenter.logits_head, 5), (segmenter.representation_head, 6)):
        assert head is not None
        sizes = [(layer.kernel_size[0], layer.out_channels) for layer in head if isinstance(layer, torch.nn.Conv2d)]
        assert sizes == [(3, 8)] * convs + [(1, channels)]
