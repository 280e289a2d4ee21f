"""A study's journal written to MLflow, event by event; writing an event again changes nothing.

An experiment is a study. In it, one run summarises the study and later holds its tables, a run is a trial, and a child run is a
split with its curves. Each MLflow run remembers in a tag how far into the journal it has been written, so replaying the journal
skips what is there; metrics carry the event's own time, so a point sent twice is stored once.

Hand over a journal from its first event, in order; on a resume hand over all of it again. Write an event to the journal before
it is recorded here. Only one process may write a study at a time, since MLflow cannot hold a run's name unique.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from css_ray.events import (
    Event,
    RunEvaluated,
    RunFailed,
    RunFinished,
    RunLogged,
    RunPruned,
    RunResized,
    RunRewound,
    RunStarted,
    StageStarted,
    StudyExtended,
    StudyFinished,
    StudyInterrupted,
    StudyResumed,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from css_ray.records import score_text
from css_ray.standing import Standing
from css_ray.tracking.client import artifact_root_of, connect, search_runs
from css_ray.tracking.forms import (
    BEST,
    JOURNAL,
    KIND,
    LAST,
    MAX_DIGEST,
    MAX_METRICS,
    MAX_TAG,
    NOTE,
    PARENT,
    PROJECTED,
    SPLIT,
    STUDY_ID,
    TRIAL,
    Key,
    allowed_name,
    cut,
    key_of,
    milliseconds,
    params_of,
    trial_note,
)
from css_ray.tracking.pages import VIEW, run_page, view


@dataclass(slots=True)
class _Run:
    """What the projection knows of an MLflow run, and what waits to be sent to it in one batch."""

    id: str
    status: str = "RUNNING"
    projected: int = 0
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # name, value, milliseconds, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    seen: int = 0  # becomes `projected` once the batch has been sent

    def drop_batch(self) -> None:
        self.metrics, self.params, self.tags, self.seen = [], {}, {}, 0


class Projection:
    """Writes the events of one journal to MLflow; applying them again changes nothing.

    uri: MLflow's tracking URI, `sqlite:///...` or `http://...`. artifact_root: folder or URI under which a new experiment keeps
    its artifacts; by default beside the SQLite file, or where the server keeps them.
    """

    def __init__(self, uri: str, artifact_root: str | Path | None = None) -> None:
        self.runs_created = 0
        self.points_sent = 0
        self._client = connect(uri)
        self._artifact_root = artifact_root_of(uri, artifact_root)
        self._position = 0
        self._experiment_id = ""
        self._identity: dict[str, str] = {}
        self._runs: dict[Key, _Run] = {}
        self._in_doubt = False  # a call failed: the server may have done what it was asked all the same
        self._standing = Standing[Any]()
        self._folded = 0
        self._writers: dict[type[Event], Callable[[int, _Run, Any], None]] = {
            StudyStarted: self._study_started,
            TrialStarted: self._trial_started,
            RunStarted: self._run_started,
            RunLogged: self._run_measured,
            RunEvaluated: self._run_measured,
            RunFinished: self._run_finished,
            RunFailed: self._run_failed,
            RunPruned: self._run_pruned,
            RunRewound: self._run_rewound,
            RunResized: self._run_resized,
            StageStarted: self._stage_started,
            TrialFinished: self._trial_finished,
            StudyInterrupted: self._study_interrupted,
            StudyResumed: self._study_resumed,
            StudyExtended: self._study_extended,
            StudyFinished: self._study_finished,
        }

    def apply(self, events: Sequence[Event]) -> None:
        """Write the next events of the journal.

        Raises what MLflow raises. The events then count as not applied: pass the same ones again once the cause is gone.
        """
        try:
            if self._in_doubt and self._experiment_id:
                self._find_runs()
            self._in_doubt = True
            for position, event in enumerate(events, start=self._position):
                self._apply(position, event)
            for run in self._runs.values():
                self._send(run)
            self._in_doubt = False
        finally:
            for run in self._runs.values():
                run.drop_batch()
        self._position += len(events)

    def skip(self, count: int) -> None:
        """Count the next events of the journal as applied without writing them."""
        self._position += count

    def _apply(self, position: int, event: Event) -> None:
        key: Key = getattr(event, "trial", None), getattr(event, "split", None)
        if isinstance(event, StudyStarted):
            self._open(event)
        run = self._runs.get(key)
        if run is None and not isinstance(event, StudyStarted | TrialStarted | RunStarted):
            raise ValueError(
                f"{event.kind} of trial {key[0]}, split {key[1]} came before its start; hand over the whole journal"
            )
        # What later events need, whether this one is written or has been before. A batch that is applied again was folded
        # already: what is written of it may then be newer than its event, as is what comes after it.
        if position >= self._folded:
            self._folded = position + 1
            self._standing.add(event)
        if run is None:
            run = self._runs[key] = self._create(key, event)
        if isinstance(event, RunStarted | RunLogged | RunEvaluated):
            # A trial that is resumed runs again; the journal has its start once.
            trial = self._runs[event.trial, None]
            if position >= trial.projected and trial.status != "RUNNING":
                self._reopen(trial)
                trial.seen = position + 1
        if position < run.projected:
            return
        run.seen = position + 1
        if type(event) in self._writers:
            self._writers[type(event)](position, run, event)

    # One method per kind of event. A run's status changes immediately, its metrics and tags go in batches afterwards: if the
    # process dies in between, the replay reopens the run and ends it again.

    def _study_started(self, position: int, run: _Run, event: StudyStarted) -> None:
        self._client.log_text(run.id, json.dumps(event.spec, indent=2, default=str), "study.json")
        run.tags |= {"css_ray.versions": json.dumps(event.versions), NOTE: "The study has no table yet."}

    def _study_resumed(self, position: int, run: _Run, event: StudyResumed) -> None:
        self._reopen(run)

    def _study_extended(self, position: int, run: _Run, event: StudyExtended) -> None:
        self._client.log_text(run.id, json.dumps(event.spec, indent=2, default=str), "study.json")

    def _study_interrupted(self, position: int, run: _Run, event: StudyInterrupted) -> None:
        run.tags["css_ray.reason"] = event.reason
        self._kill_running(position, event, list(self._runs))

    def _study_finished(self, position: int, run: _Run, event: StudyFinished) -> None:
        self._kill_running(position, event, [key for key in self._runs if key != (None, None)])
        run.tags |= {"css_ray.status": event.status, "css_ray.best_trial": str(event.best_trial)}
        self._end(run, "FAILED" if event.status == "failed" else "FINISHED", event)

    def _trial_started(self, position: int, run: _Run, event: TrialStarted) -> None:
        self._reopen(run)
        run.params |= params_of(event.config | event.params)

    def _trial_finished(self, position: int, run: _Run, event: TrialFinished) -> None:
        trial = event.trial
        self._kill_running(position, event, [key for key in self._runs if key[0] == trial and key[1] is not None])
        scores = {"mean": event.mean, "std": event.std, "n": event.n, "num_splits": event.num_splits}
        self._measure(run, {name: value for name, value in scores.items() if value is not None}, event, step=0)
        score = score_text(event.mean, event.std, event.n, event.num_splits)
        runs = self._standing.trials[trial].runs
        reasons = {split: f"{each.status}: {each.reason}" for split, each in runs.items() if each.reason}
        run.tags |= {
            "css_ray.score": score,
            "css_ray.status": event.status,
            "css_ray.reason": event.reason or "-",
            NOTE: trial_note(score, event, reasons, self._pages(trial)),
        }
        self._end(run, "FAILED" if event.status == "failed" else "FINISHED", event)

    def _pages(self, trial: int) -> dict[int | None, str]:
        """The addresses that a trial's note links to: of its splits, and of the study's tables."""
        runs = {split: run.id for (index, split), run in self._runs.items() if index == trial and split is not None}
        tables = run_page(self._experiment_id, self._runs[None, None].id, "results.md")
        return {None: tables} | {split: run_page(self._experiment_id, run) for split, run in runs.items()}

    def _run_started(self, position: int, run: _Run, event: RunStarted) -> None:
        trial = self._standing.trials[event.trial]
        self._reopen(run)
        run.params |= params_of(trial.params)
        run.tags |= {
            "css_ray.seed": str(event.seed),
            "css_ray.split_hash": event.split_hash,
            "css_ray.num_labelled": str(event.num_labelled),
            "css_ray.num_unlabelled": str(event.num_unlabelled),
            "css_ray.classes": ", ".join(event.class_names),
            "css_ray.step": "0",
        }
        self._name_dataset(run, event)

    def _run_measured(self, position: int, run: _Run, event: RunLogged | RunEvaluated) -> None:
        self._measure(run, event.metrics, event, step=event.step)
        if self._standing.trials[event.trial].runs[event.split].status == "finished":
            return  # reported once more, since it was lost with a damaged journal
        run.tags["css_ray.step"] = str(event.step)
        self._reopen(run)

    def _run_finished(self, position: int, run: _Run, event: RunFinished) -> None:
        for prefix, found in ((LAST, event.last), (BEST, event.best)):
            self._measure(run, {f"{prefix}{name}": value for name, value in found.items()}, event, step=event.step)
        run.tags |= {
            "css_ray.step": str(event.step),
            "css_ray.best_step": str(event.best_step),
            "css_ray.seconds": repr(float(event.seconds)),
        }
        self._end(run, "FINISHED", event)

    def _run_failed(self, position: int, run: _Run, event: RunFailed) -> None:
        run.tags |= {"css_ray.step": str(event.step), "css_ray.reason": event.reason}
        self._end(run, "FAILED", event)

    def _run_pruned(self, position: int, run: _Run, event: RunPruned) -> None:
        run.tags |= {"css_ray.step": str(event.step), "css_ray.reason": event.reason, "css_ray.status": "pruned"}
        self._end(run, "KILLED", event)

    def _run_rewound(self, position: int, run: _Run, event: RunRewound) -> None:
        run.tags["css_ray.rewound"] = event.reason

    def _run_resized(self, position: int, run: _Run, event: RunResized) -> None:
        run.tags["css_ray.resized"] = event.reason

    def _stage_started(self, position: int, run: _Run, event: StageStarted) -> None:
        run.tags["css_ray.stage"] = event.name

    # ------------------------------------------------------------------------------------------------------ calls to MLflow

    def _open(self, event: StudyStarted) -> None:
        """Find or create the experiment, and find the runs that an earlier projection of this journal has left in it."""
        name = event.study
        self._identity = {STUDY_ID: event.study_id, JOURNAL: f"{event.study_id} {event.time:.3f}"}
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            place = f"{self._artifact_root}/{name}" if self._artifact_root else None
            note = "A css-ray study: one run per trial, one child run per split; the run `study` holds the tables."
            tags = {NOTE: note, VIEW: view(milliseconds(event))}
            self._experiment_id = self._client.create_experiment(name, artifact_location=place, tags=tags)
        else:
            self._experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(self._experiment_id)
            if VIEW not in experiment.tags:  # of an earlier version; whoever changed it keeps theirs
                self._client.set_experiment_tag(self._experiment_id, VIEW, view(milliseconds(event)))
        self._find_runs()

    def _find_runs(self) -> None:
        """Read which runs of this journal exist, and delete the lesser of two of one key.

        Two come about if a request is made again that a slow server takes after all.
        """
        self._runs.clear()
        for found in search_runs(self._client, [self._experiment_id]):
            tags = found.data.tags
            if tags.get(JOURNAL) != self._identity[JOURNAL]:
                continue
            run = _Run(found.info.run_id, found.info.status, int(tags.get(PROJECTED, 0)))
            key = key_of(tags)
            known = self._runs.get(key)
            if known is not None:
                run, lesser = (run, known) if run.projected > known.projected else (known, run)
                self._client.delete_run(lesser.id)
            self._runs[key] = run

    def _create(self, key: Key, event: Event) -> _Run:
        trial, split = key
        tags = dict(self._identity)
        if trial is None:
            name = "study"
            tags[KIND] = "study"
        else:
            start = self._standing.trials[trial]
            name = f"{start.row} #{trial}"
            tags |= {KIND: "trial", TRIAL: str(trial), "css_ray.row": start.row, "css_ray.source": start.source}
            if split is not None:
                name = f"{name} split {split}"
                tags |= {KIND: "split", SPLIT: str(split), PARENT: self._runs[trial, None].id}
        created = self._client.create_run(self._experiment_id, milliseconds(event), tags, name)
        self.runs_created += 1
        return _Run(created.info.run_id)

    def _reopen(self, run: _Run) -> None:
        if run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"

    def _end(self, run: _Run, status: str, event: Event) -> None:
        self._client.set_terminated(run.id, status, milliseconds(event))
        run.status = status

    def _kill_running(self, position: int, event: Event, keys: list[Key]) -> None:
        """End what an interruption or a trial's end has left running, unless it is known to have continued later."""
        for run in (self._runs[key] for key in keys):
            if position < run.projected or run.status not in ("RUNNING", "KILLED"):
                continue
            if run.status == "RUNNING":
                self._end(run, "KILLED", event)
            run.seen = position + 1

    def _name_dataset(self, run: _Run, event: RunStarted) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=f"{event.dataset}/{event.num_labelled}/split{event.split}",
            digest=event.split_hash[:MAX_DIGEST],
            source_type="css_ray",
            source=json.dumps({"dataset": event.dataset, "split": event.split, "hash": event.split_hash}),
        )
        self._client.log_inputs(run.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "labelled")])])

    def _measure(self, run: _Run, metrics: Mapping[str, float], event: Event, step: int) -> None:
        now = milliseconds(event)
        # An infinity would be read back as 1.8e308.
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        run.metrics += [(allowed_name(name), value, now, step) for name, value in finite.items()]

    def _send(self, run: _Run) -> None:
        """Send a run's batch, the bookmark last, so that what it covers is there whenever it is."""
        from mlflow.entities import Metric, Param, RunTag

        if run.seen <= run.projected:
            return
        for start in range(0, len(run.metrics), MAX_METRICS):
            metrics = [Metric(*point) for point in run.metrics[start : start + MAX_METRICS]]
            self._client.log_batch(run.id, metrics=metrics)
            self.points_sent += len(metrics)
        tags = {name: cut(value, MAX_TAG) for name, value in run.tags.items()} | {PROJECTED: str(run.seen)}
        self._client.log_batch(
            run.id,
            params=[Param(name, value) for name, value in run.params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        run.projected = run.seen
