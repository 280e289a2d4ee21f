"""`--set KEY=VALUE`: a field of a study, overridden."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from css_ray.config import Problem
from css_ray.messages import did_you_mean
from css_ray.methods import METHODS
from css_ray.study.definition.yaml_file import read_value

NAMING = ("name", "row")
"""What an entry that names a method holds beside its settings, and no two entries may share."""


def apply_overrides(spec: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Change `spec` as `overrides` ask for, each KEY=VALUE, and return what is wrong with them.

    `method.KEY` reaches the methods that are there when all others have been applied, in whatever order they are given.
    """
    problems: list[Problem] = []
    ordered = sorted(overrides, key=lambda text: (text.startswith("method."), not text.startswith("method.name=")))
    for text in ordered:
        problems += _apply(spec, text)
    return problems


def _apply(spec: dict[str, Any], text: str) -> Iterator[Problem]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        yield Problem("--set", f"takes KEY=VALUE, such as train.iterations=100; got {text!r}", joint=" ")
        return
    try:
        parsed = read_value(value)
    except ValueError:
        yield Problem(f"--set {path}", f"{value!r} is not a YAML value")
        return
    # `grid.data.labelled` and `search.space.method.temperature` have dots in their own keys.
    head, _, rest = path.partition(".")
    if head == "method" and rest and (places := _places(spec)):
        yield from _set_in_methods(places, rest, parsed)
        return
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
            yield Problem(f"--set {path}", f"{key} is not a section")
            return
        target = target[key]
    target[keys[-1]] = parsed


@dataclass(frozen=True, slots=True)
class _Place:
    """An entry of a study that names a method: `holder[key]`. varied: by a setting's path, what varies it there."""

    holder: Any
    key: Any
    varied: dict[str, str]

    @property
    def entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.holder[self.key]
        return entry


def _places(spec: dict[str, Any]) -> list[_Place]:
    """Where a study names methods: at its top, in the grid, in listed trials and in the search."""
    grid, trials, search = spec.get("grid"), spec.get("trials"), spec.get("search")
    parts: list[tuple[Any, Any, dict[str, str]]] = []  # each names methods under "method", or takes the one at the top
    if isinstance(grid, dict) and grid:
        parts.append((grid, grid.get("method"), {str(path): f"grid.{path}" for path in grid}))
    for index, point in enumerate(trials if isinstance(trials, list) else []):
        if isinstance(point, dict):
            parts.append((point, point.get("method"), {str(path): f"trials[{index}]" for path in point}))
    if isinstance(search, dict):
        space = search.get("space")
        varied = {str(path): f"search.space.{path}" for path in space} if isinstance(space, dict) else {}
        parts.append((search, search.get("method"), varied))
    places = []
    for holder, named, varied in parts:
        if isinstance(named, list):
            places += [_Place(named, index, varied) for index, entry in enumerate(named) if isinstance(entry, dict)]
        elif isinstance(named, dict):
            places.append(_Place(holder, "method", varied))
    takers = [varied for _, named, varied in parts if named is None]
    if isinstance(spec.get("method"), dict) and (takers or not parts):
        everywhere = set.intersection(*(set(varied) for varied in takers)) if takers else set()
        places.append(_Place(spec, "method", {path: takers[0][path] for path in everywhere}))
    return places


def _set_in_methods(places: Sequence[_Place], key: str, value: Any) -> Iterator[Problem]:
    """Set `method.KEY` in every entry whose method has that setting, except where it varies."""
    path = f"method.{key}"
    if key in NAMING:
        if len(places) > 1:
            yield Problem(
                f"--set {path}",
                f"the study lists {len(places)} methods, which cannot share one {key}; override the list, such as "
                f"grid.method='[{{name: {next(iter(METHODS))}}}]'",
            )
        else:
            places[0].holder[places[0].key] = {**places[0].entry, key: value}
        return
    named = [(place, name) for place in places if isinstance(name := place.entry.get("name"), str) and name in METHODS]
    if key == "preset":
        known = dict.fromkeys(preset for _, name in named for preset in METHODS[name].presets)
        fitting = [place for place, name in named if value in METHODS[name].presets]
        missing = f"no method of the study has the preset {value!r}{did_you_mean(value, known)}"
    else:
        settings = {name: [field.name for field in dataclasses.fields(METHODS[name].Config)] for _, name in named}
        known = dict.fromkeys(setting for each in settings.values() for setting in each)
        fitting = [place for place, name in named if key in settings[name]]
        missing = f"no method of the study has the setting {key}{did_you_mean(key, known)}"
    if not fitting and len(named) == len(places):  # what an unknown method has is not known
        yield Problem(f"--set {path}", missing)
    free = [place for place in fitting if path not in place.varied]
    for place in free:
        # A new mapping: in YAML, entries may be aliases of one.
        place.holder[place.key] = {**place.entry, key: value}
    if fitting and not free:
        where = " and ".join(dict.fromkeys(place.varied[path] for place in fitting))
        yield Problem(f"--set {path}", f"is varied by {where}, which decides its value; override that, or drop it")


def override_texts(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The overrides as the command line writes them: KEY=VALUE, the value in YAML, of which JSON is a part."""
    if isinstance(given, str):
        raise ValueError(f"set is a mapping or a list of KEY=VALUE, got the text {given!r}")
    if not isinstance(given, Mapping):
        return list(given)
    try:
        return [f"{key}={json.dumps(value)}" for key, value in given.items()]
    except TypeError as error:
        raise ValueError(f"set takes plain values (numbers, text, lists, mappings): {error}") from None
