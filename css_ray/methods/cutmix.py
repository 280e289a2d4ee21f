"""CutMix for semi-supervised segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from css_ray.config import knob
from css_ray.methods.averaged_teacher import AveragedTeacher
from css_ray.methods.strong_view import Partner
from css_ray.models import Segmenter
from css_ray.views import Views


class CutMix(AveragedTeacher):
    """The mean teacher whose student sees mixed images and equally mixed pseudo-labels. French et al., BMVC 2020."""

    name = "cutmix"

    @dataclass(frozen=True, kw_only=True)
    class Config(AveragedTeacher.Config):
        """The settings of the mean teacher, and whose images are pasted."""

        cutmix_partner: Partner = knob("local", help="whose images CutMix pastes: the rank's own, all ranks', or rank 0's")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.partner = config.cutmix_partner
