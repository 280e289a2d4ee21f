"""The sections of a study file that belong to no layer below: objective, data, resources, search, budget, keep, table."""

from __future__ import annotations

import re
import string
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of the sections: frozen, without unknown keys, and strict about types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


MAX_TRIALS, MAX_SPLITS = 10_000, 1_000
"""Trials of the grid, the listed ones and the search together: each is an entry of tables, of MLflow and of the journal."""

MAX_LISTED = 1_000
"""Trials of the grid and the listed ones together, all of which are checked and printed before a study starts."""

MAX_WORKERS, MAX_CPUS, MAX_BATCH, MAX_CROP, MAX_LOADER_WORKERS = 4_096, 1_024, 65_536, 16_384, 1_024
"""Larger than any machine or image that a study means: a number beyond is a slip, to be found before it takes all memory."""

Count = typing.Annotated[int, Field(ge=1)]
Workers = typing.Annotated[int, Field(ge=1, le=MAX_WORKERS)]
Batch = typing.Annotated[int, Field(ge=1, le=MAX_BATCH)]
Trials = typing.Annotated[int, Field(ge=1, le=MAX_TRIALS)]


class Objective(Section):
    """What a trial is judged by.

    Attributes:
        metric: What is measured on each split.
        mode: Higher is better.
        at: Whether the last evaluation of a run counts, or its best one.
        aggregate: What the splits are combined to: the mean; the mean minus `std_weight` sample standard deviations; or two
            objectives, a high mean and a low standard deviation: the search then finds trials that no other beats in both
            (their Pareto front).
        std_weight: The weight of the standard deviation in `mean_minus_std`.
    """

    metric: Literal["val/miou"] = "val/miou"
    mode: Literal["max"] = "max"
    at: Literal["last", "best"] = "last"
    aggregate: Literal["mean", "mean_minus_std", "mean_and_std"] = "mean"
    std_weight: typing.Annotated[float, Field(ge=0, strict=False)] = 1.0

    def score(self, mean: float | None, std: float | None) -> float | None:
        """What trials are ranked by.

        Args:
            mean: The mean of a trial over its splits, None if it has none.
            std: The sample standard deviation, None with fewer than two splits.

        Returns:
            The score, higher is better; None if it cannot be computed.
        """
        if self.aggregate != "mean_minus_std" or mean is None:
            return mean
        return None if std is None else mean - self.std_weight * std

    @property
    def formula(self) -> str:
        """The score in words, such as `mean - 1 std`."""
        words = {"mean": "mean", "mean_minus_std": f"mean - {self.std_weight:g} std", "mean_and_std": "mean and std"}
        return words[self.aggregate]


LIST_FIELDS = ("labelled", "split")


def _check_template(template: str) -> str:
    """The template as it is; ValueError if it has fields that no split fills."""
    try:
        parsed = [(field, form or "") for _, field, form, _ in string.Formatter().parse(template) if field is not None]
        if unknown := [field for field, _ in parsed if field not in LIST_FIELDS]:
            raise ValueError(f"has no value for {', '.join(f'{{{field}}}' for field in unknown)}")
        if long := [form for _, form in parsed if re.search(r"[0-9]{3}|[{}]", form)]:
            raise ValueError(f"pads a number to more than 99 characters ({long[0]})")
        template.format(labelled=1, split=0)
    except (KeyError, IndexError, ValueError) as error:
        known = " and ".join(f"{{{field}}}" for field in LIST_FIELDS)
        raise ValueError(f"{error}; the fields of a path are {known}") from None
    return template


ListTemplate = typing.Annotated[str, Field(min_length=1), AfterValidator(_check_template)]


class Data(Section):
    """What a trial is trained on. Batches are counted over all workers, so that the resources do not change what is learned.

    Attributes:
        dataset: The name of the data set; `folder` takes any.
        root: The folder or URL of the prepared data set.
        labelled: The number of labelled images.
        num_classes: The number of classes, checked against the data set; None takes the data set's.
        crop: Side of the square training crops, in pixels.
        labelled_batch: Labelled images per step.
        unlabelled_batch: Unlabelled images per step.
        val_batch: Images per batch of an evaluation.
        loader_workers: Processes that load images, per worker; 0 loads them in the worker itself.
        nested_splits: Whether the labelled images of a count are among those of every larger count.
        labelled_list: Path of split files that replace the generated splits, with the fields {labelled} and {split}.
        unlabelled_list: The same for the unlabelled images; None takes all other training images.
    """

    dataset: typing.Annotated[str, Field(min_length=1)]
    root: typing.Annotated[str, Field(min_length=1)]
    labelled: Count
    num_classes: Count | None = None
    crop: typing.Annotated[int, Field(ge=8, le=MAX_CROP)]
    labelled_batch: Batch
    unlabelled_batch: Batch
    val_batch: Batch = 1
    loader_workers: typing.Annotated[int, Field(ge=0, le=MAX_LOADER_WORKERS)] = 0
    nested_splits: bool = True
    labelled_list: ListTemplate | None = None
    unlabelled_list: ListTemplate | None = None


