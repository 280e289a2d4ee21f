"""What an MLflow server that is away costs a study, in a process of its own: `python -m benchmarks._outage FOLDER`.

The driver is real (journal with its fsyncs, ledger, pruners, progress, MLflow's tracker), and MLflow is off, up (an SQLite
file), hung (a server that takes connections and never answers) or stopped (nothing listens), in turn. A training loop reports
to it in its own process, which is harsher than a study, whose loop has processes of its own; simulated events time it alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import _driver
from css_ray.data.catalogue import ensure_dataset
from css_ray.execution.runner import Runner
from css_ray.methods import METHODS
from css_ray.models import ModelConfig, make_segmenter
from css_ray.records import Event
from css_ray.tracking import Tracker, default_uri
from css_ray.training.loop import fit
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch
from css_ray.views import Views

STEPS, LOG_EVERY, ROUNDS = 100, 5, 15
EVENTS, PAUSE = 50, 0.005  # simulated events a round, and the seconds between two: 200 a second, a hundred times a study's


class Gate:
    """Stands before a server at `port` of this machine: opens, hangs or stops its address at any moment, `url`.

    hung: takes connections and requests and never answers. stopped: nothing listens, and what was open is cut. Without a
    server it starts hung.
    """

    def __init__(self, port: int | None = None) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._hung = threading.Event()
        self._listener = _listener(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if port is None:
            self._hung.set()
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.append(client)
                if self._target is None:
                    continue
                with contextlib.suppress(OSError):  # the server itself may be away
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._open.append(server)
                    for source, sink in ((client, server), (server, client)):
                        threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if not self._hung.is_set():  # what was asked of a hung server is lost
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def hang(self) -> None:
        self._hung.set()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def open(self) -> None:
        """Back to normal; connections that were made before it hung or stopped are cut."""
        self.stop()
        self._hung.clear()
        self._listener = _listener(self.port)
        self._start()


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener


class _Driver:
    """The real driver of one study; each round is a trial of its own and has a tracker of its own."""

    def __init__(self, folder: Path) -> None:
        study = _driver._study(folder)
        ensure_dataset("digits", study.data.root)
        self.runner = Runner(study, str(folder / "runs"), observer=_driver._View(study))
        self.runner.tracker = _driver._NoMLflow()  # type: ignore[assignment]
        self.runner.journal.forget()
        self.runner.emit("study_started", study="large", study_id="id", spec=study.resolved(), versions={})

    @contextlib.contextmanager
    def trial(self, uri: str | None) -> Iterator[Callable[..., None]]:
        """Inside, `tell(kind, step, ...)` tells of a new trial's first run while MLflow is at `uri`, or off."""
        tracker = Tracker(uri) if uri is not None else _driver._NoMLflow()
        self.handing_over: list[float] = []  # seconds, of each event

        def record(event: Event) -> None:
            started = time.perf_counter()
            tracker.record(event)
            self.handing_over.append(time.perf_counter() - started)

        self.runner.tracker = SimpleNamespace(record=record)  # type: ignore[assignment]
        # To MLflow each round is a study of its own.
        started = {"study": "large", "study_id": uuid.uuid4().hex, "spec": {}, "versions": {}}
        tracker.record({"event": "study_started", "time": time.time(), **started})
        trial = self.runner.next_trial(set())
        assert trial is not None and not isinstance(trial, str)
        self.runner.begin(trial)
        scores = {"val/miou": 50.0}
        for split in range(_driver.SPLITS):
            place = {"trial": trial.index, "split": split}

            def tell(kind: str, step: int | None = None, place: dict[str, int] = place, **content: Any) -> None:
                event: Event = {"event": kind, "time": time.time(), **place, **content}
                self.runner.take(event if step is None else event | {"step": step})

            tell("run_started", seed=0, dataset="digits", split_hash="", num_labelled=24, num_unlabelled=376, class_names=["a"])
            if not split:
                yield tell
            tell("run_finished", STEPS, last=scores, best=scores, best_step=STEPS, seconds=1.0)
        self.runner.end(trial.index, None)
        if isinstance(tracker, Tracker):
            tracker.close(timeout=30 if str(uri).startswith("sqlite") else 0)


class _Reporter:
    def __init__(self, tell: Callable[..., None]) -> None:
        self.tell = tell

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tell("run_logged", step, metrics=dict(metrics))

    def evaluated(self, step: int, metrics: Mapping[str, float], write_checkpoint: Callable[[Path], None]) -> None:
        self.tell("run_evaluated", step, metrics=dict(metrics))


def _train(tell: Callable[..., None]) -> float:
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
        network, config, make_batches=lambda start: (batch for _ in range(start, STEPS)),
        val_batches=[(batch.labelled_images, labels)], class_names=tuple("abcdef"), seed=0, reporter=_Reporter(tell),
    )  # fmt: skip
    return time.perf_counter() - started


def _tell_events(tell: Callable[..., None]) -> float:
    """Seconds that the driver spends on an event, the pauses between them left out."""
    spent = []
    for step in range(EVENTS):
        time.sleep(PAUSE)
        started = time.perf_counter()
        tell("run_logged", step, metrics={f"train/{name}": 0.5 for name in ("loss", "sup", "unsup", "contrast", "lr")})
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def measure(folder: Path, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Medians in seconds, by the state of MLflow: `steps` of one training; an `event` in the driver, and of that `record`, its
    hand-over to MLflow; `cpu` of the whole process for one training.
    """
    torch.set_num_threads(1)
    logging.getLogger("css_ray.tracking").setLevel(logging.ERROR)  # each of a hundred trackers would tell of the outage
    hung, stopped = Gate(), Gate()
    stopped.stop()
    uris: dict[str, str | None] = {"off": None, "hung": hung.url, "stopped": stopped.url, "up": default_uri(folder)}
    driver = _Driver(folder)
    found: dict[str, dict[str, list[float]]] = {
        what: {state: [] for state in uris} for what in ("steps", "cpu", "event", "record")
    }
    for number in range(rounds + 1):
        # Forwards and backwards, so that no state always follows the same one.
        for state, uri in list(uris.items())[:: 1 if number % 2 else -1]:
            taken: dict[str, float] = {}
            # MLflow's own work in the loop's process would flatter the outage, so the loop is not timed while it is up.
            if state != "up":
                with driver.trial(uri) as tell:
                    started = time.process_time()
                    taken["steps"] = _train(tell)
                    taken["cpu"] = time.process_time() - started
            with driver.trial(uri) as tell:
                taken["event"] = _tell_events(tell)
                taken["record"] = statistics.median(driver.handing_over)
            if number:  # the first round imports MLflow and makes its tables
                for what, seconds in taken.items():
                    found[what][state].append(seconds)
    return {what: {state: statistics.median(each) for state, each in taken.items() if each} for what, taken in found.items()}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
