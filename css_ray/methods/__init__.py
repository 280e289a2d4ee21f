"""The plug-ins: one file a method, one line in METHODS."""

from css_ray.methods.base import Method
from css_ray.methods.css import CSS
from css_ray.methods.cutmix import CutMix
from css_ray.methods.mean_teacher import MeanTeacher
from css_ray.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {method.name: method for method in (Supervised, MeanTeacher, CutMix, CSS)}
"""Every method by its name in a study."""

__all__ = ["CSS", "METHODS", "CutMix", "MeanTeacher", "Method", "Supervised"]
