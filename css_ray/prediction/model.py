"""The best weights of one run, or of several as an ensemble, ready to predict as the evaluation of their study did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from css_ray.data.loaders import images_on
from css_ray.functional.windows import whole_or_windows
from css_ray.models import Ensemble, Predictor, Segmenter
from css_ray.prediction.palette import safe_palette
from css_ray.training.best import BestDescription, BestError, Colour, read_best
from css_ray.training.settings import TrainConfig
from css_ray.training.step import algorithms

_ALIKE = (
    "class_names", "palette", "evaluation", "crop", "window_average", "channels_last", "encoder", "output_stride", "decoder",
    "decoder_channels", "low_level_channels", "aspp_rates", "mean", "std",
)  # fmt: skip
"""What the networks of an ensemble must have in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The trial of a study that a model is from. mean, std: of its score over n splits, in percent, as its study scores it.

    metric, at: what is scored, and whether at the last step or at the best evaluation. confirmed: whether the splits are ones
    that no search has seen. searched: whether it is of a search, on the splits that the search chose by: an optimistic number.
    """

    study: str
    trial: int
    row: str
    metric: str
    at: str
    mean: float | None
    std: float | None
    n: int
    num_splits: int
    confirmed: bool = False
    searched: bool = False


class ClassMaps(NamedTuple):
    """What a model makes of images [B, 3, H, W].

    classes: uint8 [B, H, W], the index of the class with the largest score. confidence: float32 [B, H, W], its probability.
    """

    classes: Tensor
    confidence: Tensor


class TrainedModel:
    """One network, or several that predict as one, with what is known of them.

        model = css_ray.load_model("quickstart:4/0")
        classes, confidence = model.predict(images)  # uint8 [B, 3, H, W], RGB

    Args:
        folders: One folder per run, each with `best.pt` and `best.json`. Of several, the mean of their logits predicts.
        name: What messages and records call it.
        device: Where it computes.
        origin: The trial that it is from, if that is known.

    Attributes:
        bests: The description of each run's weights. best: the first, whose evaluation, classes and palette are those of all.
        digests: The SHA-256 of each file of weights.
        spaces: What each run's method kept for `Method.both_spaces`; empty for a method that labels in one space.

    Raises:
        BestError: A folder cannot be used, see `load_best`, or the runs differ in what an ensemble must have in common.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        name: str,
        device: torch.device | str = "cpu",
        origin: Origin | None = None,
    ) -> None:
        read = [read_best(folder) for folder in folders]
        self.name, self.origin, self.device = name, origin, torch.device(device)
        self.folders = tuple(Path(folder) for folder in folders)
        self.bests: tuple[BestDescription, ...] = tuple(each.best for each in read)
        self.digests: tuple[str, ...] = tuple(each.digest for each in read)
        self.spaces = tuple({name: tensor.to(self.device) for name, tensor in each.space.items()} for each in read)
        self._check_alike()
        self.predictor: Predictor = _joined([each.predictor for each in read]).eval().to(self.device)
        if self.best.channels_last:
            self.predictor.to(memory_format=torch.channels_last)

    @property
    def best(self) -> BestDescription:
        return self.bests[0]

    @property
    def palette(self) -> tuple[Colour, ...]:
        """The data set's colours; without any, colours that the colour-blind tell apart."""
        return self.best.palette or safe_palette(self.best.num_classes)

    def _check_alike(self) -> None:
        for folder, best in zip(self.folders[1:], self.bests[1:], strict=True):
            for field in _ALIKE:
                first, other = getattr(self.best, field), getattr(best, field)
                if first != other:
                    raise BestError(
                        f"{folder} and {self.folders[0]} cannot predict as one: {field} is {other!r} and {first!r}; give runs "
                        "of one trial"
                    )

    @torch.no_grad()
    def predict(self, images: Tensor, *, threads: int | None = None) -> ClassMaps:
        """The classes of images, by the windows and averages of the study's evaluation.

        Args:
            images: uint8 [B, 3, H, W], RGB, on any device.
            threads: Of a CPU, on which the last digits depend; by default those that torch has.

        Returns:
            The class maps, on the model's device.

        Raises:
            ValueError: The images are of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            kind = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise ValueError(f"images must be uint8 [B, 3, H, W], got {kind}; convert them to RGB in 0..255, channels first")
        best = self.best
        with _threads(threads), algorithms(TrainConfig(deterministic=best.deterministic), self.device, fixed_shapes=False):
            scores = whole_or_windows(self.predictor.predict, images_on(images, self.device), best.window, best.window_average)
            classes = scores.argmax(dim=1)
            averaged = best.window is not None and best.window_average == "probabilities"
            confidence = (scores if averaged else scores.softmax(dim=1)).amax(dim=1)
        return ClassMaps(classes.to(torch.uint8), confidence)


def _joined(predictors: Sequence[Predictor]) -> Predictor:
    """The predictor whose logits are the mean of those of all."""
    if len(predictors) == 1:
        return predictors[0]
    members: list[Segmenter] = []
    for predictor in predictors:
        parts = [predictor] if isinstance(predictor, Segmenter) else list(predictor.members)
        members += [part for part in parts if isinstance(part, Segmenter)]
    return Ensemble(members)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
