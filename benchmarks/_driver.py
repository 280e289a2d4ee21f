"""What a large study costs its driver, in a process of its own: `python -m benchmarks._driver FOLDER`.

The driver is real (suggestions, journal with its fsyncs, ledger, pruners, progress); the trials are simulated: their events
come at once, as workers would tell them. MLflow is left out: it has a thread of its own.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._reader import private_megabytes
from css_ray.data.catalogue import ensure_dataset
from css_ray.execution.runner import Runner
from css_ray.records import Event
from css_ray.study.definition import StudyDefinition, parse
from css_ray.study.progress import Progress

TRIALS, SPLITS, REPORTS, ITERATIONS, COMPARED = 1000, 3, 20, 1000, 100


class _NoMLflow:
    def record(self, event: Event) -> None: ...


class _View:
    def __init__(self, study: StudyDefinition) -> None:
        self.progress = Progress(study)

    def event(self, event: Event) -> None:
        self.progress.event(event)


def _study(folder: Path) -> StudyDefinition:
    return parse(
        {
            "study": "large",
            "data": {
                "dataset": "digits", "root": str(folder / "digits"), "labelled": 24, "crop": 40, "labelled_batch": 4,
                "unlabelled_batch": 4,
            },
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
            "train": {"iterations": ITERATIONS, "lr": 0.1, "evaluate_every": ITERATIONS // REPORTS},
            "splits": list(range(SPLITS)),
            "search": {
                "method": {"name": "css"}, "trials": TRIALS, "sampler": "random", "pruners": [{"name": "paired"}],
                "space": {"method.temperature": {"loguniform": [0.1, 1.0]}, "method.unsup_threshold": {"uniform": [0.5, 0.99]}},
            },
        }
    )  # fmt: skip


def _drive(runner: Runner) -> list[float]:
    """Take the study through all its trials; the processor time of each, in seconds."""
    draw = random.Random(0)
    seconds = []
    runner.emit("study_started", study="large", study_id="id", spec=runner.study.resolved(), versions={})
    for _ in range(TRIALS):
        started = time.process_time()
        trial = runner.next_trial(set())
        assert trial is not None and not isinstance(trial, str)
        runner.begin(trial)
        level = draw.gauss(60, 1)
        for split in range(SPLITS):
            about: dict[str, Any] = {"trial": trial.index, "split": split}
            told = [{"event": "run_started", "seed": 0, "dataset": "digits", "split_hash": "", "num_labelled": 24,
                     "num_unlabelled": 376, "class_names": list("abcdef")}]  # fmt: skip
            for step in range(ITERATIONS // REPORTS, ITERATIONS + 1, ITERATIONS // REPORTS):
                metrics = {f"val/iou/{name}": draw.gauss(level, 1) for name in "abcdef"} | {"val/miou": draw.gauss(level, 1)}
                told.append({"event": "run_evaluated", "step": step, "metrics": metrics})
            ended = {"step": ITERATIONS, "last": metrics, "best": metrics, "best_step": step, "seconds": 9.0}
            told.append({"event": "run_finished", **ended})
            for event in told:
                runner.take({"time": time.time(), **about, **event})
                if event["event"] in ("run_evaluated", "run_finished"):
                    runner.judge({**about, **event})
        runner.end(trial.index, None)
        seconds.append(time.process_time() - started)
    return seconds


def main(folder: Path) -> None:
    study = _study(folder)
    ensure_dataset("digits", study.data.root)
    runner = Runner(study, str(folder / "runs"), observer=_View(study))
    runner.tracker = _NoMLflow()  # type: ignore[assignment]
    runner.journal.forget()  # as `run` does
    seconds = _drive(runner)
    private = private_megabytes()
    started = time.perf_counter()
    again = Runner(study, str(folder / "runs"))
    progress = Progress(study)
    for event in again.journal.events:
        progress.event(event)
    replay = time.perf_counter() - started
    assert len(again.ledger.ends) == TRIALS == progress.trials_ended
    print(
        json.dumps({"first": sum(seconds[:COMPARED]), "last": sum(seconds[-COMPARED:]), "private": private, "replay": replay})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
