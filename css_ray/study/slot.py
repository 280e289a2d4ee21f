"""Where a study trains: worker groups of Ray Train that stay, and take one trial after another.

A worker group costs 12 s and more to start on two cores: a controller, a queue, a barrier, a guard of the placement group and
the workers are processes that import Ray and torch. So a slot starts one for its first trial and hands it the next ones as they
come. A trial is handed over in Ray's own key-value store; what happens to it comes back through a queue.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.experimental.internal_kv as kv
import ray.tune
from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.callback import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from css_ray.records import Event
from css_ray.study.code import code_version

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Job = dict[str, Any]
"""What the ranks need to train a trial, in plain values; see `worker.train_splits`."""

Message = dict[str, Any]
"""What is told of a job: `events`, its news; `retry`, why its workers start anew; `error`, why it is given up."""

IDLE_SECONDS = 60.0
"""How long the workers of a slot wait for a trial, holding their cores, before they go."""

NOTHING, LEAVE = -1, -2


@dataclass(frozen=True, slots=True)
class Handover:
    """The trials of one slot, for its ranks to fetch. They lie in Ray's key-value store."""

    slot: str

    def put(self, number: int, job: Job) -> None:
        """Make `job` the one to do now, under a number that no other of this slot has."""
        kv._internal_kv_put(self._key(f"job/{number}"), json.dumps(job).encode())
        kv._internal_kv_put(self._key("now"), str(number).encode())

    def withdraw(self, number: int) -> None:
        """The job is over, or given up. A rank that was about to fetch it finds nothing."""
        kv._internal_kv_put(self._key("now"), str(NOTHING).encode())
        kv._internal_kv_del(self._key(f"job/{number}"))

    def wait(self, done: int) -> int:
        """The number of a job that is not `done`; LEAVE where none comes in IDLE_SECONDS. For rank 0: the others hear of it."""
        limit = time.monotonic() + IDLE_SECONDS
        while time.monotonic() < limit:
            now = int(kv._internal_kv_get(self._key("now")) or NOTHING)
            if now not in (NOTHING, done):
                return now
            time.sleep(0.1)
        return LEAVE

    def job(self, number: int) -> Job | None:
        """The job of that number; None where it was withdrawn."""
        text = kv._internal_kv_get(self._key(f"job/{number}"))
        return json.loads(text) if text else None

    def say_why(self, reason: str) -> None:
        """A rank that is about to end its own process leaves word."""
        kv._internal_kv_put(self._key("reason"), reason.encode())

    def ask_why(self) -> str:
        """What a rank said before it ended, once; else nothing."""
        reason = kv._internal_kv_get(self._key("reason")) or b""
        kv._internal_kv_del(self._key("reason"))
        return reason.decode()

    def _key(self, name: str) -> str:
        return f"css-ray/slots/{self.slot}/{name}"


def _work(config: dict[str, Any]) -> None:
    """Runs on each rank. Imported there alone: the other processes of a slot do not train."""
    from css_ray.study.worker import take_jobs

    take_jobs(config)


class _Failures(UserCallback):  # type: ignore[misc]
    """In the controller: tells the slot why its workers start anew."""

    def __init__(self, queue: Queue, handover: Handover) -> None:
        self.queue, self.handover = queue, handover

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.queue.put({"failure": self.handover.ask_why() or reason_of(worker_exceptions)})


