"""The words that all layers share: the ignored label, a batch, a prediction, the losses of a step, an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = 255
"""Label of a pixel that no loss and no metric may see: void, padding, or a pseudo-label that was rejected."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one rank sees in one step. B_l and B_u are independent; H = W = the crop.

    In a stage of `union` batches the pseudo-labelled images are among the labelled ones, and B_u is 0.

    labelled_images: [B_l, 3, H, W] float32 RGB in [0, 1], scaled, cropped and flipped; colours untouched.
    labels: [B_l, H, W] int64 in {0..C-1, IGNORE_INDEX}; padding is IGNORE_INDEX.
    unlabelled_images: [B_u, 3, H, W] float32 RGB in [0, 1], cropped only: the weak view, which the teacher sees.
    unlabelled_valid: [B_u, H, W] bool, False where the crop shows padding.
    labelled_epoch: how often the labelled images were gone through before, in whole batches (the released code's epoch).
    pseudo: [B_l] bool, True for a labelled image whose labels the method itself made at a border; None if no image is such.
    """

    labelled_images: Tensor
    labels: Tensor
    unlabelled_images: Tensor
    unlabelled_valid: Tensor
    labelled_epoch: int = 0
    pseudo: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; copies from pinned memory overlap with the computation."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return Batch(**(values | moved))


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a training is.

    step, steps: optimizer steps done in the stage, and those that it has. stage: counted from 0.
    """

    step: int
    steps: int
    stage: int = 0

    @property
    def progress(self) -> float:
        """The share of the stage that is done, in [0, 1)."""
        return self.step / self.steps


class Prediction(NamedTuple):
    """What a segmenter returns for images [B, 3, H, W].

    logits: [B, C, h, w], before softmax, at the decoder's stride (not upsampled).
    representations: [B, D, h, w], not normalised; None for a segmenter without a representation head.
    """

    logits: Tensor
    representations: Tensor | None


class BothSpaces(NamedTuple):
    """What a method that labels in two spaces makes of the pixels of images; each map is [B, H, W].

    confidence: the largest probability of the logits. logit_labels: its class (Eq. 1). logit_mask: whether it passes the
    threshold of the logit space.
    similarity: the largest similarity to a prototype, as a softmax over the classes (Eq. 5). representation_labels: its class
    (Eq. 4). representation_mask: whether it passes the threshold of the representation space.
    cosine: of the representation and the prototype of the class in logit_labels, in [-1, 1].
    """

    confidence: Tensor
    logit_labels: Tensor
    logit_mask: Tensor
    similarity: Tensor
    representation_labels: Tensor
    representation_mask: Tensor
    cosine: Tensor


class Rate(NamedTuple):
    """A share, such as of the pixels that pass a gate, by its counts: these add up over steps and ranks, shares do not."""

    part: Tensor
    whole: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of one step.

    terms: scalars with their weights already applied; the step minimises their sum.
    logs: detached scalars, whose means over the steps that have them make the curves; and rates, whose counts do.
    diagnostics: gives more such scalars when called; what costs time is computed at the points of the curves only.
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor | Rate] = field(default_factory=dict)
    diagnostics: Callable[[], dict[str, Tensor]] = dict

    @property
    def total(self) -> Tensor:
        """Scalar: the sum of all terms."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one predictor on one set of images, in percent, from one confusion matrix.

    miou: mean of the IoU over the classes whose union is not empty.
    iou: one IoU per class, in class order; None if the class is absent from prediction and ground truth.
    pixel_accuracy: share of the pixels that are not ignored whose class is right.
    num_images: how many images were counted, each exactly once over all ranks.
    num_absent_classes: how many classes have an empty union; `miou` leaves them out.
    cells: [4, M] int64, on the CPU: image, label, prediction and number of pixels of each cell that is not 0 in the confusion
    matrix of an image, in this order; images are numbered in the order of the set. Empty if scores alone were asked for.
    """

    miou: float
    iou: tuple[float | None, ...]
    pixel_accuracy: float
    num_images: int
    num_absent_classes: int
    cells: Tensor = field(default_factory=lambda: torch.empty(4, 0, dtype=torch.int64), compare=False, repr=False)
