"""UniMatch V2: two strong views, each through the channels that the other one has lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.functional.metrics import quantiles
from css_ray.functional.perturbations import complementary_masks
from css_ray.functional.resizing import upsample
from css_ray.methods.weak_to_strong import WeakToStrong
from css_ray.types import Batch, Clock, Losses, Rate


class UniMatchV2(WeakToStrong):
    """Sure labels of an averaged teacher for two strong views with complementary channels. Yang et al., TPAMI 2025.

    L = (L_x + (L_s1 + L_s2) / 2) / 2, each L_s as FixMatch's L_u. The strong views have colours and boxes of their own, show a
    box of the image as far from the batch's other end, and take one pass: one view loses a channel of the encoder and the other
    one has it twice (m and 2 - m, m ~ 2 Bernoulli(1/2) for each image and channel). All levels of a ViT share a mask, those of
    other encoders have their own; half of the images, rounded down, keep all channels. The teacher labels in eval mode, and
    averages parameters and running statistics. Made for a ViT (DINOv2) with dpt; any network will do.

    Departs from the published code: weights are chosen by the evaluated teacher's score, where those that it released are
    chosen by the student's; dpt has no unused parameters, and the position embedding is resampled as timm does it.
    `train.encoder_lr_factor` 0 is its frozen encoder.
    """

    name = "unimatch_v2"
    partners = "reverse"

    @dataclass(frozen=True, kw_only=True)
    class Config(WeakToStrong.Config):
        """The threshold of the labels, who labels, the boxes, and the dropped channels."""

        complementary: bool = knob(True, help="whether the strong views lose channels, each those that the other one keeps")
        keep_half: bool = knob(True, help="whether half of the images, rounded down, keep all channels in both views")

    config: Config

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names what makes the second view, or a setting, void."""
        if config.complementary:
            return []
        found = [] if config.keep_half else ["keep_half is not read without complementary; set complementary to true"]
        if not config.cutmix_probability:
            found.append(
                "cutmix_probability 0 without complementary leaves two views that differ in colours alone, at twice the cost; "
                "use fixmatch"
            )
        return found

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        confidence, labels = self.labels(batch)
        views = [self.strong_view(batch.unlabelled_images, labels, confidence) for _ in range(2)]
        labelled = self.labelled_colours(batch.labelled_images, strong=False)
        supervised = self.supervised(self.student(labelled), batch.labels)
        logits = self._logits(torch.cat([images for images, _, _ in views]))
        strong = upsample(logits, (valid.shape[1], valid.shape[2])).chunk(2)
        first, second = (self.unsupervised(each, *view[1:]) for each, view in zip(strong, views, strict=True))
        return Losses(
            terms={
                "sup": supervised / 2,
                "strong_1": config.unsup_weight * first / 4,
                "strong_2": config.unsup_weight * second / 4,
            },
            logs={"unsup_pass_rate": Rate(((confidence >= config.unsup_threshold) & valid).sum(), valid.sum())},
            diagnostics=lambda: quantiles("confidence", confidence, valid),
        )

    def _logits(self, images: Tensor) -> Tensor:
        """The student's logits for the first strong views and, behind them, the second ones of the same images."""
        levels = self.student.encode(images)
        if self.config.complementary:
            count = len(images) // 2
            kept = count // 2 if self.config.keep_half else 0
            masks = complementary_masks(count, [level.shape[1] for level in levels], kept, images.device)
            levels = tuple(level * torch.cat(pair).to(level.dtype) for level, pair in zip(levels, masks, strict=True))
        return self.student.classify(self.student.decode(levels)).logits
