"""How long a training step takes on this machine, measured on random images."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch

from css_ray.methods.base import Method
from css_ray.methods.stages import longest
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.training.step import place_method, train_step
from css_ray.types import Batch, Clock

TIMED_STEPS = 3
MIDDLE = Clock(1, 2)
"""The middle of a training: every loss acts there."""


def seconds_per_step(
    method: Method,
    config: TrainConfig,
    *,
    num_classes: int,
    crop: int,
    labelled_batch: int,
    unlabelled_batch: int,
    device: torch.device,
) -> float:
    """The median of `TIMED_STEPS` steps in seconds; a first step warms up and does not count.

    crop: side in pixels. labelled_batch, unlabelled_batch: images per step; a method that needs no unlabelled ones gets none.
    The networks are not compiled, whatever `config` asks for: that takes longer than the steps.
    """
    place_method(method, dataclasses.replace(config, compile=False), device)
    method.train()
    method.stage = longest(method.stages())
    optimizer = make_optimizer(method, config)
    unlabelled, labelled, pseudo = (unlabelled_batch if method.needs_unlabelled else 0), labelled_batch, None
    if (kind := method.stages()[method.stage].batch) == "union":
        labelled, pseudo = labelled_batch + unlabelled, torch.arange(labelled_batch + unlabelled) >= labelled_batch
    unlabelled = unlabelled if kind == "pair" else 0
    batch = Batch(
        torch.rand(labelled, 3, crop, crop),
        torch.randint(num_classes, (labelled, crop, crop)),
        torch.rand(unlabelled, 3, crop, crop),
        torch.ones(unlabelled, crop, crop, dtype=torch.bool),
        pseudo=pseudo,
    ).to(device)
    times = []
    for _ in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        train_step(method, method, optimizer, batch, dataclasses.replace(MIDDLE, stage=method.stage), config)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
