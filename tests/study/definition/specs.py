"""A small study as a mapping, and what is wrong with others."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from css_ray.study.definition import StudyError, parse

MINIMAL: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "data/digits", "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 10, "lr": 0.1},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS"}]},
}

LIST = "splits/{labelled}/{split}/labeled.txt"

SEARCH: dict[str, Any] = {
    "method": {"name": "css", "row": "CSS"},
    "trials": 3,
    "space": {"method.temperature": {"loguniform": [0.05, 1.0]}, "method.hard_threshold": {"uniform": [0.5, 1.0]}},
}


def minimal(**changes: Any) -> dict[str, Any]:
    """MINIMAL with dotted changes, such as train__lr=0.2 for train.lr; None removes."""
    spec = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = spec
        for section in sections:
            target = target.setdefault(section, {})
        if value is None:
            del target[key]
        else:
            target[key] = value
    return spec


def problems(**changes: Any) -> tuple[str, ...]:
    """The problems of MINIMAL with `changes`, as they are printed."""
    with pytest.raises(StudyError) as caught:
        parse(minimal(**changes))
    return printed(caught.value)


def printed(error: StudyError) -> tuple[str, ...]:
    return tuple(map(str, error.problems))
