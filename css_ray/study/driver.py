"""What a study does next: which trial starts, which one is pruned, how one ended, and when all is done.

The driver holds the journal's lock, writes what happens, and reports it to MLflow and to whoever watches. It trains nothing and
knows nothing of Ray: `execution.runner` asks it for trials and reports to it what becomes of them, and so can a test.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

from css_ray.clocks import Stopwatch
from css_ray.data.catalogue import ensure_dataset
from css_ray.events import (
    Event,
    EventError,
    RunEvaluated,
    RunFailed,
    RunFinished,
    RunPruned,
    StudyContinued,
    StudyExtended,
    StudyFinished,
    StudyInterrupted,
    StudyPaused,
    StudyResumed,
    StudyStarted,
    TrialFinished,
    TrialPruned,
    TrialRetried,
    TrialStarted,
)  # fmt: skip
from css_ray.messages import study_command
from css_ray.methods import METHODS
from css_ray.records import Record, mean_std
from css_ray.room import has_no_room, write_with_room
from css_ray.secrets import shown
from css_ray.standing import Standing, TrialStanding
from css_ray.storage import below, is_url
from css_ray.study import budget, upkeep
from css_ray.study.code import versions
from css_ray.study.definition import StudyDefinition, TrialSpec
from css_ray.study.inputs import prepare, split_key, write_ids
from css_ray.study.job import Job, Lists, RunSpec
from css_ray.study.journal import Journal, JournalError, in_order, study_folder
from css_ray.study.order import Order
from css_ray.study.pruning import LEADERS, PruningContext
from css_ray.study.run import method_config, run_spec
from css_ray.study.sampling import Result, Sampling, suggestion_lag
from css_ray.tracking import Tracker, default_uri

DISK_SECONDS = 5.0
"""How often the driver looks at the free space."""

FEWEST_ENDED = 4
"""Trials that must have ended before a share of failed ones means anything."""


class StudyExistsError(RuntimeError):
    """`run` found a study of that name in the storage; `resume` continues it."""


class Observer(Protocol):
    """Who watches a study while it runs. Called on the driver's thread, after an event is in the journal."""

    def event(self, event: Event) -> None: ...
    def warn(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `run` ended.

    status: finished, failed (some runs or trials did), budget (it was spent before all trials ended) or interrupted.
    unsent: how many events MLflow lacks. reason: why no more trials were started than were, with what would start them.
    confirmation: how the study ended that confirmed the best of the search, if it asked for one.
    """

    status: Literal["finished", "failed", "budget", "interrupted"]
    study: StudyDefinition
    records: list[Record]
    unsent: int
    reason: str = ""
    confirmation: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the ranks of a trial may ask for. pruned: whether it ends; after: the split that it was judged after, if any."""

    trial: int
    pruned: bool
    after: int | None


def tracking_uri(study: StudyDefinition, storage: str) -> str:
    """Where MLflow records the study: at its own `tracking.uri`, at MLFLOW_TRACKING_URI, or in an SQLite file in the storage.

    An object store holds no SQLite file: there the file lies in the folder `runs` of this machine.
    """
    return study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri("runs" if is_url(storage) else storage)


class Driver:
    """Drives one study. Raises JournalError if its journal is damaged.

    observer: called with each new event. Everything but reading needs `driving`.
    """

    def __init__(self, study: StudyDefinition, storage: str, observer: Observer | None = None) -> None:
        self.study = study
        self.grid = study.grid_trials()
        self.storage = storage
        self.observer = observer
        self.folder = study_folder(storage, study.name)
        self.journal = Journal(self.folder)
        self.pruners = study.pruners()
        self.unsent = 0
        self._tracker: Tracker | None = None
        self._tracked = 0  # events that the tracker was given
        self._fold()
        self._stopwatch = Stopwatch(self.standing.wall_seconds)
        self._sampling: Sampling | None = None
        self._drawn: list[dict[str, Any]] = []
        self._classes: dict[tuple[str, str], int] = {}
        self._lists: dict[Hashable, Lists | None] = {}
        self._paused = False
        self._waits: dict[int, str] = {}
        self._warned_of_full_disk = False
        self._looked = -math.inf

    def _fold(self) -> None:
        """Fold the events of the journal, from the first on."""
        self._order, self._next = Order(), 0
        self.standing = Standing(self._order.parsed, self.study).fold(in_order(self.journal.events, self._order, self.folder))
        # Trials of the search that ended, and may have files.
        self._uncollected = {trial.index for trial in self.standing.ended.values() if self._may_have_files(trial)}

    @staticmethod
    def _may_have_files(trial: TrialStanding) -> bool:
        return trial.source == "search" and trial.status != "failed"

    # --------------------------------------------------------------------------------------------- from its start to its end

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the study's lock, and send MLflow all that has happened and will happen.

        Raises:
            StudyLockedError: Another driver is at work on the study.
        """
        with self.journal.driving():
            # Read again under the lock: what another driver wrote before it ended is part of the study.
            self._read_again()
            self._stopwatch = Stopwatch(self.standing.wall_seconds)
            self._tracker = Tracker(tracking_uri(self.study, self.storage))
            self._tracked = 0
            self._track(self.journal.events)
            self.journal.forget()
            try:
                yield
            finally:
                self.close()

    def close(self, timeout: float = 30.0) -> None:
        """Send MLflow what it still lacks, for at most `timeout` seconds; `unsent` counts the rest."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self.unsent = tracker.close(timeout)

    def _track(self, events: Sequence[Event]) -> None:
        if self._tracker is not None:
            for event in events:
                self._tracker.record(event)
                self._tracked += 1

    def _read_again(self) -> None:
        self.journal.read()
        self._fold()

    @property
    def started(self) -> bool:
        """True once the study is in the journal."""
        return self.standing.status != "new"

    def check_new(self) -> None:
        """Raise StudyExistsError if the study has begun."""
        if self.started:
            name = self.study.name
            again = study_command("resume", name, self.storage)
            raise StudyExistsError(
                f"the study {name} exists in {shown(self.storage)}; it continues with: {again}; "
                "another `study:` name (or --set study=NAME) starts from scratch"
            )

    def check_disk(self) -> None:
        """Raise RuntimeError if the disk is full: before the first event, so that nothing is left behind."""
        if full := self.full_disk():
            raise RuntimeError(f"{full}; make room, lower keep.min_free_gb, or give another --storage")

    @property
    def has_work(self) -> bool:
        """False if nothing is left to do; a trial whose machinery failed is left to do, and so is what the study was given."""
        return not self._all_ended or (self.started and self.standing.spec != self.study.resolved())

    def begin_or_resume(self) -> None:
        """Write that the study begins, was given more to do, or is taken up again; prepare all that its grid needs."""
        if not self.started:
            self.emit(
                StudyStarted.now(
                    study=self.study.name,
                    study_id=uuid.uuid4().hex,
                    spec=self.study.resolved(),
                    versions=versions() | METHODS.packages,
                )
            )
        else:
            if self.standing.spec != (spec := self.study.resolved()):
                self.emit(StudyExtended.now(spec=spec, num_splits=len(self.study.splits)))
            if not self._all_ended:
                self.emit(StudyResumed.now())
        for trial in self.standing.pruned.keys() - self.standing.ended.keys():
            self.end(trial, None)
        self.collect()
        if not self._all_ended:
            for spec_ in self.grid:
                self.runs_of(spec_)

    def finish(self) -> None:
        """Write that the study has ended, if it has: all its trials did, too many failed, or the budget is spent."""
        whole, failing = len(self.standing.ended) == self.study.num_trials, self.too_many_failed()
        given_up = failing or self.overdrawn() or not budget.affordable(self.study, self.standing, 0)
        if self.standing.status in ("running", "paused", "interrupted") and (whole or given_up):
            status = self._status if whole or failing else "budget"
            best = self.standing.best
            self.emit(StudyFinished.now(status=status, best_trial=None if best is None else best.index))

    def interrupt(self) -> None:
        """Write that the user interrupted the study, if it had begun, and if there is room."""
        # Read again: the interrupt may have come between an event's writing and its being noted here. MLflow must not miss it:
        # what it has is marked by its number in the journal.
        self._read_again()
        self._track(self.journal.events[self._tracked :])
        if self.started:
            try:
                self.emit(StudyInterrupted.now(reason="interrupted by the user"), patient=False)
            except OSError as error:
                if not has_no_room(error):
                    raise

    def outcome(self, *, interrupted: bool = False) -> Outcome:
        """The outcome of the study as the driver leaves it."""
        records = self.standing.records
        if interrupted:
            return Outcome("interrupted", self.study, records, self.unsent)
        whole = len(self.standing.ended) == self.study.num_trials
        more = partial(study_command, "resume", self.study.name, self.storage, "--set")
        if self.standing.status == "budget":
            spent = self.overdrawn() or "what is left of the budget is less than another trial takes"
            return Outcome("budget", self.study, records, self.unsent, f"{spent}; to continue: {more('budget.KEY=MORE')}")
        reason = ""
        if not whole and self.too_many_failed():
            reason = (
                f"more than {self.study.resources.failed_share:.0%} of the {len(self.standing.ended)} trials that ended have "
                f"failed, so no more were started; to continue all the same: {more('resources.failed_share=1')}"
            )
        return Outcome(self._status if whole else "failed", self.study, records, self.unsent, reason)

    def too_many_failed(self) -> bool:
        """Whether too many trials have failed for another one to be started; see `Resources.failed_share`."""
        ended = len(self.standing.ended)
        failed = self.standing.ended_as("failed") + self.standing.ended_as("partial")
        return ended >= FEWEST_ENDED and failed > self.study.resources.failed_share * ended

    @property
    def _status(self) -> Literal["finished", "failed"]:
        """The status of a study whose trials have all ended; a pruned trial is not a failure."""
        good = self.standing.ended_as("finished") + self.standing.ended_as("pruned")
        return "finished" if good == len(self.standing.ended) else "failed"

    @property
    def _all_ended(self) -> bool:
        return len(self.standing.ended) == self.study.num_trials and not self.standing.ended_as("failed")

    # ------------------------------------------------------------------------------------------------------------ the events

    def emit(self, event: Event, *, patient: bool = True) -> None:
        """Write an event if it is new, stamped with the time worked; report it to MLflow and the observer.

        patient: Wait if there is no room for it.

        Raises JournalError if it cannot have followed those before: the journal could not be read again.
        """
        if self.journal.knows(event):
            return
        if isinstance(event, StudyStarted | StudyResumed):
            self._stopwatch.start()
        event = replace(event, worked=round(self._stopwatch.seconds, 3))
        try:
            self._order.take(event)
        except EventError as error:
            self.journal.error = JournalError(
                f"{event.kind} cannot be written to the journal of {self.study.name} ({error}); if a checkpoint was altered, "
                f"remove the folder of its trial in {shown(below(self.folder, 'checkpoints'))}, and resume the study"
            )
            raise self.journal.error from None
        if patient:
            self._with_room(lambda: self.journal.append(event), "the journal")
        else:
            self.journal.append(event)
        self.standing.add(event)
        if isinstance(event, TrialFinished) and self._may_have_files(self.standing.trials[event.trial]):
            self._uncollected.add(event.trial)
        self._track([event])
        if self.observer is not None:
            self.observer.event(event)

    def _with_room(self, write: Callable[[], object], what: str) -> None:
        """Call `write`, again after a wait if the disk is full; the observer is warned once."""
        write_with_room(write, self.folder, what, waiting=self._wait)
        if self._warned_of_full_disk and self.observer is not None:
            self.observer.warn("there is room again: the study continues")
        self._warned_of_full_disk = False

    def _wait(self, reason: str) -> None:
        if not self._warned_of_full_disk and self.observer is not None:
            self.observer.warn(f"{reason}: the study pauses, and continues when there is room; Ctrl-C ends it")
        self._warned_of_full_disk = True

    def hear(self, event: Event) -> Judgement | None:
        """Take an event of a run, and judge its trial if there is something to judge."""
        self.emit(event)
        return self.judge(event) if isinstance(event, RunEvaluated | RunFinished) else None

    def retried(self, trial: int, reason: str) -> None:
        """Note that the workers or the process of a trial failed, and that it continues."""
        self.emit(TrialRetried.now(trial=trial, reason=reason))

    # ------------------------------------------------------------------------------------------------------------ next trial

    def next_trial(self, running: set[int]) -> TrialSpec | Literal["finished"] | None:
        """What to start next; None if the next suggestion needs a result that is not there yet."""
        trials, ended = self.standing.trials, self.standing.ended
        if self.overdrawn():
            return "finished"
        if self._paused:
            return None
        if waiting := self.standing.running.keys() - running:
            return self.study.trial_begun(trials[min(waiting)].start)
        grid = self.grid
        while self._next in trials:
            self._next += 1
        index = self._next  # the number of those that have begun, unless one of them was lost with a damaged journal
        if (
            index >= self.study.num_trials
            or not budget.affordable(self.study, self.standing, len(running))
            or self.too_many_failed()
        ):
            return "finished"
        if index < len(grid):
            return grid[index]
        assert self.study.search is not None  # or the grid's trials would be all
        position = index - len(grid)
        lag = suggestion_lag(self.study.search, self.study.resources.concurrent_trials)
        known = max(0, position - lag + 1)
        if any(len(grid) + earlier not in ended for earlier in range(known)):
            return None
        for earlier in range(len(self._drawn), position):
            params = trials[len(grid) + earlier].params
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
        """How a trial ended, as it is reported to the sampler."""
        end = self.standing.ended[trial]
        if end.status == "finished":
            assert end.mean is not None
            if self.study.objective.aggregate == "mean_and_std":
                assert end.std is not None
                return Result("finished", (end.mean, end.std))
            score = self.study.objective.score(end.mean, end.std)
            assert score is not None  # a finished trial has all its splits, and the checker asks for two if a std is needed
            return Result("finished", (score,))
        if end.status == "pruned":
            return Result("pruned", curve=self.curve_of(trial))
        return Result("infeasible" if end.status == "partial" else "failed")

    def curve_of(self, trial: int) -> dict[int, float]:
        """The evaluations of a trial by step, counted on over its splits."""
        return self.standing.trials[trial].curve_over(self.study.splits)

    def begin(self, trial: TrialSpec, verdicts: str | None = None) -> Job:
        """Note that `trial` starts and return what its ranks need. verdicts: where they ask for the driver's judgement."""
        config = {
            f"{section}.{key}": list(value) if isinstance(value, tuple) else value  # as the journal will read it
            for section, values in trial.settings.items()
            for key, value in values.items()
        }
        runs, new = self.runs_of(trial), trial.index not in self.standing.trials
        self.emit(TrialStarted.now(trial=trial.index, row=trial.row, source=trial.source, params=trial.params, config=config))
        job = make_job(self.study, trial.index, runs, self.folder, verdicts if trial.source == "search" else None)
        # None are left of a trial whose driver was stopped when all its runs, but not yet the trial, had ended.
        finished = {record.split for record in self.standing.records_of(trial.index) if record.status == "finished"}
        return replace(job, new=new, runs=[run for run in job.runs if run.split not in finished])

    def runs_of(self, trial: TrialSpec) -> list[RunSpec]:
        """The run of `trial` on each split of the study.

        At the first use of a split its lists are read, so that all trials have the same images whatever becomes of the files,
        and its ids are written to `splits/<hash>.json` in the study's folder. Raises RuntimeError if that cannot be done.
        """
        specs = []
        for split in self.study.splits:
            spec = run_spec(self.study, trial, split)
            key = split_key(spec.settings["data"], split)
            if key not in self._lists:
                try:
                    prepared = prepare(spec)
                    self._with_room(partial(write_ids, prepared, below(self.folder, "splits")), "the ids of a split")
                except (OSError, ValueError) as error:
                    raise RuntimeError(f"split {split} of trial {trial.index}: {error}") from error
                self._lists[key] = prepared.spec.lists
            specs.append(replace(spec, lists=self._lists[key]))
        return specs

    # -------------------------------------------------------------------------------------------------- judging and ending

    def judge(self, told: RunEvaluated | RunFinished) -> Judgement | None:
        """Ask the pruners of the search, now that a run was evaluated or finished; a verdict goes to the journal."""
        trial = told.trial
        if not self.pruners or self.standing.trials[trial].source != "search":
            return None
        if trial not in self.standing.pruned and (reason := self._reason_to_prune(told)) is not None:
            # A resumed run reports earlier evaluations again; the verdict is on where it is.
            step = self.standing.trials[trial].runs[told.split].step
            self.emit(TrialPruned.now(trial=trial, split=told.split, step=step, reason=reason))
        ended = told.split if isinstance(told, RunFinished) else None
        return Judgement(trial, pruned=trial in self.standing.pruned, after=ended)

    def _reason_to_prune(self, told: RunEvaluated | RunFinished) -> str | None:
        compared = self.standing.compared
        context = PruningContext(
            trial=told.trial,
            split=told.split,
            splits=self.study.splits,
            iterations=self.standing.trials[told.trial].iterations,
            curves=compared.curves,
            values=compared.values,
            scores=compared.scores,
            leaders=[leader for _, leader in compared.by_mean[:LEADERS]],
            pruned=self.standing.pruned.keys(),
        )
        # All are asked: one of Optuna's keeps its own count of what it has seen.
        verdicts = [verdict for pruner in self.pruners if (verdict := pruner.judge(context)) is not None]
        return f"{verdicts[0].pruner}: {verdicts[0].reason}" if verdicts else None

    def end(self, trial: int, error: str | None) -> None:
        """Note that a trial ended.

        finished: on all splits; partial: some failed for reasons of their own; pruned: by a verdict; failed: its machinery did,
        with the reason `error`.
        """
        self._waits.pop(trial, None)
        records = self.standing.records_of(trial)
        verdict = self.standing.pruned.get(trial)
        status: Literal["finished", "partial", "pruned", "failed"]
        if verdict is not None and sum(record.status == "finished" for record in records) < len(self.study.splits):
            for record in records:
                if record.status == "running":
                    self.emit(RunPruned.now(trial=trial, split=record.split, step=record.step, reason=verdict.reason))
            status, reason = "pruned", verdict.reason
        elif error is None and len(records) < len(self.study.splits) and self.overdrawn():
            return  # it continues where it stopped, should the budget be raised
        elif error is not None:
            for record in records:
                if record.status == "running":
                    self.emit(RunFailed.now(trial=trial, split=record.split, step=record.step, reason=error))
            status, reason = "failed", error
        else:
            reasons = [f"split {record.split}: {record.reason}" for record in records if record.status == "failed"]
            status, reason = "finished", "; ".join(reasons)
        values = self._values(records)
        mean, std = mean_std(list(values.values()))
        if status == "finished" and len(values) < len(self.study.splits):
            status = "partial"
        self.emit(
            TrialFinished.now(
                trial=trial, status=status, reason=reason, values=values, mean=mean, std=std, n=len(values),
                num_splits=len(self.study.splits),
            )
        )  # fmt: skip
        self.collect()

    def _values(self, records: Sequence[Record]) -> dict[str, float]:
        """What the objective takes from each finished run, by split."""
        objective = self.study.objective
        return {
            str(record.split): (record.last if objective.at == "last" else record.best)[objective.metric]
            for record in records
            if record.status == "finished"
        }

    # ----------------------------------------------------------------------------------------------------- budget and disk

    def overdrawn(self) -> str:
        """Which bound of the budget is reached, in words; empty if none is."""
        return budget.overdrawn(self.study.budget, self.standing)

    def collect(self) -> None:
        """Remove the weights and checkpoints of the search's trials that ended and are not among the best `keep.top`.

        Those of a trial whose machinery failed stay: a resume continues from them.
        """
        ended = self._uncollected & self.standing.ended.keys()
        for trial in upkeep.dispensable(self.study.keep, self.standing.compared.scores, ended):
            upkeep.remove_files(self.folder, trial)
            self._uncollected.discard(trial)

    def full_disk(self) -> str:
        """What is short of space, in words; empty if nothing is."""
        return upkeep.full_disk(self.study.keep, self.storage, self.folder)

    def waits(self, trial: int, reason: str) -> None:
        """Note that the ranks of a trial wait for room, for this reason, or with an empty one that they do not."""
        self._waits.pop(trial, None)
        if reason:
            self._waits[trial] = f"trial {trial}: {reason}"

    def watch_disk(self) -> None:
        """Pause the study while its disk is full: no trial starts, and those that run wait for room for what they write."""
        if time.monotonic() - self._looked < DISK_SECONDS:
            return
        self._looked = time.monotonic()
        full = self.full_disk() or next(iter(self._waits.values()), "")
        if full and not self._paused:
            self.emit(StudyPaused.now(reason=full))
        elif self._paused and not full:
            self.emit(StudyContinued.now())
        self._paused = bool(full)


def make_job(study: StudyDefinition, trial: int, runs: list[RunSpec], folder: str, verdicts: str | None) -> Job:
    """What the ranks of a slot need to train `runs` of a trial; `folder` is where its checkpoints and weights go."""
    return Job(
        trial=trial,
        new=False,
        runs=runs,
        sizes=study.resources.sizes(runs[0].settings["data"]),
        checkpoints=upkeep.checkpoints_of(folder, trial),
        models=upkeep.models_of(folder, trial),
        matrices=upkeep.matrices_of(folder, trial),
        verdicts=verdicts,
        hang_seconds=study.resources.hang_seconds,
        min_free=study.keep.min_free_gb * 1e9,
    )


class _Results(Sequence[Result]):
    """How the first `count` trials of the search ended, each looked up when it is asked for."""

    def __init__(self, driver: Driver, count: int) -> None:
        self._driver, self._count = driver, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        return self._driver.result_of(len(self._driver.grid) + position)
