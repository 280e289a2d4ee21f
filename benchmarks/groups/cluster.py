"""What it costs to be on several nodes: the same studies on two nodes with a core each, and on one node with two."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from benchmarks import Row
from benchmarks.workloads.nodes import LocalCluster
from css_ray.data.catalogue import ensure_dataset
from css_ray.events import Event, RunLogged, TrialFinished, TrialStarted
from css_ray.study.journal import Journal, study_folder

STEPS, REPORT_EVERY = 200, 20
TRIALS, TRIAL_STEPS = 16, 60
REPEATS = 2


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ensure_dataset("digits", str(folder / "digits"))
        steps: dict[int, list[float]] = {1: [], 2: []}
        studies: dict[int, list[float]] = {1: [], 2: []}
        with closing(LocalCluster(folder, os.environ)) as cluster:
            cluster.start(0)
            for repeat in range(REPEATS):
                for nodes in (1, 2):
                    added = [cluster.add(number + 1, cores=2 // nodes) for number in range(nodes)]
                    place = folder / f"{nodes}-{repeat}"
                    steps[nodes] += _steps(_run(cluster, place, _wide(folder)))
                    studies[nodes].append(_seconds(_run(cluster, place, _many(folder))))
                    for address in added:
                        cluster.kill(address)
        yield Row(
            "a step, 2 nodes x 1 worker, vs 1 node x 2 workers",
            statistics.median(steps[2]), statistics.median(steps[1]), 1.1, "ms",
        )  # fmt: skip
        yield Row(
            f"study of {TRIALS} trials on 2 nodes, vs on 1 node with as many slots",
            statistics.median(studies[2]), statistics.median(studies[1]), 1.1,
        )  # fmt: skip


def _study(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": {
            "dataset": "digits", "root": str(folder / "digits"), "labelled": 24, "crop": 40, "labelled_batch": 8,
            "unlabelled_batch": 8, "val_batch": 50,
        },
        "views": {"flip": False},
        "model": {
            "encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 32, "low_level_channels": 16,
            "representation_dim": 32,
        },
        **changes,
    }  # fmt: skip


def _wide(folder: Path) -> dict[str, Any]:
    """One trial of two workers, who add up their gradients after each step."""
    return _study(
        folder,
        study="wide",
        train={"iterations": STEPS, "lr": 0.1, "log_every": REPORT_EVERY, "evaluate_every": STEPS},
        splits=[0, 1],
        grid={"method": [{"name": "css", "num_queries": 64, "num_negatives": 128}]},
        resources={"workers": 2},
    )


def _many(folder: Path) -> dict[str, Any]:
    """Trials of one worker, two side by side."""
    return _study(
        folder,
        study="many",
        train={"iterations": TRIAL_STEPS, "lr": 0.1, "log_every": REPORT_EVERY, "evaluate_every": TRIAL_STEPS},
        splits=[0],
        search={
            "method": {"name": "css", "num_queries": 64, "num_negatives": 128},
            "trials": TRIALS,
            "sampler": "random",
            "space": {"method.temperature": {"uniform": [0.1, 1.0]}},
        },
        resources={"concurrent_trials": 2},
    )


def _run(cluster: LocalCluster, place: Path, study: dict[str, Any]) -> list[Event]:
    """The events of a study that ran on the cluster to its end."""
    place.mkdir(exist_ok=True)
    file, name = place / f"{study['study']}.yaml", study["study"]
    file.write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "css_ray_cli", "study", "run", str(file), "--storage", str(place / "runs")]
    ended = subprocess.run([*command, "--address", cluster.address], env=cluster.environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{name} ended with code {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return Journal(study_folder(str(place / "runs"), name)).events


def _steps(events: list[Event]) -> list[float]:
    """Milliseconds a step of each split, from the second report on."""
    found = []
    logged = [event for event in events if isinstance(event, RunLogged)]
    for split in {event.split for event in logged}:
        times = {event.step: event.time for event in logged if event.split == split}
        found.append((times[STEPS] - times[2 * REPORT_EVERY]) / (STEPS - 2 * REPORT_EVERY) * 1000)
    return found


def _seconds(events: list[Event]) -> float:
    """From the first trial's start to the last one's end."""
    starts = [event.time for event in events if isinstance(event, TrialStarted)]
    ends = [event.time for event in events if isinstance(event, TrialFinished)]
    return max(ends) - min(starts)
