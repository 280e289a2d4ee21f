"""A rank of a slot's worker group: trains one trial after another, each on its splits in sequence.

Each message carries the events that happened since the last one. A checkpoint holds, beside the state of the run in progress,
every event of the trial so far; after an interruption they are told again, and the journal drops those it knows. So the journal
misses nothing, however the driver died.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from torch import Tensor

from css_ray import distributed
from css_ray.data.storage import below, is_url, locate, send
from css_ray.records import Event
from css_ray.study.checkpoints import Checkpoints
from css_ray.study.code import code_version
from css_ray.study.run import execute, prepare
from css_ray.study.slot import LEAVE, NOTHING, Handover, Job
from css_ray.study.verdicts import Verdicts
from css_ray.training.best import BEST_FILES, BestDescription, write_best
from css_ray.training.checkpoint import DamagedError, check_checkpoint, newest_readable
from css_ray.training.loop import NonFiniteLossError

TRIAL_FILE = "trial.json"

VERDICT_SECONDS = 30.0
"""How long a trial waits between two splits for a driver that is slow to judge."""


def take_jobs(config: dict[str, Any]) -> None:
    """The training function of a slot's ranks: one job after another, until none comes any more.

    config: slot (its name), queue (where news goes), cpus_per_worker, code (the `code_version` that is wanted, or None).
    Raises RuntimeError on a node, perhaps one that joined later, that has other code.
    """
    if config["code"] not in (None, code_version()):
        raise RuntimeError(
            f"node {socket.gethostname()} has css-ray {code_version()}, the study runs {config['code']}; "
            "install the same on all nodes"
        )
    torch.set_num_threads(config["cpus_per_worker"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    handover, number = Handover(config["slot"]), NOTHING
    while True:
        mine = handover.wait(number) if distributed.rank() == 0 else 0
        number = _sum(mine, device)  # rank 0's: the others have none of their own, and wait here
        if number == LEAVE:
            return
        job = handover.job(number)
        if _sum(int(job is None), device):
            continue  # withdrawn, when not all had seen it
        assert job is not None
        watchdog = Watchdog(job["hang_seconds"], handover.say_why)
        with watchdog:
            train_splits(job, SlotReporter(job, number, config["queue"], device, watchdog.beat), device, watchdog.beat)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the next trial may need other sizes


def train_splits(job: Job, reporter: SlotReporter, device: torch.device, beat: Callable[[], None]) -> None:
    """Train a trial on its splits, in sequence.

    job: trial (index), runs (one RunSpec a split), checkpoints and models (folders or URLs, for what it goes on from and for
    the best weights of each run), verdicts (whose they are, or None where nobody prunes it), hang_seconds.
    beat: called again and again, as training goes on.
    A split whose loss becomes NaN or infinite has failed, with its reason; the others are trained all the same. Any other
    exception ends the worker group, and Ray Train starts it again from the last checkpoint. A checkpoint that is damaged is
    passed over: the trial goes on from the one before, or starts anew, and says so.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path | None = None
        kept = reporter.checkpoints
        opened, damages = newest_readable(kept.newest_first(), lambda name: open_checkpoint(kept, name, Path(scratch)), device)
        if opened is not None:
            folder, told = opened
            reporter.remember(told)
        ended, evaluated = progress_of(reporter.events)
        for spec in job["runs"]:
            split = spec["split"]
            if split in ended:
                continue
            reporter.split = split
            # The checkpoint is of the run in progress, if that had been evaluated; else the run starts at its first step.
            resumed = folder if split in evaluated else None
            prepared = prepare(spec)
            workers = distributed.world_size()
            before = workers_of(reporter.events, split)
            reporter.tell("run_started", None, **prepared.started(), workers=workers)
            if before not in (None, workers):
                step = evaluated[split] if resumed else 0
                reason = f"from step {step} on {workers} workers train it, {before} did before"
                reporter.tell("run_resized", step, workers=workers, before=before, reason=reason)
            if damages:
                step = evaluated[split] if resumed else 0
                where = f"goes on from the one before, at step {step}" if resumed else "starts from its first step"
                reporter.tell("run_rewound", step, reason=f"damaged checkpoints ({'; '.join(damages)}): the run {where}")
                damages = []
            reporter.send()
            try:
                fit = execute(
                    prepared,
                    reporter,
                    device=device,
                    checkpoint=resumed,
                    keep_best=_keeper(below(job["models"], f"split_{split}")),
                    beat=beat,
                )
            except PrunedError:
                break
            except NonFiniteLossError as error:
                reporter.tell("run_failed", reporter.step, reason=str(error))
            else:
                reporter.tell(
                    "run_finished",
                    fit.step,
                    last=fit.last,
                    best=fit.best,
                    best_step=fit.best_step,
                    seconds=round(fit.seconds, 3),
                )
            folder = None
            reporter.save(lambda folder: None)
            if spec is not job["runs"][-1] and reporter.pruned_after(split):
                break
        reporter.send(over=True)


def open_checkpoint(checkpoints: Checkpoints, name: str, scratch: Path) -> tuple[Path, list[Event]]:
    """A folder with the files of the checkpoint `name`, and the events it holds.

    Raises DamagedError where this rank could not go on from it.
    """
    try:
        try:
            folder = checkpoints.fetch(name, scratch)
            events: list[Event] = json.loads((folder / TRIAL_FILE).read_text())
        except FileNotFoundError:
            raise DamagedError(Path(TRIAL_FILE), "it is missing") from None
        except ValueError as error:
            raise DamagedError(Path(TRIAL_FILE), error) from error
        ended, evaluated = progress_of(events)
        if evaluated.keys() - ended:
            check_checkpoint(folder)
    except DamagedError as error:
        error.reason = f"{name}/{error.reason}"
        raise
    return folder, events


