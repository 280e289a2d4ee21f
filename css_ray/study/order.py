"""What may follow what in a journal: an event is refused that the study, its trial or its run cannot have had."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from css_ray.events import (
    Event,
    EventError,
    EventLost,
    RunEvent,
    RunFinished,
    RunStarted,
    StepEvent,
    StudyExtended,
    StudyFinished,
    StudyResumed,
    StudyStarted,
    TrialEvent,
    TrialFinished,
    TrialPruned,
    TrialStarted,
)  # fmt: skip
from css_ray.records import mean_std
from css_ray.study.definition import Distribution, StudyDefinition, StudyError, parse


class WrongStudyError(EventError):
    """The study that an event holds is not one that this installation accepts."""


@dataclass(slots=True)
class _Trial:
    """iterations: of one run. runs: by split, how each that began has finished, None if it has not. end: how it ended."""

    iterations: int
    runs: dict[int, RunFinished | None] = field(default_factory=dict)
    end: TrialFinished | None = None


class Order:
    """Checks the events of one study, one after another.

    Attributes:
        definition: The study as it was begun or last extended; None before its first event.
        count: The number of events that were taken.
    """

    def __init__(self) -> None:
        self.definition: StudyDefinition | None = None
        self.count = 0
        self._known: set[object] = set()
        self._trials: dict[int, _Trial] = {}
        self._in_grid = 0

    def parsed(self, spec: Mapping[str, Any]) -> StudyDefinition:
        """The study that the latest event held, which had this `spec`; to fold events that were taken."""
        assert self.definition is not None, "no event was taken"
        return self.definition

    def take(self, event: Event) -> None:
        """Take the next event. Raises EventError if it cannot have followed those before; it is then not taken."""
        if self.definition is None and not isinstance(event, StudyStarted):
            raise EventError("the study has not started: its first event is study_started")
        if (identity := event.identity) is not None and identity in self._known:
            raise EventError(f"{event.kind} is there already")
        match event:
            case EventLost():
                pass
            case StudyStarted():
                self._define(self._study(event.spec))
                if self._definition.name != event.study:
                    self.definition = None
                    raise EventError(f"it is of the study {event.study!r:.80}, and its settings are of another")
            case StudyExtended():
                self._extend(event)
            case StudyResumed():
                for trial in self._trials.values():
                    if trial.end is not None and trial.end.status == "failed":
                        trial.end = None
            case StudyFinished():
                self._finish(event)
            case TrialStarted():
                self._begin(event)
            case RunEvent():
                self._run(event)
            case TrialPruned():
                self._begun_run(event.trial, event.split)
            case TrialFinished():
                self._end(event)
            case TrialEvent():
                self._begun(event.trial)
        self._known.add(identity)
        self.count += 1

    # -------------------------------------------------------------------------------------------------------- one kind each

    @property
    def _definition(self) -> StudyDefinition:
        assert self.definition is not None
        return self.definition

    def _define(self, definition: StudyDefinition) -> None:
        self.definition = definition
        self._in_grid = _in_grid(definition)

    @staticmethod
    def _study(spec: Mapping[str, Any]) -> StudyDefinition:
        try:
            return parse(spec)
        except StudyError as error:
            raise WrongStudyError("; ".join(map(str, error.problems))) from None

    def _extend(self, event: StudyExtended) -> None:
        before, in_grid, after = self._definition, self._in_grid, self._study(event.spec)
        if event.num_splits != len(after.splits):
            raise EventError(f"num_splits is {event.num_splits}, and its settings have {len(after.splits)} splits")
        kept = (
            after.name == before.name
            and after.splits[: len(before.splits)] == before.splits
            and after.num_trials >= before.num_trials
            and _in_grid(after) == in_grid
            and (after.search is None) == (before.search is None)
            and after.space.keys() == before.space.keys()
        )
        if not kept:
            raise EventError("its settings are not those of the study with more of it")
        self._define(after)
        for trial in self._trials.values():
            if trial.end is not None and trial.end.status != "pruned" and trial.end.num_splits < event.num_splits:
                trial.end = None

    def _finish(self, event: StudyFinished) -> None:
        if event.best_trial is not None:
            self._begun(event.best_trial)
        left = self._definition.num_trials - sum(trial.end is not None for trial in self._trials.values())
        if event.status == "finished" and left:
            raise EventError(f"the study has not finished: {left} of its {self._definition.num_trials} trials have not ended")

    def _begin(self, event: TrialStarted) -> None:
        definition = self._definition
        if event.trial >= definition.num_trials:
            raise EventError(f"trial {event.trial} is not one of the study's trials, 0 to {definition.num_trials - 1}")
        if (event.source == "grid") != (event.trial < self._in_grid):
            other = "grid" if event.trial < self._in_grid else "search"
            raise EventError(f"trial {event.trial} is one of the {other}, not of the {event.source}")
        iterations = event.config.get("train.iterations")
        if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
            raise EventError(f"train.iterations of trial {event.trial} must be a whole number >= 1, got {iterations!r:.80}")
        if event.source == "search":
            for path, distribution in definition.space.items():
                if path not in event.params or not _can_be(event.params[path], distribution):
                    raise EventError(f"{path} of trial {event.trial} must be drawn from search.space")
        self._trials[event.trial] = _Trial(iterations)

    def _end(self, event: TrialFinished) -> None:
        trial, definition = self._begun(event.trial), self._definition
        objective = definition.objective
        if event.num_splits != len(definition.splits):
            raise EventError(f"num_splits is {event.num_splits}, and the study has {len(definition.splits)}")
        for split, value in event.values.items():
            run = trial.runs.get(int(split)) if split.isdecimal() else None
            if run is None:
                raise EventError(f"trial {event.trial} has a value of split {split!r:.80}, which has not finished")
            if (run.last if objective.at == "last" else run.best).get(objective.metric) != value:
                raise EventError(f"the value of trial {event.trial} on split {split} is not what its run finished with")
        mean, std = mean_std(list(event.values.values()))
        if event.n != len(event.values) or not _close(event.mean, mean) or not _close(event.std, std):
            raise EventError(f"n, mean and std of trial {event.trial} are not those of its values")
        if event.status == "finished" and event.n != event.num_splits:
            raise EventError(f"trial {event.trial} has not finished: {event.n} of its {event.num_splits} splits have")
        trial.end = event

    def _run(self, event: RunEvent) -> None:
        if isinstance(event, RunStarted):
            if event.split not in self._definition.splits:
                known = ", ".join(map(str, self._definition.splits))
                raise EventError(f"split {event.split} is not one of the study's splits: {known}")
            self._begun(event.trial).runs.setdefault(event.split, None)
            return
        trial = self._begun_run(event.trial, event.split)
        if isinstance(event, StepEvent) and event.step > trial.iterations:
            raise EventError(f"step {event.step} of trial {event.trial} is beyond its last, {trial.iterations}")
        if isinstance(event, RunFinished):
            if (metric := self._definition.objective.metric) not in event.last or metric not in event.best:
                raise EventError(f"{metric!r} is missing in what trial {event.trial} finished split {event.split} with")
            trial.runs[event.split] = event

    def _begun(self, trial: int) -> _Trial:
        if trial not in self._trials:
            raise EventError(f"trial {trial} has not begun")
        return self._trials[trial]

    def _begun_run(self, trial: int, split: int) -> _Trial:
        of = self._begun(trial)
        if split not in of.runs:
            raise EventError(f"split {split} of trial {trial} has not begun")
        return of


def _in_grid(definition: StudyDefinition) -> int:
    return definition.num_trials - (definition.search.trials if definition.search else 0)


def _can_be(value: object, distribution: Distribution) -> bool:
    """Whether a search can have drawn a value. Not whether it lies in the range: what is tried first need not."""
    if distribution.kind == "choice":
        return value in distribution.values
    kinds = int if distribution.kind == "int" else int | float
    return isinstance(value, kinds) and not isinstance(value, bool)


def _close(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-6)
