"""ST++: the contract, and its facts by hand."""

from __future__ import annotations

from typing import ClassVar

from css_ray.methods import STPP
from css_ray.testing import MethodContract


class TestSTPP(MethodContract):
    method_class = STPP
    settings: ClassVar = {"tta_scales": (0.5, 1.0, 1.5)}


class TestST(MethodContract):
    method_class = STPP
    settings: ClassVar = {"reliable": 1.0, "tta_flip": False, "tta_scales": (1.0,), "strong": False}
    golden: ClassVar = None
