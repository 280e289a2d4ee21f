"""Drives a study: Ray Tune executes, the journal remembers, MLflow and the view are told.

Tune holds no state that matters. On resume a new Tune run starts; its searcher first hands out the trials that the journal
knows as begun but not ended (same index, same settings, same Train run, so that its checkpoint is found), then those of the
grid, then asks Optuna for new ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol

import ray
import ray.tune
from ray.train import TrainingFailedError
from ray.tune.search import Searcher

from css_ray.records import Event, Ledger, Record, mean_std
from css_ray.study.journal import Journal, is_uri, studies_in, study_folder
from css_ray.study.run import Lists, RunSpec, prepare, run_spec, split_key, write_ids
from css_ray.study.sampling import suggest
from css_ray.study.schema import Study, TrialSpec, parse
from css_ray.study.trial import last_line, make_trainer, run_trial
from css_ray.tracking import Tracker, default_uri

_log = logging.getLogger(__name__)


class StudyExistsError(RuntimeError):
    """`run` found a study of that name in the storage; `resume` goes on with it."""


class StudyMissingError(LookupError):
    """The storage holds no study of that name."""


class Observer(Protocol):
    """Who watches a study while it runs. Called on the driver's thread, after an event is in the journal."""

    def event(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `run` ended.

    status: finished, failed (some runs or trials did) or interrupted; unsent: how many events MLflow lacks.
    """

    status: Literal["finished", "failed", "interrupted"]
    study: Study
    records: list[Record]
    unsent: int


def open_study(name: str, storage: str) -> tuple[Study, Journal]:
    """The study of that name as its journal tells it. Raises StudyMissingError with the names that exist."""
    journal = Journal(study_folder(storage, name))
    started = [event for event in journal.events if event["event"] == "study_started"]
    if not started:
        known = studies_in(storage)
        raise StudyMissingError(
            f"no study {name} in {storage}; " + (f"there are: {', '.join(known)}" if known else "it holds none yet")
        )
    return parse(started[0]["spec"], f"the journal of {name}"), journal


def tracking_uri(study: Study, storage: str) -> str:
    """Where MLflow records the study: as it says, as MLFLOW_TRACKING_URI says, or an SQLite file in the storage.

    An object store holds no SQLite file: there the file lies in the folder `runs` of this machine.
    """
    return study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri("runs" if is_uri(storage) else storage)


def trial_value(study: Study, runs: Sequence[Record]) -> dict[str, Any]:
    """What the `trial_finished` event says of a trial's runs: values by split, their mean, std (ddof 1) and count."""
    values = {
        str(run.split): getattr(run, study.objective.at)[study.objective.metric] for run in runs if run.status == "finished"
    }
    mean, std = mean_std(list(values.values()))
    return {"values": values, "mean": mean, "std": std, "n": len(values), "num_splits": len(study.splits)}


class Runner:
    """Runs or resumes one study to its end. Raises JournalError where its journal is damaged."""

    def __init__(self, study: Study, storage: str, *, address: str | None = None, observer: Observer | None = None) -> None:
        self.study = study
        self.grid = study.grid_trials()
        self.storage = storage
        self.address = address
        self.observer = observer
        self.folder = study_folder(storage, study.name)
        self._read()
        self._lists: dict[Hashable, Lists | None] = {}

    def _read(self) -> None:
        self.journal = Journal(self.folder)
        self.ledger = Ledger(self.journal.events)

    @property
    def started(self) -> bool:
        """True once the study is in the journal."""
        return self.ledger.status != "new"

    def run(self, *, resume: bool) -> Outcome:
        """Take the study to its end. Raises StudyExistsError, StudyLockedError, or what Ray raises where no cluster answers.

        An interrupt (SIGINT, SIGTERM) ends it within seconds with status `interrupted`.
        """
        with self.journal.driving():
            # Read again under the lock: what another driver wrote before it ended is part of the study.
            self._read()
            exists = self.started
            if exists and not resume:
                raise StudyExistsError(
                    f"the study {self.study.name} exists in {self.storage}; "
                    f"`css-ray study resume {self.study.name}` goes on with it, "
                    "another `study:` name (or --set study=NAME) starts anew"
                )
            self.tracker = Tracker(tracking_uri(self.study, self.storage))
            for event in self.journal.events:
                self.tracker.record(event)
            interrupted = False
            with _interruptible():
                try:
                    self._go_on(exists)
                except KeyboardInterrupt:
                    interrupted = True
                    # Read again: the interrupt may have come between an event's writing and its being noted here.
                    self._read()
                    if self.started:
                        self.emit("study_interrupted", reason="interrupted by the user")
                finally:
                    # Ray's orderly goodbye can take longer than a user who pressed Ctrl-C wants to wait; the journal and
                    # the checkpoints need none.
                    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
                    shutdown.start()
                    unsent = self.tracker.close(timeout=5 if interrupted else 30)
                    shutdown.join(5 if interrupted else 30)
        records, ends = self.ledger.records, self.ledger.ends
        if interrupted:
            return Outcome("interrupted", self.study, records, unsent)
        whole = len(ends) == self.study.num_trials and all(end["status"] == "finished" for end in ends.values())
        return Outcome("finished" if whole else "failed", self.study, records, unsent)

    def _go_on(self, exists: bool) -> None:
        # Before the first event: a study that no cluster can hold leaves nothing behind.
        concurrent = 0 if self._ended() else connect(self.study, self.address)
        if not exists:
            self.emit(
                "study_started",
                study=self.study.name,
                study_id=uuid.uuid4().hex,
                spec=self.study.resolved(),
                versions=_versions(),
            )
        elif not self._ended():
            self.emit("study_resumed")
        if not self._ended():
            for trial in self.grid:
                self.runs_of(trial)
            self._tune(concurrent)
        ends = self.ledger.ends
        if self.ledger.status in ("running", "interrupted") and len(ends) == self.study.num_trials:
            finished = [end for end in ends.values() if end["status"] == "finished"]
            best = max(finished, key=lambda end: end["mean"], default=None)
            status = "finished" if len(finished) == len(ends) else "failed"
            self.emit("study_finished", status=status, best_trial=None if best is None else best["trial"])

    # -------------------------------------------------------------------------------------------------- what the journal says

    def emit(self, kind: str, **content: Any) -> None:
        """Write an event that happens here and now."""
        self.take({"event": kind, "time": round(time.time(), 3), **content})

    def take(self, event: Event) -> None:
        """Write an event; tell MLflow and the observer if it is new."""
        if self.journal.append(event):
            self.ledger.add(event)
            self.tracker.record(event)
            if self.observer is not None:
                self.observer.event(event)

    def _ended(self) -> bool:
        """True if nothing is left to do; a trial whose machinery failed is left to do."""
        ends = self.ledger.ends
        return len(ends) == self.study.num_trials and all(end["status"] != "failed" for end in ends.values())

    # ------------------------------------------------------------------------------------------------------------------- Tune

    def _tune(self, concurrent: int) -> None:
        searcher = _Searcher(_Hand(self))
        with tempfile.TemporaryDirectory(prefix="css-ray-tune-") as scratch:
            tuner = ray.tune.Tuner(
                ray.tune.with_resources(run_trial, {"memory": 50e6}),
                tune_config=ray.tune.TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=concurrent),
                run_config=ray.tune.RunConfig(
                    name=f"{self.study.name}-{uuid.uuid4().hex[:8]}",
                    storage_path=scratch,
                    failure_config=ray.tune.FailureConfig(max_failures=self.study.resources.retries),
                    callbacks=[_Listener(self)],
                    verbose=0,
                ),
            )
            tuner.fit()

    def next_trial(self, running: set[int]) -> TrialSpec | Literal["finished"] | None:
        """What to start next; None where the next suggestion needs a result that is not there yet."""
        starts, ends = self.ledger.starts, self.ledger.ends
        if waiting := starts.keys() - ends.keys() - running:
            return self._again(starts[min(waiting)])
        index, grid = len(starts), self.grid
        if index < len(grid):
            return grid[index]
        if index >= self.study.num_trials or self.study.search is None:
            return "finished"
        position = index - len(grid)
        known = max(0, position - self.study.resources.concurrent_trials + 1)
        before = [len(grid) + earlier for earlier in range(position)]
        if any(trial not in ends for trial in before[:known]):
            return None
        values = [ends[trial]["mean"] if ends[trial]["status"] == "finished" else None for trial in before[:known]]
        drawn = [{path: starts[trial]["params"][path] for path in self.study.space} for trial in before]
        return self.study.search_trial(index, suggest(self.study.search, self.study.space, position, drawn, values))

    def _again(self, start: Event) -> TrialSpec:
        if start["source"] == "grid":
            return self.grid[start["trial"]]
        return self.study.search_trial(start["trial"], {path: start["params"][path] for path in self.study.space})

    def begin(self, trial: TrialSpec) -> dict[str, Any]:
        """Note that `trial` starts and return what its process needs."""
        config = {f"{section}.{key}": value for section, values in trial.settings.items() for key, value in values.items()}
        self.emit("trial_started", trial=trial.index, row=trial.row, source=trial.source, params=trial.params, config=config)
        return {
            "trial": trial.index,
            "name": f"trial_{trial.index:04d}",
            "storage": f"{self.folder}/checkpoints",
            "models": f"{self.folder}/models/trial_{trial.index:04d}",
            "resources": self.study.resources.model_dump(),
            "cpus_per_worker": self.study.resources.cpus_per_worker,
            "runs": self.runs_of(trial),
        }

    def runs_of(self, trial: TrialSpec) -> list[RunSpec]:
        """The run of `trial` on each split of the study.

        At the first use of a split its lists are read, so that all trials have the same images whatever becomes of the files,
        and its ids are written to `splits/<hash>.json` in the study's folder. Raises RuntimeError if that cannot be done.
        """
        specs = [run_spec(self.study, trial, split) for split in self.study.splits]
        for spec in specs:
            key = split_key(spec["settings"]["data"], spec["split"])
            if key not in self._lists:
                try:
                    prepared = prepare(spec)
                    write_ids(prepared, f"{self.folder}/splits")
                except (OSError, ValueError) as error:
                    raise RuntimeError(f"split {spec['split']} of trial {trial.index}: {error}") from error
                self._lists[key] = prepared.spec["lists"]
            spec["lists"] = self._lists[key]
        return specs

    def end(self, trial: int, error: str | None) -> None:
        """Note that a trial ended.

        finished: on all splits; partial: some failed for reasons of their own; failed: its machinery did, as `error` says.
        """
        records = self.ledger.runs_of(trial)
        if error is not None:
            for record in records:
                if record.status == "running":
                    self.emit("run_failed", trial=trial, split=record.split, step=record.step, reason=error)
            status, reason = "failed", error
        else:
            reasons = [f"split {record.split}: {record.reason}" for record in records if record.status == "failed"]
            status, reason = "finished", "; ".join(reasons)
        value = trial_value(self.study, records)
        if status == "finished" and value["n"] < value["num_splits"]:
            status = "partial"
        self.emit("trial_finished", trial=trial, status=status, reason=reason, **value)


