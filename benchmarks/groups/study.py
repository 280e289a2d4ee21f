"""What the platform costs: the journal that every event passes through, and the loop around a method's bare step; and what its
pruning saves on recorded trainings."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import Row, compare
from benchmarks.recorded import replay
from benchmarks.workloads import run_alone
from css_ray.events import RunLogged
from css_ray.methods import METHODS, Method
from css_ray.models import ModelConfig, make_segmenter
from css_ray.study.journal import Journal
from css_ray.training.loop import fit
from css_ray.training.optimizer import make_optimizer
from css_ray.training.reporter import SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch, Clock
from css_ray.views import Views

STEPS = 60
MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=32, low_level_channels=16, representation_dim=32
)


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    yield from _loop()
    yield _journal()
    yield from _driver()
    yield from _outage()
    yield from _studies()
    yield from replay.rows()


def _found(workload: str) -> dict[str, Any]:
    """What a workload prints that is given an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = run_alone(workload, folder)
    return found


def _outage() -> Iterator[Row]:
    """A loop that reports to the real driver while MLflow is away."""
    found = _found("outage")
    steps, record = found["steps"], found["record"]
    yield Row("100 steps that report every 5, MLflow hung, vs no MLflow", steps["hung"], steps["off"], 1.02)
    yield Row("100 steps that report every 5, MLflow stopped, vs no MLflow", steps["stopped"], steps["off"], 1.02)
    yield Row("handing an event to MLflow that hangs, vs the driver's whole event", record["hung"], found["event"]["off"], 0.05)


def _studies() -> Iterator[Row]:
    """Whole studies under Ray, each in a process of its own."""
    found = _found("startup")
    yield Row("start of a later trial, vs the bound", found["later"], 10, 1, "s")
    yield Row("start of a trial's next split, vs the bound", found["split"], 10, 1, "s")
    ours, other = (run_alone("beside", trainer) for trainer in ("css-ray", "torch-trainer"))
    yield Row("start of a process beside the ranks, vs TorchTrainer's", ours["seconds"], other["seconds"], 0.6)
    yield Row("memory of a process beside the ranks, vs TorchTrainer's", ours["megabytes"], other["megabytes"], 0.4, "MB")
    found = _found("pace")
    yield Row("a step inside a study, vs plainly", found["inside"], found["plain"], 1 / 0.98, "ms")
    yield Row("time of 8 slots, vs what 40 trials trained of it", 1, _found("busy")["share"], 1 / 0.93, "")


def _driver() -> Iterator[Row]:
    """1,000 simulated trials x 3 splits x 20 evaluations through the real driver, in a process of its own."""
    found = _found("driver")
    yield Row("driver's CPU for trials 901 to 1,000, vs for trials 1 to 100", found["last"], found["first"], 1.2)
    yield Row("driver's private memory after 1,000 trials, vs the bound", found["private"], 600, 1, "MB")
    yield Row("replay of that study's journal, vs the bound", found["replay"], 5, 1)


def _method(name: str) -> Method:
    method = METHODS[name]
    torch.manual_seed(0)
    return method(lambda: make_segmenter(MODEL, 6, representation=method.needs_representations), method.Config(), Views())


def _loop() -> Iterator[Row]:
    """The loop with curves every 20 steps, against forward, backward, update and EMA written out."""
    labels = torch.randint(6, (8, 40, 40))
    batch = Batch(torch.rand(8, 3, 40, 40), labels, torch.rand(8, 3, 40, 40), torch.ones(8, 40, 40, dtype=torch.bool))
    config = TrainConfig(iterations=STEPS, lr=0.05, log_every=20, evaluate_every=STEPS)
    for name in ("supervised", "css"):

        def ours(name: str = name) -> None:
            fit(
                _method(name), config, make_batches=lambda first, end, kind: [batch] * (end - first),
                val_batches=[(batch.labelled_images, labels)],
                class_names=tuple("abcdef"), seed=0, reporter=SilentReporter(),
            )  # fmt: skip

        def bare(name: str = name) -> None:
            method = _method(name)
            optimizer = make_optimizer(method, config)
            # Written out once more instead of calling `train_step`: it is what the loop with its `train_step` is compared with.
            for step in range(STEPS):
                loss = method(batch, clock := Clock(step, STEPS)).total
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                method.after_step(clock)

        yield compare(f"training loop around {name}, {STEPS} steps, vs the bare steps", ours, bare, 1.10)


def _journal() -> Row:
    """1,000 events through the journal (identified, written, fsynced) against the bare write and fsync of the same lines."""
    metrics = {"train/loss": 0.5, "train/lr": 0.1}
    events = [RunLogged(time=0.0, trial=0, split=0, step=step, metrics=metrics) for step in range(1000)]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(folder)
            for event in events:
                journal.append(event)

    def bare() -> None:
        with tempfile.TemporaryDirectory() as folder:
            descriptor = os.open(Path(folder) / "lines", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for event in events:
                os.write(descriptor, json.dumps(event.to_json()).encode() + b"\n")
                os.fsync(descriptor)
            os.close(descriptor)

    return compare("journal, 1,000 events, vs write and fsync of the same lines", ours, bare, 1.5)
