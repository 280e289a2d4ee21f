"""Checks a mapping as a study: every problem is found, each with its path in the file."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from css_ray.config import Config, bounds_text
from css_ray.messages import did_you_mean
from css_ray.methods import METHODS, MethodError
from css_ray.models.segmenter import ModelConfig
from css_ray.secrets import secret_in, shown
from css_ray.study.definition.sections import Budget, Data, Keep, Objective, Resources, Search, Section, Table, Tracking
from css_ray.study.definition.space import Distribution, contains, ends, points_of
from css_ray.study.definition.study import StudyDefinition, as_tuples, batch_problems, list_problem
from css_ray.study.pruning import PRUNERS
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
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}$")


@cache
def checker_of(config: type[Config]) -> type[BaseModel]:
    """A pydantic model with the fields, types and bounds of a Config class."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        bounds = field.metadata.get("bounds", {})
        default = ... if field.default is dataclasses.MISSING else field.default
        if _is_tuple(hint):
            # YAML has lists only; bounds of a tuple hold for its entries and are checked by the Config itself.
            fields[field.name] = (typing.Annotated[hint, Field(strict=False)], default)
        else:
            fields[field.name] = (
                hint,
                Field(default, allow_inf_nan=False, **bounds) if float in _members(hint) else Field(default, **bounds),
            )
    return create_model(config.__qualname__, __base__=Section, **fields)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(member) is tuple for member in _members(hint))


