"""Encoders: any timm network with features at stride 4 and at the output stride, a ViT of timm, and a tiny one for a CPU."""

from __future__ import annotations

import difflib
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from css_ray.messages import did_you_mean, last_line, os_error_text, printable
from css_ray.models.base import Encoder
from css_ray.models.vit import ViTEncoder, patch_size

LOW_LEVEL_STRIDE = 4
"""Of the feature that a timm network gives the decoder, and so of logits and representations."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsError(ValueError):
    """A file of weights is not one, or not one of this encoder; the message names what differs."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it quotes the file


class ConvolutionalEncoder(Encoder):
    """Two levels: the low-level feature at its stride, and the deep one at the output stride.

    low_level_channels, deep_channels: their channels.
    """

    low_level_stride: int = LOW_LEVEL_STRIDE
    low_level_channels: int
    deep_channels: int


class TimmEncoder(ConvolutionalEncoder):
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


class TinyEncoder(ConvolutionalEncoder):
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
        try:
            timm.models.get_pretrained_cfg(name)
        except RuntimeError:
            network, _, tag = name.partition(".")
            known = timm.list_pretrained(f"{network}.*")
            return f"encoder {network} has no weights {tag!r}{did_you_mean(name, known)}"
        return None
    close = difflib.get_close_matches(name, ["tiny", *timm.list_models(), *timm.list_pretrained()], n=1)
    return f"unknown encoder {name!r}{did_you_mean(name, close) or '; known: tiny, and what timm.list_models() lists'}"


def make_encoder(name: str, output_stride: int, pretrained: bool | str) -> ConvolutionalEncoder | ViTEncoder:
    """`tiny`, or a timm network by name; a plain vision transformer is one of its own kind, which has no `output_stride`.

    pretrained: True downloads timm's weights, a path loads a .safetensors or .pth file.

    Raises ValueError for an unknown name (with close ones), and if a network has no features at stride 4 or at the output
    stride; WeightsError if the file cannot be read, lacks keys of the encoder, or has other shapes.
    """
    if name == "tiny":
        if pretrained:
            raise ValueError(f"the encoder tiny has no pretrained weights, got pretrained={pretrained!r}; set it to false")
        return TinyEncoder(output_stride)
    if unknown := unknown_encoder(name):
        raise ValueError(unknown)
    encoder: TimmEncoder | ViTEncoder
    try:
        if patch_size(name) is not None:
            encoder = ViTEncoder(name, pretrained is True)
        else:
            encoder = TimmEncoder(name, output_stride, pretrained is True)
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"encoder {name} gives no features at output_stride {output_stride} ({error}); take a ResNet, an EfficientNet or a "
            "ViT"
        ) from error
    if isinstance(pretrained, str):
        _load(encoder.network, Path(pretrained))
    return encoder


def _load(network: nn.Module, path: Path) -> None:
    """Weights from a file. Keys that the network does not have (a classifier's) are fine, missing ones are not."""
    wanted = network.state_dict()
    try:
        weights = _read_safetensors(path, wanted) if path.suffix == ".safetensors" else _read_pickle(path, wanted)
    except OSError as error:
        raise WeightsError(os_error_text(error, "read", path)) from None
    wrong = [f"{name} {sentence}" for name, found in weights.items() if (sentence := _misfit(found, wanted[name]))]
    if wrong:
        others = f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        raise WeightsError(f"{path}: {wrong[0]}{others}; is it for another network?")
    try:
        missing = network.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # numbers of a kind that cannot be converted
        raise WeightsError(f"{path}: {last_line(error, 300)}; is it for another network?") from None
    if missing:
        raise WeightsError(
            f"{path} lacks {len(missing)} of the encoder's {len(wanted)} keys, among them {', '.join(missing[:5])}; is it for "
            "another network?"
        )


def _misfit(found: object, wanted: Tensor) -> str:
    """Why a value of a file does not fit a tensor of the network; empty if it does."""
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.is_meta:
        return "is not a plain tensor in the file"
    if found.shape != wanted.shape:
        return f"has the shape {_shape(found)} in the file, {_shape(wanted)} in the encoder"
    if found.is_complex() or (wanted.is_floating_point() and not found.is_floating_point()):
        there, here = (str(each.dtype).removeprefix("torch.") for each in (found, wanted))
        return f"holds {there} in the file, {here} in the encoder"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "()"


def _read_safetensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of those names that a safetensors file has."""
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118 (it is not a mapping)
    except (SafetensorError, ValueError, RuntimeError, AttributeError, MemoryError) as error:
        raise WeightsError(f"{path} is cut short or damaged, or not a safetensors file ({last_line(error, 200)})") from None


def _read_pickle(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The values of those names in the mapping that `torch.save` wrote. Reading it runs no code."""
    _check_file(path)
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # an archive, or a pickle, as torch wrote before 1.6
        raise WeightsError(f"{path} is neither a safetensors file nor one of torch.save; give one of them")
    if start == b"PK":
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are read all the same
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except OSError:
        raise
    except Exception as error:  # what a damaged pickle raises is anything
        found = re.search(r"GLOBAL (\S{1,100})", str(error))
        if found is not None:
            raise WeightsError(
                f"{path} holds {found[1]}, which is not a tensor and could run code, so it is not read; save the weights "
                "alone, with torch.save(network.state_dict(), PATH)"
            ) from None
        raise WeightsError(f"{path} is cut short or damaged, or holds more than tensors; fetch or save it again") from None
    if not isinstance(held, Mapping):
        raise WeightsError(f"{path} holds a {type(held).__name__}, not tensors by name; save network.state_dict()")
    weights = {name: value for name, value in held.items() if isinstance(name, str) and name in names}
    if not weights:
        for key, value in held.items():
            if isinstance(value, Mapping) and any(name in value for name in names):
                raise WeightsError(f"{path} has the weights inside of {key!r}; save that part alone")
    return weights


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist or is not a file; give a .safetensors or .pth file, or true or false")
    if not path.stat().st_size:
        raise WeightsError(f"{path} is empty; fetch or save it again")


def _check_archive(path: Path) -> None:
    """Refuse what unfolds to more than the file's own size: torch stores, and never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise WeightsError(f"{path} is cut short or damaged ({last_line(error, 200)}); fetch or save it again") from None
    if any(each.compress_type != zipfile.ZIP_STORED for each in members) or (
        sum(each.file_size for each in members) > path.stat().st_size
    ):
        raise WeightsError(f"{path} is compressed, or claims to hold more than it has; save it with torch.save")
