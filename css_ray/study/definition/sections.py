"""The sections of a study file that belong to no layer below: objective, data, resources, search, budget, keep, table."""

from __future__ import annotations

import string
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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
