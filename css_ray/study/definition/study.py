"""A checked study, and the trials that it asks for."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from css_ray.config import Config, ConfigError, Problem
from css_ray.events import TrialStarted
from css_ray.methods import METHODS
from css_ray.models.segmenter import ModelConfig
from css_ray.models.vit import patch_size
from css_ray.study.definition.sections import Budget, Data, Keep, Objective, Resources, Search, Table, Tracking
from css_ray.study.definition.space import Distribution, ends
from css_ray.study.paths import absolute_paths
from css_ray.study.pruning import PRUNERS, Pruner
from css_ray.training.settings import TrainConfig
from css_ray.views import Views


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One setting of everything that a study varies.

    Attributes:
        index: Its place among the study's trials: those of the grid first.
        row: The row of the table that it belongs to.
        source: Whether the study lists it or the search drew it.
        params: What the study varies, by the path of the setting.
        settings: All settings as plain values, by section and key: data, views, model, train, and method with its name.
    """

    index: int
    row: str
    source: Literal["grid", "search"]
    params: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    @property
    def output_stride(self) -> int | None:
        """That of the network; None if its encoder is a ViT, which does not read the setting."""
        model = self.settings["model"]
        stride: int = model["output_stride"]
        return stride if patch_size(model["encoder"]) is None else None


