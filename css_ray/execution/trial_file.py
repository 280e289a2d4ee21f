"""`trial.json` of a checkpoint: every event of its trial so far, with the settings and a checksum.

Earlier versions wrote the list of events alone. What does not belong to the trial that is to continue is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from css_ray.events import EventError, RunEvaluated, RunEvent, RunFailed, RunFinished, RunStarted, StepEvent, from_json
from css_ray.storage import write_whole
from css_ray.study.inputs import prepare
from css_ray.study.job import Job
from css_ray.training.checkpoint import DamagedError

TRIAL_FILE = "trial.json"


def write_trial(folder: Path, events: Sequence[RunEvent], settings: Mapping[str, Any]) -> None:
    """Write the events of a trial, and its settings, into the folder of a checkpoint."""
    content = {"settings": settings, "events": [event.to_json() for event in events]}
    write_whole(folder / TRIAL_FILE, json.dumps(content | {"checksum": _checksum(content)}).encode())


def read_trial(folder: Path, job: Job) -> list[RunEvent]:
    """The events in a checkpoint, of those splits that `job` has.

    Raises DamagedError if the file is missing, damaged or altered, or if it is not of the job's trial with its settings.
    """
    path = folder / TRIAL_FILE
    try:
        settings, events = _parsed(path.read_text())
        if problem := next(_problems(settings, events, job), ""):
            raise DamagedError(path, problem)
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None
    except RecursionError:
        raise DamagedError(path, "its values are nested too deep") from None
    except ValueError as error:
        raise DamagedError(path, error) from None
    # Those of other splits are in the journal already: a job has all that have not finished.
    splits = {spec.split for spec in job.runs}
    return [event for event in events if event.split in splits]


def progress_of(events: Sequence[RunEvent]) -> tuple[set[int], dict[int, int]]:
    """The splits of a trial that ended, and the latest evaluated step of each that was evaluated."""
    ended = {event.split for event in events if isinstance(event, RunFinished | RunFailed)}
    evaluated: dict[int, int] = {}
    for event in events:
        if isinstance(event, RunEvaluated):
            evaluated[event.split] = max(event.step, evaluated.get(event.split, 0))
    return ended, evaluated


def _parsed(text: str) -> tuple[Mapping[str, Any] | None, list[RunEvent]]:
    """The settings, None of an earlier version, and the events. Raises ValueError if that is not what the text holds."""
    content = json.loads(text)
    settings, plain = None, content
    if isinstance(content, dict):
        if content.pop("checksum", None) != _checksum(content):
            raise ValueError("its checksum is wrong")
        settings, plain = content.get("settings"), content.get("events")
        if not isinstance(settings, dict):
            raise ValueError("it has no settings")
    if not isinstance(plain, list):
        raise ValueError("it has no list of events")
    events = []
    for number, each in enumerate(plain, 1):
        try:
            event = from_json(each)
        except EventError as error:
            raise ValueError(f"event {number}: {error}") from None
        if not isinstance(event, RunEvent):
            raise ValueError(f"event {number}: {event.kind} is not of a run")
        events.append(event)
    return settings, events


def _problems(settings: Mapping[str, Any] | None, events: Sequence[RunEvent], job: Job) -> Iterator[str]:
    """Why the events are not those of the trial that `job` is to train."""
    spec = job.runs[0]
    if settings is None and job.new:
        yield "it does not record its settings, and the trial is new"
    if other := _difference(settings or {}, json.loads(json.dumps(spec.settings))):
        yield f"it is of other settings: {other}"
    iterations, known, begun = spec.settings["train"]["iterations"], set[object](), dict[int, RunStarted]()
    for event in events:
        if event.trial != job.trial:
            yield f"it is of trial {event.trial}, not of trial {job.trial}"
        if event.identity in known:
            yield f"{event.kind} of split {event.split} is in it twice"
        known.add(event.identity)
        if isinstance(event, RunStarted):
            begun[event.split] = event
        elif event.split not in begun:
            yield f"{event.kind} of split {event.split} comes before its start"
        if isinstance(event, StepEvent) and event.step > iterations:
            yield f"step {event.step} of split {event.split} is beyond its last, {iterations}"
    ended, evaluated = progress_of(events)
    if len(evaluated.keys() - ended) > 1:
        yield f"the splits {', '.join(map(str, sorted(evaluated.keys() - ended)))} are in progress, of which one can be"
    for run in job.runs:
        if run.split in begun:
            started = begun[run.split].to_json()
            for name, value in prepare(run).started().items():
                if started[name] != value:
                    yield f"it is of another run: {name} of split {run.split} was {started[name]!r:.80}, not {value!r:.80}"


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A setting that both have, with other values, in words; another version may have more of them, or fewer."""
    for section, values in now.items():
        old = before.get(section)
        if isinstance(old, dict):
            for key in values.keys() & old.keys():
                if values[key] != old[key]:
                    return f"{section}.{key} is {old[key]!r:.80}, not {values[key]!r:.80}"
    return ""


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