class _Hand:
    """Lets the searcher reach the runner without Tune pickling it: Tune saves its searcher, and needs nothing of ours back."""

    def __init__(self, runner: Runner | None) -> None:
        self.runner = runner

    def __reduce__(self) -> tuple[type[_Hand], tuple[None]]:
        return _Hand, (None,)


class _Searcher(Searcher):  # type: ignore[misc]
    def __init__(self, hand: _Hand) -> None:
        # Required by Tune, and of no meaning here: the journal holds the scores.
        super().__init__(metric="training_iteration", mode="max")
        self.hand = hand
        self.trials: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        assert self.hand.runner is not None
        trial = self.hand.runner.next_trial(set(self.trials.values()))
        if trial is None:
            return None
        if isinstance(trial, str):
            finished: str = Searcher.FINISHED
            return finished
        self.trials[trial_id] = trial.index
        return self.hand.runner.begin(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.trials.pop(trial_id, None)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return not config

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


class _Listener(ray.tune.Callback):  # type: ignore[misc]
    def __init__(self, runner: Runner) -> None:
        self.hand = _Hand(runner)
        self.errors: dict[int, str] = {}

    @property
    def runner(self) -> Runner:
        assert self.hand.runner is not None
        return self.hand.runner

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        for event in result.get("events", ()):
            self.runner.take(event)
        if "error" in result:
            self.errors[trial.config["trial"]] = result["error"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        index = trial.config["trial"]
        self.runner.end(index, self.errors.pop(index, None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.runner.end(trial.config["trial"], last_line(trial.get_error()))


# ------------------------------------------------------------------------------------------------------------------------- Ray


def connect(study: Study, address: str | None) -> int:
    """Start Ray here, or join the cluster at `address`; returns how many trials run side by side.

    On this machine as many as fit; on a cluster as many as the study wants, since an autoscaler may bring nodes.
    Raises RuntimeError where not even one trial fits on this machine, with what it needs and what is there.
    """
    if address is not None and address.startswith("ray://"):
        raise RuntimeError(f"--address {address}: a Ray Client cannot drive a study; run this on the head with --address auto")
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2" if address is None else "2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0" if address is None else "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # with it Tune prints a banner whatever its verbosity
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    threads = str(study.resources.cpus_per_worker)
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # The dashboard is needed: Ray Train frees the cores of a killed trial through it. It listens on loopback.
        include_dashboard=True if address is None else None,
        runtime_env={
            "env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | {name: os.environ[name] for name in settings}
        },
    )
    resources = study.resources
    needs = {"CPU": resources.workers * resources.cpus_per_worker, "GPU": resources.workers * resources.gpus_per_worker}
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = min(int(has.get(name, 0) // need) for name, need in needs.items() if need)
    words = ", ".join(f"{need:g} {name}" for name, need in needs.items() if need)
    there = ", ".join(f"{has.get(name, 0):g} {name}" for name, need in needs.items() if need)
    if address is not None:
        if fits < 1:
            _log.warning("a trial needs %s, the cluster has %s now; the study waits for nodes", words, there)
        return resources.concurrent_trials
    if fits < 1:
        raise RuntimeError(
            f"a trial needs {words}, but this machine has {there}; "
            "lower resources.workers or resources.cpus_per_worker, or join a cluster with --address"
        )
    return min(fits, resources.concurrent_trials)


def train_one(study: Study, spec: RunSpec, folder: str, address: str | None) -> Event:
    """Train one run on the study's workers under Ray Train, without Tune; returns its `run_finished` or `run_failed` event.

    folder: where its checkpoints and best weights go; the same folder goes on from the last checkpoint.
    Raises RuntimeError with the reason where the workers failed more often than `resources.retries`.
    """
    connect(study, address)
    config = {
        "trial": spec["trial"],
        "runs": [spec],
        "name": "train",
        "storage": folder,
        "models": f"{folder}/models",
        "resources": study.resources.model_dump(),
        "cpus_per_worker": study.resources.cpus_per_worker,
    }
    try:
        result = make_trainer(config, []).fit()
    except TrainingFailedError as error:
        raise RuntimeError(last_line(error)) from None
    end: Event = (result.metrics or {})["events"][-1]
    return end


def _versions() -> dict[str, str]:
    names = ("css-ray", "torch", "torchvision", "timm", "ray", "optuna", "mlflow")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt inside; a second one ends the process at once."""

    def interrupt(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: os._exit(130))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
