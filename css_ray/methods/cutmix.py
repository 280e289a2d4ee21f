"""CutMix for semi-supervised segmentation."""

from __future__ import annotations

from css_ray.methods.mean_teacher import MeanTeacher


class CutMix(MeanTeacher):
    """The mean teacher whose student sees mixed images and equally mixed pseudo-labels. French et al., BMVC 2020."""

    name = "cutmix"
    cutmix = True
