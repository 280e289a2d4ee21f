"""Perturbed and strict mean teachers: two teachers that take turns, and a student whose features are moved against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from css_ray.config import knob
from css_ray.distributed import share_of_rank
from css_ray.functional.losses import weighted_cross_entropy
from css_ray.functional.mixing import Partners, beta_boxes, mix, partners
from css_ray.functional.perturbations import adversarial, unresolved
from css_ray.functional.pseudo_labels import most_likely, overwrite_unlikely, sure_labels
from css_ray.functional.resizing import upsample
from css_ray.functional.schedules import cosine_ramp_up
from css_ray.methods.base import Method
from css_ray.methods.stages import Stage
from css_ray.methods.teacher import eval_mode, follow
from css_ray.models import Ensemble, Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction, Rate
from css_ray.views import Views


class PSMT(Method):
    """Two teachers label, weighted by their confidence; the student learns from moved features. Liu et al., CVPR 2022.

    Stages: `warm_up` trains the student and both teachers on labelled images; in `main` the teachers get no gradient, and
    follow the student in turn. There L = L_x + w(t) sum conf CE / #passed, over the pixels whose confidence reaches the
    threshold; labels and confidence are of the mean of the logits of the active teacher and of the other one, in which the
    classes outside its own top k have the active one's. The student's heads read its features + r, |r| = vat_radius, to where
    the mean of the teachers' heads changes most (T-VAT). Both teachers together are evaluated.

    Departs from the published code: adversarial directions that are not noise (`vat_xi`), teachers that start from the
    student's encoder weights (`teacher_encoders`), logits that are exactly 0 are not overwritten, no padding among the labels,
    boxes inside the image, each image its own, and turns by shares of the training instead of epochs.

    Presets: `published` has the `vat_xi`, the random encoders, the clipped boxes and the partners of the released code.
    """

    name = "psmt"
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Settings of the teachers, of the labels and of the moves."""

        warm_up: float = knob(0.01, help="share of training on labelled images alone (five of their epochs)", ge=0, lt=1)
        teacher_encoders: Literal["pretrained", "random"] = knob(
            "pretrained", help="what the teachers' encoders start from: the student's weights, or nothing (published code)"
        )
        teacher_decay: float = knob(0.996, help="share of a teacher that an update keeps", ge=0, lt=1)
        switch_every: float = knob(
            0.0125, help="share of training after which the other teacher follows: an epoch of the published 80", gt=0, le=1
        )
        top_k: int = knob(7, help="classes in which the other teacher has a say", ge=1)
        unsup_threshold: float = knob(0.6, help="confidence from which a pixel counts", ge=0, le=1)
        unsup_weight: float = knob(1.5, help="weight of the unsupervised loss", ge=0)
        ramp_up: float = knob(0.15, help="share of training over which this weight rises", ge=0, le=1)
        vat_xi: float = knob(0.1, help="length of the step whose gradient gives the direction", gt=0)
        vat_radius: float = knob(2.0, help="length of the move per image; 0: none", ge=0)
        cutmix: bool = knob(True, help="mix the unlabelled images")
        cutmix_beta: float = knob(4.0, help="of the distribution of the boxes' share of the image, Beta(a, a)", gt=0)
        cutmix_clipped: bool = knob(
            False, help="boxes have their centre anywhere and are cut off at the border (published code): a third, not a half"
        )
        cutmix_partner: Partners = knob(
            "roll", help="whose part an image gets: the next one's, from the end, or any, itself too"
        )

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.teachers = nn.ModuleList([make_segmenter(), make_segmenter()])
        if config.teacher_encoders == "random":
            for module in self.teachers.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        if preset != "published":
            return {}
        return {"vat_xi": 1e-6, "teacher_encoders": "random", "cutmix_partner": "permute", "cutmix_clipped": True}

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names what has no effect."""
        found = unresolved(config.vat_xi) if config.vat_radius else []
        if config.top_k >= num_classes:
            found.append(
                f"top_k {config.top_k} is all of {num_classes} classes, so the active teacher corrects nothing; use fewer"
            )
        return found

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.warm_up
        return Stage("warm_up", share, "labelled", "constant"), Stage("main", 1 - share)

    def lr_factors(self) -> Mapping[str, float]:
        return {"teachers": 0.0} if self.stage else {}

    def predictor(self) -> Ensemble:
        return Ensemble([self._teacher(0), self._teacher(1)])

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        if not clock.stage:
            return self._warm_up(batch)
        config, valid, count = self.config, batch.unlabelled_valid, len(batch.labelled_images)
        size = (valid.shape[1], valid.shape[2])
        confidence, labels, helped = self._label(batch.unlabelled_images, size, self._active(clock))
        images = self.strong_colours(batch.unlabelled_images)
        passed = valid & (confidence >= config.unsup_threshold)
        logs: dict[str, Tensor | Rate] = {
            "unsup_pass_rate": Rate(passed.sum(), valid.sum()),
            "assisted": Rate((helped & valid).sum(), valid.sum()),
        }
        labels = torch.where(passed, labels, IGNORE_INDEX)
        if config.cutmix:
            boxes = beta_boxes(
                len(images), *size, images.device, concentration=config.cutmix_beta, clipped=config.cutmix_clipped
            )
            others = partners(len(images), config.cutmix_partner, images.device)
            images, labels, confidence = (mix(boxes, item, item[others]) for item in (images, labels, confidence))
        both = torch.cat([self.labelled_colours(batch.labelled_images, strong=True), images])
        features = self.student.decode(self.student.encode(both))
        logits = self.student.logits_head(features + self._move(features))
        supervised = self.supervised(Prediction(logits[:count], None), batch.labels)
        unsupervised = weighted_cross_entropy(upsample(logits[count:], size), labels, confidence)
        weight = config.unsup_weight * cosine_ramp_up(clock.progress, config.ramp_up)
        share = share_of_rank((labels != IGNORE_INDEX).sum())
        return Losses({"sup": supervised, "unsup": weight * share * unsupervised}, logs)

    def after_step(self, clock: Clock) -> None:
        if clock.stage:
            follow(self._teacher(self._active(clock)), self.student, self.config.teacher_decay)

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"teachers": sure_labels(self.predictor().predict(images), self.config.unsup_threshold)}

    def _teacher(self, number: int) -> Segmenter:
        teacher = self.teachers[number]
        assert isinstance(teacher, Segmenter)
        return teacher

    def _active(self, clock: Clock) -> int:
        """Whose turn it is."""
        return int(clock.progress / self.config.switch_every) % 2

    def _warm_up(self, batch: Batch) -> Losses:
        """The student sees other colours than the teachers."""
        strong = self.labelled_colours(batch.labelled_images, strong=True)
        losses = [
            self.supervised(network(images), batch.labels)
            for network, images in (
                (self.student, strong),
                (self._teacher(0), batch.labelled_images),
                (self._teacher(1), batch.labelled_images),
            )
        ]
        return Losses({"sup": losses[0], "teachers": losses[1] + losses[2]})

    @torch.no_grad()
    def _label(self, images: Tensor, size: tuple[int, int], active: int) -> tuple[Tensor, Tensor, Tensor]:
        """Confidence, labels, and where the active teacher's help changed the other's label; [B, H, W] each."""
        core, assist = (upsample(self._teacher(number)(images).logits, size) for number in (active, 1 - active))
        corrected = overwrite_unlikely(core, assist, self.config.top_k)
        confidence, labels = most_likely(((core + corrected) / 2).softmax(dim=1))
        return confidence, labels, corrected.argmax(dim=1) != assist.argmax(dim=1)

    def _move(self, features: Tensor) -> Tensor:
        """r [B, F, h, w], which leads the mean of the teachers' heads astray; no parameter gets a gradient."""
        if not self.config.vat_radius:
            return torch.zeros_like(features)
        heads = [self._teacher(number).logits_head for number in (0, 1)]
        with eval_mode(self.teachers):
            return adversarial(
                features,
                lambda moved: torch.stack([head(moved) for head in heads]).mean(dim=0),
                self.config.vat_radius,
                xi=self.config.vat_xi,
            )
