"""A study file, checked as a whole: YAML in, a frozen `Study` out, or every problem at once.

The sections `views`, `model`, `train` and the settings of a method are the dataclasses of the layers below; their bounds are
read from the knobs, so that a bound stands in one place. The rest (splits, grid, search, resources, table) is defined here.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import re
import string
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from css_ray.config import Config, bounds_text
from css_ray.methods import METHODS, Method
from css_ray.models.segmenter import ModelConfig
from css_ray.secrets import secret_in, shown, without_secrets
from css_ray.study.pruning import PRUNERS, Pruner
from css_ray.training.settings import TrainConfig
from css_ray.views import Views


class StudyError(ValueError):
    """A study file, or what it asks for, is wrong. `problems` holds one sentence each, with the path in the file."""

    def __init__(self, problems: Sequence[str], source: str = "the study") -> None:
        # A problem quotes the value that is wrong, which may be a URL with a secret.
        self.problems = tuple(map(without_secrets, problems))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{count} in {shown(source)}:\n" + "\n".join(f"  {problem}" for problem in self.problems))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = typing.Annotated[int, Field(ge=1)]


class Objective(Section):
    """What a trial is judged by: `metric` over its splits, at the last step or at the best evaluation.

    aggregate: the mean over splits; the mean minus `std_weight` sample standard deviations; or both at once, the mean as high
    and the std as low as can be: then the search finds trials that no other beats in both (their Pareto front).
    """

    metric: Literal["val/miou"] = "val/miou"
    mode: Literal["max"] = "max"
    at: Literal["last", "best"] = "last"
    aggregate: Literal["mean", "mean_minus_std", "mean_and_std"] = "mean"
    std_weight: typing.Annotated[float, Field(ge=0, strict=False)] = 1.0

    def score(self, mean: float | None, std: float | None) -> float | None:
        """What trials are ranked by, higher is better; None where it cannot be had."""
        if self.aggregate != "mean_minus_std" or mean is None:
            return mean
        return None if std is None else mean - self.std_weight * std

    @property
    def formula(self) -> str:
        """The score in words."""
        words = {"mean": "mean", "mean_minus_std": f"mean - {self.std_weight:g} std", "mean_and_std": "mean and std"}
        return words[self.aggregate]


LIST_FIELDS = ("labelled", "split")


def _check_template(template: str) -> str:
    """Raise ValueError if a path of split files has fields that no split fills."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        if unknown := [field for field in fields if field not in LIST_FIELDS]:
            raise ValueError(f"has no value for {', '.join(f'{{{field}}}' for field in unknown)}")
        template.format(labelled=1, split=0)
    except (KeyError, IndexError, ValueError) as error:
        known = " and ".join(f"{{{field}}}" for field in LIST_FIELDS)
        raise ValueError(f"{error}; the fields of a path are {known}") from None
    return template


ListTemplate = typing.Annotated[str, Field(min_length=1), AfterValidator(_check_template)]


class Data(Section):
    """What is seen. Batches are counted over all workers, so that the resources do not change what is learned.

    nested_splits: the labelled images of a count are among those of every larger one. labelled_list, unlabelled_list: paths of
    split files that take the place of the generated splits, with the fields {labelled} and {split}.
    """

    dataset: str
    root: str
    labelled: Count
    num_classes: Count | None = None
    crop: typing.Annotated[int, Field(ge=8)]
    labelled_batch: Count
    unlabelled_batch: Count
    val_batch: Count = 1
    loader_workers: typing.Annotated[int, Field(ge=0)] = 0
    nested_splits: bool = True
    labelled_list: ListTemplate | None = None
    unlabelled_list: ListTemplate | None = None


class Resources(Section):
    """What a trial takes, and how many trials run side by side.

    workers: how many train one trial together, each with its share of the batch; or `[fewest, most]`: as many as there is room
    for where a trial starts, and divide its batches, and others where nodes went or came since. retries: how often a trial
    whose workers died goes on from its last checkpoint. hang_seconds: how long one step, or one batch of an evaluation, may
    take before a rank counts as hung, ends itself, and so costs the trial a retry. failed_share: of the trials that ended, from
    the fourth on; once more have failed, no new one is started, since something is wrong with them all.
    """

    workers: Count | typing.Annotated[list[Count], Field(min_length=2, max_length=2)] = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: typing.Annotated[float, Field(ge=0, strict=False)] = 0
    concurrent_trials: Count = 1
    retries: typing.Annotated[int, Field(ge=0)] = 2
    hang_seconds: typing.Annotated[float, Field(gt=0, strict=False)] = 900
    failed_share: typing.Annotated[float, Field(ge=0, le=1, strict=False)] = 0.5

    @property
    def fewest(self) -> int:
        """The least number of workers of a trial."""
        return self.workers if isinstance(self.workers, int) else min(self.workers)

    def sizes(self, data: Mapping[str, Any]) -> list[int]:
        """The numbers of workers that a trial with these `data` settings may have, lowest first: they divide its batches."""
        most = self.workers if isinstance(self.workers, int) else max(self.workers)
        batches = data["labelled_batch"], data["unlabelled_batch"]
        return [size for size in range(self.fewest, most + 1) if not any(batch % size for batch in batches)]


