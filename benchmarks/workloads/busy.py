"""How busy the slots of a study are: `python -m benchmarks.workloads.busy FOLDER`, in a process of its own.

40 equal trials on 8 slots, through the real driver and Tune with its processes. The slots are simulated: in the place of a
worker group each trial's process waits for 60 s and reports what workers would. So the share is what handing out, judging and
ending trials leaves of a slot's time; starting the worker groups, once per slot, is measured by `startup`. Prints the share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.tune

from benchmarks.workloads.driver import run_started
from css_ray.data.catalogue import ensure_dataset
from css_ray.events import Event, RunEvaluated, RunFinished, TrialFinished, TrialStarted
from css_ray.execution.handover import Message
from css_ray.execution.tune import tune
from css_ray.study.definition import parse
from css_ray.study.driver import Driver
from css_ray.study.job import Job
from css_ray.study.journal import Journal

TRIALS, SLOTS, SECONDS, REPORTS = 40, 8, 60.0, 20
ITERATIONS = 1000


def simulated(config: dict[str, Any]) -> None:
    """A trial that takes SECONDS on its one split."""
    job = Job.from_json(config["job"])
    started = time.time()
    trial, split = job.trial, job.runs[0].split
    metrics = {"val/miou": 50.0, **{f"val/iou/{name}": 50.0 for name in "abcdef"}}

    def report(event: Event) -> None:
        ray.tune.report(Message(events=[event]).to_json())

    report(run_started(trial, split))
    for number in range(1, REPORTS + 1):
        time.sleep(max(0.0, started + number * SECONDS / REPORTS - time.time()))
        report(RunEvaluated.now(trial=trial, split=split, step=number * ITERATIONS // REPORTS, metrics=metrics))
    seconds = time.time() - started
    report(
        RunFinished.now(
            trial=trial, split=split, step=ITERATIONS, last=metrics, best=metrics, best_step=ITERATIONS, seconds=seconds
        )
    )  # fmt: skip


def main(folder: Path) -> None:
    ensure_dataset("digits", str(folder / "digits"))
    study = parse(
        {
            "study": "busy",
            "data": {
                "dataset": "digits", "root": str(folder / "digits"), "labelled": 24, "crop": 40, "labelled_batch": 8,
                "unlabelled_batch": 8,
            },
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
            "train": {"iterations": ITERATIONS, "lr": 0.1, "evaluate_every": ITERATIONS // REPORTS},
            "splits": [0],
            "search": {
                "method": {"name": "css"}, "trials": TRIALS, "sampler": "tpe", "pruners": [{"name": "median"}],
                "space": {"method.temperature": {"loguniform": [0.1, 1.0]}, "method.unsup_threshold": {"uniform": [0.5, 0.99]}},
            },
            "resources": {"concurrent_trials": SLOTS},
        }
    )  # fmt: skip
    driver = Driver(study, str(folder / "runs"))
    # A runner would start no more slots than this machine has cores, which simulated ones do not need.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    ray.init(num_cpus=SLOTS, log_to_driver=False, include_dashboard=False)
    with driver.driving():
        driver.begin_or_resume()
        tune(driver, SLOTS, None, trainable=simulated)
        driver.finish()
    assert driver.outcome().status == "finished", driver.outcome()
    events = Journal(driver.folder).events
    begun = min(event.time for event in events if isinstance(event, TrialStarted))
    ended = max(event.time for event in events if isinstance(event, TrialFinished))
    trained = sum(event.seconds for event in events if isinstance(event, RunFinished))
    print(json.dumps({"share": trained / (SLOTS * (ended - begun))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
