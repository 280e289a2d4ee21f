"""The events of a journal: one frozen type per kind, from and to JSON. The only place that knows their names and fields.

Every event has a `time`: unix seconds, set where it happened, never changed by a replay. In a journal it also has `worked`: the
seconds that the study's drivers had been at work when it was written, by a clock that neither jumps nor runs while the machine
sleeps; journals of earlier versions lack it. Trials, splits and steps are counted from 0; `step` is the number of optimizer
steps done. Metrics are in percent or in the unit of their name, and finite: those that are not are left out where they are
made.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

Count = Annotated[int, (0, 2**63 - 1)]
"""How many, or which one, counted from 0."""

Workers = Annotated[int, (1, 2**63 - 1)]
"""How many ranks train a run."""

Seconds = Annotated[float, (0, 253_402_300_799)]
"""Of a clock, up to the end of the year 9999, or of a duration."""


class EventError(ValueError):
    """What was read is not an event; the message explains why."""


class NewerEventError(EventError):
    """What was read is an event of a newer version of css-ray, of a kind or with a field that this one does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a study."""

    kind: ClassVar[str]
    time: Seconds
    worked: Seconds | None = None

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """What is the same if an event is reported again, as a resumed run does; None for events that may repeat."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of the journal's lines. A field that has its default is left out."""
        plain: dict[str, Any] = {"event": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                plain[field.name] = value
        return plain

    @classmethod
    def now(cls, **fields: Any) -> Self:
        """An event of this type that happens here and now."""
        return cls(time=round(time.time(), 3), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvent(Event):
    """Something that happened to a trial."""

    trial: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent(TrialEvent):
    """Something that happened to a run: a trial on one split."""

    split: Count

    @property
    def identity(self) -> tuple[Any, ...] | None:
        return self.kind, self.trial, self.split, getattr(self, "step", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(RunEvent):
    """Something that happened to a run at a step."""

    step: Count


# ------------------------------------------------------------------------------------------------------------------ the study


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStarted(Event):
    """The study began. spec: the whole resolved study; versions: of the packages that it began with."""

    kind: ClassVar[str] = "study_started"
    study: str
    study_id: str
    spec: dict[str, Any]
    versions: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...] | None:
        return self.kind, None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyExtended(Event):
    """The study was given more to do. spec: the whole resolved study from now on."""

    kind: ClassVar[str] = "study_extended"
    spec: dict[str, Any]
    num_splits: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPaused(Event):
    """The disk is nearly full: no trial starts, and those that run wait at their next checkpoint."""

    kind: ClassVar[str] = "study_paused"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyContinued(Event):
    """There is room on the disk again."""

    kind: ClassVar[str] = "study_continued"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyInterrupted(Event):
    """The driver was asked to stop."""

    kind: ClassVar[str] = "study_interrupted"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResumed(Event):
    """Another driver took over."""

    kind: ClassVar[str] = "study_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFinished(Event):
    """Nothing is left to do, or no more will be done. best_trial: the first of the ranking, None if it is empty."""

    kind: ClassVar[str] = "study_finished"
    status: Literal["finished", "failed", "budget"]
    best_trial: Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLost(Event):
    """In place of an event that was given up when the journal was repaired; its time is that of the one before. reason: why."""

    kind: ClassVar[str] = "event_lost"
    reason: str


# ----------------------------------------------------------------------------------------------------------------- the trials


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted(TrialEvent):
    """A trial began. params: all that the study varies, flat (`method.temperature`); config: all settings, flat."""

    kind: ClassVar[str] = "trial_started"
    row: str
    source: Literal["grid", "search"]
    params: dict[str, Any]
    config: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...] | None:
        return self.kind, self.trial


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPruned(TrialEvent):
    """The verdict on a trial, given when the run on `split` had reached `step`; the trial ends as soon as it hears of it."""

    kind: ClassVar[str] = "trial_pruned"
    split: Count
    step: Count
    reason: str

    @property
    def identity(self) -> tuple[Any, ...] | None:
        return self.kind, self.trial


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRetried(TrialEvent):
    """The workers or the process of a trial failed; it continues from its last checkpoint."""

    kind: ClassVar[str] = "trial_retried"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished(TrialEvent):
    """A trial ended.

    status: finished, on all splits; partial, if some runs failed for reasons of their own; pruned, by a verdict; failed,
    if its machinery did. values: by split (as text, for JSON); mean, std (ddof 1) and n are of these.
    """

    kind: ClassVar[str] = "trial_finished"
    status: Literal["finished", "partial", "pruned", "failed"]
    reason: str
    values: dict[str, float]
    mean: float | None
    std: float | None
    n: Count
    num_splits: Count


# ------------------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(RunEvent):
    """A run began. workers: how many ranks train it; None in journals that do not record it."""

    kind: ClassVar[str] = "run_started"
    seed: int
    dataset: str
    split_hash: str
    num_labelled: Count
    num_unlabelled: Count
    class_names: list[str]
    workers: Workers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogged(StepEvent):
    """A point of the training curves: `train/loss`, `train/<term>`, `train/lr` and what the method logs."""

    kind: ClassVar[str] = "run_logged"
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvaluated(StepEvent):
    """An evaluation: `val/miou`, `val/pixel_accuracy`, `val/iou/<class>`, `pseudo/...`; its checkpoint is on the disk."""

    kind: ClassVar[str] = "run_evaluated"
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(StepEvent):
    """Something that happened to a stage of a method that has several. number: which stage, counted from 0."""

    number: Count
    name: str

    @property
    def identity(self) -> tuple[Any, ...] | None:
        return self.kind, self.trial, self.split, self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(StageEvent):
    """The stage was entered after `step` steps."""

    kind: ClassVar[str] = "stage_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(StageEvent):
    """The stage is over after `step` steps."""

    kind: ClassVar[str] = "stage_finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(StepEvent):
    """A run reached its last step. last, best: metrics at the last and at the best evaluation; seconds: of training."""

    kind: ClassVar[str] = "run_finished"
    last: dict[str, float]
    best: dict[str, float]
    best_step: Count
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(StepEvent):
    """A run ended for a reason of its own, such as a loss that became NaN, or with the machinery of its trial."""

    kind: ClassVar[str] = "run_failed"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPruned(StepEvent):
    """A verdict cut the run short."""

    kind: ClassVar[str] = "run_pruned"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRewound(StepEvent):
    """Damaged checkpoints set the run back to this step."""

    kind: ClassVar[str] = "run_rewound"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResized(StepEvent):
    """From this step on another number of workers trains the run."""

    kind: ClassVar[str] = "run_resized"
    workers: Workers
    before: Workers
    reason: str


KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (
        StudyStarted, StudyExtended, StudyPaused, StudyContinued, StudyInterrupted, StudyResumed, StudyFinished, EventLost,
        TrialStarted, TrialPruned, TrialRetried, TrialFinished,
        RunStarted, RunLogged, RunEvaluated, RunFinished, RunFailed, RunPruned, RunRewound, RunResized,
        StageStarted, StageFinished,
    )
}  # fmt: skip
"""Every type of event by its name in a journal."""


