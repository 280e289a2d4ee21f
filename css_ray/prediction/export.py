"""A trained model as a file that other programs run: uint8 RGB in, a class map out, with all that lies between."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from css_ray.messages import os_errors_in_words
from css_ray.models import Predictor
from css_ray.prediction.model import TrainedModel

Format = Literal["onnx", "torchscript", "torch-export"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}
"""The formats, and how a file of each is named."""

INPUT, OUTPUTS = "images", ("classes", "confidence")

MOST_DIFFERENCE = 1e-4
"""Of a confidence, between a file and torch."""

_SHAPES = ((1, 48, 64), (2, 37, 91), (3, 96, 40), (1, 130, 65))
"""Batches, heights and widths that a file is tried with; the first two differ from what it was traced with in all sides."""

_TRACED = (2, 56, 72)
_CHANNELS = 3


class ExportError(RuntimeError):
    """A model could not be exported, or what was written does not compute what the model does."""


class ClassMapper(nn.Module):
    """uint8 RGB [B, 3, H, W] -> classes uint8 [B, H, W], and their probabilities float32 [B, H, W]; without windows."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.predictor.predict(images.float() / 255.0)
        return logits.argmax(dim=1).to(torch.uint8), logits.softmax(dim=1).amax(dim=1)


class Difference(NamedTuple):
    """Between a file and torch, over the images that it was tried with.

    confidence: the largest difference of a probability. classes: the number of pixels of another class, all of them ties: two
    classes whose probabilities differ by no more than MOST_DIFFERENCE. pixels: of how many.
    """

    confidence: float
    classes: int
    pixels: int

    def __str__(self) -> str:
        ties = f"{self.classes} of {self.pixels} pixels have another class, all of them ties" if self.classes else ""
        return f"confidences differ by at most {self.confidence:.2g}, {ties or f'all {self.pixels} pixels have the same class'}"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written and tried. card: the model card beside it. remarks: what its user should know."""

    file: Path
    card: Path
    difference: Difference
    remarks: tuple[str, ...]


def export(model: TrainedModel, format: Format, out: str | Path) -> Exported:
    """Write a model into a file, try it against torch, and describe it in a card beside it, `<file>.md`.

    The file takes `images`, uint8 RGB [B, 3, H, W] of any B, H and W, and gives `classes`, uint8 [B, H, W], and `confidence`,
    float32 [B, H, W]: the normalisation is inside. It sees images whole, even if the evaluation of the study used windows.

    Args:
        model: What is exported; it is moved to the CPU.
        format: `onnx` needs the packages of the extra `export`.
        out: The file, which is replaced as a whole.

    Raises:
        ExportError: A package is missing, or the file computes something else.
        OSError: It cannot be written.
    """
    from css_ray.prediction.card import model_card
    from css_ray.storage import write_whole

    file = Path(out)
    if format == "onnx":
        _need("onnx", "onnxruntime", "onnxscript")
    mapper = ClassMapper(model.predictor.cpu()).eval()
    if model.best.channels_last:
        mapper.to(memory_format=torch.contiguous_format)
    partial = file.with_name(f"{file.name}.partial{SUFFIXES[format]}")
    with os_errors_in_words("write", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with torch.no_grad(), _quietly():
                run = _WRITERS[format](mapper, partial)
                difference = compare(mapper, run)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        remarks = () if model.best.window is None else (_windows_remark(model),)
        card = file.with_name(f"{file.name}.md")
        write_whole(card, model_card(model, file.name, format, difference, remarks).encode())
    return Exported(file, card, difference, remarks)


Run = Callable[[Tensor], Sequence[Any]]
"""Images -> what the file makes of them, as arrays or tensors."""


def compare(mapper: ClassMapper, run: Run) -> Difference:
    """What a file computes, beside what torch does, on images of several sizes.

    Raises ExportError if a probability differs by more than MOST_DIFFERENCE, or a class although no other one is as likely.
    """
    generator = torch.Generator().manual_seed(0)
    largest, differing, pixels = 0.0, 0, 0
    for batch, height, width in _SHAPES:
        # Of large patches: pixels of noise alone would all have one class.
        patches = torch.randint(0, 256, (batch, _CHANNELS, 1 + height // 8, 1 + width // 8), generator=generator)
        images = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :height, :width].to(torch.uint8).contiguous()
        try:
            classes, confidence = (torch.as_tensor(output) for output in run(images))
        except Exception as error:  # of whichever library runs the file
            raise ExportError(f"the file does not run on images {list(images.shape)}: {_first_line(error)}") from error
        wanted, sure = mapper(images)
        probabilities = mapper.predictor.predict(images.float() / 255.0).softmax(dim=1)
        if classes.shape != wanted.shape or confidence.shape != sure.shape:
            raise ExportError(f"the file makes a class map {list(classes.shape)} of images {list(images.shape)}")
        largest = max(largest, float((confidence - sure).abs().max()))
        chosen = probabilities.gather(1, classes.long().clamp(max=probabilities.shape[1] - 1).unsqueeze(1)).squeeze(1)
        other = classes != wanted
        if bool((other & (sure - chosen > MOST_DIFFERENCE)).any()):
            raise ExportError(f"the file and torch give {int(other.sum())} pixels of {list(images.shape)} different classes")
        differing += int(other.sum())
        pixels += classes.numel()
    if not largest <= MOST_DIFFERENCE:
        raise ExportError(
            f"the confidences of the file differ from torch's by {largest:.2g}, at most {MOST_DIFFERENCE:g} may they"
        )
    return Difference(largest, differing, pixels)


def _example() -> Tensor:
    batch, height, width = _TRACED
    return torch.zeros(batch, _CHANNELS, height, width, dtype=torch.uint8)


def _dynamic() -> dict[str, Any]:
    anything = torch.export.Dim.DYNAMIC
    return {INPUT: {0: anything, 2: anything, 3: anything}}


def _program(mapper: ClassMapper) -> torch.export.ExportedProgram:
    return torch.export.export(mapper, (_example(),), dynamic_shapes=_dynamic())


def _write_torch_export(mapper: ClassMapper, file: Path) -> Run:
    torch.export.save(_program(mapper), file)
    loaded: Run = torch.export.load(file).module()
    return loaded


def _write_torchscript(mapper: ClassMapper, file: Path) -> Run:
    torch.jit.save(torch.jit.trace(mapper, (_example(),), check_trace=False), str(file))  # type: ignore[no-untyped-call]
    loaded: Run = torch.jit.load(str(file))  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(mapper: ClassMapper, file: Path) -> Run:
    import onnxruntime

    program = torch.onnx.export(
        mapper,
        (_example(),),
        dynamo=True,
        dynamic_shapes=_dynamic(),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert program is not None
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Sequence[Any]:
        outputs: Sequence[Any] = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return outputs

    return run


_WRITERS: dict[Format, Callable[[ClassMapper, Path], Run]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "torch-export": _write_torch_export,
}
"""How a file of each format is written; each returns what runs the file that it wrote."""


def _need(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(
            f"the format onnx needs {', '.join(missing)}; install them with: pip install 'css-ray[export]'; or give another "
            "format"
        )


def _windows_remark(model: TrainedModel) -> str:
    return (
        f"the file sees images whole; the study evaluated windows of {model.best.window} pixels, as css-ray predict does, so "
        "its masks differ"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters report to developers: deprecations of torch.jit, constants in traces, progress in the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def default_file(model: TrainedModel, format: Format) -> str:
    """A name for the file of a model."""
    text = re.sub(r"[^A-Za-z0-9_]+", "-", Path(model.name).name)
    return f"{text.strip('-') or 'model'}{SUFFIXES[format]}"
