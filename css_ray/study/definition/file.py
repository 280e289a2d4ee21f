"""Study files: read, overridden, extended, confirmed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from css_ray.config import Problem
from css_ray.messages import os_error_text
from css_ray.methods import Method
from css_ray.models.encoders import unknown_encoder
from css_ray.secrets import shown
from css_ray.study.definition.checker import Checker
from css_ray.study.definition.examination import Examination, examine
from css_ray.study.definition.overrides import apply_overrides
from css_ray.study.definition.problems import StudyError
from css_ray.study.definition.study import StudyDefinition
from css_ray.study.definition.yaml_file import read_file, yaml_error_text


def read(path: Path | str, overrides: Sequence[str] = ()) -> StudyDefinition:
    """Read a study file.

    Args:
        path: A YAML file.
        overrides: What replaces fields of the file, each KEY=VALUE with a value in YAML: `train.iterations=100`. `method.KEY`
            reaches every method of the study that has this setting, except where the study varies it.

    Returns:
        The study.

    Raises:
        FileNotFoundError: If there is no such file.
        StudyError: If the file cannot be read, or is wrong; it lists every problem, an unknown encoder among them.
    """
    place, path = path, Path(path)
    if not path.exists():
        known = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.exists() else []
        near = difflib.get_close_matches(str(path), known, n=1)
        raise FileNotFoundError(f"no study file {shown(place)}" + (f" (did you mean {near[0]}?)" if near else ""))
    try:
        spec = read_file(path)
    except OSError as error:
        raise StudyError([Problem("", os_error_text(error, "read", path))], str(path)) from None
    except UnicodeDecodeError:
        raise StudyError([Problem("", "is not a text file in UTF-8; give a study in YAML")], str(path)) from None
    except yaml.YAMLError as error:
        raise StudyError([Problem("", yaml_error_text(error))], str(path)) from None
    except ValueError as error:
        raise StudyError([Problem("", str(error))], str(path)) from None
    if not isinstance(spec, dict):
        raise StudyError([Problem("", "a study is a mapping of sections; see studies/quickstart.yaml")], str(path))
    problems = apply_overrides(spec, overrides)
    return _checked(examine(spec, unknown_encoder), str(path), problems)


def to_yaml(study: StudyDefinition) -> str:
    """The text of a file that is read as `study`."""
    return yaml.safe_dump(dict(study.spec), sort_keys=False)


def parse(spec: Mapping[str, Any], source: str = "the study") -> StudyDefinition:
    """Check a mapping as a study. Looks at nothing else, and so does not know whether timm has the encoder.

    Args:
        spec: The sections of a study, as in a file.
        source: What an error calls it.

    Returns:
        The study.

    Raises:
        StudyError: If the mapping is wrong; it lists every problem.
    """
    return _checked(examine(spec), source)


def _checked(found: Examination, source: str, problems: Sequence[Problem] = ()) -> StudyDefinition:
    if problems or found.problems:
        raise StudyError([*problems, *found.problems], source, found.rest)
    assert found.rest is not None
    return found.rest


def extend(study: StudyDefinition, overrides: Sequence[str]) -> StudyDefinition:
    """A study that has begun, with more of it.

    What was trained must stay valid, so only these may change: resources, budget, keep, tracking, table, description; the
    search's number of trials (upwards), its space, sampler and pruners; splits, by more of them at the end; how the objective
    aggregates.

    Args:
        study: The study as it has begun.
        overrides: What changes, each KEY=VALUE: `search.trials=40`, `splits=[0, 1, 2, 3]`, `budget.hours=8`.

    Returns:
        The extended study.

    Raises:
        StudyError: If something may not change, or is wrong; it lists everything.
    """
    spec: dict[str, Any] = json.loads(json.dumps(study.spec))
    problems = apply_overrides(spec, overrides)
    extended = _checked(examine(spec), f"{study.name}, extended", problems)
    before, after = study.resolved(), extended.resolved()

    def problem(path: str, sentence: str) -> None:
        problems.append(Problem(path, sentence))

    for section in ("study", "seed", "data", "views", "model", "train", "method", "grid", "trials"):
        if before.get(section) != after.get(section):
            longer = (
                ", or train the best again with `css-ray study confirm --set`" if section == "train" and study.search else ""
            )
            problem(section, f"decides what has been trained already; start another study for other values{longer}")
    if extended.splits[: len(study.splits)] != study.splits:
        problem("splits", f"must begin with those of the study, {list(study.splits)}, got {list(extended.splits)}")
    if extended.objective.at != study.objective.at:
        problem("objective.at", "is how the trials were scored; `css-ray study table --at` shows the other")
    if (study.search is None) != (extended.search is None):
        problem("search", "cannot be added to a study that has begun, or removed; start another study")
    elif study.search is not None and extended.search is not None:
        for key in ("method", "first"):
            if getattr(study.search, key) != getattr(extended.search, key):
                problem(f"search.{key}", "decides what has been drawn already; start another study")
        if extended.search.trials < study.search.trials:
            problem("search.trials", f"must be >= {study.search.trials}, got {extended.search.trials}")
        if gone := sorted(study.space.keys() ^ extended.space.keys()):
            problem("search.space", f"must keep its settings, and {', '.join(gone)} was added or removed; ranges may change")
    if problems:
        raise StudyError(problems, f"what {study.name} should become")
    return extended


def confirmation(
    study: StudyDefinition, tried: Mapping[int, Mapping[str, Any]], splits: Sequence[int], overrides: Sequence[str] = ()
) -> StudyDefinition:
    """The study that trains configurations of a search again on fresh splits, for a number that no choice has flattered.

    Args:
        study: The study with the search.
        tried: What the search drew for each trial to confirm, by the trial's index; best first.
        splits: The splits to train on, none of the study's own.
        overrides: What else differs from the search, each KEY=VALUE, such as `train.iterations=40000` for a longer training.

    Returns:
        The study NAME-confirm, with one trial per entry of `tried`.

    Raises:
        StudyError: If that is not a study, or a split is not fresh.
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
    problems = apply_overrides(spec, overrides)
    confirming = _checked(examine(spec, unknown_encoder), source, problems)
    if seen := sorted(set(confirming.splits) & set(study.splits)):
        sentence = f"the search has seen {', '.join(map(str, seen))}; choose others, such as {fresh_splits(study)}"
        raise StudyError([Problem("splits", sentence)], source)
    return confirming


def fresh_splits(study: StudyDefinition) -> list[int]:
    """Splits that a study has not seen.

    Args:
        study: The study.

    Returns:
        The same number of splits as the study has, beginning after its last.
    """
    first = max(study.splits) + 1
    return list(range(first, first + len(study.splits)))


def check_settings(method: type[Method], preset: str, settings: Mapping[str, Any]) -> Any:
    """Check a method's settings as in a study.

    Args:
        method: The class of the method.
        preset: One of its presets.
        settings: What replaces the preset's values, as YAML gives it.

    Returns:
        The method's Config.

    Raises:
        StudyError: If settings are wrong; it lists every problem.
    """
    checker = Checker({})
    config = checker.config_of(method.name, method.Config, dict(settings), lambda: method.preset_values(preset, settings))
    if checker.problems:
        raise StudyError(checker.problems, "the settings")
    return config
