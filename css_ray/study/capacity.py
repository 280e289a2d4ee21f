"""What a machine or a cluster holds, and how many trials fit there side by side: one rule, for a plan and for a run."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from css_ray.study.definition import Resources


def needs(resources: Resources) -> dict[str, float]:
    """What a trial of the fewest workers takes at least, by device (CPU, GPU)."""
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {device: resources.fewest * share for device, share in wanted.items() if share}


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker on this machine has for a step. where: "this machine", "its GPU"."""

    where: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.where} has {self.bytes / 1e9:.3g} GB"


def step_memory(resources: Resources) -> Memory:
    """What each worker of a trial of the fewest workers has on this machine: a GPU's memory, or its share of the machine's."""
    if resources.gpus_per_worker and (count := torch.cuda.device_count()):
        return Memory("its GPU", max(torch.cuda.get_device_properties(index).total_memory for index in range(count)))
    share = _machine_memory() // resources.fewest
    return Memory("this machine" if resources.fewest == 1 else f"each of {resources.fewest} workers on this machine", share)


def _machine_memory() -> int:
    """Bytes that this machine, or the container that this process is in, has for all its processes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # `max` means no limit
            total = min(total, int(path.read_text()))
    return total


ENLARGE = "lower resources.workers or resources.cpus_per_worker, or join a cluster with --address"
"""What to do about a shortage of this machine."""

SMALLER = "lower data.crop, data.labelled_batch or the channels of the model"
"""What to do about a step that does not fit into memory."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """CPU cores and GPUs, as Ray counts them. where: "this machine", or "the cluster at ADDRESS"."""

    where: str
    cpus: float
    gpus: float
    nodes: int = 1

    @property
    def _has(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus}

    def fits(self, resources: Resources) -> int:
        """How many trials fit side by side, whatever the study asks for."""
        # A worker may take 0.1 GPU, of which ten are 1 only if rounding errors are forgiven.
        return min(math.floor(self._has[device] / need + 1e-9) for device, need in needs(resources).items())

    def side_by_side(self, resources: Resources) -> int:
        """How many trials run side by side: what the study asks for, if that fits."""
        return min(self.fits(resources), resources.concurrent_trials)

    def shortage(self, resources: Resources) -> str:
        """Why not even one trial fits; empty if one does."""
        if self.fits(resources) >= 1:
            return ""
        wanted = needs(resources)
        words = ", ".join(f"{need:g} {device}" for device, need in wanted.items())
        there = ", ".join(f"{self._has[device]:g} {device}" for device in wanted)
        return f"a trial needs {words}, but {self.where} has {there}"

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU core{'s' * (self.cpus != 1)}, {self.gpus:g} GPU{'s' * (self.gpus != 1)}"
