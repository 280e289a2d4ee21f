"""What a study leaves behind: the events of its journal, and the records that tables are made of.

An event is a plain dict that survives JSON. Every event has `event` (its kind) and `time` (unix seconds, set where it
happened, never changed by a replay). The kinds, and what each carries besides:

| event             | carries                                                                                             |
|-------------------|-----------------------------------------------------------------------------------------------------|
| study_started     | study, study_id, spec (the whole resolved study), versions                                          |
| trial_started     | trial, row, source ("grid" or "search"), params (all that the study varies, flat), config (all, flat) |
| run_started       | trial, split, seed, dataset, split_hash, num_labelled, num_unlabelled, class_names, workers           |
| run_logged        | trial, split, step, metrics ("train/loss", "train/sup", "train/lr", ...)                              |
| run_evaluated     | trial, split, step, metrics ("val/miou", "val/pixel_accuracy", "val/iou/<class>"), in percent         |
| run_finished      | trial, split, step, last (metrics), best (metrics), best_step, seconds                                |
| run_failed        | trial, split, step, reason                                                                          |
| trial_pruned      | trial, split, step, reason: the verdict; the trial ends as soon as it hears of it                     |
| run_pruned        | trial, split, step, reason: the run that the verdict cut short                                        |
| run_rewound       | trial, split, step, reason: damaged checkpoints set the run back to this step                        |
| run_resized       | trial, split, step, workers, before, reason: from this step on another number of workers trains it    |
| trial_retried     | trial, reason: its workers or its process failed, and it goes on from its last checkpoint             |
| trial_finished    | trial, status, reason, values ({split: value}), mean, std, n, num_splits                              |
| study_extended    | spec (the whole resolved study from now on), num_splits                                             |
| study_paused      | reason: the disk is nearly full; no trial starts, those that run wait at their next checkpoint       |
| study_continued   | there is room again                                                                                   |
| study_interrupted | reason                                                                                              |
| study_resumed     | (nothing)                                                                                           |
| study_finished    | status, best_trial                                                                                  |

Trials, splits and steps are counted from 0; `step` is the number of optimizer steps done. A later `run_started` of a run
that had failed opens it again. Metrics that are not finite are left out where they are made.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Event = dict[str, Any]
Status = Literal["running", "finished", "failed", "pruned"]

CURVE_METRIC = "val/miou"
"""What pruning compares, in percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One run: one trial trained on one split.

    params: all that the study varies, flat (`method.temperature: 0.5`); row: the label of the table's row.
    last, best: metrics in percent at the last step and at the best evaluation; empty until the run finished.
    reason: why the run failed or was pruned; run_id: the MLflow run, where the record was read from MLflow.
    """

    study: str
    trial: int
    split: int
    row: str
    source: str
    params: Mapping[str, Any]
    status: Status = "running"
    seed: int = 0
    split_hash: str = ""
    step: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    best_step: int = 0
    seconds: float = 0.0
    reason: str = ""
    run_id: str | None = None


class Ledger:
    """What the events of a journal add up to, kept as they come, at a cost that does not grow with the study.

    study: its name, empty before `study_started`. spec: the whole study as it stands.
    starts: the `trial_started` event of each trial begun. ends: the latest `trial_finished` event of each trial that ended; one
    whose machinery failed has not ended any more once the study is resumed, nor one that lacks splits since the study got more.
    wall_seconds: how long its drivers have been at work, see `WallTime`.
    pruned: the `trial_pruned` event of each trial that a verdict ended. curves: by trial and split, the evaluations by step.
    status: new, running, interrupted, or as `study_finished` says.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.study = ""
        self.spec: dict[str, Any] = {}
        self.status = "new"
        self.starts: dict[int, Event] = {}
        self.ends: dict[int, Event] = {}
        self.pruned: dict[int, Event] = {}
        self.curves: dict[int, dict[int, dict[int, float]]] = {}
        self._wall = WallTime()
        self._runs: dict[int, dict[int, Record]] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take the next event into account."""
        kind = event["event"]
        self._wall.event(event)
        if kind.startswith("study_"):
            self._study(kind, event)
        elif kind == "trial_started":
            self.starts[event["trial"]] = event
        elif kind == "trial_finished":
            self.ends[event["trial"]] = event
        elif kind == "trial_pruned":
            self.pruned[event["trial"]] = event
        elif kind == "run_started":
            trial = self.starts[event["trial"]]
            self._runs.setdefault(event["trial"], {})[event["split"]] = Record(
                study=self.study,
                trial=event["trial"],
                split=event["split"],
                row=trial["row"],
                source=trial["source"],
                params=trial["params"],
                seed=event["seed"],
                split_hash=event["split_hash"],
            )
        elif kind in ("run_logged", "run_evaluated", "run_finished", "run_failed", "run_pruned"):
            # A run that had failed and goes on tells of new steps, or that it finished.
            changes: dict[str, Any] = {"step": event["step"], "status": "running", "reason": ""}
            if kind == "run_finished":
                changes |= {name: event[name] for name in ("last", "best", "best_step", "seconds")}
                changes["status"] = "finished"
            elif kind in ("run_failed", "run_pruned"):
                changes |= {"status": kind.removeprefix("run_"), "reason": event["reason"]}
            elif kind == "run_evaluated" and CURVE_METRIC in event["metrics"]:
                curves = self.curves.setdefault(event["trial"], {}).setdefault(event["split"], {})
                curves[event["step"]] = event["metrics"][CURVE_METRIC]
            runs = self._runs[event["trial"]]
            runs[event["split"]] = replace(runs[event["split"]], **changes)

    @property
    def wall_seconds(self) -> float:
        return self._wall.seconds

    def _study(self, kind: str, event: Event) -> None:
        if kind == "study_started":
            self.study = event["study"]
            self.spec = event["spec"]
        elif kind == "study_extended":
            self.spec = event["spec"]
            wanted = event["num_splits"]
            self.ends = {
                trial: end for trial, end in self.ends.items() if end["status"] == "pruned" or end["num_splits"] >= wanted
            }
            return
        elif kind == "study_resumed":
            self.ends = {trial: end for trial, end in self.ends.items() if end["status"] != "failed"}
        self.status = {"study_interrupted": "interrupted", "study_finished": event.get("status", "")}.get(kind, "running")

    def runs_of(self, trial: int) -> list[Record]:
        """The records of one trial's runs, by split."""
        runs = self._runs.get(trial, {})
        return [runs[split] for split in sorted(runs)]

    @property
    def records(self) -> list[Record]:
        """One record a run, ordered by trial and split."""
        return [record for trial in sorted(self._runs) for record in self.runs_of(trial)]


