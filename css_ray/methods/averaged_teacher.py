"""What the mean teacher and CutMix share: a student that learns on a strong view what its average predicts on the weak one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.distributed import share_of_rank
from css_ray.functional.losses import UnsupReduction, probability_consistency, unsupervised_cross_entropy
from css_ray.functional.metrics import quantiles
from css_ray.functional.pseudo_labels import most_likely, sure_labels
from css_ray.functional.resizing import upsample
from css_ray.functional.schedules import exponential_ramp_up
from css_ray.methods.base import Method
from css_ray.methods.strong_view import Partner, strong_view
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Rate
from css_ray.views import Views


class AveragedTeacher(Method):
    """The base of both. partner: whose images are pasted into the strong view; None: none are."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Pseudo-labels as the paper's baselines have them, or the original's squared difference of probabilities."""

        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        consistency: Literal["labels", "probabilities"] = knob(
            "labels", help="labels: cross entropy against pseudo-labels; probabilities: squared difference of the softmaxes"
        )
        unsup_weight: float = knob(1.0, help="weight of the unsupervised loss; 100 is usual with probabilities", ge=0)
        ramp_up: float = knob(0.0, help="share of training over which the unsupervised weight rises from 0", ge=0, le=1)
        unsup_threshold: float = knob(0.97, help="confidence that a pseudo-label must reach (δ_u)", ge=0, le=1)
        unsup_reduction: UnsupReduction = knob("image_fraction", help="how the pixels that passed weigh; pixel is Eq. 8")
        joint_forward: bool = knob(False, help="the student sees labelled and unlabelled images in one batch; faster on a GPU")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.teacher = Teacher(self.student, config.teacher_decay)
        self.partner: Partner | None = None

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        size = (valid.shape[1], valid.shape[2])
        with torch.no_grad():
            probabilities = upsample(self.teacher(batch.unlabelled_images).logits, size).softmax(dim=1)
            confidence, labels = most_likely(probabilities)
            passed = (confidence >= config.unsup_threshold) & valid
            labels = torch.where(valid, labels, IGNORE_INDEX)
            logs: dict[str, Tensor | Rate] = {"unsup_pass_rate": Rate(passed.sum(), valid.sum())}
            weak_valid = valid
            soft = config.consistency == "probabilities"
            target, fill = (probabilities, 0.0) if soft else (labels, IGNORE_INDEX)
            images, (target, passed, valid) = strong_view(
                self, batch.unlabelled_images, (target, passed, valid), (fill, False, False), partner=self.partner
            )
        coloured = self.labelled_colours(batch.labelled_images, strong=True)
        labelled, strong = self.see(coloured, images, joint=config.joint_forward)
        logits = upsample(strong.logits, size)
        if soft:
            unsupervised = probability_consistency(logits, target, valid) * share_of_rank(valid.sum())
        else:
            unsupervised = unsupervised_cross_entropy(logits, target, passed, config.unsup_reduction)
            counted = passed if config.unsup_reduction == "pixel" else target != IGNORE_INDEX
            unsupervised = unsupervised * share_of_rank(counted.sum())
        weight = config.unsup_weight * exponential_ramp_up(clock.progress, config.ramp_up)
        return Losses(
            terms={"sup": self.supervised(labelled, batch.labels), "unsup": weight * unsupervised},
            logs=logs,
            diagnostics=lambda: quantiles("confidence", confidence, weak_valid),
        )

    def after_step(self, clock: Clock) -> None:
        self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": sure_labels(self.teacher.model.predict(images), self.config.unsup_threshold)}
