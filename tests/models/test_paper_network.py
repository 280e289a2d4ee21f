"""The paper's network: its strides, dilations and channels read off modules that hold no memory, its numbers from torchvision."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.models.deeplabv3plus import DeepLabV3PlusDecoder
from css_ray.models.encoders import TimmEncoder, make_encoder

CLASSES = 21
WEIGHTS = Path(__file__).parents[3] / "shared/weights"
RESNETS = [path for path in sorted(WEIGHTS.glob("resnet*")) if path.suffix in (".safetensors", ".pth")]

strides = pytest.mark.parametrize("output_stride", [8, 16])


def outline(encoder: str, output_stride: int, **changes: object) -> Segmenter:
    """On the meta device: shapes without numbers, so that a ResNet-101 takes milliseconds."""
    config = ModelConfig(encoder=encoder, output_stride=output_stride, pretrained=False, **changes)  # type: ignore[arg-type]
    with torch.device("meta"):
        return make_segmenter(config, CLASSES)


def layer(segmenter: Segmenter, number: int) -> list[nn.Module]:
    assert isinstance(segmenter.encoder, TimmEncoder)
    return list(segmenter.encoder.network.get_submodule(f"layer{number}").children())


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def random_images(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


@strides
@pytest.mark.parametrize("encoder", ["resnet50", "resnet101", "resnet101s"])
def test_strides_and_channels_of_the_features_of_odd_images(encoder: str, output_stride: int) -> None:
    segmenter = outline(encoder, output_stride)
    for height, width in ((64, 96), (97, 131)):
        images = torch.empty(2, 3, height, width, device="meta")
        low_level, deep = segmenter.encoder(images)
        assert low_level.shape == (2, 256, -(-height // 4), -(-width // 4))
        assert deep.shape == (2, 2048, -(-height // output_stride), -(-width // output_stride))
        logits, representations = segmenter(images)
        assert logits.shape == (2, CLASSES, *low_level.shape[-2:])
        assert representations is not None and representations.shape == (2, 256, *low_level.shape[-2:])
        assert segmenter.predict(images).shape == (2, CLASSES, height, width)


@pytest.mark.parametrize("encoder", ["resnet50", "resnet101", "resnet101s"])
@pytest.mark.parametrize(("output_stride", "dilations"), [(8, {3: (1, 2), 4: (2, 4)}), (16, {3: (1, 1), 4: (1, 2)})])
def test_strides_become_dilations(encoder: str, output_stride: int, dilations: dict[int, tuple[int, int]]) -> None:
    segmenter = outline(encoder, output_stride)
    for number, (first, others) in dilations.items():
        blocks = layer(segmenter, number)
        assert len(blocks) == {3: 6 if encoder == "resnet50" else 23, 4: 3}[number]
        for position, block in enumerate(blocks):
            middle = block.get_submodule("conv2")
            assert isinstance(middle, nn.Conv2d)
            assert middle.dilation == middle.padding == (first if position == 0 else others,) * 2
        strided = output_stride == 16 and number == 3
        assert max(part.stride[0] for block in blocks for part in convolutions(block)) == (2 if strided else 1)


def test_the_stem_is_one_convolution_or_three() -> None:
    def stem(encoder: str) -> list[tuple[int, int, int, int]]:
        parts = convolutions(outline(encoder, 8).encoder.get_submodule("network.conv1"))
        return [(part.in_channels, part.out_channels, part.kernel_size[0], part.stride[0]) for part in parts]

    assert stem("resnet101") == stem("resnet101.tv_in1k") == [(3, 64, 7, 2)]
    assert stem("resnet101s") == [(3, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 1)]


@pytest.mark.parametrize(
    ("output_stride", "given", "rates"),
    [(8, None, (12, 24, 36)), (16, None, (6, 12, 18)), (8, (6, 12, 18), (6, 12, 18)), (16, (2, 3, 5, 7), (2, 3, 5, 7))],
)
def test_the_pyramid(output_stride: int, given: tuple[int, ...] | None, rates: tuple[int, ...]) -> None:
    decoder = outline("resnet101", output_stride, aspp_rates=given).decoder
    assert isinstance(decoder, DeepLabV3PlusDecoder)
    aspp = decoder.aspp
    first, *dilated = convolutions(aspp.branches)
    assert (first.kernel_size, first.dilation) == ((1, 1), (1, 1))
    assert [part.dilation for part in dilated] == [part.padding for part in dilated] == [(rate, rate) for rate in rates]
    (image,), (project,) = convolutions(aspp.image_branch), convolutions(aspp.project)
    assert all(part.kernel_size == (3, 3) for part in dilated) and image.kernel_size == project.kernel_size == (1, 1)
    assert {(part.in_channels, part.out_channels) for part in (first, *dilated, image)} == {(2048, 256)}
    assert (project.in_channels, project.out_channels) == (256 * (len(rates) + 2), 256)
    assert not [part for part in aspp.modules() if isinstance(part, nn.Dropout)]


def test_decoder_and_heads() -> None:
    segmenter = outline("resnet101", 8)
    assert isinstance(segmenter.decoder, DeepLabV3PlusDecoder)
    (low_level,) = convolutions(segmenter.decoder.low_level)
    assert (low_level.in_channels, low_level.out_channels, low_level.kernel_size) == (256, 48, (1, 1))
    assert segmenter.decoder.out_channels == 304 == 256 + 48
    assert segmenter.representation_head is not None
    for head, out_channels in ((segmenter.logits_head, CLASSES), (segmenter.representation_head, 256)):
        assert [type(part) for part in head] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
        first, last = convolutions(head)
        assert (first.in_channels, first.out_channels, first.kernel_size, first.padding) == (304, 256, (3, 3), (1, 1))
        assert first.bias is None
        assert (last.in_channels, last.out_channels, last.kernel_size) == (256, out_channels, (1, 1))
        assert last.bias is not None
    # A normalisation follows every convolution but the last of a head, so none of them needs a bias.
    with_bias = [name for name, part in segmenter.named_modules() if isinstance(part, nn.Conv2d) and part.bias is not None]
    assert with_bias == ["logits_head.3", "representation_head.3"]


def test_resnet101_has_torchvisions_parameters() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.resnet101(replace_stride_with_dilation=[False, True, True])
        ours = make_encoder("resnet101", 8, False).get_submodule("network")
    shapes = {name: value.shape for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    expected = {name: part.dilation for name, part in theirs.named_modules() if isinstance(part, nn.Conv2d)}
    assert {name: part.dilation for name, part in ours.named_modules() if isinstance(part, nn.Conv2d)} == expected


@strides
def test_features_are_torchvisions_from_its_weights_file(output_stride: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, output_stride == 8, True]).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    encoder = make_encoder("resnet50", output_stride, str(tmp_path / "resnet50.pth")).eval()
    images = random_images(1, 3, 33, 49)
    with torch.no_grad():
        low_level, deep = encoder(images)
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = theirs.layer1(stem)
        torch.testing.assert_close(low_level, expected)
        torch.testing.assert_close(deep, theirs.layer4(theirs.layer3(theirs.layer2(expected))))


@strides
def test_odd_images_train_and_the_state_moves_to_another_segmenter(output_stride: int) -> None:
    small = {"decoder_channels": 16, "low_level_channels": 8, "representation_dim": 12}
    config = ModelConfig(encoder="resnet18", output_stride=output_stride, pretrained=False, **small)  # type: ignore[arg-type]
    torch.manual_seed(0)
    one = make_segmenter(config, CLASSES)
    images = random_images(2, 3, 97, 131)
    prediction = one(images)
    assert prediction.representations is not None
    (prediction.logits.square().mean() + prediction.representations.square().mean()).backward()
    # Every parameter takes part, and its gradient is a number.
    assert all(value.grad is not None and value.grad.isfinite().all() for value in one.parameters())

    other = make_segmenter(config, CLASSES)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one.eval().predict(images), other.eval().predict(images))
        assert torch.equal(one(images).representations, other(images).representations)


def test_predictions_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    segmenter = make_segmenter(ModelConfig(encoder="tiny", output_stride=4, pretrained=False, decoder_channels=16), 5).eval()
    images = random_images(1, 3, 33, 47)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert segmenter(images).logits.dtype == torch.bfloat16
        predicted = segmenter.predict(images)
    assert predicted.dtype == torch.float32 and predicted.shape == (1, 5, 33, 47)


@pytest.mark.skipif(not RESNETS, reason="no weights of a ResNet in ../shared/weights")
@pytest.mark.parametrize("path", RESNETS, ids=lambda path: path.name)
def test_weights_of_a_resnet_load(path: Path) -> None:
    name = path.name.split(".")[0]
    key = "network.layer1.0.bn1.running_var"
    fresh, loaded = make_encoder(name, 8, False).state_dict(), make_encoder(name, 8, str(path)).state_dict()
    assert torch.equal(fresh[key], torch.ones_like(fresh[key])) and not torch.equal(loaded[key], fresh[key])
