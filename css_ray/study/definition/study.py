"""A checked study, and the trials that it asks for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from css_ray.events import TrialStarted
from css_ray.methods import METHODS
from css_ray.models.segmenter import ModelConfig
from css_ray.study.definition.sections import Budget, Data, Keep, Objective, Resources, Search, Table, Tracking
from css_ray.study.definition.space import Distribution
from css_ray.study.paths import absolute_paths
from css_ray.study.pruning import PRUNERS, Pruner
from css_ray.training.settings import TrainConfig
from css_ray.views import Views


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One setting of everything that a study varies.

    params: what the study varies, flat; settings: all settings, nested, as plain values: the sections data, views, model, train
    and method, the last with its name.
    """

    index: int
    row: str
    source: Literal["grid", "search"]
    params: dict[str, Any]
    settings: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class StudyDefinition:
    """A checked study. `spec` is the mapping it was made from, with every override applied: plain values that survive JSON."""

    name: str
    description: str
    objective: Objective
    data: Data
    views: Views
    model: ModelConfig
    train: TrainConfig
    seed: int
    splits: tuple[int, ...]
    grid: Mapping[str, tuple[Any, ...]]
    trials: tuple[Mapping[str, Any], ...]
    search: Search | None
    space: Mapping[str, Distribution]
    resources: Resources
    budget: Budget
    keep: Keep
    table: Table
    tracking: Tracking
    spec: Mapping[str, Any]

    def grid_trials(self) -> list[TrialSpec]:
        """The trials that are known before anything runs: the product of the grid's lists, the last key varying fastest, and
        after it those that are listed one by one."""
        return [self._trial(index, "grid", point) for index, point in enumerate(self._points())]

    def search_trial(self, index: int, drawn: Mapping[str, Any]) -> TrialSpec:
        """The trial of the search at `index` (counted after the grid's) with the `drawn` settings."""
        assert self.search is not None
        return self._trial(index, "search", {"method": self.search.method, **drawn})

    def trial_begun(self, start: TrialStarted) -> TrialSpec:
        """The trial that began with this event."""
        if start.source == "grid":
            return self._trial(start.trial, "grid", self._points()[start.trial])
        return self.search_trial(start.trial, {path: start.params[path] for path in self.space})

    def resolved(self) -> dict[str, Any]:
        """The spec with every default of data, views, model and train written out and every path absolute, for the journal.

        A resumed study is then the same one, from whatever folder and whatever the defaults have become.
        """
        sections = {
            "data": self.data.model_dump(),
            "views": dataclasses.asdict(self.views),
            "model": dataclasses.asdict(self.model),
            "train": dataclasses.asdict(self.train),
        }
        return json.loads(json.dumps({**self.spec, **absolute_paths(sections)}))  # type: ignore[no-any-return]

    def pruners(self) -> list[Pruner]:
        """Fresh pruners of the search, none where it has none."""
        named = self.search.pruners if self.search else []
        configs = ((PRUNERS[each["name"]], {key: value for key, value in each.items() if key != "name"}) for each in named)
        return [pruner(pruner.Config(**settings)) for pruner, settings in configs]

    @property
    def num_trials(self) -> int:
        """Trials of the grid and the search together."""
        in_grid = math.prod(map(len, self.grid.values())) if self.grid else 0
        return in_grid + len(self.trials) + (self.search.trials if self.search else 0)

    def planned_iterations(self) -> list[int]:
        """The steps of one run of each trial; of a trial still to be drawn, the study's own setting."""
        in_grid = [trial.settings["train"]["iterations"] for trial in self.grid_trials()]
        return in_grid + [self.train.iterations] * (self.num_trials - len(in_grid))

    def _points(self) -> list[Mapping[str, Any]]:
        """What each trial of the grid sets."""
        product = itertools.product(*self.grid.values()) if self.grid else ()
        return [*(dict(zip(self.grid, point, strict=True)) for point in product), *self.trials]

    def _trial(self, index: int, source: Literal["grid", "search"], point: Mapping[str, Any]) -> TrialSpec:
        settings: dict[str, dict[str, Any]] = {
            "data": self.data.model_dump(),
            "views": dataclasses.asdict(self.views),
            "model": dataclasses.asdict(self.model),
            "train": dataclasses.asdict(self.train),
        }
        method = dict(point["method"] if "method" in point else self.spec["method"])
        row = method.pop("row", method["name"])
        params: dict[str, Any] = {f"method.{key}": value for key, value in method.items()}
        for path, value in point.items():
            if path == "method":
                continue
            section, key = path.split(".")
            params[path] = value
            if section == "method":
                method[key] = value
            else:
                settings[section][key] = value
        name, preset = method.pop("name"), method.pop("preset", "default")
        values = dataclasses.asdict(METHODS[name].configure(preset, **as_tuples(method)))
        # What varies was checked setting by setting; built together, each section checks its rules between settings.
        for section, config in (("views", Views), ("model", ModelConfig), ("train", TrainConfig)):
            settings[section] = dataclasses.asdict(config(**as_tuples(settings[section])))
        if problems := batch_problems(settings["data"], self.resources):
            raise ValueError("; ".join(problems))
        if problem := list_problem(settings["data"]):
            raise ValueError(problem)
        settings["method"] = {"name": name, "preset": preset, **values}
        return TrialSpec(index, row, source, params, settings)


def batch_problems(data: Mapping[str, Any], resources: Resources) -> list[str]:
    """The batches that no allowed number of workers can share evenly, with the next one that could be."""
    if resources.sizes(data):
        return []
    batches, workers = {key: data[key] for key in ("labelled_batch", "unlabelled_batch")}, resources.workers
    if not isinstance(workers, int):
        both = " and ".join(f"data.{key} {batch}" for key, batch in batches.items())
        return [f"resources.workers: no number from {min(workers)} to {max(workers)} divides {both}"]
    return [
        f"data.{key}: {batch} does not divide over {workers} workers; use {math.ceil(batch / workers) * workers}"
        for key, batch in batches.items()
        if batch % workers
    ]


def list_problem(data: Mapping[str, Any]) -> str | None:
    if data["unlabelled_list"] is not None and data["labelled_list"] is None:
        return (
            "data.unlabelled_list: needs data.labelled_list beside it, or an image could be in both parts; name it or drop this"
        )
    return None


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
