"""Drives a study: Ray Tune executes, the journal remembers, MLflow and the view are told.

Tune holds no state that matters. On resume a new Tune run starts; its searcher first hands out the trials that the journal
knows as begun but not ended (same index, same settings, same Train run, so that its checkpoint is found), then those of the
grid, then asks Optuna for new ones.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import logging
import math
import os
import platform
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Protocol

import pyarrow.fs
import ray
import ray.tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.search import Searcher

from css_ray.data.catalogue import ensure_dataset
from css_ray.methods import METHODS
from css_ray.records import Event, Ledger, Record, RunSizes, RunTimes, mean_std
from css_ray.secrets import shown
from css_ray.storage import below, free_bytes, is_url, locate
from css_ray.study.address import guard_token, remember_address
from css_ray.study.cluster import check_code
from css_ray.study.code import code_version
from css_ray.study.definition import Resources, StudyDefinition, TrialSpec
from css_ray.study.journal import Journal, study_folder
from css_ray.study.pruning import LEADERS, PruningContext
from css_ray.study.reclaim import driver_config, reclaim
from css_ray.study.run import Lists, RunSpec, method_config, prepare, run_spec, split_key, write_ids
from css_ray.study.sampling import Result, Sampling, suggestion_lag
from css_ray.study.slot import Job, Slot, last_line, run_trial
from css_ray.study.verdicts import Verdicts
from css_ray.tracking import Tracker, default_uri

_log = logging.getLogger(__name__)

DISK_SECONDS = 5.0
"""How often the driver looks at the free space."""

RECLAIM_SECONDS = 10.0
"""How often it looks for cores that dead trials hold."""

FEWEST_ENDED = 4
"""Trials that must have ended before a share of failed ones means anything."""


class StudyExistsError(RuntimeError):
    """`run` found a study of that name in the storage; `resume` goes on with it."""


class Observer(Protocol):
    """Who watches a study while it runs. Called on the driver's thread, after an event is in the journal."""

    def event(self, event: Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `run` ended.

    status: finished, failed (some runs or trials did), budget (it was spent before all trials ended) or interrupted.
    unsent: how many events MLflow lacks. reason: why no more trials were started than were, with what would start them.
    """

    status: Literal["finished", "failed", "budget", "interrupted"]
    study: StudyDefinition
    records: list[Record]
    unsent: int
    reason: str = ""


def tracking_uri(study: StudyDefinition, storage: str) -> str:
    """Where MLflow records the study: as it says, as MLFLOW_TRACKING_URI says, or an SQLite file in the storage.

    An object store holds no SQLite file: there the file lies in the folder `runs` of this machine.
    """
    return study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri("runs" if is_url(storage) else storage)


def trial_value(study: StudyDefinition, runs: Sequence[Record]) -> dict[str, Any]:
    """What the `trial_finished` event says of a trial's runs: values by split, their mean, std (ddof 1) and count."""
    values = {
        str(run.split): getattr(run, study.objective.at)[study.objective.metric] for run in runs if run.status == "finished"
    }
    mean, std = mean_std(list(values.values()))
    return {"values": values, "mean": mean, "std": std, "n": len(values), "num_splits": len(study.splits)}


class Runner:
    """Runs or resumes one study to its end. Raises JournalError where its journal is damaged."""

    def __init__(
        self, study: StudyDefinition, storage: str, *, address: str | None = None, observer: Observer | None = None
    ) -> None:
        self.study = study
        self.grid = study.grid_trials()
        self.storage = storage
        self.address = address
        self.observer = observer
        self.folder = study_folder(storage, study.name)
        self.journal = Journal(self.folder)
        self._read()
        self._sampling: Sampling | None = None
        self._drawn: list[dict[str, Any]] = []
        self._verdicts: Verdicts | None = None
        self._classes: dict[tuple[str, str], int] = {}
        self.pruners = study.pruners()
        self._lists: dict[Hashable, Lists | None] = {}
        self._paused = False
        self._looked = self._reclaimed = -math.inf

    def _read(self) -> None:
        """Fold the events of the journal, from the first on."""
        self.ledger = Ledger(self.journal.events)
        self._values: dict[int, dict[int, float]] = {}
        self._scores: dict[int, float] = {}
        self._uncollected: set[int] = set()  # trials of the search that ended, and may have files
        self._leaders: list[tuple[float, int]] = []  # (-mean, trial), best first
        self._curves: dict[int, dict[int, dict[int, float]]] = {}
        self._times, self._sizes, self._held = RunTimes(), RunSizes(), self.study.resources
        self._hours = {"gpu_hours": 0.0, "cpu_hours": 0.0}
        for event in self.journal.events:
            self._note(event)

    def _note(self, event: Event) -> None:
        """Keep what the budget counts, and what the pruners compare: the curves, values and scores of the search's trials."""
        kind, trial, objective = event["event"], event.get("trial"), self.study.objective
        if kind in ("study_started", "study_extended"):
            self._held = Resources.model_validate(event["spec"].get("resources") or {})
        if hours := self._times.event(event) / 3600 * self._sizes.event(event, self._held.fewest):
            self._hours["gpu_hours"] += hours * self._held.gpus_per_worker
            self._hours["cpu_hours"] += hours * self._held.cpus_per_worker
        if trial is None or trial < len(self.grid):
            return
        if kind == "run_evaluated":
            self._curves[trial] = self.ledger.curves.get(trial, {})
        elif kind == "run_finished":
            self._values.setdefault(trial, {})[event["split"]] = event[objective.at][objective.metric]
        elif kind == "trial_finished" and event["status"] == "finished":
            if trial not in self._scores:
                bisect.insort(self._leaders, (-event["mean"], trial))
                del self._leaders[LEADERS:]
            self._scores[trial] = objective.score(event["mean"], event["std"]) or 0.0
        if kind == "trial_finished" and event["status"] != "failed":
            self._uncollected.add(trial)

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
            self.journal.read()
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
            self.journal.forget()
            interrupted = False
            with _interruptible():
                try:
                    self._go_on(exists)
                except KeyboardInterrupt:
                    interrupted = True
                    # Read again: the interrupt may have come between an event's writing and its being noted here.
                    self.journal.read()
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
        whole = len(ends) == self.study.num_trials
        more = f"css-ray study resume {self.study.name} --set"
        if self.ledger.status == "budget":
            spent = self.overdrawn() or "what is left of the budget is less than another trial takes"
            return Outcome("budget", self.study, records, unsent, f"{spent}; to go on: {more} budget.KEY=MORE")
        reason = ""
        if not whole and self.too_many_failed():
            share = self.study.resources.failed_share
            reason = (
                f"more than {share:.0%} of the {len(ends)} trials that ended have failed, so no more were started; "
                f"to go on all the same: {more} resources.failed_share=1"
            )
        return Outcome(self._status() if whole else "failed", self.study, records, unsent, reason)

    def _go_on(self, exists: bool) -> None:
        # Before the first event: a study that no disk and no cluster can hold leaves nothing behind.
        if full := self.full_disk():
            raise RuntimeError(f"{full}; make room, lower keep.min_free_gb, or give another --storage")
        extended = exists and self.ledger.spec != self.study.resolved()
        concurrent = 0 if self._ended() and not extended else connect(self.study, self.address)
        if not exists:
            self.emit(
                "study_started",
                study=self.study.name,
                study_id=uuid.uuid4().hex,
                spec=self.study.resolved(),
                versions=_versions(),
            )
        else:
            if self.ledger.spec != (spec := self.study.resolved()):
                self.emit("study_extended", spec=spec, num_splits=len(self.study.splits))
            if not self._ended():
                self.emit("study_resumed")
        for trial_ in self.ledger.pruned.keys() - self.ledger.ends.keys():
            self.end(trial_, None)
        self.collect()
        if not self._ended():
            for trial in self.grid:
                self.runs_of(trial)
            self._tune(concurrent)
        ends = self.ledger.ends
        whole, failing = len(ends) == self.study.num_trials, self.too_many_failed()
        given_up = failing or self.overdrawn() or not self._affordable(0)
        if self.ledger.status in ("running", "interrupted") and (whole or given_up):
            status = self._status() if whole or failing else "budget"
            self.emit("study_finished", status=status, best_trial=self.best_trial())

    def too_many_failed(self) -> bool:
        """Whether so many trials have failed that another one hardly fares better; see `Resources.failed_share`."""
        endings = [end["status"] for end in self.ledger.ends.values()]
        failed = sum(status in ("failed", "partial") for status in endings)
        return len(endings) >= FEWEST_ENDED and failed > self.study.resources.failed_share * len(endings)

    def best_trial(self) -> int | None:
        """The finished trial with the highest score; None while there is none."""
        scores = {
            trial: self.study.objective.score(end["mean"], end["std"])
            for trial, end in self.ledger.ends.items()
            if end["status"] == "finished"
        }
        return max(scores, key=lambda trial: scores[trial] or 0.0, default=None)

    def _status(self) -> Literal["finished", "failed"]:
        """Of a study whose trials have all ended; a pruned trial is no failure."""
        return "finished" if all(end["status"] in ("finished", "pruned") for end in self.ledger.ends.values()) else "failed"

    # -------------------------------------------------------------------------------------------------- what the journal says

    def emit(self, kind: str, **content: Any) -> None:
        """Write an event that happens here and now."""
        self.take({"event": kind, "time": round(time.time(), 3), **content})

    def take(self, event: Event) -> None:
        """Write an event; tell MLflow and the observer if it is new."""
        if self.journal.append(event):
            self.ledger.add(event)
            self._note(event)
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
        self._verdicts = Verdicts(uuid.uuid4().hex) if self.pruners else None
        with tempfile.TemporaryDirectory(prefix="css-ray-tune-") as scratch:
            tuner = ray.tune.Tuner(
                ray.tune.with_resources(run_trial, {"memory": 50e6}),
                tune_config=ray.tune.TuneConfig(
                    search_alg=searcher, num_samples=-1, max_concurrent_trials=concurrent, reuse_actors=True
                ),
                run_config=ray.tune.RunConfig(
                    name=f"{self.study.name}-{uuid.uuid4().hex[:8]}",
                    storage_path=scratch,
                    failure_config=ray.tune.FailureConfig(max_failures=self.study.resources.retries),
                    callbacks=[_Listener(self)],
                    stop=_BudgetStop(self),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except Exception:
                # Of what its callbacks raise Tune passes on a traceback only.
                if self.journal.error is not None:
                    raise self.journal.error from None
                raise
        _remove(_notes(self.folder))

    def next_trial(self, running: set[int]) -> TrialSpec | Literal["finished"] | None:
        """What to start next; None where the next suggestion needs a result that is not there yet."""
        starts, ends = self.ledger.starts, self.ledger.ends
        if self.overdrawn():
            return "finished"
        if self._paused:
            return None
        if waiting := starts.keys() - ends.keys() - running:
            return self._again(starts[min(waiting)])
        index, grid = len(starts), self.grid
        if index >= self.study.num_trials or not self._affordable(len(running)) or self.too_many_failed():
            return "finished"
        if index < len(grid):
            return grid[index]
        assert self.study.search is not None  # or the grid's trials would be all
        position = index - len(grid)
        lag = suggestion_lag(self.study.search, self.study.resources.concurrent_trials)
        known = max(0, position - lag + 1)
        if any(len(grid) + earlier not in ends for earlier in range(known)):
            return None
        for earlier in range(len(self._drawn), position):
            params = starts[len(grid) + earlier]["params"]
            self._drawn.append({path: params[path] for path in self.study.space})
        if self._sampling is None:
            self._sampling = Sampling(self.study.search, self.study.space, self.study.objective, self.feasible)
        return self.study.search_trial(index, self._sampling.suggest(self._drawn, _Results(self, known), lag))

    def feasible(self, drawn: Mapping[str, Any]) -> bool:
        """Whether drawn settings make sense together: the method has no warning about them."""
        settings = self.study.search_trial(len(self.grid), drawn).settings
        num_classes = self._num_classes(settings["data"]["dataset"], settings["data"]["root"])
        return not METHODS[settings["method"]["name"]].warnings(method_config(settings), num_classes)

    def _num_classes(self, dataset: str, root: str) -> int:
        if (dataset, root) not in self._classes:
            self._classes[dataset, root] = ensure_dataset(dataset, root).info.num_classes
        return self._classes[dataset, root]

    def result_of(self, trial: int) -> Result:
        """How a trial that ended did, as the sampler is told."""
        end = self.ledger.ends[trial]
        status = end["status"]
        if status == "finished":
            if self.study.objective.aggregate == "mean_and_std":
                return Result("finished", (end["mean"], end["std"]))
            score = self.study.objective.score(end["mean"], end["std"])
            assert score is not None  # a finished trial has all its splits, and the schema asks for two where a std is needed
            return Result("finished", (score,))
        if status == "pruned":
            return Result("pruned", curve=self.curve_of(trial))
        return Result("infeasible" if status == "partial" else "failed")

    def curve_of(self, trial: int) -> dict[int, float]:
        """The evaluations of a trial by step, counted on over its splits."""
        iterations = self.ledger.starts[trial]["config"]["train.iterations"]
        curves = self.ledger.curves.get(trial, {})
        return {
            place * iterations + step: value
            for place, split in enumerate(self.study.splits)
            for step, value in curves.get(split, {}).items()
        }

    # ------------------------------------------------------------------------------------------------------------------ budget

    def spent(self) -> dict[str, float]:
        """What the study has cost so far, over all its resumes, in hours: see `Budget`."""
        return {"hours": self.ledger.wall_seconds / 3600, **self._hours}

    def overdrawn(self) -> str:
        """Which bound of the budget is reached, in words; empty where none is."""
        spent = self.spent()
        for name, bound in self.study.budget.model_dump().items():
            if bound is not None and spent[name] >= bound:
                return f"the budget of {bound:g} {name.replace('_', '-')} is spent ({spent[name]:.2f})"
        return ""

    def _affordable(self, running: int) -> bool:
        """Whether another trial is likely to end inside the budget, judged by those that ended and those that run."""
        seconds = self._times.by_trial
        ended = [seconds.get(trial, 0.0) for trial, end in self.ledger.ends.items() if end["status"] == "finished"]
        if not ended:
            return not self.overdrawn()
        resources, spent = self.study.resources, self.spent()
        one, workers = sum(ended) / len(ended), self._sizes.latest or resources.fewest
        open_trials = self.ledger.starts.keys() - self.ledger.ends.keys()
        ahead = one + sum(max(0.0, one - seconds.get(trial, 0.0)) for trial in open_trials)
        side_by_side = max(1, min(resources.concurrent_trials, running + 1))
        costs = {
            "hours": ahead / side_by_side / 3600,
            "gpu_hours": ahead / 3600 * workers * resources.gpus_per_worker,
            "cpu_hours": ahead / 3600 * workers * resources.cpus_per_worker,
        }
        bounds = self.study.budget.model_dump()
        return all(bound is None or spent[name] + costs[name] <= bound for name, bound in bounds.items())

    def _again(self, start: Event) -> TrialSpec:
        if start["source"] == "grid":
            return self.grid[start["trial"]]
        return self.study.search_trial(start["trial"], {path: start["params"][path] for path in self.study.space})

    def begin(self, trial: TrialSpec) -> dict[str, Any]:
        """Note that `trial` starts and return what its process needs."""
        config = {f"{section}.{key}": value for section, values in trial.settings.items() for key, value in values.items()}
        finished = {record.split for record in self.ledger.runs_of(trial.index) if record.status == "finished"}
        self.emit("trial_started", trial=trial.index, row=trial.row, source=trial.source, params=trial.params, config=config)
        runs = [run for run in self.runs_of(trial) if run["split"] not in finished]
        return {
            "trial": trial.index,
            "resources": self.study.resources.model_dump(),
            "place": _notes(self.folder),
            "code": None if self.address is None else code_version(),
            "job": _job(self.study, trial.index, runs, self.folder, self._verdicts if trial.source == "search" else None),
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
                    write_ids(prepared, below(self.folder, "splits"))
                except (OSError, ValueError) as error:
                    raise RuntimeError(f"split {spec['split']} of trial {trial.index}: {error}") from error
                self._lists[key] = prepared.spec["lists"]
            spec["lists"] = self._lists[key]
        return specs

    def judge(self, told: Event) -> None:
        """Ask the pruners of the search, now that a run was evaluated or finished; a verdict goes to the journal."""
        trial = told["trial"]
        if not self.pruners or self.ledger.starts[trial]["source"] != "search":
            return
        if trial not in self.ledger.pruned and (reason := self._reason_to_prune(told)) is not None:
            self.emit("trial_pruned", trial=trial, split=told["split"], step=told["step"], reason=reason)
        if self._verdicts is not None:
            ended = told["split"] if told["event"] == "run_finished" else None
            self._verdicts.say(trial, pruned=trial in self.ledger.pruned, after=ended)

    def _reason_to_prune(self, told: Event) -> str | None:
        ledger = self.ledger
        context = PruningContext(
            trial=told["trial"],
            split=told["split"],
            splits=self.study.splits,
            iterations=ledger.starts[told["trial"]]["config"]["train.iterations"],
            curves=self._curves,
            values=self._values,
            scores=self._scores,
            leaders=[leader for _, leader in self._leaders],
            pruned=ledger.pruned.keys(),
        )
        # All are asked: one of Optuna's keeps its own count of what it has seen.
        verdicts = [verdict for pruner in self.pruners if (verdict := pruner.judge(context)) is not None]
        return f"{verdicts[0].pruner}: {verdicts[0].reason}" if verdicts else None

    def end(self, trial: int, error: str | None) -> None:
        """Note that a trial ended.

        finished: on all splits; partial: some failed for reasons of their own; pruned: by a verdict; failed: its machinery did,
        as `error` says.
        """
        records = self.ledger.runs_of(trial)
        verdict = self.ledger.pruned.get(trial)
        if verdict is not None and sum(record.status == "finished" for record in records) < len(self.study.splits):
            for record in records:
                if record.status == "running":
                    self.emit("run_pruned", trial=trial, split=record.split, step=record.step, reason=verdict["reason"])
            status, reason = "pruned", verdict["reason"]
        elif error is None and len(records) < len(self.study.splits) and self.overdrawn():
            return  # it goes on where it stopped, should the budget be raised
        elif error is not None:
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
        self.collect()

    def collect(self) -> None:
        """Remove the weights and checkpoints of the search's trials that ended and are not among the best `keep.top`.

        Those of a trial whose machinery failed stay: a resume goes on from them.
        """
        if self.study.keep.top is None:
            return
        scores = self._scores
        best = set(heapq.nlargest(self.study.keep.top, scores, key=lambda trial: (scores[trial], -trial)))
        gone = (self._uncollected & self.ledger.ends.keys()) - best
        for trial in sorted(gone):
            for kind in ("checkpoints", "models"):
                _remove(below(self.folder, kind, f"trial_{trial:04d}"))
        self._uncollected -= gone

    def full_disk(self) -> str:
        """What is short of space, in words; empty where nothing is."""
        free, needed = free_bytes(self.folder), self.study.keep.min_free_gb
        if free is None or free >= needed * 1e9:
            return ""
        return f"{self.storage} has {free / 1e9:.2f} GB free, less than the {needed:g} GB of keep.min_free_gb"

    def watch_disk(self) -> None:
        """Pause the study while its disk is full: no trial starts, and those that run wait at their next checkpoint."""
        if time.monotonic() - self._looked < DISK_SECONDS:
            return
        self._looked = time.monotonic()
        full = self.full_disk()
        if full and not self._paused:
            self.emit("study_paused", reason=full)
        elif self._paused and not full:
            self.emit("study_continued")
        self._paused = bool(full)

    def reclaim(self) -> None:
        """Give back what dead trials hold, now and then."""
        if time.monotonic() - self._reclaimed < RECLAIM_SECONDS:
            return
        self._reclaimed = time.monotonic()
        if held := reclaim():
            _log.warning("gave back the cores of %d dead trial(s)", held)


class _Results(Sequence[Result]):
    """How the first `count` trials of the search ended, each looked up when it is asked for."""

    def __init__(self, runner: Runner, count: int) -> None:
        self._runner, self._count = runner, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        return self._runner.result_of(len(self._runner.grid) + position)


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


class _BudgetStop(ray.tune.Stopper):  # type: ignore[misc]
    """Ends what runs once the budget is spent; it goes on from its last evaluation should the budget be raised."""

    def __init__(self, runner: Runner) -> None:
        self.hand = _Hand(runner)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.hand.runner is not None and bool(self.hand.runner.overdrawn())


class _Listener(ray.tune.Callback):  # type: ignore[misc]
    def __init__(self, runner: Runner) -> None:
        self.hand = _Hand(runner)
        self.errors: dict[int, str] = {}

    @property
    def runner(self) -> Runner:
        assert self.hand.runner is not None
        return self.hand.runner

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.runner.watch_disk()
        self.runner.reclaim()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        for event in result.get("events", ()):
            self.runner.take(event)
            if event["event"] in ("run_evaluated", "run_finished"):
                self.runner.judge(event)
            elif event["event"] in ("run_rewound", "run_resized"):
                _log.warning("trial %d, split %d: %s", event["trial"], event["split"], event["reason"])
        if "retry" in result:
            self.runner.emit("trial_retried", trial=trial.config["trial"], reason=result["retry"])
        if "error" in result:
            self.errors[trial.config["trial"]] = result["error"]

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.runner.emit("trial_retried", trial=trial.config["trial"], reason="the process of the trial died")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        index = trial.config["trial"]
        self.runner.end(index, self.errors.pop(index, None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.runner.end(trial.config["trial"], last_line(trial.get_error()))


# ------------------------------------------------------------------------------------------------------------------------- Ray


def connect(study: StudyDefinition, address: str | None) -> int:
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
        # Of a process that does not even say that it lives; one that stands still says so itself, see `worker.Watchdog`.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(max(60, math.ceil(study.resources.hang_seconds))),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    threads = str(study.resources.cpus_per_worker)
    guard_token()
    # Tune would hand on the driver's AWS keys in the runtime environment of its trials, which Ray writes to a log on each node.
    ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # The dashboard is needed: Ray Train frees the cores of a killed trial through it. It listens on loopback.
        include_dashboard=True if address is None else None,
        job_config=driver_config(),
        runtime_env={
            "env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            | {name: os.environ[name] for name in settings},
            "worker_process_setup_hook": remember_address,
        },
    )
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray's own handler of SIGTERM ends the process where it stands
            if handler is not None:  # None: it was not Python's
                signal.signal(number, handler)
    if address is not None:
        check_code()
    resources = study.resources
    needs = {"CPU": resources.fewest * resources.cpus_per_worker, "GPU": resources.fewest * resources.gpus_per_worker}
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


def train_one(study: StudyDefinition, spec: RunSpec, folder: str, address: str | None) -> Event:
    """Train one run on the study's workers under Ray Train, without Tune; returns its `run_finished` or `run_failed` event.

    folder: where its checkpoints and best weights go; the same folder goes on from the last checkpoint.
    Raises RuntimeError with the reason where the workers failed more often than `resources.retries`.
    """
    connect(study, address)
    end: Event = {}
    slot = Slot(study.resources.model_dump(), _notes(folder), None if address is None else code_version())
    try:
        for message in slot.train(_job(study, spec["trial"], [spec], folder, None)):
            if "error" in message:
                raise RuntimeError(message["error"])
            end = message["events"][-1] if message["events"] else end
    finally:
        slot.end()
    return end


def _job(study: StudyDefinition, trial: int, runs: Sequence[RunSpec], folder: str, verdicts: Verdicts | None) -> Job:
    """What the ranks of a slot need to train `runs` of a trial; `folder` is where its checkpoints and weights go."""
    return {
        "trial": trial,
        "runs": list(runs),
        "sizes": study.resources.sizes(runs[0]["settings"]["data"]),
        "checkpoints": below(folder, "checkpoints", f"trial_{trial:04d}"),
        "models": below(folder, "models", f"trial_{trial:04d}"),
        "verdicts": verdicts.start if verdicts else None,
        "hang_seconds": study.resources.hang_seconds,
        "min_free": study.keep.min_free_gb * 1e9,
    }


def _notes(folder: str) -> str:
    """Where Ray Train keeps what it writes for itself, of no use once a driver has ended."""
    return below(folder, "ray")


def _remove(folder: str) -> None:
    """Remove a folder, or what lies below a URL, if it is there. What cannot be removed is in nobody's way."""
    filesystem, path = locate(folder)
    try:
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            filesystem.delete_dir(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", shown(folder), error)


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow")
    return (
        {"python": platform.python_version(), "css-ray": code_version()}
        | {name: version(name) for name in names}
        | METHODS.packages
    )


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
