"""How far a study is, folded from its events: what the live view and `css-ray study status` show.

An event costs the same however many came before it, and what a view asks for is at hand without a walk over all trials.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from css_ray.records import Event, RunSizes, RunTimes, WallTime, mean_std
from css_ray.study.definition import StudyDefinition, parse


@dataclass(slots=True)
class RunProgress:
    """One run: steps done, the latest evaluation in percent, and how it ended (running, finished, failed, pruned)."""

    step: int = 0
    score: float | None = None
    status: str = "running"
    reason: str = ""


@dataclass(slots=True)
class TrialProgress:
    """One trial: its row, what it varies, its runs by split, and how it ended (running, finished, partial, failed, pruned).

    curve: the evaluations, in percent, of the split that was evaluated last, `curve_split`. score: what the trial is ranked by,
    None unless it finished on all its splits. done: its steps behind us, see `Progress.steps_done`.
    retries: how often it went on after a failure.
    """

    index: int
    row: str
    source: str
    params: dict[str, Any]
    iterations: int
    runs: dict[int, RunProgress] = field(default_factory=dict)
    status: str = "running"
    reason: str = ""
    mean: float | None = None
    std: float | None = None
    n: int = 0
    num_splits: int = 0
    score: float | None = None
    curve: list[float] = field(default_factory=list)
    curve_split: int | None = None
    done: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a run or a whole trial (`split` None) failed, was pruned, or lost some of its steps and went on (status retried).

    step: None where the reason has it.
    """

    trial: int
    split: int | None
    step: int | None
    status: str
    reason: str


