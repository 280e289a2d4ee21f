"""What a rank reports while it trains: events to its slot, checkpoints to the storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray.util.queue import Queue

from css_ray import distributed
from css_ray.events import RunEvaluated, RunEvent, RunLogged, StageFinished, StageStarted
from css_ray.execution.checkpoints import Checkpoints
from css_ray.execution.handover import News
from css_ray.execution.ray_internals import put_without_waiting
from css_ray.execution.trial_file import write_trial
from css_ray.execution.verdicts import Verdicts
from css_ray.study.job import Job

VERDICT_SECONDS = 30.0
"""How long a trial waits between two splits for a driver that is slow to judge."""


class PrunedError(Exception):
    """The driver has pruned this trial."""


class SlotReporter:
    """Reports to the slot what happens to a job, and keeps its checkpoints."""

    def __init__(self, job: Job, number: int, queue: Queue, device: torch.device, alive: Callable[[], None]) -> None:
        self.trial = job.trial
        self.settings = job.runs[0].settings if job.runs else {}
        self.verdicts = Verdicts(job.verdicts) if job.verdicts else None
        self.checkpoints = Checkpoints(job.checkpoints, device, min_free=job.min_free, waiting=self._wait)
        self.alive = alive
        self.number = number
        self.queue = queue
        self.device = device
        self.split = 0
        self.step = 0
        self.events: list[RunEvent] = []
        self.known: set[Any] = set()
        self.told = 0
        self.waits = False

    def remember(self, events: list[RunEvent]) -> None:
        """Take over what an earlier life of this trial reported; the next message reports it again."""
        self.events, self.told = events, 0
        self.known = {event.identity for event in events}

    def tell(self, kind: type[RunEvent], **content: Any) -> None:
        """Note that something happened to the run in progress, unless that is known."""
        event = kind.now(trial=self.trial, split=self.split, **content)
        if event.identity not in self.known:
            self.known.add(event.identity)
            self.events.append(event)

    def send(self, *, over: bool = False) -> None:
        """Send the new events without waiting for their arrival: what matters of them is in the next checkpoint."""
        self._put(News(self.number, list(self.events[self.told :]), over))
        self.told = len(self.events)
        self.waits = False

    def _put(self, news: News) -> None:
        if distributed.rank() == 0:
            put_without_waiting(self.queue, news)

    def _wait(self, reason: str) -> None:
        """Sign of life of a rank that waits for room; the reason is sent to the slot once."""
        self.alive()
        if not self.waits:
            self._put(News(self.number, [], over=False, waits=reason))
        self.waits = True

    def keep(self, write: Callable[[], None], folder: str, what: str) -> None:
        """Have rank 0 call `write`, which writes into `folder` what is named; all ranks wait if the disk is full."""
        self.checkpoints.together(write if distributed.rank() == 0 else lambda: None, folder, what)

    def keep_labels(self, write: Callable[[], None], folder: str) -> None:
        """Have all ranks call `write`, which on rank 0 writes pseudo-labels into `folder`; all wait if the disk is full."""
        self.checkpoints.together(write, folder, "the pseudo-labels")

    def save(self, write_checkpoint: Callable[[Path], None]) -> None:
        """Keep a checkpoint, on all ranks together, then send the new events."""

        def write(folder: Path) -> None:
            write_checkpoint(folder)
            if distributed.rank() == 0:
                write_trial(folder, self.events, self.settings)

        self.checkpoints.save(write)
        self.send()

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = step
        self.tell(RunLogged, step=step, metrics=dict(metrics))
        self.send()
        self._obey()

    def evaluated(self, step: int, metrics: Mapping[str, float], write_checkpoint: Callable[[Path], None]) -> None:
        self.step = step
        self.tell(RunEvaluated, step=step, metrics=dict(metrics))
        self.save(write_checkpoint)
        self._obey()

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.step = step
        self.tell(StageStarted, step=step, number=number, name=name)
        if write_checkpoint is None:
            self.send()
        else:
            self.save(write_checkpoint)

    def stage_finished(self, step: int, number: int, name: str) -> None:
        self.tell(StageFinished, step=step, number=number, name=name)
        self.send()

    def pruned_after(self, split: int) -> bool:
        """Wait for the verdict on the trial after `split`; the same on all ranks. Without one in time, it continues."""
        if self.verdicts is None:
            return False
        pruned = False
        if distributed.rank() == 0:
            waited_until = time.monotonic() + VERDICT_SECONDS
            while time.monotonic() < waited_until:
                pruned, after = self.verdicts.of(self.trial)
                if pruned or after == split:
                    break
                time.sleep(0.05)
        return bool(sum_of_ranks(int(pruned), self.device))

    def _obey(self) -> None:
        """Raise PrunedError on all ranks if the driver has pruned the trial; they may learn of it a step later."""
        if self.verdicts is None:
            return
        pruned = distributed.rank() == 0 and self.verdicts.of(self.trial)[0]
        if sum_of_ranks(int(pruned), self.device):
            raise PrunedError


def sum_of_ranks(number: int, device: torch.device) -> int:
    """The sum of the ranks' numbers, on all of them."""
    return int(distributed.all_reduce_sum(torch.tensor(number, device=device)))
