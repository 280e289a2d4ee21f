"""MLflow as a projection of a study's journal: written from events, read back as records, rebuilt at any time.

An experiment is a study. In it, one run summarises the study and later holds its tables, a run is a trial, and a child run is a
split with its curves. Each MLflow run remembers in a tag how far into the journal it has been written, so replaying the journal
skips what is there; metrics carry the event's own time, so a point sent twice is stored once.

Hand over a journal from its first event, in order; on a resume hand over all of it again. Write an event to the journal before
it is recorded here. Only one process may write a study at a time, since MLflow cannot hold a run's name unique.
"""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from css_ray.records import Event, Record, score_text
from css_ray.secrets import shown, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

# With the client's own defaults one call to a dead server blocks for four minutes, and one to a hung server for twenty. It also
# repeats `create_run` blindly; the tracker tries again by itself, after a look at what is there.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_MAX_PARAM = 6000  # characters; MLflow would cut longer values without a word
_MAX_TAG = 8000
_MAX_NAME = 250
_MAX_DIGEST = 36
_MAX_METRICS = 1000  # a call

_KIND = "css_ray.kind"  # study, trial or split
_STUDY_ID = "css_ray.study_id"
_JOURNAL = "css_ray.journal"  # study id and start time: a second journal of the same study gets runs of its own
_TRIAL = "css_ray.trial"
_SPLIT = "css_ray.split"
_PROJECTED = "css_ray.projected"  # events of the journal, counted from its start, that this run has seen
_NOTE = "mlflow.note.content"
_PARENT = "mlflow.parentRunId"

_Key = tuple[int | None, int | None]
"""(trial, split) of a split's run, (trial, None) of a trial's, (None, None) of the study's."""


def default_uri(storage: str | Path) -> str:
    """The tracking URI of a storage folder: an SQLite file in it. The folder must be on a local disk."""
    return f"sqlite:///{Path(storage).resolve() / 'mlflow.db'}"


def default_artifacts(storage: str | Path) -> str:
    """The folder of a storage folder that holds MLflow's artifacts."""
    return str(Path(storage).resolve() / "artifacts")


