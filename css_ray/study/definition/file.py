"""Study files: read, overridden, extended, confirmed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from css_ray.methods import Method
from css_ray.secrets import shown
from css_ray.study.definition.checker import Checker
from css_ray.study.definition.problems import StudyError
from css_ray.study.definition.study import StudyDefinition


def read(path: Path | str, overrides: Sequence[str] = ()) -> StudyDefinition:
    """Read a study file, with `overrides` such as `train.iterations=100`. Raises StudyError, or FileNotFoundError."""
    place, path = path, Path(path)
    if not path.exists():
        known = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.exists() else []
        near = difflib.get_close_matches(str(path), known, n=1)
        raise FileNotFoundError(f"no study file {shown(place)}" + (f" (did you mean {near[0]}?)" if near else ""))
    try:
        spec = yaml.load(path.read_text(encoding="utf-8"), Loader=StudyLoader)
    except yaml.YAMLError as error:
        raise StudyError([" ".join(str(error).split())], str(path)) from None
    if not isinstance(spec, dict):
        raise StudyError(["a study is a mapping of sections; see studies/quickstart.yaml"], str(path))
    problems = [problem for override in overrides for problem in apply_override(spec, override)]
    if problems:
        raise StudyError(problems, "the overrides")
    return parse(spec, str(path))


def to_yaml(study: StudyDefinition) -> str:
    """The text of a file that is read as `study`."""
    return yaml.safe_dump(dict(study.spec), sort_keys=False)


def parse(spec: Mapping[str, Any], source: str = "the study") -> StudyDefinition:
    """Check a mapping and return the study. Raises StudyError that lists every problem found."""
    checker = Checker(dict(spec))
    study = checker.study()
    if checker.problems:
        raise StudyError(checker.problems, source)
    assert study is not None
    return study


def extend(study: StudyDefinition, overrides: Sequence[str]) -> StudyDefinition:
    """A study that was begun, with more of it: `overrides` such as `search.trials=40`, `splits=[0, 1, 2, 3]`, `budget.hours=8`.

    What was trained must stay valid, so only these may change: resources, budget, keep, tracking, table, description; the
    search's number of trials (upwards), its space, sampler and pruners; splits, by more of them at the end; how the objective
    aggregates.

    Raises StudyError with everything that may not change, or is wrong.
    """
    spec: dict[str, Any] = json.loads(json.dumps(study.spec))
    problems = [problem for override in overrides for problem in apply_override(spec, override)]
    if problems:
        raise StudyError(problems, "the overrides")
    extended = parse(spec, f"{study.name}, extended")
    before, after = study.resolved(), extended.resolved()
    for section in ("study", "seed", "data", "views", "model", "train", "method", "grid"):
        if before.get(section) != after.get(section):
            longer = (
                ", or train the best again with `css-ray study confirm --set`" if section == "train" and study.search else ""
            )
            problems.append(f"{section}: decides what was trained already; start another study for other values{longer}")
    if extended.splits[: len(study.splits)] != study.splits:
        problems.append(f"splits: must begin with those of the study, {list(study.splits)}, got {list(extended.splits)}")
    if extended.objective.at != study.objective.at:
        problems.append("objective.at: is how the trials were scored; `css-ray study table --at` shows the other")
    if (study.search is None) != (extended.search is None):
        problems.append("search: cannot come or go; start another study")
    elif study.search is not None and extended.search is not None:
        if study.search.method != extended.search.method or study.search.first != extended.search.first:
            problems.append("search.method and search.first: decide what was drawn already; start another study")
        if extended.search.trials < study.search.trials:
            problems.append(f"search.trials: must be >= {study.search.trials}, got {extended.search.trials}")
        if gone := sorted(study.space.keys() ^ extended.space.keys()):
            problems.append(f"search.space: its settings must stay, {', '.join(gone)} came or went; their ranges may change")
    if problems:
        raise StudyError(problems, f"what {study.name} should become")
    return extended


def confirmation(
    study: StudyDefinition, tried: Mapping[int, Mapping[str, Any]], splits: Sequence[int], overrides: Sequence[str] = ()
) -> StudyDefinition:
    """The study that trains configurations of a search again on fresh splits, for a number that no choice has flattered.

    tried: what the search drew for each trial to confirm, by the trial's index; best first. splits: none of the study's own.
    overrides: what else is other than in the search, such as `train.iterations=40000` for a longer training.
    Raises StudyError where that is no study, or if a split is not fresh.
    """
    assert study.search is not None
    method = study.search.method
    row = method.get("row", method["name"])
    own = ("grid", "search", "trials", "budget", "method")
    spec = {key: value for key, value in study.resolved().items() if key not in own}
    trials = [{"method": {**method, "row": f"{row}, trial {trial}"}, **drawn} for trial, drawn in tried.items()]
    description = f"The best trials of {study.name}, trained again on splits that its search never saw"
    spec |= {"study": f"{study.name}-confirm", "description": description, "splits": list(splits), "trials": trials}
    spec["table"] = {}
    source = f"the confirmation of {study.name}"
    if problems := [problem for override in overrides for problem in apply_override(spec, override)]:
        raise StudyError(problems, source)
    confirming = parse(spec, source)
    if seen := sorted(set(confirming.splits) & set(study.splits)):
        problem = f"splits: the search has seen {', '.join(map(str, seen))}; choose others, such as {fresh_splits(study)}"
        raise StudyError([problem], source)
    return confirming


def fresh_splits(study: StudyDefinition) -> list[int]:
    """As many splits as the study has, after all of them."""
    first = max(study.splits) + 1
    return list(range(first, first + len(study.splits)))


def check_settings(method: type[Method], preset: str, settings: Mapping[str, Any]) -> Any:
    """The Config of `preset` with `settings` on top, checked as in a study. Raises StudyError that lists every problem."""
    checker = Checker({})
    config = checker.config_of(method.name, method.Config, dict(settings), method.preset_values(preset, settings))
    if checker.problems:
        raise StudyError(checker.problems, "the settings")
    return config


class StudyLoader(yaml.SafeLoader):
    """YAML 1.2 floats (1e-4 is a number), and a key given twice is an error rather than the last one silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # `<<` takes over another mapping, whose keys may stand here again.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def apply_override(spec: dict[str, Any], text: str) -> Iterator[str]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        yield f"--set takes KEY=VALUE, such as train.iterations=100; got {text!r}"
        return
    try:
        parsed = yaml.load(value, Loader=StudyLoader)
    except yaml.YAMLError:
        yield f"--set {path}: {value!r} is not a YAML value"
        return
    # `grid.data.labelled` and `search.space.method.temperature` have dots in their own keys.
    head, _, rest = path.partition(".")
    if head == "grid" and rest:
        keys = [head, rest]
    elif path.startswith("search.space."):
        keys = ["search", "space", path.removeprefix("search.space.")]
    else:
        keys = path.split(".")
    target = spec
    for key in keys[:-1]:
        if target.get(key) is None:
            target[key] = {}
        if not isinstance(target[key], dict):
            yield f"--set {path}: {key} is not a section"
            return
        target = target[key]
    target[keys[-1]] = parsed
