"""A rank of a slot's worker group: trains one trial after another, each on its splits in sequence.

Each message carries the events that happened since the last one. A checkpoint holds, beside the state of the run in progress,
every event of the trial so far; after an interruption they are reported again, and the journal drops those it knows. So the
journal misses nothing, however the driver died.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from css_ray import distributed
from css_ray.events import (
    RunEvent,
    RunFailed,
    RunFinished,
    RunResized,
    RunRewound,
    RunStarted,
)
from css_ray.execution.checkpoints import Checkpoints
from css_ray.execution.handover import LEAVE, NOTHING, Handover
from css_ray.execution.rank_reporter import PrunedError, SlotReporter, sum_of_ranks
from css_ray.execution.trial_file import TRIAL_FILE, progress_of, read_trial
from css_ray.execution.watchdog import Watchdog
from css_ray.matrices import At, ImageMatrices, write_matrices
from css_ray.storage import below, is_url, locate, send
from css_ray.study.code import code_version
from css_ray.study.inputs import prepare
from css_ray.study.job import Job
from css_ray.study.label_store import check_labels
from css_ray.study.run import execute
from css_ray.study.upkeep import labels_of, remove
from css_ray.training.best import BEST_FILES, BestDescription, write_best
from css_ray.training.checkpoint import STATE_FILE, DamagedError, check_checkpoint, newest_readable
from css_ray.training.loop import NonFiniteLossError


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
        number = sum_of_ranks(mine, device)  # rank 0's: the others have none of their own, and wait here
        if number == LEAVE:
            return
        job = handover.job(number)
        if sum_of_ranks(int(job is None), device):
            continue  # withdrawn, when not all had seen it
        assert job is not None
        watchdog = Watchdog(job.hang_seconds, handover.say_why)
        with watchdog:
            train_splits(job, SlotReporter(job, number, config["queue"], device, watchdog.beat), device, watchdog.beat)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the next trial may need other sizes


def train_splits(job: Job, reporter: SlotReporter, device: torch.device, beat: Callable[[], None]) -> None:
    """Train a trial on its splits, in sequence.

    beat: called regularly while training makes progress.
    A split whose loss becomes NaN or infinite has failed, with its reason; the others are trained all the same. Any other
    exception ends the worker group, and Ray Train starts it again from the last checkpoint. A checkpoint that is damaged, or
    not of this trial, is skipped: the trial continues from the one before, or from its first step, and reports that.
    """
    if not job.runs:  # the driver was stopped when all had ended, but not yet the trial
        reporter.send(over=True)
        return
    kept = reporter.checkpoints
    names, damages = kept.newest_first(), list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            opened, more = newest_readable(names, lambda name: open_checkpoint(kept, name, Path(scratch), job), device)
            damages += more
            try:
                return _train_from(opened, damages, job, reporter, device, beat)
            except DamagedError as error:
                # Found when it was loaded, by all ranks alike, before anything was reported.
                if opened is None:
                    raise
                damages.append(f"{opened.name}/{error.reason}")
                names = names[names.index(opened.name) + 1 :]


def _train_from(
    opened: Opened | None,
    damages: list[str],
    job: Job,
    reporter: SlotReporter,
    device: torch.device,
    beat: Callable[[], None],
) -> None:
    """Train what is left after a checkpoint, None to begin at the first step. damages: why it is not a newer one.

    Raises DamagedError if the checkpoint is not of the run that it is said to be of.
    """
    folder = None if opened is None else opened.folder
    reporter.remember([] if opened is None else opened.events)
    ended, evaluated = progress_of(reporter.events)
    for spec in job.runs:
        split = spec.split
        if split in ended:
            continue
        reporter.split = split
        # The checkpoint is of the run in progress, if that had been evaluated; else the run starts at its first step.
        resumed = folder if split in evaluated else None
        prepared = prepare(spec)
        workers = distributed.world_size()
        before = workers_of(reporter.events, split)
        reporter.tell(RunStarted, **prepared.started(), workers=workers)
        if before not in (None, workers):
            step = evaluated[split] if resumed else 0
            reason = f"from step {step} on {workers} workers train it, {before} did before"
            reporter.tell(RunResized, step=step, workers=workers, before=before, reason=reason)
        if damages:
            step = evaluated[split] if resumed else 0
            where = f"continues from the one before, at step {step}" if resumed else "starts from its first step"
            reporter.tell(RunRewound, step=step, reason=f"damaged checkpoints ({'; '.join(damages)}): the run {where}")
            damages = []
        try:
            fit = execute(
                prepared,
                reporter,
                device=device,
                checkpoint=resumed,
                begun=reporter.send,
                keep_best=keeper(below(job.models, f"split_{split}"), partial(reporter.keep, what="the best weights")),
                keep_matrices=partial(_keep_matrices, reporter, below(job.matrices, f"split_{split}")),
                labels=labels_of(job.checkpoints, split),
                with_room=reporter.keep_labels,
                beat=beat,
            )
        except PrunedError:
            break
        except NonFiniteLossError as error:
            reporter.tell(RunFailed, step=reporter.step, reason=str(error))
        else:
            reporter.tell(
                RunFinished,
                step=fit.step,
                last=fit.last,
                best=fit.best,
                best_step=fit.best_step,
                seconds=round(fit.seconds, 3),
            )
        folder = None
        reporter.save(lambda folder: None)
        if distributed.rank() == 0:
            remove(labels_of(job.checkpoints, split))  # a run that is over does not need them
        if spec is not job.runs[-1] and reporter.pruned_after(split):
            break
    reporter.send(over=True)


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint from which this rank can continue: its name, a folder of this machine with its files, its trial's events."""

    name: str
    folder: Path
    events: list[RunEvent]