class Progress:
    """Folds events, one by one; kinds it does not know are passed over. Times are the events' own.

    trials: all that began, by index; running: those of them that have not ended. status: new, running, paused (for the reason
    `pause`), interrupted, or as `study_finished` says. latest: time of the latest event. hours: what its runs have held, as
    hours of GPU (of CPU, where a worker has none). lowest, highest: of all evaluations, in percent; None before the first.
    troubles: of runs and trials that failed, were pruned or went on after a failure, in the order they became known.
    """

    def __init__(self, study: StudyDefinition) -> None:
        self.study = study
        self.trials: dict[int, TrialProgress] = {}
        self.running: dict[int, TrialProgress] = {}
        self.status = "new"
        self.pause = ""
        self.latest = 0.0
        self.hours: dict[str, float] = {self._device[0]: 0.0}
        self.lowest: float | None = None
        self.highest: float | None = None
        self.steps_done = 0
        self.runs_ended = 0
        self.troubles: dict[tuple[int, int | str | None], Trouble] = {}
        self._ended: dict[int, TrialProgress] = {}
        self._endings: Counter[str] = Counter()
        self._ranking: list[tuple[float, int]] = []  # (-score, trial), best first
        self._runs_spared = 0
        self._planned = dict.fromkeys(range(study.num_trials), study.train.iterations)
        self._planned |= {trial.index: trial.settings["train"]["iterations"] for trial in study.grid_trials()}
        self._steps_a_split = sum(self._planned.values())
        self._since: tuple[float, int] | None = None  # wall time and `steps_done` at the first run of this start
        self._times, self._sizes = RunTimes(), RunSizes()
        self._wall = WallTime()

    @property
    def _device(self) -> tuple[str, float]:
        """What a worker holds: GPUs or CPUs, and how many."""
        resources = self.study.resources
        return ("GPU", resources.gpus_per_worker) if resources.gpus_per_worker else ("CPU", resources.cpus_per_worker)

    def event(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["event"]
        self.latest = event["time"]
        self._wall.event(event)
        if seconds := self._times.event(event) * self._sizes.event(event, self.study.resources.fewest):
            kind_of_device, count = self._device
            self.hours[kind_of_device] = self.hours.get(kind_of_device, 0.0) + seconds * count / 3600
        if kind in ("study_started", "study_resumed"):
            self.status = "running"
            self._since = None
            if kind == "study_resumed":
                for trial in [trial for trial in self._ended.values() if trial.status == "failed"]:
                    self._reopen(trial)
        elif kind == "study_extended":
            self._extend(event)
        elif kind in ("study_interrupted", "study_paused", "study_continued"):
            self.status = {"study_continued": "running"}.get(kind, kind.removeprefix("study_"))
            self.pause = event["reason"] if kind == "study_paused" else ""
        elif kind == "study_finished":
            self.status = event["status"]
        elif kind == "trial_started":
            self._begin(event)
        elif kind == "trial_retried":
            self._retried(event["trial"], event["reason"])
        elif kind == "trial_finished":
            self._end(self.trials[event["trial"]], event)
        elif kind.startswith("run_"):
            self._run(kind, event)

    def _begin(self, event: Event) -> None:
        index, iterations = event["trial"], event["config"]["train.iterations"]
        trial = TrialProgress(index, event["row"], event["source"], event["params"], iterations)
        self.trials[index] = self.running[index] = trial
        self._steps_a_split += iterations - self._planned.get(index, 0)
        self._planned[index] = iterations

    def _extend(self, event: Event) -> None:
        """The study was given more trials or splits, or another objective."""
        lacking = [each for each in self._ended.values() if each.status != "pruned" and each.num_splits < event["num_splits"]]
        for trial in lacking:
            self._reopen(trial)
        self.study = parse(event["spec"], f"the journal of {self.study.name}")
        for index in range(len(self._planned), self.study.num_trials):
            self._planned[index] = self.study.train.iterations
        self._steps_a_split = sum(self._planned.values())
        self._runs_spared = sum(map(self._spared, self._ended.values()))
        self._ranking.clear()
        for trial in self.trials.values():
            self._count(trial)
            if trial.index in self._ended:
                self._rank(trial)

    def _rank(self, trial: TrialProgress) -> None:
        trial.score = self.study.objective.score(trial.mean, trial.std) if trial.status == "finished" else None
        if trial.score is not None:
            bisect.insort(self._ranking, (-trial.score, trial.index))

    def _end(self, trial: TrialProgress, event: Event) -> None:
        if trial.index in self._ended:
            self._reopen(trial)
        trial.status, trial.reason = event["status"], event["reason"]
        trial.mean, trial.std, trial.n, trial.num_splits = event["mean"], event["std"], event["n"], event["num_splits"]
        self._rank(trial)
        del self.running[trial.index]
        self._ended[trial.index] = trial
        self._endings[trial.status] += 1
        self._runs_spared += self._spared(trial)
        self._count(trial)
        # A run that failed has said it itself.
        if trial.status in ("failed", "pruned") and not any(
            run.status == "failed" and run.reason == trial.reason for run in trial.runs.values()
        ):
            self.troubles[trial.index, None] = Trouble(trial.index, None, None, trial.status, trial.reason)

    def _reopen(self, trial: TrialProgress) -> None:
        """An ended trial goes on: its machinery had failed, or the study was given more to do."""
        if trial.score is not None:
            self._ranking.remove((-trial.score, trial.index))
        self._endings[trial.status] -= 1
        self._runs_spared -= self._spared(trial)
        del self._ended[trial.index]
        self.running[trial.index] = trial
        self.troubles.pop((trial.index, None), None)
        trial.status, trial.reason, trial.score = "running", "", None
        for split, run in trial.runs.items():
            if run.status in ("failed", "pruned"):
                run.status, run.reason = "running", ""
                self.runs_ended -= 1
                self.troubles.pop((trial.index, split), None)
        self._count(trial)

    def _run(self, kind: str, event: Event) -> None:
        trial, split = self.trials[event["trial"]], event["split"]
        if kind in ("run_rewound", "run_resized"):
            return self._retried(trial.index, event["reason"])
        if trial.status == "pruned" and kind != "run_started":
            return  # told late, by a run that had not heard of its end yet
        if trial.index in self._ended and kind not in ("run_failed", "run_pruned"):
            self._reopen(trial)
        run = trial.runs.setdefault(split, RunProgress())
        ended_before = run.status != "running"
        objective = self.study.objective
        run.step = max(run.step, event.get("step") or 0)
        if kind in ("run_started", "run_logged", "run_evaluated"):
            run.status, run.reason = "running", ""
        if kind == "run_started" and self._since is None:
            self._since = self._wall.seconds, self.steps_done
        elif kind == "run_evaluated":
            run.score = event["metrics"][objective.metric]
            self._evaluated(trial, split, event["metrics"][objective.metric])
        elif kind == "run_finished":
            run.status, run.score, run.reason = "finished", event[objective.at][objective.metric], ""
        elif kind in ("run_failed", "run_pruned"):
            run.status, run.reason = kind.removeprefix("run_"), event["reason"]
        self.troubles.pop((trial.index, split), None)
        if run.status == "failed":
            self.troubles[trial.index, split] = Trouble(trial.index, split, run.step, "failed", run.reason)
        self.runs_ended += (run.status != "running") - ended_before
        self._count(trial)

    def _retried(self, index: int, reason: str) -> None:
        trial = self.trials[index]
        trial.retries += 1
        times = f"{trial.retries} times, lastly: " if trial.retries > 1 else ""
        self.troubles.pop((index, "retries"), None)  # the latest comes last
        self.troubles[index, "retries"] = Trouble(index, None, None, "retried", times + reason)

    def _evaluated(self, trial: TrialProgress, split: int, score: float) -> None:
        if trial.curve_split != split:
            trial.curve, trial.curve_split = [], split
        trial.curve.append(score)
        self.lowest = score if self.lowest is None else min(self.lowest, score)
        self.highest = score if self.highest is None else max(self.highest, score)

    def _spared(self, trial: TrialProgress) -> int:
        """The splits that an ended trial never began."""
        return max(0, len(self.study.splits) - len(trial.runs))

    def _count(self, trial: TrialProgress) -> None:
        """Bring `steps_done` level with the trial."""
        if trial.status == "running":
            ended_early = ("failed", "pruned")
            done = sum(trial.iterations if run.status in ended_early else run.step for run in trial.runs.values())
        else:
            done = trial.iterations * len(self.study.splits)
        self.steps_done += done - trial.done
        trial.done = done

    @property
    def num_trials(self) -> int:
        """Trials of the whole study."""
        return len(self._planned)

    @property
    def trials_ended(self) -> int:
        """Trials that ended, however they did."""
        return len(self._ended)

    def ended_as(self, status: str) -> int:
        """How many trials ended as finished, partial, failed or pruned."""
        return self._endings[status]

    @property
    def num_runs(self) -> int:
        """Runs of the whole study; the splits that a pruned or failed trial never began are no longer among them."""
        return self.num_trials * len(self.study.splits) - self._runs_spared

    @property
    def num_steps(self) -> int:
        """Steps of the whole study; of a trial still to be drawn, as many as the study's own setting.

        `steps_done` of them are behind us: those that a failed or pruned trial is spared count as done, so that the pace says
        how much of what is left will be spared, too.
        """
        return self._steps_a_split * len(self.study.splits)

    @property
    def best(self) -> TrialProgress | None:
        """The incumbent: of the trials that finished on all splits, the best by the study's objective."""
        return next(iter(self.best_trials(1)), None)

    @property
    def front(self) -> list[TrialProgress]:
        """The finished trials that no other beats in both the mean and the std over splits, highest mean first."""
        finished = [trial for trial in self._ended.values() if trial.status == "finished" and trial.std is not None]
        finished.sort(key=lambda trial: (-(trial.mean or 0.0), trial.std, trial.index))
        front: list[TrialProgress] = []
        for trial in finished:
            assert trial.std is not None
            if not front or trial.std < (front[-1].std or 0.0):
                front.append(trial)
        return front

    def best_trials(self, count: int) -> list[TrialProgress]:
        """The first `count` of the ranking, best first."""
        return [self.trials[index] for _, index in self._ranking[:count]]

    @property
    def best_drawn(self) -> TrialProgress | None:
        """The best among the trials of the search."""
        ranked = (self.trials[index] for _, index in self._ranking)
        return next((trial for trial in ranked if trial.source == "search"), None)

    def latest_ended(self, count: int) -> list[TrialProgress]:
        """The `count` trials that ended last, latest first."""
        return list(itertools.islice(reversed(self._ended.values()), count))

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

    def partial(self, trial: TrialProgress) -> tuple[float | None, float | None]:
        """Mean and std over the splits of `trial` that are finished so far."""
        return mean_std([run.score for run in trial.runs.values() if run.status == "finished" and run.score is not None])


def fold(study: StudyDefinition, events: Iterable[Event]) -> Progress:
    """The progress that `events` of `study` add up to."""
    progress = Progress(study)
    for event in events:
        progress.event(event)
    return progress