class Search(Section):
    """A search by Optuna: `space` maps a setting to how it is drawn; `method` is the method whose settings are searched.

    pruners: rules that end trials which are not worth their remaining steps, each `{name: paired}` with its settings; any of
    them suffices. Their names and settings stand in `css_ray.study.pruning`. confirm: so many of the best are trained again
    once the search has finished, on as many splits that it never saw, as the study NAME-confirm.
    """

    method: dict[str, Any]
    trials: Count
    space: dict[str, Any]
    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "nsga2", "grid"] = "tpe"
    startup_trials: typing.Annotated[int, Field(ge=0)] = 10
    pruners: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    confirm: Count | None = None
    seed: int = 0


class Budget(Section):
    """How much a study may cost, over all its resumes; None has no bound. It ends inside its budget with what it has then.

    hours: of the driver. gpu_hours, cpu_hours: of the workers, while their runs train.
    """

    hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None
    gpu_hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None
    cpu_hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None


class Keep(Section):
    """What of a study stays on its disk.

    top: of the search's trials that ended, so many of the best keep their weights and last checkpoints; None keeps all. Those
    of the grid always do. min_free_gb: with less space free a study pauses, and goes on when there is room.
    """

    top: Count | None = 20
    min_free_gb: typing.Annotated[float, Field(ge=0, strict=False)] = 1.0


class Table(Section):
    """How the results are laid out.

    columns: a setting of the grid. compare_with: a table of the paper, such as `paper/table1`, whose numbers stand beside ours.
    """

    columns: str | None = None
    compare_with: Literal[tuple(f"paper/table{number}" for number in range(1, 8))] | None = None  # type: ignore[valid-type]


class Tracking(Section):
    """Where MLflow records the study; None is a SQLite file in the storage folder."""

    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """How one setting is drawn. kind: uniform, loguniform, int or choice; bounds: [low, high], or the choices."""

    kind: Literal["uniform", "loguniform", "int", "choice"]
    values: tuple[Any, ...]


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
class Study:
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
        product = itertools.product(*self.grid.values()) if self.grid else ()
        points = [dict(zip(self.grid, point, strict=True)) for point in product]
        return [self._trial(index, "grid", point) for index, point in enumerate([*points, *self.trials])]

    def search_trial(self, index: int, drawn: Mapping[str, Any]) -> TrialSpec:
        """The trial of the search at `index` (counted after the grid's) with the `drawn` settings."""
        assert self.search is not None
        return self._trial(index, "search", {"method": self.search.method, **drawn})

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
        values = dataclasses.asdict(METHODS[name].configure(preset, **_tuples(method)))
        # What varies was checked setting by setting; built together, each section checks its rules between settings.
        for section, config in (("views", Views), ("model", ModelConfig), ("train", TrainConfig)):
            settings[section] = dataclasses.asdict(config(**_tuples(settings[section])))
        if problems := _batch_problems(settings["data"], self.resources):
            raise ValueError("; ".join(problems))
        if problem := _list_problem(settings["data"]):
            raise ValueError(problem)
        settings["method"] = {"name": name, "preset": preset, **values}
        return TrialSpec(index, row, source, params, settings)


