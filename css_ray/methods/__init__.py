"""The plug-ins: one file per method, and one line here; or an entry point of another package."""

from css_ray.methods.augseg import AugSeg
from css_ray.methods.base import Method
from css_ray.methods.cct import CCT
from css_ray.methods.cps import CPS
from css_ray.methods.css import CSS
from css_ray.methods.cutmix import CutMix
from css_ray.methods.fixmatch import FixMatch
from css_ray.methods.mean_teacher import MeanTeacher
from css_ray.methods.pcr import PCR
from css_ray.methods.prcl import PRCL
from css_ray.methods.psmt import PSMT
from css_ray.methods.registry import MethodError, Methods
from css_ray.methods.stpp import STPP
from css_ray.methods.supervised import Supervised
from css_ray.methods.u2pl import U2PL
from css_ray.methods.unimatch import UniMatch
from css_ray.methods.unimatch_v2 import UniMatchV2

METHODS = Methods(
    (Supervised, MeanTeacher, CutMix, CCT, CPS, FixMatch, UniMatch, U2PL, PSMT, PRCL, PCR, STPP, UniMatchV2, AugSeg, CSS)
)
"""Every method by its name in a study."""

__all__ = [
    "CCT",
    "CPS",
    "CSS",
    "METHODS",
    "PCR",
    "PRCL",
    "PSMT",
    "STPP",
    "U2PL",
    "AugSeg",
    "CutMix",
    "FixMatch",
    "MeanTeacher",
    "Method",
    "MethodError",
    "Methods",
    "Supervised",
    "UniMatch",
    "UniMatchV2",
]
