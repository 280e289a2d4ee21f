"""Runs and trials as pandas data frames. The columns are those that `css_ray.Study` documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas

from css_ray.events import Event, StudyStarted, TrialStarted
from css_ray.records import Record
from css_ray.reports.escapes import spreadsheet
from css_ray.reports.numbers import description, points_of, unit_of
from css_ray.standing import Standing


def records_frame(records: Iterable[Record]) -> pandas.DataFrame:
    """One row per run; see `Study.records`."""
    fixed = (
        "study", "trial", "split", "row", "source", "status", "seed", "split_hash", "step", "best_step", "seconds", "reason"
    )  # fmt: skip
    rows = [
        {name: getattr(record, name) for name in fixed}
        | dict(record.params)
        | {f"last/{name}": value for name, value in record.last.items()}
        | {f"best/{name}": value for name, value in record.best.items()}
        for record in records
    ]
    return pandas.DataFrame(rows, columns=None if rows else list(fixed))


def trials_frame(study: str, num_splits: int, standing: Standing[Any]) -> pandas.DataFrame:
    """One row per trial; see `Study.trials`."""
    fixed = ("study", "trial", "row", "source", "status", "mean", "std", "n", "num_splits", "reason")
    rows = []
    for trial in standing.trials.values():
        mean, std = trial.partial
        n = sum(run.status == "finished" for run in trial.runs.values())
        values = (study, trial.index, trial.row, trial.source, trial.status, mean, std, n, num_splits, trial.reason)
        rows.append(dict(zip(fixed, values, strict=True)) | trial.params)
    return pandas.DataFrame(rows, columns=None if rows else list(fixed))


def curves_frame(events: Iterable[Event]) -> pandas.DataFrame:
    """One row per step of a run at which something was measured; see `Study.curves`."""
    events = list(events)
    study = next((event.study for event in events if isinstance(event, StudyStarted)), "")
    names = {event.trial: event.row for event in events if isinstance(event, TrialStarted)}
    rows = [
        {"study": study, "trial": trial, "row": names[trial], "split": split, "step": step, **metrics}
        for (trial, split, step), metrics in points_of(events).items()
    ]
    return pandas.DataFrame(rows, columns=None if rows else ["study", "trial", "row", "split", "step"])


def numbers_frame(events: Iterable[Event]) -> pandas.DataFrame:
    """Every number of a study, one per row, each with its metric, its unit, and the hash of its split's images.

    kind: `curve`, a point of the learning curves; `last` or `best`, a finished run at its last and at its best evaluation;
    `run`, its seconds of training; `trial`, mean, std (ddof 1) and n over the splits that finished, which have no split.
    Beside these what the study varies, such as `method.temperature`.
    """
    events = list(events)
    standing = Standing[Any]().fold(events)
    rows: list[dict[str, Any]] = []

    def add(trial: int, split: int | None, step: int | None, kind: str, metrics: Mapping[str, float | None]) -> None:
        of = standing.trials[trial]
        run = None if split is None else of.runs[split]
        place = {
            "study": standing.study,
            "study_id": standing.study_id,
            "trial": trial,
            "row": of.row,
            "source": of.source,
            "split": split,
            "split_hash": "" if run is None else run.split_hash,
            "seed": None if run is None else run.seed,
            "status": of.status if run is None else run.status,
            "kind": kind,
            "step": step,
        }
        varied = {name: _one_type(value) for name, value in of.params.items()}
        found = {metric: value for metric, value in metrics.items() if value is not None}
        rows.extend({**place, "metric": metric, "unit": unit_of(metric), "value": found[metric], **varied} for metric in found)

    for (trial, split, step), metrics in points_of(events).items():
        add(trial, split, step, "curve", metrics)
    for trial, of in sorted(standing.trials.items()):
        for split, run in sorted(of.runs.items()):
            if run.status == "finished":
                add(trial, split, run.step, "last", run.last)
                add(trial, split, run.best_step, "best", run.best)
                add(trial, split, run.step, "run", {"seconds": run.seconds})
        if of.n:
            add(trial, None, None, "trial", {"mean": of.mean, "std": of.std, "n": of.n})
    frame = pandas.DataFrame(rows, columns=None if rows else list(NUMBERS))
    whole = {name: "Int64" for name in ("split", "seed", "step")}
    frame = frame.astype({"value": float} | whole)
    for name in frame.columns.difference(list(NUMBERS)):
        kinds = {type(value) for value in frame[name].dropna()}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[name] = frame[name].map(str, na_action="ignore")  # a column of a file has one type
    frame.attrs = description(standing)
    return frame


NUMBERS = (
    "study", "study_id", "trial", "row", "source", "split", "split_hash", "seed", "status", "kind", "step", "metric", "unit",
    "value",
)  # fmt: skip
"""The columns of `numbers_frame` that every study has."""


def _one_type(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def to_bytes(frame: pandas.DataFrame, format: str) -> bytes:
    """A frame as a file: csv, in which no text is a spreadsheet's formula, or parquet."""
    if format == "parquet":
        return bytes(frame.to_parquet(None, index=False))
    plain = frame.map(spreadsheet, na_action="ignore").rename(columns=spreadsheet)
    return str(plain.to_csv(index=False, lineterminator="\n")).encode()
