"""A study that has begun, found by its name."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from css_ray.events import Event, TrialStarted
from css_ray.messages import study_command
from css_ray.methods import METHODS
from css_ray.secrets import shown
from css_ray.storage import is_url
from css_ray.study.definition import StudyDefinition, is_study_name, parse
from css_ray.study.journal import Journal, JournalError, StudyMissingError, in_order, studies_in, study_folder, where
from css_ray.study.order import Order


def begun_definition(name: str, storage: str) -> StudyDefinition:
    """The study of that name as its journal has it, which is read to its end.

    Raises:
        StudyMissingError: There is none; with the names that exist.
        JournalError: Its journal cannot be used, or is that of another study.
    """
    if not is_study_name(name):  # a path would lead out of the storage
        raise missing_study(name, storage)
    folder, order = study_folder(storage, name), Order()
    # To the end: a study may have been extended since it began.
    events = Journal(folder).events
    deque(in_order(events, order, folder), maxlen=0)
    if order.definition is None:
        raise missing_study(name, storage)
    if order.definition.name != name:
        raise JournalError(
            f"{where(folder, 1)} is of the study {order.definition.name}, in the folder of {shown(name)}; give the folder the "
            "name of its study"
        )
    spec = _as_it_began(order.definition.spec, events)
    return order.definition if spec == order.definition.spec else parse(spec, f"the journal of {name}")


def missing_study(name: str, storage: str) -> StudyMissingError:
    """The error for a study that a storage does not hold, with those that it does."""
    known = studies_in(storage) if is_url(storage) or Path(storage).exists() else []
    if name in known:
        return StudyMissingError(
            f"{shown(name)} in {shown(storage)} never began, its journal is empty; begin it with: "
            f"{study_command('run', 'FILE', storage)}"
        )
    there = f"there are: {', '.join(known)}" if known else "it holds none yet"
    return StudyMissingError(f"no study {shown(name)} in {shown(storage)}; {there}")


def _as_it_began(spec: Mapping[str, Any], events: Sequence[Event]) -> Mapping[str, Any]:
    """The study with the values that an earlier version, which trained part of it, gave to settings that it does not name."""
    trained: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if isinstance(event, TrialStarted):
            trained.setdefault(event.config.get("method.name", ""), event.config)

    def keep(entry: dict[str, Any]) -> None:
        name = entry.get("name", "")
        method, config = METHODS.get(name), trained.get(name)
        if method is None or config is None:
            return
        chosen = method.preset_values(entry.get("preset", "default"), entry)
        for field in dataclasses.fields(method.Config):
            if "before" in field.metadata and field.name not in chosen:
                before = field.metadata["before"]
                if config.get(f"method.{field.name}", before) == before:
                    entry.setdefault(field.name, before)

    made = copy.deepcopy(dict(spec))
    listed = [made.get("method"), (made.get("search") or {}).get("method"), *(made.get("grid") or {}).get("method", ())]
    for entry in listed + [point.get("method") for point in made.get("trials") or ()]:
        if isinstance(entry, dict):
            keep(entry)
    return made
