"""How far a study is, folded from its events: what the live view and `css-ray study status` show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from css_ray.records import Event, mean_std
from css_ray.study.schema import Study


@dataclass(slots=True)
class RunProgress:
    """One run: steps done, the latest evaluation in percent, and how it ended (running, finished, failed)."""

    step: int = 0
    score: float | None = None
    status: str = "running"
    reason: str = ""


@dataclass(slots=True)
class TrialProgress:
    """One trial: its row, what it varies, its runs by split, and how it ended (running, finished, partial, failed)."""

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


class Progress:
    """Folds events, one by one. Times are the events' own."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._grid = study.grid_trials()
        self.trials: dict[int, TrialProgress] = {}
        self.status = "new"
        self._since: tuple[float, int] | None = None
        self._latest = 0.0

    def event(self, event: Event) -> None:
        """Take one event into account."""
        kind = event["event"]
        self._latest = max(self._latest, event["time"])
        if kind in ("study_started", "study_resumed"):
            self.status = "running"
            self._since = None
            if kind == "study_resumed":
                for trial in self.trials.values():
                    if trial.status == "failed":
                        trial.status, trial.reason = "running", ""
                        for run in trial.runs.values():
                            if run.status == "failed":
                                run.status, run.reason = "running", ""
        elif kind == "study_interrupted":
            self.status = "interrupted"
        elif kind == "study_finished":
            self.status = event["status"]
        elif kind == "trial_started":
            iterations = event["config"]["train.iterations"]
            self.trials[event["trial"]] = TrialProgress(
                event["trial"], event["row"], event["source"], event["params"], iterations
            )
        elif kind == "trial_finished":
            trial = self.trials[event["trial"]]
            trial.status, trial.reason = event["status"], event["reason"]
            trial.mean, trial.std, trial.n = event["mean"], event["std"], event["n"]
        else:
            self._run(kind, event)

    def _run(self, kind: str, event: Event) -> None:
        run = self.trials[event["trial"]].runs.setdefault(event["split"], RunProgress())
        objective = self.study.objective
        run.step = max(run.step, event.get("step", 0))
        if kind in ("run_logged", "run_evaluated"):
            run.status, run.reason = "running", ""
        if kind == "run_started" and self._since is None:
            self._since = event["time"], self.steps_done
        elif kind == "run_evaluated":
            run.score = event["metrics"][objective.metric]
        elif kind == "run_finished":
            run.status, run.score, run.reason = "finished", event[objective.at][objective.metric], ""
        elif kind == "run_failed":
            run.status, run.reason = "failed", event["reason"]

    @property
    def num_trials(self) -> int:
        return self.study.num_trials

    @property
    def trials_ended(self) -> int:
        return sum(trial.status != "running" for trial in self.trials.values())

    @property
    def runs_ended(self) -> int:
        return sum(run.status != "running" for trial in self.trials.values() for run in trial.runs.values())

    @property
    def num_runs(self) -> int:
        return self.num_trials * len(self.study.splits)

    @property
    def steps_done(self) -> int:
        """Steps behind us; a run that failed will take no more, so it counts as done."""
        return sum(
            trial.iterations if run.status == "failed" else run.step
            for trial in self.trials.values()
            for run in trial.runs.values()
        )

    @property
    def num_steps(self) -> int:
        """Steps of the whole study; of a trial still to be drawn, as many as the study's own setting."""
        planned = [self.study.train.iterations] * self.num_trials
        for spec in self._grid:
            planned[spec.index] = spec.settings["train"]["iterations"]
        for trial in self.trials.values():
            planned[trial.index] = trial.iterations
        return sum(planned) * len(self.study.splits)

    @property
    def best(self) -> TrialProgress | None:
        """The finished trial with the best mean over all its splits."""
        return self._best(list(self.trials.values()))

    @property
    def best_drawn(self) -> TrialProgress | None:
        """The same among the trials of the search."""
        return self._best([trial for trial in self.trials.values() if trial.source == "search"])

    def _best(self, trials: list[TrialProgress]) -> TrialProgress | None:
        finished = [trial for trial in trials if trial.status == "finished" and trial.mean is not None]
        return max(finished, key=lambda trial: trial.mean or 0.0, default=None)

    def seconds_left(self, now: float) -> float | None:
        """Estimate from the pace since the first run of this start; None while there is no pace yet."""
        if self._since is None:
            return None
        since, before = self._since
        done = self.steps_done - before
        if done <= 0 or now - since < 5:
            return None
        return (self.num_steps - self.steps_done) * (now - since) / done

    def partial(self, trial: TrialProgress) -> tuple[float | None, float | None]:
        """Mean and std over the splits of `trial` that are finished so far."""
        return mean_std([run.score for run in trial.runs.values() if run.status == "finished" and run.score is not None])
