"""AugSeg: strong views by a few random operations, and boxes from labelled images if the teacher is unsure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from css_ray.config import Problem, knob
from css_ray.distributed import share_of_rank
from css_ray.functional.intensity import random_intensity
from css_ray.functional.losses import unsupervised_cross_entropy
from css_ray.functional.metrics import quantiles
from css_ray.functional.mixing import Partners, beta_boxes, mix, partners
from css_ray.functional.pseudo_labels import image_confidence, most_likely, sure_labels
from css_ray.functional.resizing import upsample
from css_ray.methods.base import Method
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Rate
from css_ray.views import Views


class AugSeg(Method):
    """The less sure the teacher is of an image, the likelier its view shows a part of a labelled one. Zhao et al., CVPR 2023.

    L = L_x + L_u, L_u the cross entropy of the pixels with a confidence of at least the threshold, over all valid pixels. The
    strong view of an image goes through one to three operations of a pool. With the probability 1 - confidence of the image, a
    copy of it gets a box of a random labelled image, whose labels are sure; then each image gets a box of another image's copy.
    What lies outside of this second box has no part of a labelled image.

    Departs from the published code: each image draws its own boxes, inside the image (`cutmix_clipped`), and padding
    counts neither in L_u nor in the confidence.

    Presets: `published` has boxes that are cut off at the border, and of any partner, the image itself too. The released code
    draws one size for the batch, and no centre in the first eighth.
    """

    name = "augseg"
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """The teacher, the threshold of its labels, and the strong view."""

        teacher_decay: float = knob(0.999, help="share of the teacher that an update keeps; 0.996 for Cityscapes", ge=0, lt=1)
        unsup_threshold: float = knob(0.95, help="confidence that a pseudo-label must reach (τ); 0 for Cityscapes", ge=0, le=1)
        unsup_weight: float = knob(1.0, help="weight of the unsupervised loss (λ_u)", ge=0)
        colours: Literal["operations", "views"] = knob(
            "operations", help="strong colours by random operations, or those of `views`, which all other methods have"
        )
        operations: tuple[int, int] = knob(
            (1, 3), help="fewest and most operations that an image goes through (k)", ge=0, le=11
        )
        adaptive: bool = knob(True, help="paste parts of labelled images; false: unlabelled images are mixed as they are")
        donor_beta: tuple[float, float] = knob(
            (8.0, 2.0), help="of the distribution of what a labelled image's box leaves of the image, Beta(a, b)", gt=0
        )
        cutmix_beta: float = knob(4.0, help="of the distribution of the boxes' share of the image, Beta(a, a)", gt=0)
        cutmix_clipped: bool = knob(
            False, help="boxes have their centre anywhere and are cut off at the border (published code): a third, not a half"
        )
        cutmix_partner: Partners = knob(
            "roll", help="whose part an image gets: the next one's, from the end, or any, itself too"
        )

        def problems(self) -> Iterator[Problem]:
            """Adds to the bounds: a range is two numbers, the smaller first, and a distribution has two."""
            yield from super().problems()
            yield from self.range_problems("operations")
            if len(self.donor_beta) != 2:
                yield Problem("donor_beta", f"must be two numbers, a and b of Beta(a, b), got {self.donor_beta!r}")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.teacher = Teacher(self.student, config.teacher_decay, normalise="average")

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"cutmix_clipped": True, "cutmix_partner": "permute"} if preset == "published" else {}

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        size = (valid.shape[1], valid.shape[2])
        coloured = self.labelled_colours(batch.labelled_images, strong=False)
        with torch.no_grad():
            probabilities = upsample(self.teacher(batch.unlabelled_images).logits, size).softmax(dim=1)
            confidence, labels = most_likely(probabilities)
            passed = (confidence >= config.unsup_threshold) & valid
            target = torch.where(valid, labels, IGNORE_INDEX)
            mixed = self._changed(batch.unlabelled_images), target, passed
            logs: dict[str, Tensor | Rate] = {"unsup_pass_rate": Rate(passed.sum(), valid.sum())}
            donors = mixed
            if config.adaptive:
                aided = torch.rand(len(valid), device=valid.device) < 1 - image_confidence(probabilities, valid)
                logs["aided"] = Rate(aided.sum(), torch.ones_like(aided).sum())
                donors = self._aid(mixed, aided, coloured, batch.labels)
            boxes = self._boxes(valid, config.cutmix_beta)
            others = partners(len(valid), config.cutmix_partner, valid.device)
            images, target, mixed_passed = (mix(boxes, own, donor[others]) for own, donor in zip(mixed, donors, strict=True))
        labelled, strong = self.see(coloured, images, joint=True)
        unsupervised = unsupervised_cross_entropy(upsample(strong.logits, size), target, mixed_passed, "pixel_fixmatch")
        share = share_of_rank((target != IGNORE_INDEX).sum())
        return Losses(
            {"sup": self.supervised(labelled, batch.labels), "unsup": config.unsup_weight * share * unsupervised},
            logs,
            diagnostics=lambda: quantiles("confidence", confidence, valid),
        )

    def after_step(self, clock: Clock) -> None:
        self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": sure_labels(self.teacher.model.predict(images), self.config.unsup_threshold)}

    def _changed(self, images: Tensor) -> Tensor:
        """Unlabelled images in strong colours. Labelled ones have those of `views` if any, as in all other methods."""
        operations = self.config.colours == "operations"
        return random_intensity(images, self.config.operations) if operations else self.strong_colours(images)

    def _aid(
        self, items: tuple[Tensor, Tensor, Tensor], aided: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of images, labels and which of these passed, with a box of a labelled image in those that are `aided` [B]."""
        boxes = self._boxes(items[1], self.config.donor_beta) & aided[:, None, None]
        chosen = (torch.rand(len(aided), device=aided.device) * len(images)).long()
        labels = labels[chosen]
        return (
            mix(boxes, items[0], images[chosen]),
            mix(boxes, items[1], labels),
            mix(boxes, items[2], labels != IGNORE_INDEX),
        )

    def _boxes(self, maps: Tensor, concentration: float | tuple[float, float]) -> Tensor:
        """One box for each of the maps [B, H, W]."""
        count, height, width = maps.shape
        clipped = self.config.cutmix_clipped
        return beta_boxes(count, height, width, maps.device, concentration=concentration, clipped=clipped)
