"""The state of a study: the one fold of its events, used by the driver, the live view, the API, the tables and MLflow alike.

An event costs the same however many came before it, and what is asked often is at hand without a walk over all trials. A new
kind of event is defined in `events.py` and taken into account here; nothing else needs to know of it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from css_ray.clocks import RunSizes, RunTimes, WallTime
from css_ray.events import (
    Event,
    EventLost,
    RunEvaluated,
    RunEvent,
    RunFailed,
    RunFinished,
    RunLogged,
    RunPruned,
    RunResized,
    RunRewound,
    RunStarted,
    StepEvent,
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
from css_ray.records import Record, Status, mean_std

CURVE_METRIC = "val/miou"
"""What curves show and pruning compares, in percent."""


class Objective(Protocol):
    """What trials are ranked by."""

    @property
    def metric(self) -> str: ...
    @property
    def at(self) -> str: ...
    def score(self, mean: float | None, std: float | None) -> float | None: ...


class Resources(Protocol):
    """What the workers of a trial hold."""

    @property
    def fewest(self) -> int: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def cpus_per_worker(self) -> int: ...


class Definition(Protocol):
    """What the state of a study depends on, besides its events."""

    @property
    def objective(self) -> Objective: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def splits(self) -> Sequence[int]: ...
    @property
    def num_trials(self) -> int: ...
    def planned_iterations(self) -> Sequence[int]:
        """The steps of one run of each trial, by the trial's index; of a trial still to be drawn, the study's own setting."""


D = TypeVar("D", bound=Definition)


@dataclass(slots=True)
class RunStanding:
    """One run: how far it is, and how it ended.

    score: its latest evaluation, and of a finished run what the objective takes from it, in percent. last, best: metrics at the
    last step and at the best evaluation, once it finished. workers: how many ranks train it, None if the journal does not
    record it.
    """

    seed: int
    split_hash: str
    step: int = 0
    score: float | None = None
    status: Status = "running"
    reason: str = ""
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    best_step: int = 0
    seconds: float = 0.0
    workers: int | None = None


@dataclass(slots=True)
class TrialStanding:
    """One trial: its row, what it varies, its runs by split, and how it ended (running, finished, partial, failed, pruned).

    curves: by split, the evaluations by step, in percent; curve_split: the split that was evaluated last. mean, std, n and
    num_splits: as `trial_finished` reports them. score: what the trial is ranked by, None unless it finished on all its splits.
    done: its steps behind us, see `Standing.steps_done`. retries: how often it continued after a failure.
    """

    start: TrialStarted
    iterations: int
    runs: dict[int, RunStanding] = field(default_factory=dict)
    status: str = "running"
    reason: str = ""
    mean: float | None = None
    std: float | None = None
    n: int = 0
    num_splits: int = 0
    score: float | None = None
    curves: dict[int, dict[int, float]] = field(default_factory=dict)
    curve_split: int | None = None
    done: int = 0
    retries: int = 0

    @property
    def index(self) -> int:
        return self.start.trial

    @property
    def row(self) -> str:
        return self.start.row

    @property
    def source(self) -> str:
        return self.start.source

    @property
    def params(self) -> dict[str, Any]:
        return self.start.params

    @property
    def curve(self) -> list[float]:
        """The evaluations of the split that was evaluated last, in percent."""
        return [] if self.curve_split is None else [score for _, score in sorted(self.curves[self.curve_split].items())]

    def curve_over(self, splits: Sequence[int]) -> dict[int, float]:
        """The evaluations by step, counted on over the splits: those of the second begin after the first's last step."""
        return {
            place * self.iterations + step: score
            for place, split in enumerate(splits)
            for step, score in self.curves.get(split, {}).items()
        }

    @property
    def partial(self) -> tuple[float | None, float | None]:
        """Mean and std over the splits that are finished so far."""
        return mean_std([run.score for run in self.runs.values() if run.status == "finished" and run.score is not None])


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a run or a whole trial (`split` None) failed, was pruned, or lost some of its steps and continued (status retried).

    step: None if the reason has it.
    """

    trial: int
    split: int | None
    step: int | None
    status: str
    reason: str


@dataclass(slots=True)
class Compared:
    """What pruners compare: the trials of the search alone.

    curves: by trial and split, the evaluations by step. values: by trial and split, what the objective takes from each finished
    run. scores: by trial that finished on all its splits, higher is better. by_mean: those as (-mean, trial), best first.
    """

    curves: dict[int, dict[int, dict[int, float]]] = field(default_factory=dict)
    values: dict[int, dict[int, float]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    by_mean: list[tuple[float, int]] = field(default_factory=list)


class Standing(Generic[D]):
    """Folds events, one by one. Times are the events' own.

    Args:
        parse: Makes the definition of a study of the `spec` in its journal. Without it there is no `definition`, and nothing
            that depends on one: no ranking, no hours, no plan.
        definition: The study before its first event.

    Attributes:
        definition: The study as it was begun or last extended.
        study: Its name, empty before it started. study_id: its id. spec: the whole of it, as the journal has it. versions: of
            the packages that it began with.
        status: new, running, paused (for the reason `pause`), interrupted, or the status of `study_finished`.
        trials: All that began, by index. running: those that have not ended. ended: those that have, in the order in which they
            did. One whose machinery failed has not ended any more once the study is resumed, nor one that lacks splits since
            the study got more.
        pruned: The verdict on each trial that has one.
        compared: What pruners compare.
        latest: Time of the latest event. hours: What the runs have held, by device (GPU, or CPU if a worker has no GPU);
            gpu_hours, cpu_hours: the same of each device, whatever the other.
        lowest, highest: Of all evaluations, in percent; None before the first.
        steps_done: Steps that are behind the study, see `num_steps`.
        class_names: The classes of the data sets that were trained on, in their order; a dict is a set that keeps it.
        troubles: Of runs and trials that failed, were pruned or continued after a failure, in the order they became known.
    """

    def __init__(self, parse: Callable[[Mapping[str, Any]], D] | None = None, definition: D | None = None) -> None:
        self._parse = parse
        self._definition: D | None = None
        self.study = self.study_id = ""
        self.spec: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.status, self.pause = "new", ""
        self.trials: dict[int, TrialStanding] = {}
        self.running: dict[int, TrialStanding] = {}
        self.ended: dict[int, TrialStanding] = {}
        self.pruned: dict[int, TrialPruned] = {}
        self.compared = Compared()
        self.latest = 0.0
        self.hours: dict[str, float] = {}
        self.gpu_hours = self.cpu_hours = 0.0
        self.lowest: float | None = None
        self.highest: float | None = None
        self.steps_done = self.runs_ended = 0
        self.class_names: dict[str, None] = {}
        self.troubles: dict[tuple[int, int | str | None], Trouble] = {}
        self._endings: Counter[str] = Counter()
        self._ranking: list[tuple[float, int]] = []  # (-score, trial), best first; of equal ones the first
        self._runs_spared = 0
        self._planned: list[int] = []
        self._since: tuple[float, int] | None = None  # wall time and `steps_done` at the first run of this start
        self._wall, self.times, self.sizes = WallTime(), RunTimes(), RunSizes()
        if definition is not None:
            self._define(definition)

    @property
    def definition(self) -> D:
        assert self._definition is not None, "this standing knows no definition"
        return self._definition

    def fold(self, events: Iterable[Event]) -> Standing[D]:
        """Take events into account, in their order; returns itself."""
        for event in events:
            self.add(event)
        return self

    def add(self, event: Event) -> None:
        """Take the next event into account."""
        if isinstance(event, EventLost):
            return
        self.latest = event.time
        self._wall.event(event)
        self._spend(event)
        match event:
            case StudyStarted():
                self.study, self.study_id, self.spec, self.status = event.study, event.study_id, event.spec, "running"
                self.versions = event.versions
                if self._parse is not None:
                    self._define(self._parse(event.spec))
            case StudyExtended():
                self.spec = event.spec
                self._extend(event)
            case StudyResumed():
                self.status, self.pause, self._since = "running", "", None
                for trial in [trial for trial in self.ended.values() if trial.status == "failed"]:
                    self._reopen(trial)
            case StudyPaused():
                self.status, self.pause = "paused", event.reason
            case StudyContinued():
                self.status, self.pause = "running", ""
            case StudyInterrupted():
                self.status, self.pause = "interrupted", ""
            case StudyFinished():
                self.status = event.status
            case TrialStarted():
                self._begin(event)
            case TrialPruned():
                self.pruned[event.trial] = event
            case TrialRetried():
                self._retried(event.trial, event.reason)
            case TrialFinished():
                self._end(self.trials[event.trial], event)
            case RunEvent():
                self._run(event)

    # ------------------------------------------------------------------------------------------------------------- the fold

    def _define(self, definition: D) -> None:
        before, self._definition = self._definition, definition
        self._planned = list(definition.planned_iterations())
        for trial in self.trials.values():
            self._planned[trial.index] = trial.iterations
        device = self._device
        self.hours.setdefault(device, 0.0)
        if before is not None:
            for other in [other for other, hours in self.hours.items() if other != device and not hours]:
                del self.hours[other]

    @property
    def _device(self) -> str:
        return "GPU" if self.definition.resources.gpus_per_worker else "CPU"

    def _spend(self, event: Event) -> None:
        seconds = self.times.event(event)
        workers = self.sizes.event(event, 1 if self._definition is None else self._definition.resources.fewest)
        if self._definition is None or not seconds:
            return
        resources, hours = self._definition.resources, seconds * workers / 3600
        self.gpu_hours += hours * resources.gpus_per_worker
        self.cpu_hours += hours * resources.cpus_per_worker
        self.hours[self._device] += hours * (resources.gpus_per_worker or resources.cpus_per_worker)

    def _begin(self, event: TrialStarted) -> None:
        iterations = event.config.get("train.iterations", 0)
        self.trials[event.trial] = self.running[event.trial] = TrialStanding(event, iterations)
        if event.trial < len(self._planned):
            self._planned[event.trial] = iterations

    def _extend(self, event: StudyExtended) -> None:
        """The study was given more trials or splits, or another objective."""
        for trial in [each for each in self.ended.values() if each.status != "pruned" and each.num_splits < event.num_splits]:
            self._reopen(trial)
        if self._parse is None:
            return
        self._define(self._parse(event.spec))
        self._runs_spared = sum(map(self._spared, self.ended.values()))
        self._ranking.clear()
        score = self.definition.objective.score
        for trial in self.trials.values():
            self._count(trial)
            if trial.index in self.ended:
                self._rank(trial)
            if trial.index in self.compared.scores:
                self.compared.scores[trial.index] = score(trial.mean, trial.std) or 0.0

    def _rank(self, trial: TrialStanding) -> None:
        finished = trial.status == "finished" and self._definition is not None
        trial.score = self.definition.objective.score(trial.mean, trial.std) if finished else None
        if trial.score is not None:
            bisect.insort(self._ranking, (-trial.score, trial.index))

    def _end(self, trial: TrialStanding, event: TrialFinished) -> None:
        if trial.index in self.ended:
            self._reopen(trial)
        trial.status, trial.reason = event.status, event.reason
        trial.mean, trial.std, trial.n, trial.num_splits = event.mean, event.std, event.n, event.num_splits
        for run in trial.runs.values():
            if run.status == "running" and event.status in ("failed", "pruned"):
                run.status, run.reason = event.status, event.reason
                self.runs_ended += 1
        self._rank(trial)
        del self.running[trial.index]
        self.ended[trial.index] = trial
        self._endings[trial.status] += 1
        self._runs_spared += self._spared(trial)
        self._count(trial)
        if trial.source == "search" and trial.status == "finished" and self._definition is not None:
            compared = self.compared
            if trial.index not in compared.scores:
                bisect.insort(compared.by_mean, (-(trial.mean or 0.0), trial.index))
            compared.scores[trial.index] = trial.score or 0.0
        # A run that failed has reported it itself.
        if trial.status in ("failed", "pruned") and not any(
            run.status == "failed" and run.reason == trial.reason for run in trial.runs.values()
        ):
            self.troubles[trial.index, None] = Trouble(trial.index, None, None, trial.status, trial.reason)

    def _reopen(self, trial: TrialStanding) -> None:
        """An ended trial continues: its machinery had failed, or the study was given more to do."""
        if trial.score is not None:
            self._ranking.remove((-trial.score, trial.index))
        self._endings[trial.status] -= 1
        self._runs_spared -= self._spared(trial)
        del self.ended[trial.index]
        self.running[trial.index] = trial
        self.troubles.pop((trial.index, None), None)
        cause = trial.reason
        trial.status, trial.reason, trial.score = "running", "", None
        for split, run in trial.runs.items():
            # One that failed for a reason of its own, such as a loss that became NaN, is not trained again.
            if run.status == "failed" and run.reason == cause:
                run.status, run.reason = "running", ""
                self.runs_ended -= 1
                self.troubles.pop((trial.index, split), None)
        self._count(trial)

    def _run(self, event: RunEvent) -> None:
        trial = self.trials[event.trial]
        if isinstance(event, RunRewound | RunResized):
            return self._retried(trial.index, event.reason)
        if isinstance(event, RunStarted):
            run = trial.runs.setdefault(event.split, RunStanding(event.seed, event.split_hash, workers=event.workers))
            self.class_names |= dict.fromkeys(event.class_names)
            if self._since is None:
                self._since = self._wall.seconds, self.steps_done
        else:
            run = trial.runs[event.split]
        if trial.status == "pruned" and not isinstance(event, RunStarted):
            return None  # reported late, by a run that had not heard of its end yet
        ended_before = run.status != "running"
        if isinstance(event, StepEvent):
            run.step = max(run.step, event.step)
        late = run.status == "finished"  # what it reports once more was lost with a damaged journal
        if isinstance(event, RunStarted | RunLogged | RunEvaluated) and trial.status == "running" and not late:
            run.status, run.reason = "running", ""
        match event:
            case RunEvaluated():
                if CURVE_METRIC in event.metrics:
                    self._evaluated(trial, run, event.split, event.step, event.metrics[CURVE_METRIC])
            case RunFinished():
                run.status, run.reason = "finished", ""
                run.last, run.best, run.best_step, run.seconds = event.last, event.best, event.best_step, event.seconds
                self._scored(trial, run, event)
            case RunFailed():
                run.status, run.reason = "failed", event.reason
            case RunPruned():
                run.status, run.reason = "pruned", event.reason
        self.troubles.pop((trial.index, event.split), None)
        if run.status == "failed":
            self.troubles[trial.index, event.split] = Trouble(trial.index, event.split, run.step, "failed", run.reason)
        self.runs_ended += (run.status != "running") - ended_before
        self._count(trial)
        return None

    def _evaluated(self, trial: TrialStanding, run: RunStanding, split: int, step: int, score: float) -> None:
        if run.status != "finished":
            run.score = score
        trial.curves.setdefault(split, {})[step] = score
        trial.curve_split = split
        if trial.source == "search":
            self.compared.curves[trial.index] = trial.curves
        self.lowest = score if self.lowest is None else min(self.lowest, score)
        self.highest = score if self.highest is None else max(self.highest, score)

    def _scored(self, trial: TrialStanding, run: RunStanding, event: RunFinished) -> None:
        """A finished run has the value that the objective asks for."""
        if self._definition is None:
            return
        objective = self._definition.objective
        run.score = (event.last if objective.at == "last" else event.best).get(objective.metric)
        if trial.source == "search" and run.score is not None:
            self.compared.values.setdefault(trial.index, {})[event.split] = run.score

    def _retried(self, index: int, reason: str) -> None:
        trial = self.trials[index]
        trial.retries += 1
        times = f"{trial.retries} times, lastly: " if trial.retries > 1 else ""
        self.troubles.pop((index, "retries"), None)  # the latest comes last
        self.troubles[index, "retries"] = Trouble(index, None, None, "retried", times + reason)

    def _spared(self, trial: TrialStanding) -> int:
        """The splits that an ended trial never began."""
        return 0 if self._definition is None else max(0, len(self._definition.splits) - len(trial.runs))

    def _count(self, trial: TrialStanding) -> None:
        """Keep `steps_done` in step with the trial."""
        if trial.status == "running":
            ended_early = ("failed", "pruned")
            done = sum(trial.iterations if run.status in ended_early else run.step for run in trial.runs.values())
        else:
            done = trial.iterations * (0 if self._definition is None else len(self._definition.splits))
        self.steps_done += done - trial.done
        trial.done = done

    # ------------------------------------------------------------------------------------------------------- what is asked

    @property
    def wall_seconds(self) -> float:
        """How long its drivers have been at work, see `WallTime`."""
        return self._wall.seconds

    def records_of(self, trial: int) -> list[Record]:
        """One record per run of a trial, by split."""
        if trial not in self.trials:
            return []
        of, runs = self.trials[trial], self.trials[trial].runs
        return [
            Record(
                study=self.study, trial=trial, split=split, row=of.row, source=of.source, params=of.params, status=run.status,
                seed=run.seed, split_hash=run.split_hash, step=run.step, last=run.last, best=run.best, best_step=run.best_step,
                seconds=run.seconds, reason=run.reason,
            )
            for split, run in sorted(runs.items())
        ]  # fmt: skip

    @property
    def records(self) -> list[Record]:
        """One record per run, ordered by trial and split."""
        return [record for trial in sorted(self.trials) for record in self.records_of(trial)]

    @property
    def num_trials(self) -> int:
        """Trials of the whole study."""
        return self.definition.num_trials

    @property
    def trials_ended(self) -> int:
        """Trials that ended, however they did."""
        return len(self.ended)

    def ended_as(self, status: str) -> int:
        """How many trials ended as finished, partial, failed or pruned."""
        return self._endings[status]

    @property
    def num_runs(self) -> int:
        """Runs of the whole study; the splits that a pruned or failed trial never began are no longer among them."""
        return self.num_trials * len(self.definition.splits) - self._runs_spared

    @property
    def num_steps(self) -> int:
        """Steps of the whole study; of a trial still to be drawn, the number in the study's own setting.

        `steps_done` of them are behind us: those that a failed or pruned trial is spared count as done, so that the pace shows
        how much of what is left will be spared, too.
        """
        return sum(self._planned) * len(self.definition.splits)

    @property
    def best(self) -> TrialStanding | None:
        """The best of the trials that finished on all splits, by the study's objective; of equal ones the first."""
        return next(iter(self.best_trials(1)), None)

    def best_trials(self, count: int | None = None) -> list[TrialStanding]:
        """The first `count` of the ranking, or all of it, best first."""
        return [self.trials[index] for _, index in self._ranking[:count]]

    @property
    def best_drawn(self) -> TrialStanding | None:
        """The best among the trials of the search."""
        return next((trial for trial in self.best_trials() if trial.source == "search"), None)

    @property
    def front(self) -> list[TrialStanding]:
        """The finished trials that no other beats in both the mean and the std over splits, highest mean first."""
        finished = [trial for trial in self.ended.values() if trial.status == "finished" and trial.std is not None]
        finished.sort(key=lambda trial: (-(trial.mean or 0.0), trial.std, trial.index))
        front: list[TrialStanding] = []
        for trial in finished:
            assert trial.std is not None
            if not front or trial.std < (front[-1].std or 0.0):
                front.append(trial)
        return front

    def latest_ended(self, count: int) -> list[TrialStanding]:
        """The `count` trials that ended last, latest first."""
        return list(itertools.islice(reversed(self.ended.values()), count))

    def latest_troubles(self, count: int) -> list[Trouble]:
        """The `count` latest of `troubles`, latest first."""
        return list(itertools.islice(reversed(self.troubles.values()), count))

    def seconds_left(self, now: float) -> float | None:
        """Estimate from the pace since the first run of this start; None while there is no pace yet."""
        if self._since is None or self.status != "running":
            return None
        since, before = self._since
        done, taken = self.steps_done - before, self._wall.seconds + max(0.0, now - self._wall.latest) - since
        if done <= 0 or taken < 5:
            return None
        return (self.num_steps - self.steps_done) * taken / done


def records_from_events(events: Iterable[Event]) -> list[Record]:
    """Fold a journal into one record per run, ordered by trial and split."""
    return Standing[Any]().fold(events).records