# ---------------------------------------------------------------------------------------------------------------- from JSON


def from_json(plain: object) -> Event:
    """The event that `to_json` made `plain` of.

    Raises:
        EventError: It is not an event.
        NewerEventError: It is one of a newer version.
    """
    if not isinstance(plain, dict):
        raise EventError(f"an event is a mapping, got {type(plain).__name__}")
    if "event" not in plain or "time" not in plain:
        raise EventError("it has no kind or no time")
    kind = KINDS.get(plain["event"]) if isinstance(plain["event"], str) else None
    if kind is None:
        raise NewerEventError(f"this version of css-ray does not know events of the kind {plain['event']!r:.80}")
    checks = _checks(kind)
    for name in plain:
        if name != "event" and name not in checks:
            raise NewerEventError(f"this version of css-ray does not know the field {name!r:.80} of {kind.kind}")
    for name, (words, fits, required) in checks.items():
        if name not in plain:
            if required:
                raise EventError(f"{kind.kind} lacks {name!r}")
        elif not fits(plain[name]):
            raise EventError(f"{name!r} of {kind.kind} must be {words}, got {plain[name]!r:.80}")
    return kind(**{name: plain[name] for name in checks if name in plain})


_Check = tuple[str, Callable[[Any], bool], bool]
_CHECKS: dict[type[Event], dict[str, _Check]] = {}


def _checks(kind: type[Event]) -> dict[str, _Check]:
    """For each field: what it must be in words, whether a value is that, and whether an event without it is damaged."""
    if kind not in _CHECKS:
        hints = typing.get_type_hints(kind, include_extras=True)
        _CHECKS[kind] = {
            field.name: (*_fitting(hints[field.name]), field.default is dataclasses.MISSING)
            for field in dataclasses.fields(kind)
        }
    return _CHECKS[kind]


def _fitting(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (member,) = (each for each in parameters if each is not type(None))
        words, fits = _fitting(member)
        return f"{words} or null", lambda value: value is None or fits(value)
    if origin is Annotated:
        words, fits = _fitting(parameters[0])
        low, high = parameters[1]
        return f"{words} from {low} to {high}", lambda value: fits(value) and low <= value <= high
    if origin is Literal:
        return f"one of {', '.join(parameters)}", lambda value: isinstance(value, str) and value in parameters
    if origin is dict:
        words, fits = _fitting(parameters[1])
        more = "" if parameters[1] is Any else f" to {words}"
        return (
            f"a mapping{more}",
            lambda value: isinstance(value, dict) and all(map(_is_text, value)) and all(map(fits, value.values())),
        )
    if origin is list:
        words, fits = _fitting(parameters[0])
        return f"a list of {words}", lambda value: isinstance(value, list) and all(map(fits, value))
    if hint is Any:
        return "anything", _is_plain
    if hint is float:
        return "a number", _is_number
    if hint is int:
        return "a whole number", lambda value: _is_number(value) and isinstance(value, int) and abs(value) < 2**63
    assert hint is str, hint
    return "text", _is_text


def _is_number(value: object) -> bool:
    """Whether a value is a number that is finite, as a float too; JSON as Python reads it has others."""
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_text(value: object) -> bool:
    """Whether a value is text that can be printed: half of a character, as JSON may have it, cannot."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value))


def _is_plain(value: object) -> bool:
    """Whether a value holds numbers that are finite and text that can be printed, and nothing that is neither."""
    if isinstance(value, dict):
        return all(map(_is_text, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool) or _is_number(value) or _is_text(value)
