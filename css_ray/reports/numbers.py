"""Every number of a study for other programs: what it is, in which unit, and on which images it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from css_ray.events import Event, RunEvaluated, RunLogged, RunStarted
from css_ray.standing import Standing

_UNITS = {
    "val/absent_classes": "classes",
    "pseudo/unkept_classes/": "classes",
    "val/": "percent",
    "pseudo/": "percent",
    "mean": "percent",
    "std": "percent",
    "n": "splits",
    "seconds": "s",
}
"""By the name of a metric, or its beginning up to a slash; the first that fits counts."""


def unit_of(metric: str) -> str:
    """The unit of a metric; `1` for a plain number, such as a loss or a learning rate."""
    return next((unit for name, unit in _UNITS.items() if metric == name or (name[-1] == "/" and metric.startswith(name))), "1")


def points_of(events: Iterable[Event]) -> dict[tuple[int, int, int], dict[str, float]]:
    """What was logged and evaluated, by trial, split and step, in their order."""
    points: dict[tuple[int, int, int], dict[str, float]] = {}
    for event in events:
        if isinstance(event, RunLogged | RunEvaluated):
            points.setdefault((event.trial, event.split, event.step), {}).update(event.metrics)
    return dict(sorted(points.items()))


def description(standing: Standing[Any]) -> dict[str, Any]:
    """What a reader of the numbers needs besides them: the study, what it is ranked by, and the units."""
    return {
        "study": standing.study,
        "study_id": standing.study_id,
        "status": standing.status,
        "objective": standing.spec.get("objective", {}),
        "ddof": 1,
        "units": {name.rstrip("/"): unit for name, unit in _UNITS.items()} | {"anything else": "1"},
        "classes": list(standing.class_names),
    }


def to_json(events: Iterable[Event]) -> str:
    """The study as JSON: the description, the study file, and the trials with their runs, scores and curves.

    Letters beyond ASCII, and `<`, are escaped, so that the text may be a part of a page.
    """
    events = list(events)
    standing, points = Standing[Any]().fold(events), points_of(events)
    starts = {(event.trial, event.split): event for event in events if isinstance(event, RunStarted)}
    curves: dict[tuple[int, int], list[dict[str, float]]] = {}
    for (trial, split, step), metrics in points.items():
        curves.setdefault((trial, split), []).append({"step": step, **metrics})

    def run(trial: int, split: int) -> dict[str, Any]:
        of, start = standing.trials[trial].runs[split], starts[trial, split]
        return {
            "split": split,
            "split_hash": of.split_hash,
            "seed": of.seed,
            "dataset": start.dataset,
            "num_labelled": start.num_labelled,
            "num_unlabelled": start.num_unlabelled,
            "status": of.status,
            "reason": of.reason,
            "step": of.step,
            "last": dict(of.last),
            "best": dict(of.best),
            "best_step": of.best_step,
            "seconds": of.seconds,
            "curve": curves.get((trial, split), []),
        }

    trials = [
        {
            "trial": index,
            "row": of.row,
            "source": of.source,
            "status": of.status,
            "reason": of.reason,
            "mean": of.mean,
            "std": of.std,
            "n": of.n,
            "params": of.params,
            "config": of.start.config,
            "runs": [run(index, split) for split in sorted(of.runs)],
        }
        for index, of in sorted(standing.trials.items())
    ]
    whole = description(standing) | {"definition": standing.spec, "trials": trials}
    return json.dumps(whole, indent=1, allow_nan=False).replace("<", "\\u003c") + "\n"
