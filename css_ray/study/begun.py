"""A study that has begun, found by its name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from css_ray.events import Event, TrialStarted, specs
from css_ray.methods import METHODS
from css_ray.secrets import shown
from css_ray.storage import is_url
from css_ray.study.definition import StudyDefinition, parse
from css_ray.study.journal import Journal, StudyMissingError, studies_in, study_folder


def begun_definition(name: str, storage: str) -> StudyDefinition:
    """The study of that name as its journal has it. Raises StudyMissingError with the names that exist."""
    # The latest: a study may have been extended since it began.
    events = Journal(study_folder(storage, name)).events
    stages = specs(events)
    if not stages:
        known = studies_in(storage) if is_url(storage) or Path(storage).exists() else []
        raise StudyMissingError(
            f"no study {shown(name)} in {shown(storage)}; "
            + (f"there are: {', '.join(known)}" if known else "it holds none yet")
        )
    return parse(_as_it_began(stages[-1], events), f"the journal of {name}")


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