# ----------------------------------------------------------------------------------------------------------------- writing


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
    its artifacts; by default beside the SQLite file, or where the server says.
    """

    def __init__(self, uri: str, artifact_root: str | Path | None = None) -> None:
        self.runs_created = 0
        self.points_sent = 0
        self._client = _connect(uri)
        self._artifact_root = _artifact_root(uri, artifact_root)
        self._position = 0
        self._experiment_id = ""
        self._identity: dict[str, str] = {}
        self._runs: dict[_Key, _Run] = {}
        self._in_doubt = False  # a call failed: the server may have done what it was asked all the same
        self._trials: dict[int, Event] = {}
        self._reasons: dict[_Key, str] = {}
        self._writers: dict[str, Callable[[int, _Run, Event], None]] = {
            "study_started": self._study_started,
            "trial_started": self._trial_started,
            "run_started": self._run_started,
            "run_logged": self._run_measured,
            "run_evaluated": self._run_measured,
            "run_finished": self._run_finished,
            "run_failed": self._run_failed,
            "run_pruned": self._run_pruned,
            "run_rewound": self._run_rewound,
            "run_resized": self._run_resized,
            "trial_finished": self._trial_finished,
            "study_interrupted": self._study_interrupted,
            "study_resumed": self._study_resumed,
            "study_extended": self._study_extended,
            "study_finished": self._study_finished,
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
        kind = event["event"]
        key: _Key = event.get("trial"), event.get("split")
        # What later events need, whether this one is written or has been before.
        if kind == "study_started":
            self._open(event)
        elif kind == "trial_started":
            self._trials[event["trial"]] = event
        elif kind == "run_started":
            self._reasons.pop(key, None)
        elif kind in ("run_failed", "run_pruned"):
            self._reasons[key] = f"{kind.removeprefix('run_')}: {event['reason']}"

        run = self._runs.get(key)
        if run is None:
            if kind not in ("study_started", "trial_started", "run_started"):
                raise ValueError(f"{kind} of trial {key[0]}, split {key[1]} came before its start; hand over the whole journal")
            run = self._runs[key] = self._create(key, event)
        if position < run.projected:
            return
        run.seen = position + 1
        if kind in self._writers:
            self._writers[kind](position, run, event)

    # One method per kind of event. A run's status changes at once, its metrics and tags go in batches afterwards: if the
    # process dies in between, the replay reopens the run and ends it again.

    def _study_started(self, position: int, run: _Run, event: Event) -> None:
        self._client.log_text(run.id, json.dumps(event["spec"], indent=2, default=str), "study.json")
        run.tags |= {"css_ray.versions": json.dumps(event["versions"]), _NOTE: "The study has no table yet."}

    def _study_resumed(self, position: int, run: _Run, event: Event) -> None:
        self._reopen(run)

    def _study_extended(self, position: int, run: _Run, event: Event) -> None:
        self._client.log_text(run.id, json.dumps(event["spec"], indent=2, default=str), "study.json")

    def _study_interrupted(self, position: int, run: _Run, event: Event) -> None:
        run.tags["css_ray.reason"] = event["reason"]
        self._kill_running(position, event, list(self._runs))

    def _study_finished(self, position: int, run: _Run, event: Event) -> None:
        self._kill_running(position, event, [key for key in self._runs if key != (None, None)])
        run.tags |= {"css_ray.status": event["status"], "css_ray.best_trial": str(event["best_trial"])}
        self._end(run, "FAILED" if event["status"] == "failed" else "FINISHED", event)

    def _trial_started(self, position: int, run: _Run, event: Event) -> None:
        self._reopen(run)
        run.params |= _params(event["config"] | event["params"])

    def _trial_finished(self, position: int, run: _Run, event: Event) -> None:
        trial = event["trial"]
        self._kill_running(position, event, [key for key in self._runs if key[0] == trial and key[1] is not None])
        scores = {name: event[name] for name in ("mean", "std", "n", "num_splits") if event[name] is not None}
        self._measure(run, scores, event, step=0)
        score = score_text(event["mean"], event["std"], event["n"], event["num_splits"])
        reasons = {key[1]: reason for key, reason in self._reasons.items() if key[0] == trial and key[1] is not None}
        run.tags |= {
            "css_ray.score": score,
            "css_ray.status": event["status"],
            "css_ray.reason": event["reason"] or "-",
            _NOTE: _trial_note(score, event, reasons),
        }
        self._end(run, "FAILED" if event["status"] == "failed" else "FINISHED", event)

    def _run_started(self, position: int, run: _Run, event: Event) -> None:
        trial = self._trials[event["trial"]]
        parent = self._runs[event["trial"], None]
        if position >= parent.projected:
            self._reopen(parent)
            parent.seen = position + 1
        self._reopen(run)
        run.params |= _params(trial["params"])
        run.tags |= {
            "css_ray.seed": str(event["seed"]),
            "css_ray.split_hash": event["split_hash"],
            "css_ray.num_labelled": str(event["num_labelled"]),
            "css_ray.num_unlabelled": str(event["num_unlabelled"]),
            "css_ray.classes": ", ".join(event["class_names"]),
            "css_ray.step": "0",
        }
        self._name_dataset(run, event)

    def _run_measured(self, position: int, run: _Run, event: Event) -> None:
        self._measure(run, event["metrics"], event, step=event["step"])
        run.tags["css_ray.step"] = str(event["step"])
        self._reopen(run)

    def _run_finished(self, position: int, run: _Run, event: Event) -> None:
        for prefix in ("last", "best"):
            scores = {f"{prefix}/{name}": value for name, value in event[prefix].items()}
            self._measure(run, scores, event, step=event["step"])
        run.tags |= {
            "css_ray.step": str(event["step"]),
            "css_ray.best_step": str(event["best_step"]),
            "css_ray.seconds": repr(float(event["seconds"])),
        }
        self._end(run, "FINISHED", event)

    def _run_failed(self, position: int, run: _Run, event: Event) -> None:
        run.tags |= {"css_ray.step": str(event["step"]), "css_ray.reason": event["reason"]}
        self._end(run, "FAILED", event)

    def _run_pruned(self, position: int, run: _Run, event: Event) -> None:
        run.tags |= {"css_ray.step": str(event["step"]), "css_ray.reason": event["reason"], "css_ray.status": "pruned"}
        self._end(run, "KILLED", event)

    def _run_rewound(self, position: int, run: _Run, event: Event) -> None:
        run.tags["css_ray.rewound"] = event["reason"]

    def _run_resized(self, position: int, run: _Run, event: Event) -> None:
        run.tags["css_ray.resized"] = event["reason"]

    # ------------------------------------------------------------------------------------------------------ calls to MLflow

    def _open(self, event: Event) -> None:
        """Find or create the experiment, and find the runs that an earlier projection of this journal has left in it."""
        name = event["study"]
        self._identity = {_STUDY_ID: event["study_id"], _JOURNAL: f"{event['study_id']} {event['time']:.3f}"}
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            place = f"{self._artifact_root}/{name}" if self._artifact_root else None
            note = "A css-ray study: one run a trial, one child run a split; the run `study` holds the tables."
            self._experiment_id = self._client.create_experiment(name, artifact_location=place, tags={_NOTE: note})
        else:
            self._experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(self._experiment_id)
        self._find_runs()

    def _find_runs(self) -> None:
        """Read which runs of this journal exist, and delete the lesser of two of one key.

        Two come about where a request is made again that a slow server takes after all.
        """
        self._runs.clear()
        for found in _search(self._client, [self._experiment_id]):
            tags = found.data.tags
            if tags.get(_JOURNAL) != self._identity[_JOURNAL]:
                continue
            run = _Run(found.info.run_id, found.info.status, int(tags.get(_PROJECTED, 0)))
            key = _key(tags)
            known = self._runs.get(key)
            if known is not None:
                run, lesser = (run, known) if run.projected > known.projected else (known, run)
                self._client.delete_run(lesser.id)
            self._runs[key] = run

    def _create(self, key: _Key, event: Event) -> _Run:
        trial, split = key
        tags = dict(self._identity)
        if trial is None:
            name = "study"
            tags[_KIND] = "study"
        else:
            start = self._trials[trial]
            name = f"{start['row']} #{trial}"
            tags |= {_KIND: "trial", _TRIAL: str(trial), "css_ray.row": start["row"], "css_ray.source": start["source"]}
            if split is not None:
                name = f"{name} split {split}"
                tags |= {_KIND: "split", _SPLIT: str(split), _PARENT: self._runs[trial, None].id}
        created = self._client.create_run(self._experiment_id, _milliseconds(event), tags, name)
        self.runs_created += 1
        return _Run(created.info.run_id)

    def _reopen(self, run: _Run) -> None:
        if run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"

    def _end(self, run: _Run, status: str, event: Event) -> None:
        self._client.set_terminated(run.id, status, _milliseconds(event))
        run.status = status

    def _kill_running(self, position: int, event: Event, keys: list[_Key]) -> None:
        """End what an interruption or a trial's end has left running, unless it is known to have gone on later."""
        for run in (self._runs[key] for key in keys):
            if position < run.projected or run.status not in ("RUNNING", "KILLED"):
                continue
            if run.status == "RUNNING":
                self._end(run, "KILLED", event)
            run.seen = position + 1

    def _name_dataset(self, run: _Run, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=f"{event['dataset']}/{event['num_labelled']}/split{event['split']}",
            digest=event["split_hash"][:_MAX_DIGEST],
            source_type="css_ray",
            source=json.dumps({"dataset": event["dataset"], "split": event["split"], "hash": event["split_hash"]}),
        )
        self._client.log_inputs(run.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "labelled")])])

    def _measure(self, run: _Run, metrics: Mapping[str, float], event: Event, step: int) -> None:
        now = _milliseconds(event)
        # An infinity would be read back as 1.8e308.
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        run.metrics += [(_name(name), value, now, step) for name, value in finite.items()]

    def _send(self, run: _Run) -> None:
        """Send a run's batch, the bookmark last, so that what it covers is there whenever it is."""
        from mlflow.entities import Metric, Param, RunTag

        if run.seen <= run.projected:
            return
        for start in range(0, len(run.metrics), _MAX_METRICS):
            metrics = [Metric(*point) for point in run.metrics[start : start + _MAX_METRICS]]
            self._client.log_batch(run.id, metrics=metrics)
            self.points_sent += len(metrics)
        tags = {name: _cut(value, _MAX_TAG) for name, value in run.tags.items()} | {_PROJECTED: str(run.seen)}
        self._client.log_batch(
            run.id,
            params=[Param(name, value) for name, value in run.params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        run.projected = run.seen


@dataclass(frozen=True, slots=True)
class SyncSummary:
    """What a replay has done: events read, MLflow runs created, metric points sent. All but `events` are 0 if all was there."""

    events: int
    runs_created: int
    points_sent: int


def sync(events: Sequence[Event], uri: str, artifact_root: str | Path | None = None) -> SyncSummary:
    """Bring MLflow up to a whole journal.

    Raises ConnectionError, within seconds, where a server does not answer, and else what MLflow raises. What was sent before
    stays, and is skipped next time.
    """
    projection = Projection(uri, artifact_root)
    try:
        for start in range(0, len(events), _EVENTS_A_BATCH):
            projection.apply(events[start : start + _EVENTS_A_BATCH])
    except Exception as error:
        if _sqlite_file(uri) is not None or _refused(error):
            raise
        raise ConnectionError(
            f"MLflow at {shown(uri)} does not answer: {_cause(error)}; try again once it does: what it has taken is skipped"
        ) from error
    return SyncSummary(len(events), projection.runs_created, projection.points_sent)


_EVENTS_A_BATCH = 500
_MOST_WAITING = 20_000  # events of an outage: 75 MB where each has the scores of 21 classes


class Tracker:
    """Projects events to MLflow from one background thread, so that training neither waits for MLflow nor fails with it.

    While MLflow is away, events wait in memory (they are in the journal anyway) and tries follow each other in 1, 2, 4, ... at
    most `longest_pause` seconds. Once `most_waiting` events came during one outage, MLflow is left alone from then on and the
    memory freed: `sync` sends them all. An event that MLflow refuses for good is dropped with a warning.
    """

    def __init__(
        self,
        uri: str,
        artifact_root: str | Path | None = None,
        *,
        longest_pause: float = 60.0,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._longest_pause = longest_pause
        self._most_waiting = most_waiting
        self._waiting: deque[Event] = deque()
        self._room: int | None = None  # events that this outage may still add; None while MLflow answers
        self._left_out = 0
        self._given_up = False
        self._changed = threading.Condition()
        self._closing = False
        # A daemon: a call that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="css-ray-mlflow", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Hand over the next event of the journal. Returns at once and never raises."""
        with self._changed:
            if self._given_up:
                self._left_out += 1
                return
            self._waiting.append(event)
            if self._room is not None:
                self._room -= 1
                if self._room < 0:
                    self._give_up()
            self._changed.notify()

    def _give_up(self) -> None:
        """Events after a gap cannot be sent, so none is from here on."""
        self._given_up = True
        self._left_out = len(self._waiting)
        self._waiting.clear()
        _log.warning(
            "MLflow at %s missed %d events and is left alone; `css-ray study sync` brings it level",
            shown(self._uri),
            self._left_out,
        )

    def close(self, timeout: float = 30.0) -> int:
        """Send what still waits, for at most `timeout` seconds, and return how many events were not sent (see `sync`)."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            return self._left_out + len(self._waiting)

    def _work(self) -> None:
        projection: Projection | None = None
        pause = 0.0
        one_by_one = 0
        while batch := self._next_batch(1 if one_by_one else _EVENTS_A_BATCH):
            try:
                projection = projection or Projection(self._uri, self._artifact_root)
                projection.apply(batch)
            except Exception as error:
                if projection is None or not _refused(error):
                    if not pause:
                        _log.warning(
                            "MLflow at %s is away, events wait in the journal: %s",
                            shown(self._uri),
                            _cause(error),
                        )
                        with self._changed:
                            self._room = self._most_waiting
                    pause = min(2 * pause or 1.0, self._longest_pause)
                    if self._rest(pause):
                        continue
                    return
                if len(batch) > 1:
                    one_by_one = len(batch)
                    continue
                _log.warning(
                    "MLflow refuses %s: %s",
                    {name: batch[0].get(name) for name in ("event", "trial", "split")},
                    without_secrets(error),
                )
                projection.skip(1)
            if pause:
                _log.warning("MLflow at %s is back", shown(self._uri))
                pause = 0.0
            one_by_one = max(0, one_by_one - 1)
            with self._changed:
                self._room = None
                if not self._given_up:
                    for _ in batch:
                        self._waiting.popleft()

    def _next_batch(self, size: int) -> list[Event]:
        """The oldest events that wait, once there are any; empty when none will be sent any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing or self._given_up)
            return list(islice(self._waiting, size))

    def _rest(self, seconds: float) -> bool:
        """Wait before another try. False if there will be none: the tracker was closed before the last one, or has given up."""
        with self._changed:
            if self._closing:
                return False
            # `record` notifies as well, hence the predicate. Closing cuts the rest short for one last try.
            self._changed.wait_for(lambda: self._closing or self._given_up, timeout=seconds)
            return not self._given_up


def _refused(error: Exception) -> bool:
    """True if another try cannot help: MLflow rejects what it was sent, or the event is not what records.py describes."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException):
        # What stands before a server that is away may answer 400 in its place, but not in MLflow's own form.
        bad = ("BAD_REQUEST",) if isinstance(error, RestException) else ()
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", *bad)
    return isinstance(error, LookupError | TypeError | ValueError) and not isinstance(error, OSError)


# ----------------------------------------------------------------------------------------------------------------- reading


def read_records(uri: str, study: str) -> list[Record]:
    """The records of a study as `records_from_events` makes them from its journal, with `run_id` besides.

    Of several journals under one study name, the one that started last. Metric names that MLflow does not allow, texts longer
    than a tag, and values that are not finite come back as they were stored: replaced, cut, left out.
    Raises LookupError if MLflow knows no study of that name, ConnectionError where it does not answer.
    """
    with _answering(uri):
        client = _connect(uri)
        experiment = client.get_experiment_by_name(study)
        found = _search(client, [experiment.experiment_id]) if experiment else []
    journals = [run for run in found if run.data.tags.get(_KIND) == "study"]
    if not journals:
        raise LookupError(f"MLflow at {shown(uri)} has no study {study!r}; write it with `css-ray study sync {study}`")
    journal = max(journals, key=lambda run: run.info.start_time).data.tags[_JOURNAL]
    splits: dict[_Key, Run] = {}
    for run in found:
        if run.data.tags.get(_KIND) == "split" and run.data.tags[_JOURNAL] == journal:
            key = _key(run.data.tags)
            splits[key] = max(splits.get(key, run), run, key=lambda run: int(run.data.tags.get(_PROJECTED, 0)))
    return sorted((_record(study, run) for run in splits.values()), key=lambda record: (record.trial, record.split))


def _record(study: str, run: Run) -> Record:
    tags, metrics = run.data.tags, run.data.metrics
    finished, failed = run.info.status == "FINISHED", run.info.status == "FAILED"
    pruned = run.info.status == "KILLED" and tags.get("css_ray.status") == "pruned"
    return Record(
        study=study,
        trial=int(tags[_TRIAL]),
        split=int(tags[_SPLIT]),
        row=tags["css_ray.row"],
        source=tags["css_ray.source"],
        params={name: _decode(value) for name, value in run.data.params.items()},
        status="finished" if finished else "failed" if failed else "pruned" if pruned else "running",
        seed=int(tags.get("css_ray.seed", 0)),
        split_hash=tags.get("css_ray.split_hash", ""),
        step=int(tags.get("css_ray.step", 0)),
        last=_without_prefix(metrics, "last/") if finished else {},
        best=_without_prefix(metrics, "best/") if finished else {},
        best_step=int(tags["css_ray.best_step"]) if finished else 0,
        seconds=float(tags["css_ray.seconds"]) if finished else 0.0,
        reason=tags["css_ray.reason"] if failed or pruned else "",
        run_id=run.info.run_id,
    )


def check(uri: str) -> str:
    """Reach MLflow at `uri` and say what is there. Raises ConnectionError where it does not answer."""
    from mlflow import __version__

    with _answering(uri):
        experiments = _connect(uri).search_experiments()
    return f"{__version__}, {len(experiments)} experiments at {shown(uri)}"


def log_tables(uri: str, study_id: str, tables: Mapping[str, str]) -> str:
    """Attach tables ({"results.md": text, "results.csv": text, ...}) to the study's run and return the run's id.

    A file of the same name is replaced. The first Markdown table also becomes the run's description.
    Raises LookupError if MLflow does not know the study, ConnectionError where it does not answer.
    """
    with _answering(uri):
        client = _connect(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = _search(client, experiments, f"tags.`{_KIND}` = 'study'")
        found = [run for run in found if run.data.tags[_STUDY_ID] == study_id]
        if not found:
            raise LookupError(
                f"MLflow at {shown(uri)} has no study with the id {study_id!r}; write it with `css-ray study sync NAME`"
            )
        run_id: str = max(found, key=lambda run: run.info.start_time).info.run_id
        for name, text in tables.items():
            client.log_text(run_id, text, name)
        notes = [text for name, text in tables.items() if name.endswith(".md")]
        if notes:
            client.set_tag(run_id, _NOTE, _cut(notes[0], _MAX_TAG))
    return run_id


# -------------------------------------------------------------------------------------------------------------- connecting


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise ConnectionError(f"MLflow at {shown(uri)} does not answer: {_cause(error)}") from error


def _connect(uri: str) -> MlflowClient:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # Only now: telemetry starts with the import.
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if (file := _sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Readers no longer block the writer, which makes several of them twice as fast. The file itself remembers it.
        with closing(sqlite3.connect(file, timeout=20)) as database:
            database.execute("PRAGMA journal_mode=wal")
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.username is not None:
        # MLflow quotes its URI in what it raises and logs, but not what it is given this way.
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise ValueError(f"MLflow cannot open {shown(uri)}: {without_secrets(error).strip()}") from None


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def _artifact_root(uri: str, artifact_root: str | Path | None) -> str | None:
    file = _sqlite_file(uri)
    if artifact_root is None and file is not None:
        artifact_root = default_artifacts(file.parent)
    if artifact_root is None or "://" in str(artifact_root):
        return artifact_root if artifact_root is None else str(artifact_root)
    return Path(artifact_root).resolve().as_uri()


def _search(client: MlflowClient, experiment_ids: list[str], filter_string: str = "") -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiment_ids, filter_string, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


# ------------------------------------------------------------------------------------------------------------ small forms


def _key(tags: Mapping[str, str]) -> _Key:
    return (int(tags[_TRIAL]) if _TRIAL in tags else None, int(tags[_SPLIT]) if _SPLIT in tags else None)


def _milliseconds(event: Event) -> int:
    seconds: float = event["time"]
    return round(seconds * 1000)


def _name(name: str) -> str:
    """A name that MLflow allows: letters, digits and `_ - . : /` and space, and a clean relative path."""
    return posixpath.normpath(re.sub(r"[^\w./\-: ]", "_", name)).lstrip("/")[:_MAX_NAME]


def _cut(text: str, limit: int) -> str:
    """The text itself, or its start with a mark, at most `limit` characters."""
    mark = " … (cut)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    return {_name(name): _cut(_encode(value), _MAX_PARAM) for name, value in values.items()}


def _encode(value: Any) -> str:
    """A parameter as text that `_decode` turns back: a string as it is, unless it could be read as JSON, all else as JSON."""
    return value if isinstance(value, str) and value and _decode(value) == value else json.dumps(value)


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _trial_note(score: str, event: Event, reasons: Mapping[int, str]) -> str:
    """Markdown: the score of a trial, and one line a split with its value or the reason why it has none."""
    values = {int(split): value for split, value in event["values"].items()}
    lines = [f"**{score}**", "", "| split | value |", "|---|---|"]
    lines += [f"| {split} | {value:.2f} |" for split, value in sorted(values.items())]
    failed = {split: reason for split, reason in reasons.items() if split not in values}
    for split, reason in sorted(failed.items()):
        line = " ".join(reason.split())[:200].replace("|", "\\|")
        lines.append(f"| {split} | {line} |")
    if event["reason"]:
        lines += ["", event["reason"]]
    return "\n".join(lines)


def _cause(error: BaseException) -> str:
    """Why a call failed, in a line: MLflow wraps a silence or a refused connection in four exceptions with one text."""
    seconds = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    words = {
        "ReadTimeoutError": f"it took a request and did not answer within {seconds} s",
        "ConnectTimeoutError": f"no connection within {seconds} s",
        "ConnectionRefusedError": "the connection was refused",
    }
    if "error code 401" in str(error):
        return (
            "it does not take the user and the password; give its own by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or in ~/.mlflow/credentials"
        )
    inner: BaseException | None = error
    while inner is not None:
        if type(inner).__name__ in words:
            return words[type(inner).__name__]
        inner = inner.__cause__ or inner.__context__
    return next(iter(without_secrets(error).splitlines()), type(error).__name__)[:300]


# ------------------------------------------------------------------------------------------------------------- the server


class Server:
    """A running MLflow server with a process group of its own; `stop` ends the whole group."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit status."""
        return self.process.wait()

    def stop(self, grace: float = 10.0) -> None:
        """Ask the group to end, and after `grace` seconds end what is left of it. May be called twice."""
        # Killing the parent alone would leave its workers behind, on the port.
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            limit = time.monotonic() + patience
            while time.monotonic() < limit and _group_lives(self.process):
                time.sleep(0.05)
        self.process.wait()


def start_server(
    uri: str, artifact_root: str | Path, host: str = "127.0.0.1", port: int = 5000, *, timeout: float = 120.0
) -> Server:
    """Start MLflow's pages over a tracking URI and return once they answer, usually within 12 s.

    Raises ValueError if the port cannot be had, RuntimeError if the server ends early, TimeoutError after `timeout` seconds;
    nothing is left running then.
    """
    _check_port(host, port)
    _connect(uri)  # prepares the SQLite file and its folder
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    command += ["--artifacts-destination", str(artifact_root)]
    # The URI not as an argument: it may hold a password, and every user of the machine sees the arguments of all processes.
    # Without the job runner: 2 processes instead of 15, half a gigabyte instead of two and a half.
    environment = os.environ | _SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        server = Server(process, f"http://{name}:{port}")
        try:
            _wait_for_health(server, timeout, output)
        except BaseException:
            server.stop()
            raise
    return server


def _wait_for_health(server: Server, timeout: float, output: IO[bytes]) -> None:
    limit = time.monotonic() + timeout
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < limit:
        if server.process.poll() is not None:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-1500:]
            raise RuntimeError(f"the MLflow server ended with status {server.process.returncode}:\n{without_secrets(tail)}")
        try:
            with direct.open(f"{server.url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"the MLflow server did not answer at {server.url}/health within {timeout:g} s")


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port") from error


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the parent, which else counts as a member of its group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
