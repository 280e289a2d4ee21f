"""Steps a second inside a study and outside: `python -m benchmarks.workloads.pace FOLDER`, in a process of its own.

The same runs twice: plainly in this process, and by a study under Ray Train and Tune with its journal, its checkpoints and
MLflow. Both report every 50 steps, evaluate half-way and at the end, and have one thread. The clock runs from the report at
step 50 to the last one, by the times of the reports. Prints the medians, in milliseconds a step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from css_ray.data.catalogue import ensure_dataset
from css_ray.events import RunLogged
from css_ray.execution.runner import Runner
from css_ray.study.definition import StudyDefinition, parse
from css_ray.study.inputs import prepare
from css_ray.study.journal import Journal
from css_ray.study.run import execute, run_spec
from css_ray.training.reporter import SilentReporter

STEPS, REPORT_EVERY, RUNS = 600, 50, 3


class _Timed(SilentReporter):
    """Remembers when each point of the curves was reported."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[int, float] = {}

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.times[step] = time.time()


def _study(data: Path) -> StudyDefinition:
    return parse(
        {
            "study": "pace",
            "data": {
                "dataset": "digits", "root": str(data), "labelled": 24, "crop": 40, "labelled_batch": 8, "unlabelled_batch": 8,
                "val_batch": 50,
            },
            "views": {"flip": False},
            "model": {
                "encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 32, "low_level_channels": 16,
                "representation_dim": 32,
            },
            "train": {"iterations": STEPS, "lr": 0.1, "log_every": REPORT_EVERY, "evaluate_every": STEPS // 2},
            "splits": list(range(RUNS)),
            "grid": {"method": [{"name": "css", "num_queries": 64, "num_negatives": 128}]},
        }
    )  # fmt: skip


def _milliseconds(times: Mapping[int, float]) -> float:
    return (times[STEPS] - times[REPORT_EVERY]) / (STEPS - REPORT_EVERY) * 1000


def _plain(study: StudyDefinition, split: int) -> float:
    reporter = _Timed()
    execute(prepare(run_spec(study, study.grid_trials()[0], split)), reporter)
    return _milliseconds(reporter.times)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ensure_dataset("digits", str(folder / "digits"))
    study = _study(folder / "digits")
    # Before and after, so that a machine that becomes slower counts for neither.
    plain = [_plain(study, split) for split in range(RUNS)]
    runner = Runner(study, str(folder / "runs"))
    outcome = runner.run(resume=False)
    assert outcome.status == "finished", outcome
    plain += [_plain(study, split) for split in range(RUNS)]
    times: dict[int, dict[int, float]] = {split: {} for split in range(RUNS)}
    for event in Journal(runner.driver.folder).events:
        if isinstance(event, RunLogged):
            times[event.split][event.step] = event.time
    inside = [_milliseconds(each) for each in times.values()]
    print(json.dumps({"inside": statistics.median(inside), "plain": statistics.median(plain)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
