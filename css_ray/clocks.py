"""What the events of a journal record about time: how long drivers worked, how long runs trained, and by how many workers.

A driver stamps what it writes with the time that it has been at work (`worked`). Events of earlier versions have only the time
of the machine's clock, which may be set, and which runs while the machine sleeps.
"""

from __future__ import annotations

import bisect
import math
import time
from dataclasses import dataclass

from css_ray.events import Event, RunEvaluated, RunEvent, RunResized, RunStarted, StudyResumed


class Stopwatch:
    """How long the drivers of a study have been at work, measured by the one that is at work now.

    before: seconds of those before. Nothing is counted until `start`: a driver may wait for a cluster first.
    """

    def __init__(self, before: float) -> None:
        self.before = before
        self._started: float | None = None

    def start(self) -> None:
        """Count from now on, if it does not count yet."""
        if self._started is None:
            self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds of all drivers so far."""
        # The monotonic clock is never set, and stands still while a machine sleeps (Linux, macOS).
        return self.before + (0.0 if self._started is None else time.monotonic() - self._started)


class WallTime:
    """How long the drivers of a study have been at work, from the stamps of its events, or from their times.

    seconds: from the start or a resume to the latest event before the next. latest: the time up to which they count.

    Of events without a stamp the times are all there is. They come late, the clocks of two nodes differ, and a clock may be set
    back. So an event adds no more than has passed since the latest of all, and than has passed since the one before it of the
    same run (or of the driver). If that is negative the clock was set back: how much time passed is unknown, and counting
    continues from it, as it does from each event of the driver.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.latest = 0.0
        self._own: dict[tuple[int, int] | None, float] = {}

    def event(self, event: Event) -> None:
        """Take one event into account."""
        now = event.time
        if event.worked is not None:
            self.seconds, self.latest = max(self.seconds, event.worked), now
            return
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
    """time, worked: of a run's latest event; start: the number of resumes before it. unsaved: seconds since its checkpoint."""

    time: float
    worked: float | None
    start: int
    unsaved: float = 0.0


class RunTimes:
    """How long the runs have trained, from the stamps or the times of their events: by_trial, in seconds.

    A run counts from its `run_started` to its latest event. Between an interruption and the resume nothing ran: of a gap with a
    resume in it counts only the repetition of what came after the last checkpoint, as long as it took the first time.
    """

    def __init__(self) -> None:
        self.by_trial: dict[int, float] = {}
        self._resumes: list[float] = []
        self._resumed: StudyResumed | None = None
        self._clocks: dict[tuple[int, int], _Clock] = {}

    def event(self, event: Event) -> float:
        """Take one event into account; returns the seconds that it adds."""
        if isinstance(event, StudyResumed):
            bisect.insort(self._resumes, event.time)
            self._resumed = event
        if not isinstance(event, RunEvent):
            return 0.0
        start = len(self._resumes)
        clock = self._clocks.setdefault((event.trial, event.split), _Clock(event.time, event.worked, start))
        gap, since = self._gap(event, clock)
        if since is None:
            clock.unsaved += gap
        else:
            gap = clock.unsaved = min(since, clock.unsaved)
        if isinstance(event, RunEvaluated):
            clock.unsaved = 0.0
        clock.time, clock.worked, clock.start = event.time, event.worked, start
        self.by_trial[event.trial] = self.by_trial.get(event.trial, 0.0) + gap
        return gap

    def _gap(self, event: RunEvent, clock: _Clock) -> tuple[float, float | None]:
        """The seconds since the run's latest event; and those since the resume between the two, None without one."""
        # A negative gap is a clock that was set back: how much time passed is unknown, and counting continues from it.
        gap = max(0.0, event.time - clock.time)
        if event.worked is not None and clock.worked is not None and clock.start == len(self._resumes):
            return max(0.0, event.worked - clock.worked), None
        resumed = None if self._resumed is None else self._resumed.worked
        # By their times, not by their place in the journal: what a run reported just before a kill is written after the resume.
        position = bisect.bisect_right(self._resumes, clock.time)
        if position == len(self._resumes) or self._resumes[position] > event.time:
            if resumed is not None and clock.worked is not None:
                gap = min(gap, max(0.0, resumed - clock.worked))
            return gap, None
        if event.worked is not None and resumed is not None:
            return gap, max(0.0, event.worked - resumed)
        return gap, event.time - self._resumes[position]


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
