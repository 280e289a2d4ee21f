"""Prototype-based consistency: a second classifier without parameters, whose classes have several centres each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.distributed import share_of_total
from css_ray.functional.losses import cross_entropy
from css_ray.functional.mixing import half_area_boxes, mix
from css_ray.functional.pseudo_labels import most_likely, sure_labels
from css_ray.functional.resizing import upsample, upsampled_at
from css_ray.functional.sampling import grid_points
from css_ray.functional.similarity import indicator_bound
from css_ray.methods.base import Method
from css_ray.methods.clusters import Clusters
from css_ray.methods.stages import Border, Stage
from css_ray.methods.teacher import Teacher, eval_mode
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction, Rate
from css_ray.views import Views


class PCR(Method):
    """The labels that teach the linear head teach a head of prototypes on the same features. Xu et al., NeurIPS 2022.

    Stages: `warm_up` trains the linear head on labelled images, the teacher being a copy of the student; at the border into
    `main` K-means finds K prototypes per class among the teacher's features of the labelled images. There
    L = L_x + L_x^p + L_u + L_u^p, means of cross entropies: of the linear head over all pixels, of the prototypes over a random
    pixel in each cell of a grid, the logit of class c being max_k cos(f, v_ck) / temperature for the decoder's features f.
    Unlabelled images are mixed by boxes of half the area; a pixel has the label that the teacher's linear head gives it with a
    confidence from the threshold on, or none. A prototype follows the features of its class that it is the nearest for:
    v <- decay v + (1 - decay) mean, over the sampled pixels of all ranks. The teacher with its linear head is evaluated.

    Of the published code only inference and settings are released. Departs from them: its first prototypes, a file that was
    never published, are found at the border; a class that the labelled images lack has random ones until its first pixels come;
    the teacher normalises with averages of the student's statistics; padding has no label; the student sees the colours of the
    study's views, of which the published settings change none.
    """

    name = "pcr"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Settings of the teacher's labels and of the prototypes."""

        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        warm_up: float = knob(
            0.0125,
            help="share of training without unlabelled images; one of 80 epochs, a short training needs more",
            ge=0,
            lt=1,
        )
        prototypes_per_class: int = knob(4, help="prototypes of each class (K); Cityscapes 3", ge=1, le=1000)
        prototype_decay: float = knob(0.99, help="share of a prototype that an update keeps; 1: none moves", ge=0, le=1)
        temperature: float = knob(0.1, help="of the cosines to the prototypes (τ)", gt=0)
        grid: int = knob(32, help="cells along a side of an image; the prototypes see a pixel of each", ge=1, le=1024)
        unsup_threshold: float = knob(0.8, help="confidence from which a pixel has a label; Cityscapes 0.65", ge=0, le=1)
        unsup_weight: float = knob(1.0, help="weight of L_u and of L_u^p", ge=0)
        prototype_weight: float = knob(1.0, help="weight of L_x^p and of L_u^p", ge=0)
        cutmix_probability: float = knob(0.5, help="share of the steps whose unlabelled images are mixed", ge=0, le=1)

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.teacher = Teacher(self.student, config.teacher_decay, normalise="average")
        channels, count = self.student.decoder.out_channels, config.prototypes_per_class
        self.prototypes = Clusters(self.student.num_classes, count, channels, config.prototype_decay)

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names prototypes that nothing was learnt before, or that no pixel can be sure of."""
        found = []
        if config.warm_up == 0:
            found.append("warm_up 0 finds the first prototypes among the features of an untrained decoder; use 0.0125")
        bound = indicator_bound(num_classes, config.temperature)
        if bound < 0.5:
            found.append(
                f"temperature {config.temperature:g} lets no probability among the prototypes of {num_classes} classes exceed "
                f"{bound:.2f}, so that their losses stay high; use 0.1"
            )
        return found

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.warm_up
        return Stage("warm_up", share, "labelled", "continue"), Stage("main", 1 - share, "pair", "continue")

    def enter(self, border: Border) -> None:
        """Before `main`: the first prototypes."""
        if self.stage:
            with eval_mode(self.teacher.model):
                self.prototypes.start(self._sampled(*pair) for pair in border.labelled())

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        if not clock.stage:
            seen = self.labelled_colours(batch.labelled_images, strong=True)
            return Losses({"sup": self.supervised(self.student(seen), batch.labels)})
        config, count, size = self.config, len(batch.labelled_images), (batch.labels.shape[1], batch.labels.shape[2])
        images, target, passed = self._mixed(batch, size)
        both = torch.cat([self.labelled_colours(batch.labelled_images, strong=True), images])
        features = self.student.decode(self.student.encode(both))
        logits = self.student.classify(features).logits
        points = grid_points(*size, config.grid, images.device)
        sampled = torch.cat([batch.labels, target]).flatten(1).index_select(1, points)
        rows = upsampled_at(features, size, points).flatten(0, 1)
        cosines = self.prototypes(rows)
        labelled, unlabelled = sampled[:count], sampled[count:]
        counts = torch.stack([(part != IGNORE_INDEX).sum() for part in (batch.labels, target, labelled, unlabelled)])
        totals = self.prototypes.update(rows.detach(), cosines.detach(), sampled.flatten(), counts)
        shares = share_of_total(counts, totals)
        by_prototypes = (cosines.amax(dim=2) / config.temperature).unflatten(0, sampled.shape).transpose(1, 2)  # [B, C, S]
        supervised = shares[2] * cross_entropy(by_prototypes[:count], labelled)
        unsupervised = shares[1] * cross_entropy(upsample(logits[count:], size), target)
        by_labels = shares[3] * cross_entropy(by_prototypes[count:], unlabelled)
        return Losses(
            {
                "sup": self.supervised(Prediction(logits[:count], None), batch.labels, share=shares[0]),
                "unsup": config.unsup_weight * unsupervised,
                "sup_prototypes": config.prototype_weight * supervised,
                "unsup_prototypes": config.unsup_weight * config.prototype_weight * by_labels,
            },
            {"unsup_pass_rate": passed, "num_seen_classes": self.prototypes.seen.sum()},
        )

    def after_step(self, clock: Clock) -> None:
        if clock.stage:
            self.teacher.update(self.student)
        else:
            self.teacher.copy_(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": sure_labels(self.teacher.model.predict(images), self.config.unsup_threshold)}

    @torch.no_grad()
    def _sampled(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's features [N, D] of a random pixel in each cell of the grid of each image, and their labels [N]."""
        size = (labels.shape[1], labels.shape[2])
        features = self.teacher.model.decode(self.teacher.model.encode(images))
        points = grid_points(*size, self.config.grid, images.device)
        return upsampled_at(features, size, points).flatten(0, 1), labels.flatten(1).index_select(1, points).flatten()

    @torch.no_grad()
    def _mixed(self, batch: Batch, size: tuple[int, int]) -> tuple[Tensor, Tensor, Rate]:
        """The student's view of the unlabelled images, and the teacher's labels where it is sure of them; how often it is."""
        images, valid = batch.unlabelled_images, batch.unlabelled_valid
        confidence, labels = most_likely(upsample(self.teacher(images).logits, size).softmax(dim=1))
        passed = valid & (confidence >= self.config.unsup_threshold)
        labels = torch.where(passed, labels, IGNORE_INDEX)
        images = self.strong_colours(images)
        boxes = half_area_boxes(len(images), *size, images.device)
        boxes = boxes & (torch.rand((), device=images.device) < self.config.cutmix_probability)
        images, labels = (mix(boxes, item, item.roll(-1, dims=0)) for item in (images, labels))
        return images, labels, Rate(passed.sum(), valid.sum())
