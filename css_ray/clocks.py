"""What the events of a journal record about time: how long drivers worked, how long runs trained, and by how many workers."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from css_ray.events import Event, RunEvaluated, RunEvent, RunResized, RunStarted, StudyResumed


class WallTime:
    """How long the drivers of a study have been at work, from the times of its events.

    seconds: from the start or a resume to the latest event before the next. latest: the time up to which they count.

    Events come late, the clocks of two nodes differ, and a clock may be set back. So an event adds no more than has passed
    since the latest of all, and than has passed since the one before it of the same run (or of the driver). If that is
    negative the clock was set back: how much time passed is unknown, and counting continues from it, as it does from each event
    of the driver.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.latest = 0.0
        self._own: dict[tuple[int, int] | None, float] = {}

    def event(self, event: Event) -> None:
        """Take one event into account."""
        now = event.time
        teller = (event.trial, event.split) if isinstance(event, RunEvent) else None
        if not self._own or isinstance(event, StudyResumed):
            self.latest = now
        else:
            gap = now - self._own.get(teller, -math.inf)
            self.seconds += max(0.0, min(now - self.latest, gap))
            self.latest = now if gap < 0 or teller is None else max(now, self.latest)
        self._own[teller] = now


@dataclass(slots=True)
class _Clock:
    """latest: time of a run's latest event; saved: of the latest one that wrote a checkpoint."""

    latest: float
    saved: float


class RunTimes:
    """How long the runs have trained, from the times of their events: by_trial, in seconds.

    A run counts from its `run_started` to its latest event. Between an interruption and the resume nothing ran: of a gap with a
    resume in it counts only the repetition of what came after the last checkpoint, as long as it took the first time.
    """

    def __init__(self) -> None:
        self.by_trial: dict[int, float] = {}
        self._resumes: list[float] = []
        self._clocks: dict[tuple[int, int], _Clock] = {}

    def event(self, event: Event) -> float:
        """Take one event into account; returns the seconds that it adds."""
        now = event.time
        if isinstance(event, StudyResumed):
            bisect.insort(self._resumes, now)
        if not isinstance(event, RunEvent):
            return 0.0
        trial = event.trial
        clock = self._clocks.setdefault((trial, event.split), _Clock(now, now))
        # A negative gap is a clock that was set back: how much time passed is unknown, and counting continues from it.
        gap = max(0.0, now - clock.latest)
        # By their times, not by their place in the journal: what a run reported just before a kill is written after the resume.
        position = bisect.bisect_right(self._resumes, clock.latest)
        if position < len(self._resumes) and self._resumes[position] <= now:
            gap = min(now - self._resumes[position], max(0.0, clock.latest - clock.saved))
            clock.saved = now - gap
        clock.latest = now
        if isinstance(event, RunEvaluated):
            clock.saved = now
        self.by_trial[trial] = self.by_trial.get(trial, 0.0) + gap
        return gap


class RunSizes:
    """How many workers train the runs, from `run_started` and `run_resized`. latest: of the run that reported it last."""

    def __init__(self) -> None:
        self.latest: int | None = None
        self._of: dict[tuple[int, int], int] = {}

    def event(self, event: Event, otherwise: int) -> int:
        """Take one event into account; returns how many workers have trained its run up to it.

        otherwise: the number if the journal does not record it.
        """
        if not isinstance(event, RunEvent):
            return otherwise
        run = event.trial, event.split
        before = event.before if isinstance(event, RunResized) else self._of.get(run, otherwise)
        if isinstance(event, RunStarted | RunResized) and event.workers is not None:
            self.latest = self._of[run] = event.workers
        return before
