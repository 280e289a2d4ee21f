"""A rank of a trial's Ray Train worker group: trains the trial's splits in sequence, so that one start-up serves them all.

Each report carries the events that happened since the last one. A checkpoint holds, beside the state of the run in progress,
every event of the trial so far; after an interruption they are told again, and the journal drops those it knows. So the journal
misses nothing, however the driver died.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from css_ray import distributed
from css_ray.records import Event
from css_ray.study.journal import is_uri
from css_ray.study.run import execute, prepare
from css_ray.study.trial import Verdicts
from css_ray.training.checkpoint import write_tensors
from css_ray.training.loop import NonFiniteLossError

TRIAL_FILE = "trial.json"

VERDICT_SECONDS = 30.0
"""How long a trial waits between two splits for a driver that is slow to judge."""


def train_splits(config: dict[str, Any]) -> None:
    """The training function of a trial.

    config: trial (index), runs (one RunSpec a split), cpus_per_worker, models (folder for the best weights of each run),
    verdicts (where the driver says whether the trial is pruned, or None where nobody prunes it).
    A split whose loss becomes NaN or infinite has failed, with its reason; the others are trained all the same. Any other
    exception ends the worker group, and Ray Train starts it again from the last checkpoint.
    """
    torch.set_num_threads(config["cpus_per_worker"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path | None = None
        reporter = _RayReporter(config["trial"], config["verdicts"])
        if checkpoint is not None:
            folder = Path(checkpoint.to_directory(Path(scratch) / "resumed"))
            reporter.remember(json.loads((folder / TRIAL_FILE).read_text()))
        ended = {event["split"] for event in reporter.events if event["event"] in ("run_finished", "run_failed")}
        begun = {event["split"] for event in reporter.events if event["event"] == "run_evaluated"}
        for spec in config["runs"]:
            split = spec["split"]
            if split in ended:
                continue
            reporter.split = split
            # The checkpoint is of the run in progress, if that had been evaluated; else the run starts at its first step.
            resumed = folder if split in begun else None
            prepared = prepare(spec)
            reporter.tell("run_started", None, **prepared.started())
            try:
                fit = execute(
                    prepared,
                    reporter,
                    device=device,
                    checkpoint=resumed,
                    keep_best=_keeper(f"{config['models']}/split_{split}"),
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
            reporter.send(lambda folder: None)
            if spec is not config["runs"][-1] and reporter.pruned_after(split):
                break
        if not reporter.told:
            # Interrupted between the last report and the trial's end: tell it all once more.
            reporter.send(lambda folder: None)


class PrunedError(Exception):
    """The driver has pruned this trial."""


class _RayReporter:
    def __init__(self, trial: int, verdicts: Verdicts | None) -> None:
        self.trial = trial
        self.verdicts = verdicts
        self.split = 0
        self.step = 0
        self.events: list[Event] = []
        self.known: set[tuple[str, int, int | None]] = set()
        self.told = 0

    def remember(self, events: list[Event]) -> None:
        """Take over what an earlier life of this trial told; the next report tells it again."""
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

    def send(self, write_checkpoint: Callable[[Path], None] | None = None) -> None:
        """Report the new events, on all ranks at once; with a checkpoint if `write_checkpoint` fills one."""
        first = distributed.rank() == 0
        metrics = {"events": self.events[self.told :] if first else []}
        self.told = len(self.events)
        if write_checkpoint is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder))
            if first:
                (Path(folder) / TRIAL_FILE).write_text(json.dumps(self.events))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = step
        self.tell("run_logged", step, metrics=dict(metrics))
        self.send()
        self._obey()

    def evaluated(self, step: int, metrics: Mapping[str, float], write_checkpoint: Callable[[Path], None]) -> None:
        self.step = step
        self.tell("run_evaluated", step, metrics=dict(metrics))
        self.send(write_checkpoint)
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
        return _on_all_ranks(pruned)

    def _obey(self) -> None:
        """Raise PrunedError on all ranks if the driver has pruned the trial. Nobody waits: it may learn so a step later."""
        if self.verdicts is None:
            return
        pruned = distributed.rank() == 0 and self.verdicts.of(self.trial)[0]
        if _on_all_ranks(pruned):
            raise PrunedError


def _on_all_ranks(true_on_first: bool) -> bool:
    flag = torch.tensor(int(true_on_first), device=ray.train.torch.get_device())
    return bool(distributed.all_reduce_sum(flag))


def _keeper(folder: str) -> Callable[[dict[str, Tensor]], None]:
    """Keeps the best weights of a run as `<folder>/best.pt`, replaced as a whole."""

    def keep(state: dict[str, Tensor]) -> None:
        if not is_uri(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_tensors(Path(folder) / "best.pt", state)
            return
        filesystem, path = pyarrow.fs.FileSystem.from_uri(folder)
        with tempfile.TemporaryDirectory() as scratch:
            write_tensors(Path(scratch) / "best.pt", state)
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/best.pt") as stream:
                stream.write((Path(scratch) / "best.pt").read_bytes())

    return keep