def open_checkpoint(checkpoints: Checkpoints, name: str, scratch: Path, job: Job) -> Opened:
    """Read the checkpoint `name` of the trial that `job` is to train.

    Raises DamagedError if this rank could not continue from it.
    """
    try:
        try:
            folder = checkpoints.fetch(name, scratch)
        except FileNotFoundError:
            raise DamagedError(Path(TRIAL_FILE), "it is missing") from None
        events = read_trial(folder, job)
        ended, evaluated = progress_of(events)
        for split in evaluated.keys() - ended:
            needed, step = check_checkpoint(folder, step=evaluated[split]), evaluated[split]
            if needed and step < job.runs[0].settings["train"]["iterations"]:
                _check_labels(folder, labels_of(job.checkpoints, split), needed)
    except DamagedError as error:
        error.reason = f"{name}/{error.reason}"
        raise
    return Opened(name, folder, events)


def _check_labels(folder: Path, place: str, digest: str) -> None:
    try:
        check_labels(place, digest)
    except ValueError as error:
        raise DamagedError(folder / STATE_FILE, error) from None


def workers_of(events: list[RunEvent], split: int) -> int | None:
    """How many workers trained a split of a trial last; None if it has not begun."""
    told = [event.workers for event in events if isinstance(event, RunStarted | RunResized) and event.split == split]
    return told[-1] if told else None


def _keep_matrices(reporter: SlotReporter, folder: str, at: At, matrices: ImageMatrices) -> None:
    reporter.keep(lambda: write_matrices(folder, at, matrices), folder, "the matrices of an evaluation")


def keeper(
    folder: str, with_room: Callable[[Callable[[], None], str], None] = lambda write, folder: write()
) -> Callable[[dict[str, Tensor], BestDescription], None]:
    """Keeps the best weights of a run and their description in `folder`, a path or a URL.

    with_room: calls the function that writes them, and again after a wait if the disk is full.
    """

    def write(weights: dict[str, Tensor], best: BestDescription) -> None:
        if not is_url(folder):
            write_best(Path(folder), weights, best)
            return
        filesystem, path = locate(folder)
        with tempfile.TemporaryDirectory() as scratch:
            write_best(Path(scratch), weights, best)
            filesystem.create_dir(path, recursive=True)
            for name in BEST_FILES:
                send(Path(scratch) / name, filesystem, f"{path}/{name}")

    return lambda weights, best: with_room(lambda: write(weights, best), folder)
