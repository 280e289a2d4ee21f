"""Files of weights for an encoder: what fits is loaded, and of what does not the message names what differs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from css_ray.models.encoders import WeightsError, make_encoder
from tests.cli.made_up import SPEC, refused

ENCODER = "test_efficientnet"  # of timm's networks for tests: 80 tensors of 0.3 MB together
STEM = "conv_stem.weight"


def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(make_encoder(ENCODER, 16, False).network.state_dict())  # type: ignore[union-attr]


def load(path: Path) -> dict[str, Tensor]:
    return dict(make_encoder(ENCODER, 16, str(path)).network.state_dict())  # type: ignore[union-attr]


def saved(value: Any, path: Path, **settings: Any) -> Path:
    torch.save(value, path, **settings)
    return path


def why(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text and "weights_only" not in text and "\n" not in text
    return text.replace(str(path), "FILE")


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}])
def test_weights_of_torch_are_loaded(tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = weights()
    found = load(saved({**expected, "classifier.bias": torch.zeros(7)}, tmp_path / "w.pth", **settings))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_safetensors_are_loaded_and_half_precision_is_widened(tmp_path: Path) -> None:
    expected = {name: value.half() if value.is_floating_point() else value for name, value in weights().items()}
    save_file({name: value.contiguous() for name, value in expected.items()}, tmp_path / "w.safetensors")
    found = load(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name].to(value.dtype), value) for name, value in expected.items())


def test_counters_of_batch_norm_may_be_absent(tmp_path: Path) -> None:
    old = {name: value for name, value in weights().items() if "num_batches_tracked" not in name}
    load(saved(old, tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda found: found.update({STEM: torch.zeros(24, 3, 5, 5)}), f"FILE: {STEM} has the shape 24x3x5x5 in the file, 24x3x3x3 in the encoder; is it"),
        (lambda found: found.update({STEM: torch.zeros(1), "bn1.weight": torch.zeros(2)}), f"FILE: {STEM} has the shape 1 in the file, 24x3x3x3 in the encoder (and 1 more differ)"),
        (lambda found: found.update({STEM: torch.zeros(24, 3, 3, 3, dtype=torch.int8)}), f"FILE: {STEM} holds int8 in the file, float32 in the encoder"),
        (lambda found: found.update({STEM: [1.0]}), f"FILE: {STEM} is not a plain tensor in the file"),
        (lambda found: found.update({STEM: torch.zeros(24, 3, 3, 3).to_sparse()}), f"FILE: {STEM} is not a plain tensor in the file"),
        (lambda found: found.pop(STEM), f"FILE lacks 1 of the encoder's 80 keys, among them {STEM}; is it for another network?"),
    ],
)  # fmt: skip
def test_the_parameter_that_differs_is_named(change: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path) -> None:
    found: dict[str, Any] = weights()
    assert found[STEM].shape == (24, 3, 3, 3)
    change(found)
    assert why(saved(found, tmp_path / "w.pth")).startswith(sentence)


def test_weights_inside_of_a_checkpoint_are_pointed_at(tmp_path: Path) -> None:
    path = saved({"epoch": 3, "state_dict": weights()}, tmp_path / "w.pth")
    assert why(path) == "FILE has the weights inside of 'state_dict'; save that part alone"
    assert why(saved([1.0], tmp_path / "w.pth")).startswith("FILE holds a list, not tensors by name")


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("settings", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickle_is_not_run(settings: dict[str, Any], tmp_path: Path) -> None:
    text = why(saved({**weights(), STEM: Payload(tmp_path / "ran")}, tmp_path / "w.pth", **settings))
    assert re.match(r"FILE holds (posix|nt)\.system, which is not a tensor and could run code, so it is not read; save", text)
    assert "torch.nn" in why(saved(torch.nn.Linear(2, 2), tmp_path / "whole.pth")).replace("FILE holds ", "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"<!doctype html>", bytes(1000)])
def test_what_is_no_file_of_weights(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert why(path).startswith("FILE is ")


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in weights().items()}, path)
    else:
        saved(weights(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert why(path).startswith("FILE is cut short or damaged")


def test_an_archive_that_unfolds_is_refused_before_it_does(tmp_path: Path) -> None:
    source = zipfile.ZipFile(saved(weights(), tmp_path / "w.pth"))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, bytes(2**27) if name.endswith("data.pkl") else source.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    assert why(tmp_path / "bomb.pth").startswith("FILE is compressed, or claims to hold more than it has")


def test_a_plan_names_the_setting(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"encoder": ENCODER, "output_stride": 16, "pretrained": "w.pth"}
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, "model": model, "data": {**SPEC["data"], "root": str(data)}}))
    saved({**weights(), STEM: torch.zeros(3)}, Path("w.pth"))
    said = refused("study", "plan", "study.yaml", "--no-measure")
    assert f"model.pretrained: w.pth: {STEM} has the shape 3 in the file, 24x3x3x3 in the encoder" in said
    Path("w.pth").write_bytes(b"")
    assert "model.pretrained: w.pth is empty; fetch or save it again" in refused("study", "plan", "study.yaml", "--no-measure")


def test_unknown_weights_of_an_encoder_are_no_traceback() -> None:
    with pytest.raises(ValueError, match=r"encoder resnet101 has no weights 'tv_in2k' \(did you mean resnet101.tv_in1k\?\)"):
        make_encoder("resnet101.tv_in2k", 16, False)