def progress_of(events: list[Event]) -> tuple[set[int], dict[int, int]]:
    """The splits of a trial that ended, and the latest evaluated step of each that was evaluated."""
    ended = {event["split"] for event in events if event["event"] in ("run_finished", "run_failed")}
    evaluated: dict[int, int] = {}
    for event in events:
        if event["event"] == "run_evaluated":
            evaluated[event["split"]] = max(event["step"], evaluated.get(event["split"], 0))
    return ended, evaluated


def workers_of(events: list[Event], split: int) -> int | None:
    """How many workers trained a split of a trial last; None where it has not begun."""
    told = [event["workers"] for event in events if event["split"] == split and "workers" in event]
    return told[-1] if told else None


class PrunedError(Exception):
    """The driver has pruned this trial."""


class SlotReporter:
    """Tells the slot what happens to a job, and keeps its checkpoints."""

    def __init__(self, job: Job, number: int, queue: Queue, device: torch.device, alive: Callable[[], None]) -> None:
        self.trial: int = job["trial"]
        self.verdicts = Verdicts(job["verdicts"]) if job["verdicts"] else None
        self.checkpoints = Checkpoints(job["checkpoints"], device, min_free=job["min_free"], waiting=alive)
        self.number = number
        self.queue = queue
        self.device = device
        self.split = 0
        self.step = 0
        self.events: list[Event] = []
        self.known: set[tuple[str, int, int | None]] = set()
        self.told = 0

    def remember(self, events: list[Event]) -> None:
        """Take over what an earlier life of this trial told; the next message tells it again."""
        self.events = events
        self.known = {(event["event"], event["split"], event.get("step")) for event in events}

    def tell(self, kind: str, step: int | None, **content: Any) -> None:
        event = {"event": kind, "time": round(time.time(), 3), "trial": self.trial, "split": self.split}
        if step is not None:
            event["step"] = step
        key = kind, self.split, step
        if key not in self.known:
            self.known.add(key)
            self.events.append(event | content)

    def send(self, *, over: bool = False) -> None:
        """Send the new events. Nobody waits for their arrival: what matters of them is in the next checkpoint."""
        if distributed.rank() == 0:
            message = {"job": self.number, "events": self.events[self.told :], "over": over}
            self.queue.actor.put_nowait.remote(message)  # type: ignore[attr-defined]
        self.told = len(self.events)

    def save(self, write_checkpoint: Callable[[Path], None]) -> None:
        """Keep a checkpoint, on all ranks at once, then send the new events."""

        def write(folder: Path) -> None:
            write_checkpoint(folder)
            if distributed.rank() == 0:
                (folder / TRIAL_FILE).write_text(json.dumps(self.events))

        self.checkpoints.save(write)
        self.send()

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = step
        self.tell("run_logged", step, metrics=dict(metrics))
        self.send()
        self._obey()

    def evaluated(self, step: int, metrics: Mapping[str, float], write_checkpoint: Callable[[Path], None]) -> None:
        self.step = step
        self.tell("run_evaluated", step, metrics=dict(metrics))
        self.save(write_checkpoint)
        self._obey()

    def pruned_after(self, split: int) -> bool:
        """Wait for the verdict on the trial after `split`; the same on all ranks. Where none comes in time, it goes on."""
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
        return bool(_sum(int(pruned), self.device))

    def _obey(self) -> None:
        """Raise PrunedError on all ranks if the driver has pruned the trial. Nobody waits: it may learn so a step later."""
        if self.verdicts is None:
            return
        pruned = distributed.rank() == 0 and self.verdicts.of(self.trial)[0]
        if _sum(int(pruned), self.device):
            raise PrunedError


class Watchdog:
    """Ends this process where training stands still for `seconds`: a hung rank, which its peers would wait for for ever.

    Whoever waits for a hung rank stands still as well, so all ranks of a job end within moments of each other. say_why: told
    the reason first.
    """

    def __init__(self, seconds: float, say_why: Callable[[str], None]) -> None:
        self.seconds = seconds
        self.say_why = say_why
        self._latest: float | None = None
        self._over = threading.Event()

    def beat(self) -> None:
        """Training goes on. The watch begins with the first beat: opening the data may take its time."""
        self._latest = time.monotonic()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="css-ray-watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        rank = distributed.rank()
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if self._latest is not None and time.monotonic() - self._latest > self.seconds:
                self.say_why(
                    f"rank {rank} stood still for more than {self.seconds:g} s: a rank hangs, or resources.hang_seconds is "
                    "less than a step takes"
                )
                os._exit(1)


def _sum(number: int, device: torch.device) -> int:
    """The sum of the ranks' numbers, on all of them."""
    return int(distributed.all_reduce_sum(torch.tensor(number, device=device)))


def _keeper(folder: str) -> Callable[[dict[str, Tensor], BestDescription], None]:
    """Writes the best weights of a run and their description into `folder`, a path or a URL."""

    def keep(weights: dict[str, Tensor], best: BestDescription) -> None:
        if not is_url(folder):
            write_best(Path(folder), weights, best)
            return
        filesystem, path = locate(folder)
        with tempfile.TemporaryDirectory() as scratch:
            write_best(Path(scratch), weights, best)
            filesystem.create_dir(path, recursive=True)
            for name in BEST_FILES:
                send(Path(scratch) / name, filesystem, f"{path}/{name}")

    return keep
