"""UniMatch: two strong views and a perturbation of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.config import knob
from css_ray.functional.metrics import quantiles
from css_ray.functional.pseudo_labels import most_likely
from css_ray.functional.resizing import upsample
from css_ray.methods.weak_to_strong import WeakToStrong
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction, Rate


class UniMatch(WeakToStrong):
    """Two strong views of a weak one, and the weak one through dropped channels. Yang et al., CVPR 2023.

    L = (L_x + .25 L_s1 + .25 L_s2 + .5 L_fp) / 2. One pass of labelled and weak images gives the labels; half of the channels
    of each level of the encoder are dropped for L_fp, whose target is the weak view's label, not mixed. The strong views have
    colours and boxes of their own, and one pass.

    Departs from the published code: boxes show another image of the batch, whose labels come from the same pass, where theirs
    show another crop of the same image, labelled by a pass in eval mode; labelled images are not decoded a second time with
    dropped channels, which there changes batch statistics alone.
    """

    name = "unimatch"

    @dataclass(frozen=True, kw_only=True)
    class Config(WeakToStrong.Config):
        """The threshold of the labels, who labels, the boxes, the weights of the three views, and the dropped channels."""

        teacher: Literal["average", "none"] = knob(
            "none", help="who labels the weak view: the student as it is, as published, or an average of it"
        )
        pseudo_from: Literal["train", "eval"] = knob(
            "train", help="without a teacher: labels from the pass that is trained, as published, or from one in eval mode"
        )
        strong_weight: float = knob(0.25, help="weight of the loss of each strong view", ge=0)
        feature_weight: float = knob(0.5, help="weight of the loss through dropped channels", ge=0)
        feature_dropout: float = knob(0.5, help="share of the channels of the encoder's levels that are dropped", ge=0, lt=1)

    config: Config

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        size, count = (valid.shape[1], valid.shape[2]), len(batch.labelled_images)
        labelled = self.labelled_colours(batch.labelled_images, strong=False)
        prediction = self._with_dropped(torch.cat([labelled, batch.unlabelled_images]), count)
        labelled_logits, weak_logits, dropped_logits = prediction.logits.tensor_split((count, count + len(valid)))
        if config.teacher == "none" and config.pseudo_from == "train":
            confidence, labels = most_likely(upsample(weak_logits.detach(), size).softmax(dim=1))
            labels = torch.where(valid, labels, IGNORE_INDEX)
        else:
            confidence, labels = self.labels(batch)
        passed = confidence >= config.unsup_threshold
        views = [self.strong_view(batch.unlabelled_images, labels, confidence) for _ in range(2)]
        strong = upsample(self.student(torch.cat([images for images, _, _ in views])).logits, size).chunk(2)
        first, second = (self.unsupervised(logits, *view[1:]) for logits, view in zip(strong, views, strict=True))
        dropped = self.unsupervised(upsample(dropped_logits, size), labels, passed)
        weight = config.unsup_weight / 2
        return Losses(
            terms={
                "sup": self.supervised(Prediction(labelled_logits, None), batch.labels) / 2,
                "strong_1": weight * config.strong_weight * first,
                "strong_2": weight * config.strong_weight * second,
                "features": weight * config.feature_weight * dropped,
            },
            logs={"unsup_pass_rate": Rate((passed & valid).sum(), valid.sum())},
            diagnostics=lambda: quantiles("confidence", confidence, valid),
        )

    def _with_dropped(self, images: Tensor, count: int) -> Prediction:
        """The student's prediction for all images, and behind them again for those from `count` on, with dropped channels."""
        levels = self.student.encode(images)
        dropped = (torch.cat([level, F.dropout2d(level[count:], self.config.feature_dropout)]) for level in levels)
        return self.student.classify(self.student.decode(tuple(dropped)))