class Resources(Section):
    """What a trial needs, and how many trials run side by side.

    Attributes:
        workers: The number of workers that train one trial together, each with its share of the batch. Or `[fewest, most]`: the
            largest number that divides the batches and that there is room for when a trial starts; it changes when nodes leave
            or join.
        cpus_per_worker: CPU cores of a worker.
        gpus_per_worker: GPUs of a worker; a fraction shares one.
        concurrent_trials: The number of trials that run side by side, if there is room.
        retries: The number of times that a trial whose workers died continues from its last checkpoint.
        hang_seconds: How long one step, or one batch of an evaluation, may take, in seconds. A rank that takes longer counts as
            hung and ends itself, which costs the trial a retry.
        failed_share: The share of the trials that may fail, counted from the fourth trial that ended. If more have failed, no
            new trial is started, since something is wrong with all of them.
    """

    workers: Workers | typing.Annotated[list[Workers], Field(min_length=2, max_length=2)] = 1
    cpus_per_worker: typing.Annotated[int, Field(ge=1, le=MAX_CPUS)] = 1
    gpus_per_worker: typing.Annotated[float, Field(ge=0, strict=False)] = 0
    concurrent_trials: Trials = 1
    retries: typing.Annotated[int, Field(ge=0)] = 2
    hang_seconds: typing.Annotated[float, Field(gt=0, le=7 * 86400, strict=False)] = 900
    failed_share: typing.Annotated[float, Field(ge=0, le=1, strict=False)] = 0.5

    @property
    def fewest(self) -> int:
        """The smallest number of workers of a trial."""
        return self.workers if isinstance(self.workers, int) else min(self.workers)

    def sizes(self, data: Mapping[str, Any]) -> list[int]:
        """The numbers of workers that a trial may have.

        Args:
            data: The trial's settings of the section `data`.

        Returns:
            The numbers that divide its batches, lowest first.
        """
        most = self.workers if isinstance(self.workers, int) else max(self.workers)
        batches = data["labelled_batch"], data["unlabelled_batch"]
        # No number above a batch divides it.
        return [size for size in range(self.fewest, min(most, *batches) + 1) if not any(batch % size for batch in batches)]


class Search(Section):
    """A search by Optuna.

    Attributes:
        method: The method whose settings are searched, with its other settings.
        trials: The number of trials that are drawn.
        space: How each setting is drawn, such as `{method.temperature: {loguniform: [0.05, 1.0]}}`.
        sampler: What draws them.
        startup_trials: The number of trials that a sampler which learns draws at random first.
        pruners: Rules that end trials which are not worth their remaining steps, each `{name: forecast}` with its settings; one
            verdict is enough. `css_ray.study.pruning` defines their names and settings.
        first: Points of the space that are tried first.
        confirm: The number of best trials that are trained again when the search has finished, as the study NAME-confirm, on
            the same number of splits, none of which the search has seen; None confirms nothing.
        seed: The seed of the sampler.
    """

    method: dict[str, Any]
    trials: Trials
    space: dict[str, Any]
    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "nsga2", "grid"] = "tpe"
    startup_trials: typing.Annotated[int, Field(ge=0)] = 10
    pruners: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    confirm: Trials | None = None
    seed: int = 0


class Budget(Section):
    """How much a study may cost, over all its resumes. It ends within its budget, with the results it has by then.

    Attributes:
        hours: Hours of the driver; None has no bound, here and below.
        gpu_hours: Hours of the workers' GPUs, while their runs train.
        cpu_hours: Hours of the workers' CPU cores, while their runs train.
    """

    hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None
    gpu_hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None
    cpu_hours: typing.Annotated[float, Field(gt=0, strict=False)] | None = None


class Keep(Section):
    """What of a study stays on its disk.

    Attributes:
        top: The number of best trials of the search that keep their weights and last checkpoints; None keeps those of all
            trials. Trials of the grid always keep theirs.
        min_free_gb: A study pauses while less than this is free, in GB, and continues when there is room.
    """

    top: Count | None = 20
    min_free_gb: typing.Annotated[float, Field(ge=0, strict=False)] = 1.0


PUBLISHED = (
    *(f"paper/table{number}" for number in range(1, 8)),
    *("field/voc_classic", "field/voc_classic_dinov2_s", "field/voc_classic_dinov2_b", "field/voc_blender_u2pl"),
    *("field/voc_blender_cps", "field/cityscapes_u2pl", "field/cityscapes_cps"),
    *("field/cityscapes_dinov2_s", "field/cityscapes_dinov2_b"),
)
"""The published tables: those of `css_ray.reports.printed`, which studies do not import."""


class Table(Section):
    """How the results are laid out.

    Attributes:
        columns: The setting of the grid that the columns are; None has one column.
        compare_with: A published table whose numbers are shown beside ours: one of the CSS paper's, such as `paper/table1`, or
            one of what others report, such as `field/voc_classic`.
    """

    columns: str | None = None
    compare_with: Literal[PUBLISHED] | None = None  # type: ignore[valid-type]


class Tracking(Section):
    """Where MLflow records the study.

    Attributes:
        uri: The address of an MLflow server or store; None is a SQLite file in the storage folder.
    """

    uri: str | None = None