@dataclass(frozen=True, slots=True)
class StudyDefinition:
    """A checked study.

    Attributes:
        name: The name of the study and of its folder.
        description: One line for people.
        objective: What a trial is judged by.
        data: What a trial is trained on.
        views: The random views of the images.
        model: The network.
        train: The optimizer and the rhythm of a run.
        seed: The seed of split 0; that of split i is `seed + i`.
        splits: The splits that every trial is trained on, in this order.
        grid: The values of each setting that the grid varies, by its path; empty without a grid.
        trials: The settings of each trial that is listed by itself.
        search: What a search draws, and how; None without one.
        space: The distribution of each setting that the search draws, by its path.
        resources: What a trial needs.
        budget: How much the study may cost.
        keep: What stays on its disk.
        table: How the results are laid out.
        tracking: Where MLflow records the study.
        spec: The mapping that the study was made from, with every override applied: plain values that survive JSON.
    """

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
        """The trials that are known before anything runs.

        Returns:
            The product of the grid's lists, the last key varying fastest, and after it the trials that are listed one by one.
        """
        return [_valid(*self._trial(index, "grid", point)) for index, (_, point) in enumerate(self._listed())]

    def search_trial(self, index: int, drawn: Mapping[str, Any]) -> TrialSpec:
        """A trial of the search.

        Args:
            index: Its index, counted after the grid's trials.
            drawn: The settings that were drawn, by path.

        Returns:
            The trial.

        Raises:
            ConfigError: If the settings break a rule between settings.
        """
        return _valid(*self._trial(index, "search", self._searched(drawn)))

    def known_trials(self) -> Iterator[tuple[str, TrialSpec, list[Problem]]]:
        """The trials of the grid, the first trials of the search, and the two ends of its space.

        Yields:
            Where the file lists the trial, the trial, and which rules between its settings it breaks.
        """
        index = -1
        for index, (where, point) in enumerate(self._listed()):
            yield where, *self._trial(index, "grid", point)
        if self.search is not None:
            first = [(f"search.first[{place}]", point) for place, point in enumerate(self.search.first)]
            for where, point in [*first, *(("search.space", point) for point in ends(self.space))]:
                yield where, *self._trial(index + 1, "search", self._searched(point))

    def trial_begun(self, start: TrialStarted) -> TrialSpec:
        """The trial that began with this event."""
        if start.source == "search":
            return self.search_trial(start.trial, {path: start.params[path] for path in self.space})
        _, point = [*self._listed()][start.trial]
        return _valid(*self._trial(start.trial, "grid", point))

    def resolved(self) -> dict[str, Any]:
        """The spec for the journal: a study that resumes is the same one, from any folder and with other defaults.

        Returns:
            The spec with every default of data, views, model and train written out, and every path absolute.
        """
        sections = {
            "data": self.data.model_dump(),
            "views": dataclasses.asdict(self.views),
            "model": dataclasses.asdict(self.model),
            "train": dataclasses.asdict(self.train),
        }
        return json.loads(json.dumps({**self.spec, **absolute_paths(sections)}))  # type: ignore[no-any-return]

    def pruners(self) -> list[Pruner]:
        """Fresh pruners of the search; empty if it has none."""
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
        in_grid = [point.get("train.iterations", self.train.iterations) for _, point in self._listed()]
        return in_grid + [self.train.iterations] * (self.num_trials - len(in_grid))

    def _listed(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for values in itertools.product(*self.grid.values()) if self.grid else ():
            yield "the grid", dict(zip(self.grid, values, strict=True))
        for place, point in enumerate(self.trials):
            yield f"trials[{place}]", point

    def _searched(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        assert self.search is not None
        return {"method": self.search.method, **drawn}

    def _trial(
        self, index: int, source: Literal["grid", "search"], point: Mapping[str, Any]
    ) -> tuple[TrialSpec, list[Problem]]:
        """The trial of a point, and the rules between settings that it breaks."""
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
        # What varies was checked setting by setting; built together, each section checks its rules between settings.
        problems = data_problems(settings["data"], settings["model"]["encoder"], self.resources)
        varied = {path.partition(".")[0] for path in point}
        for section, config in (("views", Views), ("model", ModelConfig), ("train", TrainConfig)):
            if section not in varied:
                continue
            settings[section], wrong = _built(section, config, settings[section])
            problems += wrong
        name, preset = method.pop("name"), method.pop("preset", "default")
        values = {**METHODS[name].preset_values(preset, method), **method}
        values, wrong = _built("method", METHODS[name].Config, values)
        settings["method"] = {"name": name, "preset": preset, **values}
        return TrialSpec(index, row, source, params, settings), problems + wrong


def _built(section: str, config: type[Config], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The values of a section with its defaults, and the rules that they break; then the values as they are."""
    try:
        return dataclasses.asdict(config(**as_tuples(values))), []
    except ConfigError as error:
        wrong = [dataclasses.replace(problem, path=f"{section}.{problem.path}") for problem in error.problems]
        return dict(values), wrong


def _valid(trial: TrialSpec, problems: list[Problem]) -> TrialSpec:
    if problems:
        raise ConfigError(f"trial {trial.index}", problems)
    return trial


DATA_RULES = (
    "resources",
    "data.labelled_batch",
    "data.unlabelled_batch",
    "data.labelled_list",
    "data.unlabelled_list",
)
"""What `data_problems` looks at, but for the crop."""


CROP_RULES = ("data.crop", "model.encoder")
"""What its rule about `data.crop` looks at."""


def data_problems(data: Mapping[str, Any], encoder: str, resources: Resources) -> list[Problem]:
    """The rules between data settings, and between them and the encoder or the resources, that a trial breaks."""
    problems = [*_batch_problems({key: data[key] for key in ("labelled_batch", "unlabelled_batch")}, resources)]
    if data["unlabelled_list"] is not None and data["labelled_list"] is None:
        problems.append(
            Problem(
                "data.unlabelled_list",
                "needs data.labelled_list beside it, or an image could be in both parts; name it or drop this",
            )
        )
    crop, patch = data["crop"], patch_size(encoder)
    if patch is not None and crop % patch:
        below = crop // patch * patch
        nearest = f"{below} or {below + patch}" if below else f"{patch}"
        sentence = f"must be a multiple of {patch}, the patch of the encoder {encoder}, got {crop}; use {nearest}"
        problems.append(Problem("data.crop", sentence))
    return problems


def _batch_problems(batches: Mapping[str, int], resources: Resources) -> Iterator[Problem]:
    """Batches that no allowed number of workers can share evenly, or that are too small for batch statistics."""
    sizes = resources.sizes(batches)
    if not sizes and not isinstance(resources.workers, int):
        low, high = min(resources.workers), max(resources.workers)
        both = " and ".join(f"data.{key} {batch}" for key, batch in batches.items())
        yield Problem("resources.workers", f"no number from {low} to {high} divides {both}")
        return
    workers = max(sizes, default=resources.fewest)
    # Batch statistics are shared over GPUs, and over nothing else.
    fewest = 1 if workers > 1 and resources.gpus_per_worker else 2
    for key, batch in batches.items():
        least = max(math.ceil(batch / workers), fewest) * workers
        if batch % workers:
            yield Problem(f"data.{key}", f"{batch} does not divide over {workers} workers; use {least}")
        elif batch < fewest * workers:
            share = f"{batch // workers} image per worker" if workers > 1 else f"{batch} image"
            yield Problem(f"data.{key}", f"BatchNorm needs at least {fewest} images per worker, got {share}; use {least}")


def as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
