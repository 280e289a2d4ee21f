"""A study that has begun, found by its name."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from css_ray.messages import study_command
from css_ray.secrets import shown
from css_ray.storage import is_url
from css_ray.study.definition import StudyDefinition, is_study_name
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
    deque(in_order(Journal(folder).events, order, folder), maxlen=0)
    if order.definition is None:
        raise missing_study(name, storage)
    if order.definition.name != name:
        raise JournalError(
            f"{where(folder, 1)} is of the study {order.definition.name}, in the folder of {shown(name)}; give the folder the "
            "name of its study"
        )
    return order.definition


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
