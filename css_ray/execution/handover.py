"""How a slot and its ranks talk: jobs lie in Ray's key-value store, news comes back through a queue."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from css_ray.events import Event, from_json
from css_ray.execution.ray_internals import kv_delete, kv_get, kv_put
from css_ray.study.job import Job

IDLE_SECONDS = 60.0
"""How long the workers of a slot wait for a trial, holding their cores, before they go."""

NOTHING, LEAVE = -1, -2


@dataclass(frozen=True, slots=True)
class News:
    """What the ranks of a slot report of the job with this number; over: it is done; waits: why they wait, empty if not."""

    job: int
    events: list[Event]
    over: bool
    waits: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """What the controller of a slot reports: its workers start again, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a slot reports of a job: its new events; `retry`, why its workers start again; `error`, why it is given up;
    `waits`, why they wait, for as long as no other message comes.
    """

    events: list[Event]
    retry: str = ""
    error: str = ""
    waits: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, which Tune carries as the result of a trial."""
        events = [event.to_json() for event in self.events]
        return {"events": events, "retry": self.retry, "error": self.error, "waits": self.waits}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Message:
        """The message in a result of Tune's; an empty one if that has none."""
        events = [from_json(event) for event in plain.get("events", ())]
        return cls(events=events, **{name: plain.get(name, "") for name in ("retry", "error", "waits")})


@dataclass(frozen=True, slots=True)
class Handover:
    """The trials of one slot, for its ranks to fetch. They lie in Ray's key-value store."""

    slot: str

    def put(self, number: int, job: Job | None) -> None:
        """Make `job` the one to do now, under a number that no other of this slot has; LEAVE comes without a job."""
        if job is not None:
            kv_put(self._key(f"job/{number}"), json.dumps(job.to_json()).encode())
        kv_put(self._key("now"), str(number).encode())

    def withdraw(self, number: int) -> None:
        """The job is over, or given up. A rank that was about to fetch it finds nothing."""
        kv_put(self._key("now"), str(NOTHING).encode())
        kv_delete(self._key(f"job/{number}"))

    def wait(self, done: int) -> int:
        """The number of a job that is not `done`; LEAVE if none comes in IDLE_SECONDS. For rank 0 alone."""
        limit = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < limit:
            now = int(kv_get(self._key("now")) or NOTHING)
            if now not in (NOTHING, done):
                return now
            time.sleep(0.1)
        return LEAVE

    def job(self, number: int) -> Job | None:
        """The job of that number; None if it was withdrawn."""
        text = kv_get(self._key(f"job/{number}"))
        return Job.from_json(json.loads(text)) if text else None

    def say_why(self, reason: str) -> None:
        """Record why a rank is about to end its own process."""
        kv_put(self._key("reason"), reason.encode())

    def ask_why(self) -> str:
        """What a rank recorded before it ended, once; else nothing."""
        reason = kv_get(self._key("reason")) or b""
        kv_delete(self._key("reason"))
        return reason.decode()

    def _key(self, name: str) -> str:
        return f"css-ray/slots/{self.slot}/{name}"
