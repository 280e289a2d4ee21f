"""Checks a mapping as a study: every problem is found, each with its path in the file."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from css_ray.config import Config, ConfigError, Problem
from css_ray.messages import did_you_mean
from css_ray.methods import METHODS, MethodError
from css_ray.models.segmenter import ModelConfig
from css_ray.secrets import BY_ENVIRONMENT, BY_MLFLOW, credentials_text
from css_ray.study.definition.fields import checker_of, problems_of
from css_ray.study.definition.problems import intact, unknown_key, within
from css_ray.study.definition.sections import (
    MAX_LISTED,
    MAX_SPLITS,
    MAX_TRIALS,
    Budget,
    Data,
    Keep,
    Objective,
    Resources,
    Search,
    Section,
    Table,
    Tracking,
)
from css_ray.study.definition.space import Distribution, contains, points_of
from css_ray.study.definition.study import StudyDefinition, as_tuples
from css_ray.study.definition.yaml_file import MAX_DEPTH
from css_ray.study.pruning import PRUNERS
from css_ray.tracking import ARTIFACTS, DATABASE
from css_ray.training.settings import TrainConfig
from css_ray.views import Views

SECTIONS = (
    "study",
    "description",
    "objective",
    "data",
    "views",
    "model",
    "train",
    "seed",
    "method",
    "splits",
    "grid",
    "trials",
    "search",
    "resources",
    "budget",
    "keep",
    "table",
    "tracking",
)
VARIED = ("data", "views", "model", "train", "method")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CONFIRM = "-confirm"
_MAX_SEED, _MAX_SPLIT = 2**32, 10**9  # torch's generators take seeds of 64 bits, of which the ranks need some
_MAX_NUMBER = 2**63
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def is_study_name(name: str) -> bool:
    """Whether a study may have this name, which is that of its folder in a storage."""
    return _NAME.fullmatch(name) is not None and not taken_by_mlflow(name)


def taken_by_mlflow(name: str) -> bool:
    """Whether MLflow has something of this name in a storage; SQLite keeps mlflow.db-wal and others beside its file."""
    return name == ARTIFACTS or name.startswith(DATABASE)


class Checker:
    """Collects problems; a part that is wrong is None, and later checks that need it are left out.

    problems: all of them. faults: those that leave a part of the study without a valid value; the others break a rule between
    valid parts. readable: whether the values are of the kinds that the checks can look at. unknown_encoder: returns why a name
    is not an encoder, or None.
    """

    def __init__(self, spec: dict[str, Any], unknown_encoder: Callable[[str], str | None] = lambda name: None) -> None:
        self.spec = spec
        self.unknown_encoder = unknown_encoder
        self.problems: list[Problem] = []
        self.faults: list[Problem] = []
        self.readable = True

    def fault(self, path: str, sentence: str) -> None:
        self.add(Problem(path, sentence))

    def add(self, *faults: Problem) -> None:
        self.problems += faults
        self.faults += faults

    def rule(self, path: str, sentence: str) -> None:
        self.problems.append(Problem(path, sentence))

    def given(self, part: str) -> bool:
        """Whether the file asks for something in `part`, be it wrong or right."""
        return self.spec.get(part) not in (None, {}, [])

    def values(self, value: Any, path: str = "", depth: int = 0) -> None:
        """Find what no check can look at, and URLs with secrets: the spec is copied to the journal, MLflow and the nodes."""
        if depth > MAX_DEPTH:
            self.unreadable(path, f"is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(value, Mapping):
            for key, each in value.items():
                if not isinstance(key, str):
                    self.unreadable(path, f"has the key {key!r}, which is not text; put it into quotes, or remove it")
                self.values(each, f"{path}.{key}" if path else str(key), depth + 1)
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                self.values(each, f"{path}[{place}]", depth + 1)
        elif isinstance(value, str):
            if _UNSTORABLE.search(value):
                self.unreadable(path, f"has characters that no file name and no text in UTF-8 can hold, got {value!r}")
            remedy = BY_MLFLOW if path.startswith("tracking") else BY_ENVIRONMENT
            if refused := credentials_text(value, remedy):
                self.fault(path, refused)
        elif isinstance(value, int) and abs(value) >= _MAX_NUMBER:
            self.unreadable(path, f"must be a number of at most 64 bits, got one of {value.bit_length()}")
        elif value is not None and not isinstance(value, bool | int | float):
            self.unreadable(path, f"must be a number, text, true, false, null, a list or a mapping, got {value!r}")

    def unreadable(self, path: str, sentence: str) -> None:
        self.readable = False
        self.fault(path, sentence)

    def study(self) -> StudyDefinition | None:
        """The study, or None if a part of it has no valid value."""
        spec = self.spec
        self.values(spec)
        if not self.readable:
            return None
        self.add(*(unknown_key(str(key), key, SECTIONS) for key in spec if key not in SECTIONS))
        name = spec.get("study")
        if isinstance(name, str) and taken_by_mlflow(name):
            self.fault("study", f"{name!r} is what MLflow calls its files in a storage; choose another name")
        elif not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fault(
                "study",
                "must be a name of a-z, 0-9, '.', '_', '-', at most 63 characters, that starts with a letter or digit; "
                f"got {name!r}",
            )
        description = self.plain("description", str, "")
        objective = self.section("objective", Objective)
        data = self.section("data", Data, required=True)
        views = self.config("views", Views)
        model = self.config("model", ModelConfig)
        train = self.config("train", TrainConfig)
        seed = self.plain("seed", int, 0)
        if abs(seed) > _MAX_SEED:
            self.fault("seed", f"must be from {-_MAX_SEED} to {_MAX_SEED}, got {seed}")
        resources = self.section("resources", Resources)
        budget = self.section("budget", Budget)
        keep = self.section("keep", Keep)
        table = self.section("table", Table)
        tracking = self.section("tracking", Tracking)
        splits = self.splits()
        if spec.get("method") is not None:
            self.method("method", spec["method"])
        if objective and objective.aggregate != "mean" and len(splits) == 1 and intact(self.faults, "splits"):
            self.rule("objective.aggregate", f"{objective.aggregate} needs at least 2 splits, got 1; add splits or use mean")
        grid = self.grid()
        listed = self.listed()
        search, space = self.search(objective)
        self.count(math.prod(map(len, grid.values())) if grid else 0, len(listed), search.trials if search else 0)
        if search and search.confirm and isinstance(name, str) and len(name) > 63 - len(_CONFIRM):
            most = 63 - len(_CONFIRM)
            self.fault("study", f"has {len(name)} characters, at most {most} if it is confirmed as NAME{_CONFIRM}; shorten it")
        if not self.given("grid") and not self.given("trials") and spec.get("search") is None:
            self.fault("grid", "a study needs a grid (the product of lists), trials (one by one) or a search (trials drawn)")
        axes = [str(path) for path in spec["grid"]] if isinstance(spec.get("grid"), dict) else []
        if axes and "method" not in axes and spec.get("method") is None:
            self.fault("method", "missing: name a method here, or list methods under grid.method")
        if budget and resources and budget.gpu_hours is not None and not resources.gpus_per_worker:
            self.rule("budget.gpu_hours", "no worker has a GPU, so that it is never spent; bound cpu_hours or hours instead")
        # An axis that is misspelt would be taken for another one.
        wrong_axes = any(within(each.path, "grid") and not within(each.path, "grid.method") for each in self.faults)
        if table and table.columns and table.columns not in axes and not wrong_axes:
            hint = did_you_mean(table.columns, axes) or ", and there is no grid"
            self.rule("table.columns", f"{table.columns} does not vary in the grid{hint}")
        if self.faults:
            return None
        assert objective and data and views and model and train and resources and budget and keep and table and tracking
        return StudyDefinition(
            name=typing.cast(str, name), description=description, objective=objective, data=data, views=views, model=model,
            train=train, seed=seed, splits=splits, grid=grid, trials=listed, search=search, space=space, resources=resources,
            budget=budget, keep=keep, table=table, tracking=tracking, spec=spec,
        )  # fmt: skip

    def count(self, in_grid: int, listed: int, searched: int) -> None:
        """Check how many trials the study has."""
        known = in_grid + listed
        if known > MAX_LISTED:
            both = f", {known} with those of trials" if listed else ""
            remedy = "list fewer values, or have a search draw them (its sampler `grid` goes through all)"
            self.fault("grid", f"has {in_grid} trials{both}, at most {MAX_LISTED}; {remedy}")
        elif searched and known + searched > MAX_TRIALS:
            self.fault("search.trials", f"the study has {known + searched} trials, at most {MAX_TRIALS}; lower it")

    def plain(self, path: str, kind: type, default: Any) -> Any:
        value = self.spec.get(path, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fault(path, f"must be {'a whole number' if kind is int else 'text'}, got {value!r}")
            return default
        return value

    def section(self, path: str, model: type[Section], required: bool = False) -> Any:
        value = self.spec.get(path)
        if value is None and not required:
            value = {}
        return self.validated(path, model, value)

    def config(self, path: str, config: type[Config]) -> Any:
        value = self.spec.get(path)
        if path == "model" and isinstance(value, dict):
            self.encoder("model.encoder", value.get("encoder"))
        return self.config_of(path, config, {} if value is None else value)

    def config_of(
        self,
        path: str,
        config: type[Config],
        value: Any,
        defaults: Callable[[], Mapping[str, Any]] = lambda: types.MappingProxyType({}),
    ) -> Any:
        """The Config of the section `value` over `defaults`, which are called once the types are right; None if it is wrong."""
        if self.validated(path, checker_of(config), value) is None:  # type: ignore[arg-type]
            return None
        try:
            return config(**{**defaults(), **as_tuples(value)})
        except ConfigError as error:
            self.add(*(dataclasses.replace(problem, path=f"{path}.{problem.path}") for problem in error.problems))
            return None

    def encoder(self, path: str, name: Any) -> None:
        if isinstance(name, str) and (sentence := self.unknown_encoder(name)):
            self.fault(path, sentence)

    def validated(self, path: str, model: type[BaseModel], value: Any) -> Any:
        if not isinstance(value, dict):
            self.fault(path, "missing" if value is None else f"must be a section (a mapping), got {value!r}")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self.add(*problems_of(error, path, model.model_fields))
            return None

    def splits(self) -> tuple[int, ...]:
        value = self.spec.get("splits")
        if not isinstance(value, list) or not value:
            self.fault("splits", f"must be a list of split indices such as [0, 1, 2], got {value!r}")
            return ()
        if len(value) > MAX_SPLITS:
            self.fault("splits", f"must have at most {MAX_SPLITS} entries, got {len(value)}")
            return ()
        seen: set[int] = set()
        for index, split in enumerate(value):
            if not isinstance(split, int) or isinstance(split, bool) or not 0 <= split <= _MAX_SPLIT:
                self.fault(f"splits[{index}]", f"must be a whole number >= 0{_at_most(split, _MAX_SPLIT)}, got {split!r}")
            elif split in seen:
                self.fault(f"splits[{index}]", f"split {split} is listed twice; each split is trained once")
            else:
                seen.add(split)
        return tuple(value)

    def method(self, path: str, value: Any) -> Any:
        """Check one entry that names a method and its settings; returns the class or None."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            self.fault(path, f"must be a mapping with a name, such as {{name: {next(iter(METHODS))}}}; got {value!r}")
            return None
        try:
            method = METHODS[value["name"]]
        except MethodError as error:
            self.fault(f"{path}.name", str(error))
            return None
        if not isinstance(value.get("row", ""), str):
            self.fault(f"{path}.row", f"must be text, got {value['row']!r}")
        preset = value.get("preset", "default")
        if preset not in method.presets:
            self.fault(f"{path}.preset", f"{preset!r} is unknown{did_you_mean(str(preset), method.presets)}")
            preset = "default"
        settings = {key: setting for key, setting in value.items() if key not in ("name", "row", "preset")}
        self.config_of(path, method.Config, settings, lambda: method.preset_values(preset, settings))
        return method

    def grid(self) -> dict[str, tuple[Any, ...]]:
        value = self.spec.get("grid")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault("grid", f"must map settings to lists, such as data.labelled: [92, 183]; got {value!r}")
            return {}
        grid: dict[str, tuple[Any, ...]] = {}
        for path, values in value.items():
            if not isinstance(values, list) or not values:
                self.fault(f"grid.{path}", f"must be a list with at least one entry, got {values!r}")
                continue
            if len(values) > MAX_LISTED:
                self.fault(f"grid.{path}", f"must have at most {MAX_LISTED} entries, got {len(values)}")
                continue
            grid[path] = tuple(values)
            if path == "method":
                for index, entry in enumerate(values):
                    self.method(f"grid.method[{index}]", entry)
                continue
            where = f"grid.{path}"
            self.setting(path, where, [(f"{where}[{index}]", entry) for index, entry in enumerate(values)], self.grid_methods())
            for index in _repeated(values):
                self.rule(f"grid.{path}[{index}]", f"{values[index]!r} is listed twice")
        entries = [entry for entry in grid.get("method", ()) if isinstance(entry, dict)]
        rows = [row for entry in entries if isinstance(row := entry.get("row", entry.get("name")), str)]
        for row in sorted(row for row, count in Counter(rows).items() if count > 1):
            self.rule("grid.method", f"two entries have the row {row!r}; give each a `row` of its own")
        return grid

    def listed(self) -> tuple[Mapping[str, Any], ...]:
        """`trials`: each maps settings to values, and may name a method with a row of its own."""
        value = self.spec.get("trials")
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(point, dict) and point for point in value):
            self.fault("trials", f"must be a list of mappings, such as [{{train.lr: 0.1}}]; got {value!r}")
            return ()
        if len(value) > MAX_LISTED:
            self.fault("trials", f"must have at most {MAX_LISTED} entries, got {len(value)}")
            return ()
        for index, point in enumerate(value):
            where = f"trials[{index}]"
            named = point.get("method", self.spec.get("method"))
            if "method" in point:
                self.method(f"{where}.method", named)
            elif named is None:
                self.fault(where, "names no method; give it one, or the study")
            names = _names([named])
            for path, setting in point.items():
                if path != "method":
                    self.setting(path, f"{where}.{path}", [(f"{where}.{path}", setting)], names)
        return tuple(value)

    def grid_methods(self) -> list[str]:
        grid = self.spec.get("grid")
        entries = grid.get("method") if isinstance(grid, dict) else None
        entries = entries if isinstance(entries, list) else [self.spec.get("method")]
        return _names(entries)

    def search(self, objective: Objective | None) -> tuple[Search | None, dict[str, Distribution]]:
        value = self.spec.get("search")
        if value is None:
            return None, {}
        inherits = isinstance(value, dict) and "method" not in value and isinstance(self.spec.get("method"), dict)
        if inherits:
            value = {**value, "method": self.spec["method"]}
        search = self.validated("search", Search, value)
        if search is None:
            return None, {}
        method = self.method("method" if inherits else "search.method", search.method)
        names = [search.method["name"]] if method else []
        if not search.space:
            self.fault(
                "search.space",
                "is empty; map a setting to how it is drawn, such as method.temperature: {loguniform: [0.05, 1.0]}",
            )
        space = {}
        for path, drawn in search.space.items():
            distribution = self.distribution(f"search.space.{path}", drawn)
            if distribution is not None:
                space[path] = distribution
                where = f"search.space.{path}"
                self.setting(path, where, [(where, value) for value in distribution.values], names)
        if len(search.first) > search.trials:
            self.fault("search.first", f"has {len(search.first)} points, but search.trials is {search.trials}; raise trials")
        for index, named in enumerate(search.pruners):
            self.pruner(f"search.pruners[{index}]", named)
        if search.pruners and objective and objective.aggregate == "mean_and_std":
            self.fault("search.pruners", "a trial cannot be pruned for one of two objectives; use mean, or drop the pruners")
        if "train.iterations" in space and any(named.get("name") == "optuna" for named in search.pruners):
            self.fault("search.pruners", "Optuna's pruners need runs of one length, and the space varies train.iterations")
        if search.sampler == "grid":
            for path, distribution in space.items():
                if not points_of(distribution):
                    self.fault(
                        f"search.space.{path}", "the grid sampler needs {choice: [...]} or {int: [low, high]}; list the values"
                    )
            size = math.prod(_count(distribution) for distribution in space.values())
            most = size + len(search.first)
            if size > 0 and most < search.trials:
                self.fault("search.trials", f"the grid has {size} points, got {search.trials} trials; use {most}")
        if search.sampler == "cmaes" and any(distribution.kind == "choice" for distribution in space.values()):
            self.fault("search.sampler", "cmaes draws numbers, and the space has a choice; use tpe, or drop the choice")
        # If a key of the space is misspelt, the points would seem to have others.
        right_space = not any(within(each.path, "search.space") for each in self.faults)
        for index, point in enumerate(search.first if right_space else ()):
            for path, setting in point.items():
                where = f"search.first[{index}].{path}"
                if path not in search.space:
                    self.fault(where, f"is not in search.space{did_you_mean(path, list(search.space))}")
                elif not contains(space[path], setting):
                    self.fault(where, f"{setting!r} lies outside search.space.{path} ({search.space[path]})")
            for path in search.space:
                if path not in point:
                    self.fault(f"search.first[{index}]", f"{path} is missing; a first trial gives every setting of the space")
        return search, space

    def pruner(self, where: str, value: Mapping[str, Any]) -> None:
        name = value.get("name")
        if not isinstance(name, str) or name not in PRUNERS:
            self.fault(f"{where}.name", f"{name!r} is unknown{did_you_mean(name, PRUNERS)}")
            return
        settings = {key: setting for key, setting in value.items() if key != "name"}
        self.config_of(where, PRUNERS[name].Config, settings)

    def distribution(self, path: str, value: Any) -> Distribution | None:
        kinds = ("uniform", "loguniform", "int", "choice")
        if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in kinds:
            self.fault(
                path,
                "must be one of {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, {choice: [...]}; "
                f"got {value!r}",
            )
            return None
        kind, values = next(iter(value.items()))
        if not isinstance(values, list) or not values:
            self.fault(path, f"{kind} takes a list, got {values!r}")
            return None
        if kind == "choice":
            return Distribution("choice", tuple(values))
        numbers = (int,) if kind == "int" else (int, float)
        if (
            len(values) != 2
            or not all(isinstance(end, numbers) and not isinstance(end, bool) for end in values)
            or not values[0] < values[1]
        ):
            self.fault(path, f"{kind} takes [low, high] with low < high, got {values!r}")
            return None
        if kind == "loguniform" and values[0] <= 0:
            self.fault(path, f"loguniform needs low > 0, got {values[0]!r}")
            return None
        return Distribution(kind, tuple(values) if kind == "int" else (float(values[0]), float(values[1])))

    def setting(self, path: Any, at: str, values: Sequence[tuple[str, Any]], methods: Sequence[str]) -> None:
        """Check that `path`, the key at `at`, names a setting (of every method in `methods`), and that values fit it.

        values: each with its own place in the file.
        """
        section, dot, key = str(path).partition(".")
        if not dot or section not in VARIED:
            self.fault(at, f"{path} is not a setting; a setting is SECTION.KEY with a section of {', '.join(VARIED)}")
            return
        if path == "method.preset":
            for where, value in values:
                for name in dict.fromkeys(methods):
                    if value not in METHODS[name].presets:
                        self.fault(where, f"method {name} has no preset {value!r}; it has {', '.join(METHODS[name].presets)}")
            return
        models: dict[str, type[BaseModel]] = {
            "data": Data, "views": checker_of(Views), "model": checker_of(ModelConfig), "train": checker_of(TrainConfig)
        }  # fmt: skip
        owners = (
            [(f"method {name}", checker_of(METHODS[name].Config)) for name in dict.fromkeys(methods)]
            if section == "method"
            else [(section, models[section])]
        )
        for owner, model in owners:
            field = model.model_fields.get(key)
            if field is None:
                self.fault(at, f"{owner} has no setting {key}{did_you_mean(key, list(model.model_fields))}")
                continue
            annotation: Any = typing.Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            adapter = TypeAdapter[Any](annotation, config=ConfigDict(strict=True))
            for where, value in values:
                try:
                    adapter.validate_python(value)
                except ValidationError as error:
                    self.add(*problems_of(error, where))
        if path == "model.encoder":
            for where, value in values:
                self.encoder(where, value)


def _at_most(value: Any, most: int) -> str:
    """The upper bound, for a value that breaks it."""
    return f" and <= {most}" if isinstance(value, int) and value > most else ""


def _repeated(values: Sequence[Any]) -> Iterator[int]:
    """The places of values that are listed before."""
    seen: set[Any] = set()
    others: list[Any] = []  # lists and mappings
    for place, value in enumerate(values):
        known: Any = seen if isinstance(value, Hashable) else others
        if value in known:
            yield place
        elif known is seen:
            seen.add(value)
        else:
            others.append(value)


def _count(distribution: Distribution) -> int:
    """The number of points, of a range of whole numbers that is longer than `len` can count, too."""
    if distribution.kind == "int":
        low, high = distribution.values
        return int(high - low + 1)
    return len(points_of(distribution))


def _names(entries: Sequence[Any]) -> list[str]:
    """The names of known methods among `entries`."""
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and name in METHODS]
