"""The driver without Ray: trials take turns in the test's own process, and their runs are made up instead of trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from css_ray.audience import Audience
from css_ray.events import Event, RunEvaluated, RunEvent, RunFailed, RunFinished, RunStarted
from css_ray.study import driver as module
from css_ray.study.definition import StudyDefinition
from css_ray.study.driver import Driver, Outcome
from css_ray.study.inputs import prepare
from css_ray.study.job import Job, RunSpec


class Rayless:
    """In place of `css_ray.execution.runner.Runner`.

    score: of a run at its last step, in percent, which it climbs to in a straight line; one that is NaN fails halfway. What it
    raises as a RuntimeError is a fault of the machinery: it ends the trial.
    """

    score: Callable[[RunSpec], float] = staticmethod(lambda spec: 50.0)

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch, score: Callable[[RunSpec], float]) -> None:
        """Make `css_ray.Study` run its studies so, and leave MLflow out."""
        from css_ray import tracking
        from css_ray.execution import runner

        monkeypatch.setattr(runner, "Runner", cls)
        monkeypatch.setattr(tracking, "log_tables", lambda *arguments: None)
        monkeypatch.setattr(module, "Tracker", Told)
        monkeypatch.setattr(cls, "score", staticmethod(score))
        monkeypatch.setattr(Told, "events", [])

    def __init__(
        self, study: StudyDefinition, storage: str, *, address: str | None = None, observer: Audience | None = None
    ) -> None:
        self.driver = Driver(study, storage, observer)

    def run(self, *, resume: bool) -> Outcome:
        driver, interrupted = self.driver, False
        with driver.driving():
            if not resume:
                driver.check_new()
            try:
                driver.check_disk()
                driver.begin_or_resume()
                if driver.has_work:
                    self._work()
                driver.finish()
            except KeyboardInterrupt:
                interrupted = True
                driver.interrupt()
        return driver.outcome(interrupted=interrupted)

    def _work(self) -> None:
        """One event of each trial in turn, `concurrent_trials` of them side by side, until the driver has no more."""
        driver, more = self.driver, True
        slots: dict[int, Iterator[RunEvent]] = {}
        while slots or more:
            while more and len(slots) < driver.study.resources.concurrent_trials:
                trial = driver.next_trial(set(slots))
                if trial is None:
                    break
                if isinstance(trial, str):
                    more = False
                else:
                    slots[trial.index] = self._train(driver.begin(trial))
            assert slots or not more, "the driver waits for trials, and none runs"
            for trial_, events in reversed(list(slots.items())):  # so they do not end in the order in which they began
                error = None
                try:
                    judgement = driver.hear(next(events))
                    if judgement is None or not judgement.pruned:
                        continue
                except StopIteration:
                    pass
                except RuntimeError as fault:
                    error = str(fault)
                del slots[trial_]
                driver.end(trial_, error)

    def _train(self, job: Job) -> Iterator[RunEvent]:
        for spec in job.runs:
            run: dict[str, Any] = {"trial": spec.trial, "split": spec.split}
            train = spec.settings["train"]
            steps, every = train["iterations"], train["evaluate_every"]
            yield RunStarted.now(**run, **prepare(spec).started(), workers=job.sizes[0])
            score = self.score(spec)
            for step in range(every, steps + 1, every):
                if math.isnan(score):
                    yield RunFailed.now(**run, step=step, reason=f"the loss became nan at step {step}")
                    break
                yield RunEvaluated.now(**run, step=step, metrics={"val/miou": score * step / steps})
            else:
                last = {"val/miou": score}
                yield RunFinished.now(**run, step=steps, last=last, best=last, best_step=steps, seconds=1.0)


class Told:
    """In place of a Tracker: what MLflow was told, by one driver after another."""

    events: list[list[Event]] = []  # noqa: RUF012

    def __init__(self, uri: str) -> None:
        self.events.append([])

    def record(self, event: Event) -> None:
        self.events[-1].append(event)

    def close(self, timeout: float) -> int:
        return 0


class Listening(Audience):
    """Keeps what it is told; presses Ctrl-C at an event. said: of the studies; heard: the events of all of them."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.said: list[str] = []
        self.heard: list[Event] = []
        self.warnings: list[str] = []

    def study_begins(self, study: Any) -> None:
        self.said.append(f"{study.name} begins")

    def event(self, event: Event) -> None:
        self.heard.append(event)
        if len(self.heard) == self.interrupt_at:
            raise KeyboardInterrupt

    def study_ended(self, study: Any, outcome: Outcome) -> None:
        self.said.append(f"{study.name} {outcome.status}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)
