"""A study file, checked as a whole: YAML in, a frozen `StudyDefinition` out, or every problem together.

The sections `views`, `model`, `train` and the settings of a method are the dataclasses of the layers below, whose knobs hold
their bounds, so that each bound is written once. The rest (splits, grid, search, resources, table) is defined here.
"""

from css_ray.config import Problem
from css_ray.study.definition.checker import is_study_name
from css_ray.study.definition.file import check_settings, confirmation, extend, fresh_splits, parse, read, to_yaml
from css_ray.study.definition.overrides import override_texts
from css_ray.study.definition.problems import StudyError
from css_ray.study.definition.sections import Budget, Data, Keep, Objective, Resources, Search, Table, Tracking
from css_ray.study.definition.space import Distribution, contains, ends, points_of
from css_ray.study.definition.study import StudyDefinition, TrialSpec

__all__ = [
    "Budget",
    "Data",
    "Distribution",
    "Keep",
    "Objective",
    "Problem",
    "Resources",
    "Search",
    "StudyDefinition",
    "StudyError",
    "Table",
    "Tracking",
    "TrialSpec",
    "check_settings",
    "confirmation",
    "contains",
    "ends",
    "extend",
    "fresh_splits",
    "is_study_name",
    "override_texts",
    "parse",
    "points_of",
    "read",
    "to_yaml",
]
