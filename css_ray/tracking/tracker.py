"""Who writes to MLflow: the tracker, from a thread beside a running study, and `sync`, in one go afterwards."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from css_ray.events import Event
from css_ray.secrets import shown, without_secrets
from css_ray.tracking.client import cause, load, sqlite_file
from css_ray.tracking.projection import Projection

_log = logging.getLogger(__name__)

_EVENTS_A_BATCH = 500
_MOST_WAITING = 20_000  # events of an outage: 75 MB if each has the scores of 21 classes


@dataclass(frozen=True, slots=True)
class SyncSummary:
    """What a replay has done: events read, MLflow runs created, metric points sent. All but `events` are 0 if all was there."""

    events: int
    runs_created: int
    points_sent: int


def sync(events: Sequence[Event], uri: str, artifact_root: str | Path | None = None) -> SyncSummary:
    """Bring MLflow up to a whole journal.

    Raises ConnectionError, within seconds, if a server does not answer, and else what MLflow raises. What was sent before
    stays, and is skipped next time.
    """
    projection = Projection(uri, artifact_root)
    try:
        for start in range(0, len(events), _EVENTS_A_BATCH):
            projection.apply(events[start : start + _EVENTS_A_BATCH])
    except Exception as error:
        if sqlite_file(uri) is not None or refused(error):
            raise
        raise ConnectionError(
            f"MLflow at {shown(uri)} does not answer: {cause(error)}; try again once it does: what it has taken is skipped"
        ) from error
    return SyncSummary(len(events), projection.runs_created, projection.points_sent)


class Tracker:
    """Projects events to MLflow from one background thread, so that training neither waits for MLflow nor fails with it.

    While MLflow is away, events wait in memory (they are in the journal anyway) and tries follow each other in 1, 2, 4, ... at
    most `longest_pause` seconds. Once `most_waiting` events came during one outage, MLflow is left alone from then on and the
    memory freed: `sync` sends them all. An event that MLflow refuses for good is dropped with a warning.
    """

    def __init__(
        self,
        uri: str,
        artifact_root: str | Path | None = None,
        *,
        longest_pause: float = 60.0,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._longest_pause = longest_pause
        self._most_waiting = most_waiting
        self._waiting: deque[Event] = deque()
        self._room: int | None = None  # events that this outage may still add; None while MLflow answers
        self._left_out = 0
        self._given_up = False
        self._changed = threading.Condition()
        self._closing = False
        # A daemon: a call that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="css-ray-mlflow", daemon=True)
        self._thread.start()

    def record(self, event: Event) -> None:
        """Hand over the next event of the journal. Returns immediately and never raises."""
        with self._changed:
            if self._given_up:
                self._left_out += 1
                return
            self._waiting.append(event)
            if self._room is not None:
                self._room -= 1
                if self._room < 0:
                    self._give_up()
            self._changed.notify()

    def _give_up(self) -> None:
        """Events after a gap cannot be sent, so none is from here on."""
        self._given_up = True
        self._left_out = len(self._waiting)
        self._waiting.clear()
        _log.warning(
            "MLflow at %s missed %d events and is left alone; `css-ray study sync` backfills it from the journal",
            shown(self._uri),
            self._left_out,
        )

    def close(self, timeout: float = 30.0) -> int:
        """Send what still waits, for at most `timeout` seconds, and return how many events were not sent (see `sync`)."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            return self._left_out + len(self._waiting)

    def _work(self) -> None:
        projection: Projection | None = None
        pause = 0.0
        one_by_one = 0
        with contextlib.suppress(Exception):  # which the first event meets again
            load()  # now, while the driver waits for Ray to start
        while batch := self._next_batch(1 if one_by_one else _EVENTS_A_BATCH):
            try:
                projection = projection or Projection(self._uri, self._artifact_root)
                projection.apply(batch)
            except Exception as error:
                if projection is None or not refused(error):
                    if not pause:
                        _log.warning(
                            "MLflow at %s is away, events wait in the journal: %s",
                            shown(self._uri),
                            cause(error),
                        )
                        with self._changed:
                            self._room = self._most_waiting
                    pause = min(2 * pause or 1.0, self._longest_pause)
                    if self._rest(pause):
                        continue
                    return
                if len(batch) > 1:
                    one_by_one = len(batch)
                    continue
                _log.warning(
                    "MLflow refuses %s: %s",
                    {name: value for name, value in batch[0].to_json().items() if name in ("event", "trial", "split")},
                    without_secrets(error),
                )
                projection.skip(1)
            if pause:
                _log.warning("MLflow at %s is back", shown(self._uri))
                pause = 0.0
            one_by_one = max(0, one_by_one - 1)
            with self._changed:
                self._room = None
                if not self._given_up:
                    for _ in batch:
                        self._waiting.popleft()

    def _next_batch(self, size: int) -> list[Event]:
        """The oldest events that wait, once there are any; empty when none will be sent any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing or self._given_up)
            return list(islice(self._waiting, size))

    def _rest(self, seconds: float) -> bool:
        """Wait before another try. False if there will be none: the tracker was closed before the last one, or has given up."""
        with self._changed:
            if self._closing:
                return False
            # `record` notifies as well, hence the predicate. Closing cuts the rest short for one last try.
            self._changed.wait_for(lambda: self._closing or self._given_up, timeout=seconds)
            return not self._given_up


def refused(error: Exception) -> bool:
    """True if another try cannot help: MLflow rejects what it was sent, or the event came out of order."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, MlflowException):
        # A proxy of a server that is away may answer 400 in its place, but not in MLflow's own form.
        bad = ("BAD_REQUEST",) if isinstance(error, RestException) else ()
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", *bad)
    return isinstance(error, LookupError | TypeError | ValueError) and not isinstance(error, OSError)