def records_from_events(events: Iterable[Event]) -> list[Record]:
    """Fold a journal into one record a run, ordered by trial and split."""
    return Ledger(events).records


class WallTime:
    """How long the drivers of a study have been at work, from the times of its events.

    seconds: from the start or a resume to the latest event before the next. latest: the time up to which they count.

    Events come late, the clocks of two nodes differ, and a clock may be set back. So an event adds no more than has passed
    since the latest of all, and than has passed since the one before it of the same run (or of the driver). Where that is
    negative the clock was set back: nothing is known of that moment, and counting goes on from it, as it does from each event
    of the driver.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.latest = 0.0
        self._own: dict[tuple[int, int] | None, float] = {}

    def event(self, event: Event) -> None:
        """Take one event into account."""
        kind, now = event["event"], event["time"]
        teller = (event["trial"], event["split"]) if kind.startswith("run_") else None
        if not self._own or kind == "study_resumed":
            self.latest = now
        else:
            gap = now - self._own.get(teller, -math.inf)
            self.seconds += max(0.0, min(now - self.latest, gap))
            self.latest = now if gap < 0 or teller is None else max(now, self.latest)
        self._own[teller] = now


@dataclass(slots=True)
class _Clock:
    """latest: time of a run's latest event; saved: of the latest one that wrote a checkpoint."""

    latest: float
    saved: float


class RunTimes:
    """How long the runs have trained, from the times of their events: by_trial, in seconds.

    A run counts from its `run_started` to its latest event. Between an interruption and the resume nothing ran: of a gap with a
    resume in it counts only the repetition of what came after the last checkpoint, as long as it took the first time.
    """

    def __init__(self) -> None:
        self.by_trial: dict[int, float] = {}
        self._resumes: list[float] = []
        self._clocks: dict[tuple[int, int], _Clock] = {}

    def event(self, event: Event) -> float:
        """Take one event into account; returns the seconds that it adds."""
        kind = event["event"]
        now: float = event["time"]
        if kind == "study_resumed":
            bisect.insort(self._resumes, now)
        if not kind.startswith("run_"):
            return 0.0
        trial = event["trial"]
        clock = self._clocks.setdefault((trial, event["split"]), _Clock(now, now))
        # A negative gap is a clock that was set back: nothing is known of that moment, and counting goes on from it.
        gap = max(0.0, now - clock.latest)
        # By their times, not by their place in the journal: what a run told just before a kill is written after the resume.
        position = bisect.bisect_right(self._resumes, clock.latest)
        if position < len(self._resumes) and self._resumes[position] <= now:
            gap = min(now - self._resumes[position], max(0.0, clock.latest - clock.saved))
            clock.saved = now - gap
        clock.latest = now
        if kind == "run_evaluated":
            clock.saved = now
        self.by_trial[trial] = self.by_trial.get(trial, 0.0) + gap
        return gap


class RunSizes:
    """How many workers train the runs, from `run_started` and `run_resized`. latest: of the run that told of it last."""

    def __init__(self) -> None:
        self.latest: int | None = None
        self._of: dict[tuple[int, int], int] = {}

    def event(self, event: Event, otherwise: int) -> int:
        """Take one event into account; returns how many workers have trained its run up to it.

        otherwise: where the journal does not tell.
        """
        if not event["event"].startswith("run_"):
            return otherwise
        run = event["trial"], event["split"]
        before: int = event.get("before") or self._of.get(run, otherwise)
        if "workers" in event:
            self.latest = self._of[run] = event["workers"]
        return before


def mean_std(values: Sequence[float], ddof: int = 1) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the values of a trial's splits, in their own unit.

    ddof 1 (default) is the sample standard deviation; ddof 0 the population's, 0.816 times as large at three splits. The paper
    does not say which it prints. Both are None without values; the std is None where there are not more than ddof values.
    """
    if not values:
        return None, None
    mean = statistics.fmean(values)
    if len(values) <= ddof:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - ddof)) ** 0.5


def score_text(mean: float | None, std: float | None, n: int, num_splits: int) -> str:
    """A score as tables and MLflow show it: `68.09 ± 4.89`, and `66.00 (n=1 of 3)` where splits are missing."""
    if mean is None:
        return f"– (n={n} of {num_splits})"
    text = f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    return text if n == num_splits else f"{text} (n={n} of {num_splits})"
