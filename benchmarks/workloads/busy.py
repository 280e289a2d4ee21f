"""How busy the slots of a study are: `python -m benchmarks._busy FOLDER`, in a process of its own.

40 equal trials on 8 slots, through the real driver and Tune with its processes. The slots are simulated: in the place of a
worker group each trial's process waits for 60 s and tells what workers would. So the share is what handing out, judging and
ending trials leaves of a slot's time; starting the worker groups, once a slot, is measured by `_startup`. Prints the share.
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

from css_ray.data.catalogue import ensure_dataset
from css_ray.study import runner
from css_ray.study.definition import StudyDefinition, parse

TRIALS, SLOTS, SECONDS, REPORTS = 40, 8, 60.0, 20
ITERATIONS = 1000


def simulated(config: dict[str, Any]) -> None:
    """A trial that takes SECONDS on its one split."""
    job = config["job"]
    started = time.time()
    about = {"trial": job["trial"], "split": job["runs"][0]["split"]}
    metrics = {"val/miou": 50.0, **{f"val/iou/{name}": 50.0 for name in "abcdef"}}

    def tell(kind: str, **content: Any) -> None:
        ray.tune.report({"events": [{"event": kind, "time": time.time(), **about, **content}]})

    tell(
        "run_started", seed=0, dataset="digits", split_hash="", num_labelled=24, num_unlabelled=376, class_names=list("abcdef")
    )
    for report in range(1, REPORTS + 1):
        time.sleep(max(0.0, started + report * SECONDS / REPORTS - time.time()))
        tell("run_evaluated", step=report * ITERATIONS // REPORTS, metrics=metrics)
    tell("run_finished", step=ITERATIONS, last=metrics, best=metrics, best_step=ITERATIONS, seconds=time.time() - started)


def connect(study: StudyDefinition, address: str | None) -> int:
    """As the runner does, with as many slots as we like."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # as the runner's own
    ray.init(num_cpus=SLOTS, log_to_driver=False, include_dashboard=False)
    return SLOTS


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
    runner.connect, runner.run_trial = connect, simulated
    outcome = runner.Runner(study, str(folder / "runs")).run(resume=False)
    assert outcome.status == "finished", outcome
    events = [json.loads(line) for line in (folder / "runs" / "busy" / "journal.jsonl").read_text().splitlines()]
    begun = min(event["time"] for event in events if event["event"] == "trial_started")
    ended = max(event["time"] for event in events if event["event"] == "trial_finished")
    trained = sum(event["seconds"] for event in events if event["event"] == "run_finished")
    print(json.dumps({"share": trained / (SLOTS * (ended - begun))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
