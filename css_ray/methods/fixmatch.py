"""FixMatch for segmentation, the baseline of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from css_ray.config import knob
from css_ray.functional.metrics import quantiles
from css_ray.functional.resizing import upsample
from css_ray.methods.weak_to_strong import WeakToStrong
from css_ray.types import Batch, Clock, Losses, Rate


class FixMatch(WeakToStrong):
    """Sure labels of a weak view teach the strong view of the same pixels. Sohn et al., NeurIPS 2020; here as Yang et al., CVPR
    2023, have it for segmentation.

    L = (L_x + L_u) / 2, L_u the cross entropy of the pixels with a confidence of at least the threshold, over all valid pixels.
    The strong view has the geometry of the weak one (`views.weak_scale`, `views.weak_flip`), other colours, and with
    `cutmix_probability` a box of the next image of the batch. Labelled images keep their colours.

    Departs from the published code: the box shows another image, where theirs shows another crop of the same one.

    Presets: `default` labels with an averaged teacher, as the code of UniMatch V2 does; `published` with the student itself, as
    that of UniMatch.
    """

    name = "fixmatch"
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(WeakToStrong.Config):
        """The threshold of the labels, who labels, and the boxes."""

        joint_forward: bool = knob(
            True, help="the student sees labelled and strong images in one batch, as in the published code"
        )

    config: Config

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"teacher": "none"} if preset == "published" else {}

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        confidence, labels = self.labels(batch)
        images, target, passed = self.strong_view(batch.unlabelled_images, labels, confidence)
        coloured = self.labelled_colours(batch.labelled_images, strong=False)
        labelled, strong = self.see(coloured, images, joint=config.joint_forward)
        supervised = self.supervised(labelled, batch.labels)
        unsupervised = self.unsupervised(upsample(strong.logits, (valid.shape[1], valid.shape[2])), target, passed)
        return Losses(
            terms={"sup": supervised / 2, "unsup": config.unsup_weight * unsupervised / 2},
            logs={"unsup_pass_rate": Rate(((confidence >= config.unsup_threshold) & valid).sum(), valid.sum())},
            diagnostics=lambda: quantiles("confidence", confidence, valid),
        )
