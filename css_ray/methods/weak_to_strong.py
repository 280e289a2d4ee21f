"""What FixMatch and its successors share: sure labels of a weak view, and strong views of the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from css_ray.config import Problem, knob
from css_ray.distributed import share_of_rank
from css_ray.functional.losses import unsupervised_cross_entropy
from css_ray.functional.mixing import Partners, area_boxes, mix, partners
from css_ray.functional.pseudo_labels import most_likely, sure_labels
from css_ray.functional.resizing import upsample
from css_ray.methods.base import Method
from css_ray.methods.teacher import Teacher, eval_mode
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock
from css_ray.views import Views


class WeakToStrong(Method):
    """Labels of the weak view that are sure enough teach views of the same geometry, other colours, and a pasted box.

    The weak view is scaled and flipped by `views.weak_scale` and `views.weak_flip`. Labelled images keep their colours,
    unless `views.labelled_colours` is strong.

    partners: whose box an image gets.
    """

    partners: ClassVar[Partners] = "roll"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """The threshold of the labels, who labels, and the boxes."""

        unsup_threshold: float = knob(0.95, help="confidence that a pseudo-label must reach (τ); 0 for Cityscapes", ge=0, le=1)
        teacher: Literal["average", "none"] = knob(
            "average", help="who labels the weak view: an average of the student, or the student as it is"
        )
        teacher_decay: float = knob(0.996, help="share of the teacher that an update keeps", ge=0, lt=1)
        unsup_weight: float = knob(1.0, help="weight of L_u beside L_x, before both are halved", ge=0)
        cutmix_probability: float = knob(0.5, help="share of the strong views into which a box is pasted", ge=0, le=1)
        cutmix_area: tuple[float, float] = knob((0.02, 0.4), help="smallest and largest share of a box", ge=0, le=1)
        cutmix_aspect: tuple[float, float] = knob((0.3, 1 / 0.3), help="smallest and largest height / width of a box", gt=0)

        def problems(self) -> Iterator[Problem]:
            """Adds to the bounds: a range is two numbers, the smaller first."""
            yield from super().problems()
            yield from self.range_problems("cutmix_area", "cutmix_aspect")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.teacher = Teacher(self.student, config.teacher_decay, normalise="average") if config.teacher == "average" else None

    @torch.no_grad()
    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, H, W] each: confidence and labels of the weak view, IGNORE_INDEX in padding."""
        if self.teacher is not None:
            prediction = self.teacher(batch.unlabelled_images)
        else:
            with eval_mode(self.student):
                prediction = self.student(batch.unlabelled_images)
        size = (batch.unlabelled_valid.shape[1], batch.unlabelled_valid.shape[2])
        confidence, labels = most_likely(upsample(prediction.logits, size).softmax(dim=1))
        return confidence, torch.where(batch.unlabelled_valid, labels, IGNORE_INDEX)

    @torch.no_grad()
    def strong_view(self, images: Tensor, labels: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The strong view, its labels, and which of them are sure."""
        config, (count, _, height, width) = self.config, images.shape
        boxes = area_boxes(
            count,
            height,
            width,
            images.device,
            probability=config.cutmix_probability,
            area=config.cutmix_area,
            aspect=config.cutmix_aspect,
        )
        order = partners(count, self.partners, images.device)
        coloured, labels, confidence = (
            mix(boxes, item, item[order]) for item in (self.strong_colours(images), labels, confidence)
        )
        return coloured, labels, confidence >= config.unsup_threshold

    @staticmethod
    def unsupervised(logits: Tensor, labels: Tensor, passed: Tensor) -> Tensor:
        """Cross entropy of the sure pixels over all valid ones, of all ranks."""
        loss = unsupervised_cross_entropy(logits, labels, passed, "pixel_fixmatch")
        return loss * share_of_rank((labels != IGNORE_INDEX).sum())

    def after_step(self, clock: Clock) -> None:
        if self.teacher is not None:
            self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.student if self.teacher is None else self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": sure_labels(self.predictor().predict(images), self.config.unsup_threshold)}
