"""Exported files: they compute what the model does at any size, and their cards are true and harmless."""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from torch import Tensor

from css_ray.models import ModelConfig, make_segmenter
from css_ray.prediction import TrainedModel
from css_ray.prediction.card import licence, model_card
from css_ray.prediction.export import ClassMapper, ExportError, compare, export
from css_ray.selection import load_model
from css_ray.training.best import describe_best, write_best
from css_ray.training.settings import TrainConfig
from tests.cli.made_up import call, refused

torch.set_num_threads(1)

HOSTILE = "<script>alert(1)</script>|\\textbf{x}`"
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


def made(folder: Path, classes: tuple[str, ...] = ("a", "b", "c"), train: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The folder of a network with random weights."""
    config = ModelConfig(encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4)
    torch.manual_seed(0)
    segmenter = make_segmenter(config, len(classes), representation=False)
    best = describe_best(
        segmenter, config, TrainConfig(**(train or {})), step=7, metrics={"val/miou": 50.0}, method="supervised", crop=32,
        class_names=classes, palette=(), seed=0, split=0, split_hash="abc", dataset="made", content="def",
    )  # fmt: skip
    write_best(folder, segmenter.state_dict(), dataclasses.replace(best, **changes))
    return folder


@pytest.mark.parametrize("format", ["torchscript", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_a_file_of_torch_computes_what_the_model_does(format: str, here: Path) -> None:
    result = call("export", "small:1/0", "--format", format, "--out", "deep/model.bin")
    assert result.exit_code == 0, result.output
    assert (
        "wrote deep/model.bin and its card deep/model.bin.md" in result.output and "pixels have the same class" in result.output
    )
    assert sorted(path.name for path in (here / "deep").iterdir()) == ["model.bin", "model.bin.md"]
    model = load_model("small:1/0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
        run = torch.jit.load("deep/model.bin") if format == "torchscript" else torch.export.load("deep/model.bin").module()  # type: ignore[no-untyped-call]
    for shape in ((1, 40, 40), (1, 23, 71), (5, 64, 33)):
        classes, confidence = run(images(*shape))
        wanted, sure = model.predict(images(*shape))
        assert classes.dtype == torch.uint8 and torch.equal(classes, wanted)
        assert torch.allclose(confidence, sure, atol=1e-6, rtol=0)
    card = (here / "deep/model.bin.md").read_text()
    origin = model.origin
    assert origin is not None and origin.mean is not None
    for part in (
        f"{origin.mean:.2f} ± {origin.std:.2f}",
        model.best.split_hash,
        model.digests[0],
        "CSS (mix)",
        "yours",
        "background",
    ):
        assert part in card


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="the extra `export` is not installed")
def test_an_onnx_file_computes_what_the_model_does(here: Path) -> None:
    import onnxruntime

    result = call("export", "small", "--trial", "1", "--out", "model.onnx")
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    model = load_model("small", trial=1)
    for shape in ((1, 40, 40), (1, 23, 71), (5, 64, 33)):
        classes, confidence = (torch.as_tensor(each) for each in session.run(None, {"images": images(*shape).numpy()}))
        wanted, sure = model.predict(images(*shape))
        assert classes.dtype == torch.uint8 and float((confidence - sure).abs().max()) <= 1e-4
        assert float((classes != wanted).float().mean()) < 1e-3


@pytest.mark.skipif(HAS_ONNX, reason="the extra `export` is installed")
def test_without_the_extra_onnx_names_it(here: Path) -> None:
    result = call("export", "small:0/0", "--format", "onnx", "--out", "model.onnx")
    assert result.exit_code == 1 and "pip install 'css-ray[export]'" in result.output and "Traceback" not in result.output
    assert not Path("model.onnx").exists()


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    mapper = ClassMapper(TrainedModel([made(tmp_path / "it")], name="it").predictor)
    with torch.no_grad():
        assert compare(mapper, mapper) == (0.0, 0, 1 * 48 * 64 + 2 * 37 * 91 + 3 * 96 * 40 + 130 * 65)
        with pytest.raises(ExportError, match=r"differ from torch's by 0\.001"):
            compare(mapper, lambda seen: (mapper(seen)[0], mapper(seen)[1] + 1e-3))
        with pytest.raises(ExportError, match="different classes"):
            compare(mapper, lambda seen: ((mapper(seen)[0] + 1) % 3, mapper(seen)[1]))
        with pytest.raises(ExportError, match="class map"):
            compare(mapper, lambda seen: tuple(each[:, :-1] for each in mapper(seen)))
        with pytest.raises(ExportError, match="does not run on images"):
            compare(mapper, lambda seen: [][0])


def test_windows_are_not_exported_and_that_is_said(tmp_path: Path) -> None:
    folder = made(tmp_path / "it", train={"evaluation": "sliding_window"})
    exported = export(TrainedModel([folder], name="it"), "torchscript", tmp_path / "model.pt")
    assert exported.remarks == (
        "the file sees images whole; the study evaluated windows of 32 pixels, as css-ray predict does, so its masks differ",
    )
    assert "windows of 32 pixels" in exported.card.read_text()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


def test_names_in_a_card_command_no_browser(tmp_path: Path) -> None:
    """A class, a data set and a file whose names are HTML or LaTeX; the card is shown by a real renderer."""
    model = TrainedModel([made(tmp_path / "it", (HOSTILE, "b", "c"), dataset=HOSTILE, method=HOSTILE)], name=HOSTILE)
    html = MarkdownIt("commonmark").enable("table").render(model_card(model, HOSTILE, "onnx", remarks=[HOSTILE]))
    parser = _Tags()
    parser.feed(html)
    assert "script" not in parser.tags and {"table", "h1"} <= parser.tags
    assert html.count("textbf{x}") >= 5 and html.count("<tr>") == html.count("</tr>") >= 12


def test_the_licence_is_that_of_what_the_weights_began_with(tmp_path: Path) -> None:
    def of(began: str | None, encoder: str = "tiny") -> str:
        model = TrainedModel([made(tmp_path / f"{began}-{encoder}".replace("/", "-"))], name="it")
        model.bests = (dataclasses.replace(model.best, initial_weights=began, encoder=encoder),)
        return licence(model)

    assert of("random numbers").startswith("yours")
    assert "see where they are from" in of("the file w.pth") and "not recorded" in of(None)
    assert "apache-2.0" in of("timm's weights of resnet50.a1_in1k", "resnet50.a1_in1k")


def test_what_cannot_be_exported(here: Path) -> None:
    assert "there are: small" in refused("export", "smal", "--format", "torchscript")
    assert "is a URL" in refused("export", "small", "--format", "torchscript", "--out", "s3://b/model.pt")
    (here / "taken").mkdir()
    assert "is a directory" in refused("export", "small", "--format", "torchscript", "--out", "taken")
    (here / "file").touch()
    assert "file is a file, not a folder" in refused("export", "small", "--format", "torchscript", "--out", "file/model.pt")
