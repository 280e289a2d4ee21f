"""Everything that is wrong with a study, found in one pass: in its parts, and between the parts that are right."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from css_ray.config import Problem
from css_ray.methods import METHODS
from css_ray.study.definition.checker import Checker
from css_ray.study.definition.problems import intact
from css_ray.study.definition.study import CROP_RULES, DATA_RULES, StudyDefinition, data_problems


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    rest: the study; if parts of it are wrong, the study without them; None if too little is left.
    """

    problems: list[Problem]
    rest: StudyDefinition | None


def examine(spec: Mapping[str, Any], unknown_encoder: Callable[[str], str | None] = lambda name: None) -> Examination:
    """Check a mapping as a study. unknown_encoder: returns why a name is not an encoder, or None."""
    checker = Checker(dict(spec), unknown_encoder)
    rest = checker.study() or (_rest(spec, checker.faults) if checker.readable else None)
    rules = [] if rest is None else _rules(rest, checker.faults)
    return Examination([*checker.problems, *rules], rest)


def _rules(study: StudyDefinition, faults: Sequence[Problem]) -> list[Problem]:
    """The rules between settings that the study or one of its trials breaks, where all these settings are right."""
    own = data_problems(study.data.model_dump(), study.model.encoder, study.resources)
    # Many trials break a rule in the same way.
    varied = dict.fromkeys(
        dataclasses.replace(problem, sentence=f"{problem.sentence} (in {where})")
        for where, _, problems in study.known_trials()
        for problem in problems
        if problem not in own
    )
    return [problem for problem in (*own, *varied) if intact(faults, *_needs(problem))]


def _needs(problem: Problem) -> Sequence[str]:
    """What a rule looks at: the settings that rules about `data` are about, or its whole section."""
    if problem.path == "data.crop":
        return CROP_RULES
    section = problem.path.partition(".")[0]
    return DATA_RULES if section in ("data", "resources") else (section,)


_STAND_INS: dict[str, Any] = {"labelled": 1, "crop": 8, "labelled_batch": 2, "unlabelled_batch": 2}
"""Stand-ins for required settings of `data`."""

_ROUNDS = 5  # to leave one part out may leave another without what it needs


def _rest(spec: Mapping[str, Any], faults: Sequence[Problem]) -> StudyDefinition | None:
    """The study without its wrong parts: a default, or a stand-in, takes the place of each."""
    left = copy.deepcopy(dict(spec))
    for _ in range(_ROUNDS):
        for problem in dict.fromkeys(faults):
            # A search is one whole: without one of its settings it would draw other trials.
            path = "search" if problem.path.partition(".")[0] == "search" else problem.path
            if not _leave_out(left, path) and not path.startswith("data."):
                _leave_out(left, path.rpartition(".")[0])
        left = _swept(left)
        _fill(left)
        checker = Checker(left)
        if (study := checker.study()) is not None:
            return study
        faults = checker.faults
    return None


_GONE = object()  # the place of an entry of a list, so that the places of the others stay


def _leave_out(node: Any, path: str) -> bool:
    """Remove from nested mappings and lists what a problem's path names; False if it is not there."""
    if isinstance(node, dict):
        for key in sorted(node, key=lambda key: len(str(key)), reverse=True):  # a key of a grid holds dots
            rest = path.removeprefix(str(key))
            if rest == path or rest[:1] not in ("", ".", "["):
                continue
            if not rest:
                del node[key]
                return True
            return _leave_out(node[key], rest.removeprefix("."))
    if isinstance(node, list) and (found := re.match(r"\[(\d+)\]\.?", path)) and int(found[1]) < len(node):
        if rest := path[found.end() :]:
            return _leave_out(node[int(found[1])], rest)
        node[int(found[1])] = _GONE
        return True
    return False


def _swept(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _swept(value) for key, value in node.items()}
    return [_swept(value) for value in node if value is not _GONE] if isinstance(node, list) else node


def _fill(spec: dict[str, Any]) -> None:
    """Remove what is empty, and put stand-ins where a study must have something."""
    if isinstance(data := spec.get("data"), dict):
        spec["data"] = {**_STAND_INS, **data}
    if isinstance(trials := spec.get("trials"), list):
        spec["trials"] = [point for point in trials if point != {}]
    if isinstance(grid := spec.get("grid"), dict):
        spec["grid"] = {path: values for path, values in grid.items() if values != []}
    method = {"name": next(iter(METHODS))}
    stand_ins = {"study": "study", "splits": [0], "method": method}
    spec |= {key: value for key, value in stand_ins.items() if spec.get(key) in (None, [], {})}
    if all(spec.get(part) in (None, [], {}) for part in ("grid", "trials", "search")):
        spec["grid"] = {"method": [method]}