class Slot:
    """A worker group of `resources`, started with its first job. `place` is a folder or URL for Ray Train's own notes.

    To be used from one thread of a process that has joined a Ray cluster; the group ends with that process.
    """

    def __init__(self, resources: dict[str, Any], place: str) -> None:
        self.resources = resources
        self.place = place
        self._count = 0
        self._fitting: threading.Thread | None = None

    def train(self, job: Job) -> Iterator[Message]:
        """Have the workers do `job`, and yield what happens until it is over.

        A failure of the workers sends them back to the job's last checkpoint, as often as `resources["retries"]` says.
        """
        self._count += 1
        number, failures = self._count, 0
        self._ready()
        while self._news():  # of a job before
            pass
        self._handover.put(number, job)
        while True:
            over = False
            events: list[Event] = []
            for message in self._news(timeout=1.0):
                if "failure" in message:
                    failures += 1
                    spent = failures > self.resources["retries"]
                    yield {"events": events, "error" if spent else "retry": message["failure"]}
                    events = []
                    if spent:
                        self._handover.withdraw(number)
                        return
                elif message["job"] == number:
                    events += message["events"]
                    over = over or message["over"]
            if events:
                yield {"events": events}
            if over:
                self._handover.withdraw(number)
                return
            if not self._alive:
                # Their controller died; or they had waited too long, and left in the moment when the job came.
                failures += bool(self._error)
                spent = failures > self.resources["retries"]
                if self._error:
                    yield {"events": [], "error" if spent else "retry": self._error}
                if spent:
                    return
                self._ready()
                self._handover.put(number, job)

    @property
    def _alive(self) -> bool:
        return self._fitting is not None and self._fitting.is_alive()

    def _ready(self) -> None:
        """Start the workers, unless they are there."""
        if self._alive:
            return
        name = uuid.uuid4().hex
        self._handover = Handover(name)
        # On this node: with the loss of another one no news is lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._error = ""
        trainer = self._trainer(name)

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                self._error = last_line(error)

        self._fitting = threading.Thread(target=fit, name="css-ray-slot", daemon=True)
        self._fitting.start()

    def _news(self, timeout: float = 0.0) -> list[Message]:
        """The messages that have come; waits for the first one at most `timeout` seconds."""
        try:
            first = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except Empty:
            return []
        return [first, *self._queue.get_nowait_batch(self._queue.qsize())]

    def _trainer(self, name: str) -> TorchTrainer:
        # Here, since the driver reads this file too, and importing torch takes seconds.
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = self.resources
        gpus = resources["gpus_per_worker"]
        per_worker = {"CPU": resources["cpus_per_worker"]} | ({"GPU": gpus} if gpus else {})
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "slot": name,
                "queue": self._queue,
                "cpus_per_worker": resources["cpus_per_worker"],
                "code": code_version(),
            },
            scaling_config=ScalingConfig(num_workers=resources["workers"], use_gpu=gpus > 0, resources_per_worker=per_worker),
            torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=self.place,
                # A slot outlives the failures of its trials; each trial counts its own.
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[_Failures(self._queue, self._handover)],  # type: ignore[list-item]
            ),
        )
        callbacks = trainer._create_default_callbacks  # type: ignore[attr-defined]

        def without_datasets() -> list[Any]:
            """Ray Train would start a process that hands out Ray Data's data sets: there are none."""
            return [callback for callback in callbacks() if type(callback).__name__ != "DatasetsCallback"]

        trainer._create_default_callbacks = without_datasets  # type: ignore[attr-defined]
        return trainer


_slot: Slot | None = None


def run_trial(config: dict[str, Any]) -> None:
    """The Tune trainable. config: trial, job, resources, place. Its process is Tune's to use again, and its slot stays in it.

    Where the workers failed too often the error is reported, not raised: Tune's retries are for the death of this process.
    """
    global _slot
    if _slot is None:
        _slot = Slot(config["resources"], config["place"])
    for message in _slot.train(config["job"]):
        ray.tune.report(message)


def reason_of(failures: dict[int, Exception]) -> str:
    """Why workers failed, in a line, from the exception of each rank that did."""
    rank, error = min(failures.items(), key=lambda pair: pair[0])
    for number, each in failures.items():
        if isinstance(each, OutOfMemoryError) or isinstance(each.__cause__, OutOfMemoryError):
            return f"rank {number} ran out of memory, and Ray ended it: {last_line(each)}"
    # Of a process that was killed Ray has much to say, most of it advice.
    return f"rank {rank}: {last_line(error).partition(' Some common causes')[0]}"


def last_line(error: object) -> str:
    """The last line of an error's text, which names the exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:1000] if lines else f"{type(error).__name__}, without a word"