def absolute_paths(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A copy of the sections in which local paths no longer depend on the current folder; a worker's is another."""
    located = {section: dict(values) for section, values in settings.items()}
    for section, key in (
        ("data", "root"),
        ("data", "labelled_list"),
        ("data", "unlabelled_list"),
        ("model", "pretrained"),
    ):
        path = located[section][key]
        if isinstance(path, str) and "://" not in path:
            located[section][key] = str(Path(path).resolve())
    return located


def _batch_problems(data: Mapping[str, Any], resources: Resources) -> list[str]:
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


def _list_problem(data: Mapping[str, Any]) -> str | None:
    if data["unlabelled_list"] is not None and data["labelled_list"] is None:
        return (
            "data.unlabelled_list: needs data.labelled_list beside it, or an image could be in both parts; name it or drop this"
        )
    return None


def read(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, with `overrides` such as `train.iterations=100`. Raises StudyError, or FileNotFoundError."""
    place, path = path, Path(path)
    if not path.exists():
        known = [str(file) for file in sorted(path.parent.glob("*.yaml"))] if path.parent.exists() else []
        near = difflib.get_close_matches(str(path), known, n=1)
        raise FileNotFoundError(f"no study file {shown(place)}" + (f" (did you mean {near[0]}?)" if near else ""))
    try:
        spec = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise StudyError([" ".join(str(error).split())], str(path)) from None
    if not isinstance(spec, dict):
        raise StudyError(["a study is a mapping of sections; see studies/quickstart.yaml"], str(path))
    problems = [problem for override in overrides for problem in _override(spec, override)]
    if problems:
        raise StudyError(problems, "the overrides")
    return parse(spec, str(path))


def parse(spec: Mapping[str, Any], source: str = "the study") -> Study:
    """Check a mapping and return the study. Raises StudyError that lists every problem found."""
    checker = _Checker(dict(spec))
    study = checker.study()
    if checker.problems:
        raise StudyError(checker.problems, source)
    assert study is not None
    return study


def extend(study: Study, overrides: Sequence[str]) -> Study:
    """A study that was begun, with more of it: `overrides` such as `search.trials=40`, `splits=[0, 1, 2, 3]`, `budget.hours=8`.

    What was trained must stay valid, so only these may change: resources, budget, keep, tracking, table, description; the
    search's number of trials (upwards), its space, sampler and pruners; splits, by more of them at the end; how the objective
    aggregates.

    Raises StudyError with everything that may not change, or is wrong.
    """
    spec: dict[str, Any] = json.loads(json.dumps(study.spec))
    problems = [problem for override in overrides for problem in _override(spec, override)]
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
    study: Study, tried: Mapping[int, Mapping[str, Any]], splits: Sequence[int], overrides: Sequence[str] = ()
) -> Study:
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
    if problems := [problem for override in overrides for problem in _override(spec, override)]:
        raise StudyError(problems, source)
    confirming = parse(spec, source)
    if seen := sorted(set(confirming.splits) & set(study.splits)):
        problem = f"splits: the search has seen {', '.join(map(str, seen))}; choose others, such as {fresh_splits(study)}"
        raise StudyError([problem], source)
    return confirming


def fresh_splits(study: Study) -> list[int]:
    """As many splits as the study has, after all of them."""
    first = max(study.splits) + 1
    return list(range(first, first + len(study.splits)))


def check_settings(method: type[Method], preset: str, settings: Mapping[str, Any]) -> Any:
    """The Config of `preset` with `settings` on top, checked as in a study. Raises StudyError that lists every problem."""
    checker = _Checker({})
    config = checker.config_of(method.name, method.Config, dict(settings), method.preset_values(preset, settings))
    if checker.problems:
        raise StudyError(checker.problems, "the settings")
    return config


# ------------------------------------------------------------------------------------------------------------------ YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (1e-4 is a number), and a key given twice is an error rather than the last one silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # `<<` takes over another mapping, whose keys may stand here again.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _override(spec: dict[str, Any], text: str) -> Iterator[str]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        yield f"--set takes KEY=VALUE, such as train.iterations=100; got {text!r}"
        return
    try:
        parsed = yaml.load(value, Loader=_Loader)
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


# ---------------------------------------------------------------------------------------------------------------- checks

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


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """` (did you mean X?)` or the list of what is known."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else f"; known: {', '.join(known)}"


class _Checker:
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

    def study(self) -> Study | None:
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
            self.problems += _batch_problems(data.model_dump(), resources)
        if budget and resources and budget.gpu_hours is not None and not resources.gpus_per_worker:
            self.problem("budget.gpu_hours", "no worker has a GPU, so that it is never spent; bound cpu_hours or hours instead")
        if data and (problem := _list_problem(data.model_dump())):
            self.problems.append(problem)
        if table and table.columns and table.columns not in (grid or {}):
            self.problem(
                "table.columns",
                f"{table.columns} does not vary in the grid{did_you_mean(table.columns, list(grid or {}) or ['(no grid)'])}",
            )
        if self.problems:
            return None
        assert objective and data and views and model and train and resources and budget and keep and table and tracking
        study = Study(
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
            return config(**{**defaults, **_tuples(value)})
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
            self.problem(path, f"must be a mapping with a name, such as {{name: css}}; got {value!r}")
            return None
        if value["name"] not in METHODS:
            self.problem(f"{path}.name", f"{value['name']} is unknown{did_you_mean(value['name'], list(METHODS))}")
            return None
        if not isinstance(value.get("row", ""), str):
            self.problem(f"{path}.row", f"must be text, got {value['row']!r}")
        method = METHODS[value["name"]]
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

    def combinations(self, study: Study) -> None:
        """Rules that hold between settings of one trial; each wrong combination is named once."""
        seen = set()
        for trial in _probe(study):
            try:
                trial()
            except ValueError as error:
                if str(error) not in seen:
                    seen.add(str(error))
                    self.problem("grid", str(error))


def _probe(study: Study) -> Iterator[Any]:
    yield study.grid_trials
    if study.search:
        for point in (*study.search.first, *ends(study.space)):
            yield lambda point=point: study.search_trial(0, point)


def ends(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """Two points of a space: every setting at its first value, and every one at its last."""
    return [{path: distribution.values[end] for path, distribution in space.items()} for end in (0, -1)]


def points_of(distribution: Distribution) -> Sequence[Any]:
    """The values of a distribution that has finitely many; none for a range of real numbers."""
    if distribution.kind == "choice":
        return distribution.values
    if distribution.kind == "int":
        return range(distribution.values[0], distribution.values[1] + 1)
    return ()


def contains(distribution: Distribution, value: Any) -> bool:
    """True if `value` could be drawn from `distribution`."""
    if distribution.kind == "choice":
        return value in distribution.values
    low, high = distribution.values
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


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
