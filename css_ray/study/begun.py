"""A study that has begun, found by its name."""

from __future__ import annotations

from pathlib import Path

from css_ray.events import specs
from css_ray.secrets import shown
from css_ray.storage import is_url
from css_ray.study.definition import StudyDefinition, is_study_name, parse
from css_ray.study.journal import Journal, StudyMissingError, studies_in, study_folder


def begun_definition(name: str, storage: str) -> StudyDefinition:
    """The study of that name as its journal has it.

    Raises StudyMissingError with the names that exist, or if the journal is that of another study.
    """
    # The latest: a study may have been extended since it began. A path instead of a name would lead out of the storage.
    stages = specs(Journal(study_folder(storage, name)).events) if is_study_name(name) else []
    if not stages:
        known = studies_in(storage) if is_url(storage) or Path(storage).exists() else []
        raise StudyMissingError(
            f"no study {shown(name)} in {shown(storage)}; "
            + (f"there are: {', '.join(known)}" if known else "it holds none yet")
        )
    definition = parse(stages[-1], f"the journal of {name}")
    if definition.name != name:
        raise StudyMissingError(
            f"the folder {shown(study_folder(storage, name))} holds the journal of the study {definition.name}; give it that "
            "name, or remove it"
        )
    return definition
