"""Runs and trials as pandas data frames. The columns are those that `css_ray.Study` documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas

from css_ray.events import Event, RunEvaluated, RunLogged, StudyStarted, TrialStarted
from css_ray.records import Record
from css_ray.reports.escapes import spreadsheet
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
    fixed = ("study", "trial", "row", "split", "step")
    study, names = "", {}
    points: dict[tuple[int, int, int], dict[str, Any]] = {}
    for event in events:
        match event:
            case StudyStarted():
                study = event.study
            case TrialStarted():
                names[event.trial] = event.row
            case RunLogged() | RunEvaluated():
                place = (event.trial, event.split, event.step)
                first = (study, event.trial, names[event.trial], event.split, event.step)
                points.setdefault(place, dict(zip(fixed, first, strict=True))).update(event.metrics)
    return pandas.DataFrame([points[place] for place in sorted(points)], columns=None if points else list(fixed))


def to_bytes(frame: pandas.DataFrame, format: str) -> bytes:
    """A frame as a file: csv, in which no text is a spreadsheet's formula, or parquet."""
    if format == "parquet":
        return frame.to_parquet(None, index=False)
    plain = frame.map(spreadsheet, na_action="ignore").rename(columns=spreadsheet)
    return plain.to_csv(index=False, lineterminator="\n").encode()
