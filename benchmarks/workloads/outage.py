"""What an MLflow server that is away costs a study, in a process of its own: `python -m benchmarks.workloads.outage FOLDER`.

The driver is real (journal with its fsyncs, standing, pruners, live view, MLflow's tracker), and MLflow is off, up (an SQLite
file), hung (a server that takes connections and never answers) or stopped (nothing listens), in turn. A training loop reports
to it in its own process, which is harsher than a study, whose loop has processes of its own; simulated events time it alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.workloads.driver import SPLITS, View, driving_without_mlflow, large_study, next_trial, run_started
from benchmarks.workloads.gate import Gate
from css_ray.events import Event, RunEvaluated, RunFinished, RunLogged, StudyStarted
from css_ray.methods import METHODS
from css_ray.models import ModelConfig, make_segmenter
from css_ray.study.driver import Driver
from css_ray.tracking import Tracker, default_uri
from css_ray.training.loop import fit
from css_ray.training.reporter import Reporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch
from css_ray.views import Views

STEPS, LOG_EVERY, ROUNDS = 100, 5, 15
EVENTS, PAUSE = 50, 0.005  # simulated events a round, and the seconds between two: 200 a second, a hundred times a study's


class _Study:
    """One study and its real driver; each round is a trial of its own and has a tracker of its own."""

    def __init__(self, folder: Path) -> None:
        study = large_study(folder)
        self.driver = Driver(study, str(folder / "runs"), observer=self)
        self._view = View(study)
        self._tracker: Tracker | None = None
        self.handing_over: list[float] = []  # seconds, of each event of the latest round

    def warn(self, text: str) -> None:
        raise RuntimeError(text)

    def event(self, event: Event) -> None:
        """The driver calls this once an event is in the journal, which is when it would tell a tracker of its own."""
        if self._tracker is not None:
            started = time.perf_counter()
            self._tracker.record(event)
            self.handing_over.append(time.perf_counter() - started)
        self._view.event(event)

    @contextlib.contextmanager
    def trial(self, uri: str | None) -> Iterator[dict[str, int]]:
        """Inside, a new trial's first run is under way, with MLflow at `uri`, or off; yields the `trial` and `split` of it."""
        tracker = self._tracker = None if uri is None else Tracker(uri)
        self.handing_over = []
        if tracker is not None:  # to MLflow each round is a study of its own
            tracker.record(StudyStarted.now(study="large", study_id=uuid.uuid4().hex, spec={}, versions={}))
        trial, scores = next_trial(self.driver).index, {"val/miou": 50.0}
        for split in range(SPLITS):
            self.driver.hear(run_started(trial, split))
            if not split:
                yield {"trial": trial, "split": split}
            self.driver.hear(
                RunFinished.now(
                    trial=trial, split=split, step=STEPS, last=scores, best=scores, best_step=STEPS, seconds=1.0
                )
            )  # fmt: skip
        self.driver.end(trial, None)
        self._tracker = None
        if tracker is not None:
            tracker.close(timeout=30 if str(uri).startswith("sqlite") else 0)


class _Reporter(SilentReporter):
    def __init__(self, driver: Driver, run: Mapping[str, int]) -> None:
        super().__init__()
        self.driver, self.run = driver, run

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.driver.hear(RunLogged.now(**self.run, step=step, metrics=dict(metrics)))

    def evaluated(self, step: int, metrics: Mapping[str, float], write_checkpoint: Callable[[Path], None]) -> None:
        self.driver.hear(RunEvaluated.now(**self.run, step=step, metrics=dict(metrics)))


def _train(reporter: Reporter) -> float:
    """Seconds of a training of the tiny network that reports every few steps."""
    model = ModelConfig(
        encoder="tiny", output_stride=4, pretrained=False, decoder_channels=16, low_level_channels=8, representation_dim=16
    )
    method = METHODS["supervised"]
    torch.manual_seed(0)
    network = method(lambda: make_segmenter(model, 6, representation=False), method.Config(), Views())
    labels = torch.randint(6, (4, 40, 40))
    batch = Batch(torch.rand(4, 3, 40, 40), labels, torch.rand(4, 3, 40, 40), torch.ones(4, 40, 40, dtype=torch.bool))
    config = TrainConfig(iterations=STEPS, lr=0.05, log_every=LOG_EVERY, evaluate_every=STEPS)
    started = time.perf_counter()
    fit(
        network, config, make_batches=lambda first, end, kind: [batch] * (end - first),
        val_batches=[(batch.labelled_images, labels)], class_names=tuple("abcdef"), seed=0, reporter=reporter,
    )  # fmt: skip
    return time.perf_counter() - started


def _hear_events(driver: Driver, run: Mapping[str, int]) -> float:
    """Seconds that the driver spends on an event, the pauses between them left out."""
    spent = []
    for step in range(EVENTS):
        time.sleep(PAUSE)
        metrics = {f"train/{name}": 0.5 for name in ("loss", "sup", "unsup", "contrast", "lr")}
        started = time.perf_counter()
        driver.hear(RunLogged.now(**run, step=step, metrics=metrics))
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Medians in seconds, by the state of MLflow: `steps` of one training; an `event` in the driver, and of that `record`, its
    hand-over to MLflow; `cpu` of the whole process for one training.
    """
    torch.set_num_threads(1)
    logging.getLogger("css_ray.tracking").setLevel(logging.ERROR)  # each of a hundred trackers would report the outage
    hung, stopped = Gate(), Gate()
    stopped.stop()
    uris: dict[str, str | None] = {"off": None, "hung": hung.url, "stopped": stopped.url, "up": default_uri(folder)}
    study = _Study(folder)
    found: dict[str, dict[str, list[float]]] = {
        what: {state: [] for state in uris} for what in ("steps", "cpu", "event", "record")
    }
    with driving_without_mlflow(study.driver):
        for number in range(rounds + 1):
            # Forwards and backwards, so that no state always follows the same one.
            for state, uri in list(uris.items())[:: 1 if number % 2 else -1]:
                taken: dict[str, float] = {}
                # MLflow's own work in the loop's process would flatter the outage, so the loop is not timed while it is up.
                if state != "up":
                    with study.trial(uri) as run:
                        started = time.process_time()
                        taken["steps"] = _train(_Reporter(study.driver, run))
                        taken["cpu"] = time.process_time() - started
                with study.trial(uri) as run:
                    taken["event"] = _hear_events(study.driver, run)
                    if uri is not None:
                        taken["record"] = statistics.median(study.handing_over)
                if number:  # the first round imports MLflow and makes its tables
                    for what, seconds in taken.items():
                        found[what][state].append(seconds)
    return {what: {state: statistics.median(each) for state, each in taken.items() if each} for what, taken in found.items()}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
