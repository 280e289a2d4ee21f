"""Repairs the journal of a study: what is sound stays, in its place, and the rest is given up by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from css_ray.events import Event, EventError, EventLost, NewerEventError
from css_ray.secrets import shown
from css_ray.standing import RunStanding, Standing
from css_ray.study.begun import missing_study
from css_ray.study.definition import StudyDefinition
from css_ray.study.journal import JournalError, event_of, store_of, study_folder, where
from css_ray.study.order import Order, WrongStudyError


@dataclass(frozen=True, slots=True)
class Lost:
    """An event that was given up: the number of its line, counted from 1; what it was, as far as that can be read; and why."""

    line: int
    what: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of a journal.

    Attributes:
        study: The name of the study.
        kept: The number of events that are sound.
        lost: The others; empty if nothing was wrong, and nothing was written.
        copy: Where the journal is as it was; empty if nothing was written.
        left: By trial, the splits that a resume trains to their end: from their checkpoints where they have any. A trial that
            has finished all its splits, and lacks only its own end, has none.
    """

    study: str
    kept: int
    lost: tuple[Lost, ...]
    copy: str
    left: Mapping[int, tuple[int, ...]]

    def __str__(self) -> str:
        if not self.lost:
            return f"the journal of {self.study} is sound: nothing was changed"
        lines = [f"kept {self.kept} of {self.kept + len(self.lost)} events of {self.study}; as it was: {shown(self.copy)}"]
        lines += ["given up:", *(f"  {lost}" for lost in self.lost[:_SHOWN])]
        if (more := len(self.lost) - _SHOWN) > 0:
            lines.append(f"  and {more} more")
        if self.left:
            lines.append("a resume trains these to their end, from their checkpoints where they have any:")
        for trial, splits in self.left.items():
            named = f"split{'s' * (len(splits) > 1)} {', '.join(map(str, splits))}" if splits else "only its end is missing"
            lines.append(f"  trial {trial}: {named}")
        return "\n".join(lines)


_SHOWN = 20
"""How many of the events that were given up are listed."""


def repair(name: str, storage: str, *, drop_unknown: bool = False) -> Repaired:
    """Keep the sound events of a study's journal, and give up the others; a copy of it is written first.

    An event is sound if it is one, and can have followed the sound ones before it. In place of one that is not, the journal
    records that it was lost, so that all others keep their numbers.

    Args:
        name: The study.
        storage: Where it is kept.
        drop_unknown: Give up events, too, of kinds or with fields that this version does not know. Only if no newer version has
            worked on the study.

    Raises:
        StudyMissingError: There is no such study.
        StudyLockedError: A driver is at work on it.
        JournalError: What it began with is lost, or it is of a newer version.
        OSError: The journal cannot be read or written.
    """
    folder = study_folder(storage, name)
    store = store_of(folder)
    if not store.read_all():
        raise missing_study(name, storage)
    with store.lock():
        lines, order = store.read_all(), Order()
        standing: Standing[StudyDefinition] = Standing(order.parsed)
        sound: list[str] = []
        lost: list[Lost] = []
        latest: Event | None = None
        for number, line in enumerate(lines, 1):
            try:
                latest = _taken(order, line)
                sound.append(str(line))
            except NewerEventError as error:
                if not drop_unknown:
                    raise JournalError(
                        f"{where(folder, number)} is of a newer version: {error}; repair the study with that version, or if no "
                        "newer one has worked on it, add --drop-unknown"
                    ) from None
                lost.append(Lost(number, _hint(line), str(error)))
            except WrongStudyError as error:
                if latest is None:
                    raise _without_start(folder, number, error) from None
                lost.append(Lost(number, _hint(line), str(error)))
            except EventError as error:
                lost.append(Lost(number, _hint(line), str(error)))
            if latest is None:
                continue  # before the study began there is nothing to keep numbers for
            if lost and lost[-1].line == number:
                gone = EventLost(time=latest.time, worked=latest.worked, reason=f"{lost[-1].what}: {lost[-1].reason}")
                order.take(gone)
                sound.append(json.dumps(gone.to_json(), separators=(",", ":")))
            else:
                standing.add(latest)
        if latest is None:
            raise _without_start(folder, 1, lost[0].reason)
        copy = store.rewrite(sound) if lost else ""
    return Repaired(name, len(lines) - len(lost), tuple(lost), copy, _left(standing, lines, lost))


def _taken(order: Order, line: str | None) -> Event:
    """The event of a line, which `order` has taken. Raises EventError."""
    if line is None:
        raise EventError("it is missing")
    event = event_of(line)
    order.take(event)
    return event


def _without_start(folder: str, number: int, error: object) -> JournalError:
    return JournalError(
        f"{where(folder, number)} should hold the study's settings, without which nothing that follows can be used ({error}); "
        "restore the journal from a copy, or install the packages that the study was begun with; else begin it again in "
        "another storage"
    )


_FIELD = re.compile(r'"(trial|split|step)":\s*(\d{1,18})\b')
_KIND = re.compile(r'"event":\s*"(\w{1,40})"')


def _hint(line: str | None) -> str:
    """What an event was, as far as it can still be read: `run_evaluated of trial 1, split 0, step 20`."""
    kind, found = _KIND.search(line or ""), dict(_FIELD.findall(line or ""))
    place = ", ".join(f"{field} {found[field]}" for field in ("trial", "split", "step") if field in found)
    return (kind[1] if kind else "an event") + (f" of {place}" if place else "")


def _left(standing: Standing[StudyDefinition], lines: Sequence[str | None], lost: Sequence[Lost]) -> dict[int, tuple[int, ...]]:
    """By trial, what a resume trains of those that had begun: of one whose start was lost, all splits."""
    named = (dict(_FIELD.findall(lines[each.line - 1] or "")).get("trial") for each in lost)
    begun = {trial for trial in map(int, filter(None, named)) if trial < standing.num_trials}
    left: dict[int, tuple[int, ...]] = {}
    for trial in sorted(begun | set(range(max(standing.trials, default=-1) + 1))):
        if trial in standing.ended and standing.trials[trial].status != "failed":
            continue
        runs: Mapping[int, RunStanding] = standing.trials[trial].runs if trial in standing.trials else {}
        splits = standing.definition.splits
        left[trial] = tuple(split for split in splits if split not in runs or runs[split].status == "running")
    return left