class Checker:
    """Collects problems; a part that is wrong is None, and later checks that need it are left out."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.problems: list[str] = []

    def problem(self, path: str, sentence: str) -> None:
        self.problems.append(f"{path}: {sentence}")

    def secrets(self, value: Any, path: str = "") -> None:
        """Find URLs with secrets: the spec is copied into the journal, into MLflow and to the nodes."""
        if isinstance(value, Mapping):
            for key, each in value.items():
                self.secrets(each, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                self.secrets(each, f"{path}[{place}]")
        elif isinstance(value, str) and (secret := secret_in(value)):
            names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine"
            if path.startswith("tracking"):
                names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole as MLFLOW_TRACKING_URI"
            self.problem(
                path, f"{shown(value)} comes with {secret}, which would be in every copy; use the environment ({names})"
            )

    def study(self) -> StudyDefinition | None:
        spec = self.spec
        self.secrets(spec)
        for key in spec:
            if key not in SECTIONS:
                self.problems.append(f"{key} is unknown{did_you_mean(str(key), SECTIONS)}")
        name = spec.get("study")
        if not isinstance(name, str) or not _NAME.match(name):
            self.problem(
                "study",
                f"a name of a-z, 0-9, '.', '_', '-', at most 63 characters, starting with a letter or digit; got {name!r}",
            )
        description = self.plain("description", str, "")
        objective = self.section("objective", Objective)
        data = self.section("data", Data, required=True)
        views = self.config("views", Views)
        model = self.config("model", ModelConfig)
        train = self.config("train", TrainConfig)
        seed = self.plain("seed", int, 0)
        resources = self.section("resources", Resources)
        budget = self.section("budget", Budget)
        keep = self.section("keep", Keep)
        table = self.section("table", Table)
        tracking = self.section("tracking", Tracking)
        splits = self.splits()
        if spec.get("method") is not None:
            self.method("method", spec["method"])
        if objective and objective.aggregate != "mean" and len(splits) == 1:
            self.problem("objective.aggregate", f"{objective.aggregate} needs at least 2 splits, got 1; add splits or use mean")
        grid = self.grid()
        listed = self.listed()
        search, space = self.search()
        if not grid and not listed and search is None and not {"grid", "tria"} & {problem[:4] for problem in self.problems}:
            self.problem("grid", "a study needs a grid (the product of lists), trials (one by one) or a search (trials drawn)")
        if grid and "method" not in grid and spec.get("method") is None:
            self.problem("method", "missing: name a method here, or list methods under grid.method")
        if data and resources:
            self.problems += batch_problems(data.model_dump(), resources)
        if budget and resources and budget.gpu_hours is not None and not resources.gpus_per_worker:
            self.problem("budget.gpu_hours", "no worker has a GPU, so that it is never spent; bound cpu_hours or hours instead")
        if data and (problem := list_problem(data.model_dump())):
            self.problems.append(problem)
        if table and table.columns and table.columns not in (grid or {}):
            self.problem(
                "table.columns",
                f"{table.columns} does not vary in the grid{did_you_mean(table.columns, list(grid or {}) or ['(no grid)'])}",
            )
        if self.problems:
            return None
        assert objective and data and views and model and train and resources and budget and keep and table and tracking
        study = StudyDefinition(
            name=typing.cast(str, name), description=description, objective=objective, data=data, views=views, model=model,
            train=train, seed=seed, splits=splits, grid=grid, trials=listed, search=search, space=space, resources=resources,
            budget=budget, keep=keep, table=table, tracking=tracking, spec=spec,
        )  # fmt: skip
        self.combinations(study)
        return study

    def plain(self, path: str, kind: type, default: Any) -> Any:
        value = self.spec.get(path, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.problem(path, f"must be {'a whole number' if kind is int else 'text'}, got {value!r}")
            return default
        return value

    def section(self, path: str, model: type[Section], required: bool = False) -> Any:
        value = self.spec.get(path)
        if value is None and not required:
            value = {}
        return self.validated(path, model, value)

    def config(self, path: str, config: type[Config]) -> Any:
        value = self.spec.get(path)
        return self.config_of(path, config, {} if value is None else value)

    def config_of(
        self, path: str, config: type[Config], value: Any, defaults: Mapping[str, Any] = types.MappingProxyType({})
    ) -> Any:
        """The Config of the section `value`, with `defaults` where it says nothing; None if it is wrong."""
        if self.validated(path, checker_of(config), value) is None:  # type: ignore[arg-type]
            return None
        try:
            return config(**{**defaults, **as_tuples(value)})
        except ValueError as error:
            for problem in str(error).partition(": ")[2].split("; "):
                field, _, sentence = problem.partition(" ")
                self.problem(f"{path}.{field}", sentence)
            return None

    def validated(self, path: str, model: type[BaseModel], value: Any) -> Any:
        if not isinstance(value, dict):
            self.problem(path, "missing" if value is None else f"must be a section (a mapping), got {value!r}")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for detail in error.errors():
                self.problems.append(_sentence(path, detail, list(model.model_fields)))
            return None

    def splits(self) -> tuple[int, ...]:
        value = self.spec.get("splits")
        if not isinstance(value, list) or not value:
            self.problem("splits", f"a list of split indices such as [0, 1, 2], got {value!r}")
            return ()
        for index, split in enumerate(value):
            if not isinstance(split, int) or isinstance(split, bool) or split < 0:
                self.problem(f"splits[{index}]", f"must be a whole number >= 0, got {split!r}")
            elif split in value[:index]:
                self.problem(f"splits[{index}]", f"split {split} stands twice; each split is trained once")
        return tuple(value)

    def method(self, path: str, value: Any) -> Any:
        """Check one entry that names a method and its settings; returns the class or None."""
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            self.problem(path, f"must be a mapping with a name, such as {{name: {next(iter(METHODS))}}}; got {value!r}")
            return None
        try:
            method = METHODS[value["name"]]
        except MethodError as error:
            self.problem(f"{path}.name", str(error))
            return None
        if not isinstance(value.get("row", ""), str):
            self.problem(f"{path}.row", f"must be text, got {value['row']!r}")
        preset = value.get("preset", "default")
        if preset not in method.presets:
            self.problem(f"{path}.preset", f"{preset!r} is unknown{did_you_mean(str(preset), method.presets)}")
            preset = "default"
        settings = {key: setting for key, setting in value.items() if key not in ("name", "row", "preset")}
        self.config_of(path, method.Config, settings, method.preset_values(preset, settings))
        return method

    def grid(self) -> dict[str, tuple[Any, ...]]:
        value = self.spec.get("grid")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problem("grid", f"must map settings to lists, such as data.labelled: [92, 183]; got {value!r}")
            return {}
        grid: dict[str, tuple[Any, ...]] = {}
        for path, values in value.items():
            if not isinstance(values, list) or not values:
                self.problem(f"grid.{path}", f"must be a list with at least one entry, got {values!r}")
                continue
            grid[path] = tuple(values)
            if path == "method":
                for index, entry in enumerate(values):
                    self.method(f"grid.method[{index}]", entry)
                continue
            for index, entry in enumerate(values):
                self.setting(path, entry, f"grid.{path}[{index}]", self.grid_methods())
                if entry in values[:index]:
                    self.problem(f"grid.{path}[{index}]", f"{entry!r} stands twice")
        rows = [
            entry.get("row", entry["name"]) for entry in grid.get("method", ()) if isinstance(entry, dict) and "name" in entry
        ]
        for row in sorted({row for row in rows if rows.count(row) > 1}, key=str):
            self.problem("grid.method", f"two entries have the row {row!r}; give each a `row` of its own")
        return grid

    def listed(self) -> tuple[Mapping[str, Any], ...]:
        """`trials`: each maps settings to values, and may name a method with a row of its own."""
        value = self.spec.get("trials")
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(point, dict) and point for point in value):
            self.problem("trials", f"must be a list of mappings, such as [{{train.lr: 0.1}}]; got {value!r}")
            return ()
        for index, point in enumerate(value):
            where = f"trials[{index}]"
            named = point.get("method", self.spec.get("method"))
            if "method" in point:
                self.method(f"{where}.method", named)
            elif named is None:
                self.problem(where, "names no method; give it one, or the study")
            names = [named["name"]] if isinstance(named, dict) and named.get("name") in METHODS else []
            for path, setting in point.items():
                if path != "method":
                    self.setting(path, setting, f"{where}.{path}", names)
        return tuple(value)

    def grid_methods(self) -> list[str]:
        grid = self.spec.get("grid")
        entries = grid.get("method") if isinstance(grid, dict) else None
        entries = entries if isinstance(entries, list) else [self.spec.get("method")]
        return [entry["name"] for entry in entries if isinstance(entry, dict) and entry.get("name") in METHODS]

    def search(self) -> tuple[Search | None, dict[str, Distribution]]:
        value = self.spec.get("search")
        if value is None:
            return None, {}
        if isinstance(value, dict) and "method" not in value and isinstance(self.spec.get("method"), dict):
            value = {**value, "method": self.spec["method"]}
        search = self.validated("search", Search, value)
        if search is None:
            return None, {}
        method = self.method("search.method", search.method)
        names = [search.method["name"]] if method else []
        if not search.space:
            self.problem(
                "search.space",
                "is empty; map a setting to how it is drawn, such as method.temperature: {loguniform: [0.05, 1.0]}",
            )
        space = {}
        for path, drawn in search.space.items():
            distribution = self.distribution(f"search.space.{path}", drawn)
            if distribution is not None:
                space[path] = distribution
                for end in distribution.values:
                    self.setting(path, end, f"search.space.{path}", names)
        if len(search.first) > search.trials:
            self.problem("search.first", f"has {len(search.first)} points, but search.trials is {search.trials}; raise trials")
        for index, named in enumerate(search.pruners):
            self.pruner(f"search.pruners[{index}]", named)
        if search.pruners and (self.spec.get("objective") or {}).get("aggregate") == "mean_and_std":
            self.problem("search.pruners", "a trial cannot be pruned for one of two objectives; use mean, or drop the pruners")
        if "train.iterations" in space and any(named.get("name") == "optuna" for named in search.pruners):
            self.problem("search.pruners", "Optuna's pruners need runs of one length, and the space varies train.iterations")
        if search.sampler == "grid":
            for path, distribution in space.items():
                if not points_of(distribution):
                    self.problem(
                        f"search.space.{path}", "the grid sampler needs {choice: [...]} or {int: [low, high]}; list the values"
                    )
            size = math.prod(len(points_of(distribution)) for distribution in space.values())
            most = size + len(search.first)
            if size > 0 and most < search.trials:
                self.problem("search.trials", f"the grid has {size} points, got {search.trials} trials; use {most}")
        if search.sampler == "cmaes" and any(distribution.kind == "choice" for distribution in space.values()):
            self.problem("search.sampler", "cmaes draws numbers, and the space has a choice; use tpe, or drop the choice")
        for index, point in enumerate(search.first):
            for path, setting in point.items():
                where = f"search.first[{index}].{path}"
                if path not in search.space:
                    self.problem(where, f"is not in search.space{did_you_mean(path, list(search.space))}")
                elif path in space and not contains(space[path], setting):
                    self.problem(where, f"{setting!r} lies outside search.space.{path} ({search.space[path]})")
            for path in search.space:
                if path not in point:
                    self.problem(f"search.first[{index}]", f"{path} is missing; a first trial gives every setting of the space")
        return search, space

    def pruner(self, where: str, value: Mapping[str, Any]) -> None:
        if value.get("name") not in PRUNERS:
            known = list(PRUNERS)
            self.problem(f"{where}.name", f"{value.get('name')!r} is unknown{did_you_mean(str(value.get('name')), known)}")
            return
        settings = {key: setting for key, setting in value.items() if key != "name"}
        self.config_of(where, PRUNERS[value["name"]].Config, settings)

    def distribution(self, path: str, value: Any) -> Distribution | None:
        kinds = ("uniform", "loguniform", "int", "choice")
        if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in kinds:
            self.problem(
                path,
                "must be one of {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, {choice: [...]}; "
                f"got {value!r}",
            )
            return None
        kind, values = next(iter(value.items()))
        if not isinstance(values, list) or not values:
            self.problem(path, f"{kind} takes a list, got {values!r}")
            return None
        if kind == "choice":
            return Distribution("choice", tuple(values))
        numbers = (int,) if kind == "int" else (int, float)
        if (
            len(values) != 2
            or not all(isinstance(end, numbers) and not isinstance(end, bool) for end in values)
            or not values[0] < values[1]
        ):
            self.problem(path, f"{kind} takes [low, high] with low < high, got {values!r}")
            return None
        if kind == "loguniform" and values[0] <= 0:
            self.problem(path, f"loguniform needs low > 0, got {values[0]!r}")
            return None
        return Distribution(kind, tuple(values) if kind == "int" else (float(values[0]), float(values[1])))

    def setting(self, path: Any, value: Any, where: str, methods: Sequence[str]) -> None:
        """Check that `path` names a setting (of every method in `methods`) and that `value` fits it."""
        section, dot, key = str(path).partition(".")
        if not dot or section not in VARIED:
            self.problem(where, f"{path} is no setting; a setting is SECTION.KEY with a section of {', '.join(VARIED)}")
            return
        models: dict[str, type[BaseModel]] = {
            "data": Data, "views": checker_of(Views), "model": checker_of(ModelConfig), "train": checker_of(TrainConfig)
        }  # fmt: skip
        owners = (
            [(f"method {name}", checker_of(METHODS[name].Config)) for name in dict.fromkeys(methods)]
            if section == "method"
            else [(section, models[section])]
        )
        if path == "method.preset":
            for name in dict.fromkeys(methods):
                if value not in METHODS[name].presets:
                    self.problem(where, f"method {name} has no preset {value!r}; it has {', '.join(METHODS[name].presets)}")
            return
        for owner, model in owners:
            field = model.model_fields.get(key)
            if field is None:
                self.problem(where, f"{owner} has no setting {key}{did_you_mean(key, list(model.model_fields))}")
                continue
            annotation: Any = typing.Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            try:
                TypeAdapter[Any](annotation, config=ConfigDict(strict=True)).validate_python(value)
            except ValidationError as error:
                self.problems.append(_sentence(where, error.errors()[0], []))

    def combinations(self, study: StudyDefinition) -> None:
        """Rules that hold between settings of one trial; each wrong combination is named once."""
        seen = set()
        for trial in _probe(study):
            try:
                trial()
            except ValueError as error:
                if str(error) not in seen:
                    seen.add(str(error))
                    self.problem("grid", str(error))


def _probe(study: StudyDefinition) -> Iterator[Any]:
    yield study.grid_trials
    if study.search:
        for point in (*study.search.first, *ends(study.space)):
            yield lambda point=point: study.search_trial(0, point)


def _sentence(path: str, detail: Any, known: Sequence[str]) -> str:
    """One pydantic error as a sentence with the path in the file, the value, the bound and the remedy."""
    for part in detail["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in known or not known:
            path += f".{part}"
        elif detail["type"] == "extra_forbidden":
            return f"{path}.{part} is unknown{did_you_mean(str(part), known)}"
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return f"{path}: missing"
    for name in ("gt", "ge", "lt", "le"):
        if name in context:
            return f"{path}: must be {bounds_text({name: context[name]})}, got {value!r}"
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
        "finite_number": "a finite number",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a mapping",
    }
    if kind == "value_error":
        return f"{path}: {context['error']}, got {value!r}"
    if kind == "literal_error":
        return f"{path}: must be one of {context['expected'].replace(' or ', ', ')}, got {value!r}"
    if kind in words:
        return f"{path}: must be {words[kind]}, got {value!r}"
    return f"{path}: {detail['msg']}, got {value!r}"
