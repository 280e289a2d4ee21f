"""What a large study costs its driver, in a process of its own: `python -m benchmarks.workloads.driver FOLDER`.

The driver is real (suggestions, journal with its fsyncs, standing, pruners), and so is what the live view does with each event;
the trials are simulated: their events come without a pause. MLflow is left out: it has a thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.workloads.memory import private_megabytes
from css_ray.data.catalogue import ensure_dataset
from css_ray.events import Event, RunEvaluated, RunFinished, RunStarted
from css_ray.standing import Standing
from css_ray.study.definition import StudyDefinition, TrialSpec, parse
from css_ray.study.driver import Driver

TRIALS, SPLITS, REPORTS, ITERATIONS, COMPARED = 1000, 3, 20, 1000, 100


class View:
    """Takes each event into account once more, as the live view of a study does."""

    def __init__(self, study: StudyDefinition) -> None:
        self.standing = Standing(parse, study)

    def event(self, event: Event) -> None:
        self.standing.add(event)

    def warn(self, text: str) -> None:
        raise RuntimeError(text)


def large_study(folder: Path) -> StudyDefinition:
    """A search of TRIALS trials x SPLITS splits; `folder` is for its data."""
    study = parse(
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
    ensure_dataset("digits", study.data.root)
    return study


@contextlib.contextmanager
def driving_without_mlflow(driver: Driver) -> Iterator[None]:
    """Hold the study's lock and begin the study, as `Driver.driving` and a runner do."""
    with driver.journal.driving():
        driver.journal.forget()
        driver.begin_or_resume()
        yield


def next_trial(driver: Driver) -> TrialSpec:
    """The driver's next trial, which has begun. No other is under way."""
    trial = driver.next_trial(set())
    assert isinstance(trial, TrialSpec)
    driver.begin(trial)
    return trial


def run_started(trial: int, split: int) -> RunStarted:
    """What the first rank of a run on the digits reports."""
    return RunStarted.now(
        trial=trial, split=split, seed=0, dataset="digits", split_hash="", num_labelled=24, num_unlabelled=376,
        class_names=list("abcdef"),
    )  # fmt: skip


def _drive(driver: Driver) -> list[float]:
    """Take the study through all its trials; the processor time of each, in seconds."""
    draw = random.Random(0)
    seconds = []
    for _ in range(TRIALS):
        started = time.process_time()
        trial = next_trial(driver).index
        level = draw.gauss(60, 1)
        for split in range(SPLITS):
            driver.hear(run_started(trial, split))
            for step in range(ITERATIONS // REPORTS, ITERATIONS + 1, ITERATIONS // REPORTS):
                metrics = {f"val/iou/{name}": draw.gauss(level, 1) for name in "abcdef"} | {"val/miou": draw.gauss(level, 1)}
                driver.hear(RunEvaluated.now(trial=trial, split=split, step=step, metrics=metrics))
            driver.hear(
                RunFinished.now(
                    trial=trial, split=split, step=step, last=metrics, best=metrics, best_step=step, seconds=9.0
                )
            )  # fmt: skip
        driver.end(trial, None)
        seconds.append(time.process_time() - started)
    return seconds


def main(folder: Path) -> None:
    study = large_study(folder)
    driver = Driver(study, str(folder / "runs"), View(study))
    with driving_without_mlflow(driver):
        seconds = _drive(driver)
    private = private_megabytes()
    started = time.perf_counter()
    again = Driver(study, str(folder / "runs"))
    replay = time.perf_counter() - started
    assert again.standing.trials_ended == TRIALS
    print(
        json.dumps({"first": sum(seconds[:COMPARED]), "last": sum(seconds[-COMPARED:]), "private": private, "replay": replay})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
