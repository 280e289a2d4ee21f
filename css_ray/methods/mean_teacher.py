"""Mean teacher for segmentation."""

from __future__ import annotations

from css_ray.methods.averaged_teacher import AveragedTeacher


class MeanTeacher(AveragedTeacher):
    """The student learns on a strong view what its average predicts on the weak one. Tarvainen & Valpola, NeurIPS 2017."""

    name = "mean_teacher"
