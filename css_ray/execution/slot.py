"""Where a study trains: worker groups of Ray Train that stay, and take one trial after another.

A worker group costs 12 s and more to start on two cores: a controller, a queue, a barrier, a guard of the placement group and
the workers are processes that import Ray and torch. So a slot starts one for its first trial and hands it the next ones as they
come. A trial is handed over in Ray's own key-value store; what happens to it comes back through a queue.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from css_ray.events import Event
from css_ray.execution.handover import IDLE_SECONDS, LEAVE, Failure, Handover, Message, News
from css_ray.execution.process_group import ProcessGroup
from css_ray.execution.ray_internals import data_parallel_trainer, free_resources, without_data
from css_ray.messages import last_line
from css_ray.study.job import Job

STARTUP = "startup timed out"
"""Part of Ray Train's message if it waited in vain for the resources that workers need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotResources:
    """What the workers of a slot hold, how many slots share the cluster, and how often a job is tried again."""

    cpus_per_worker: int
    gpus_per_worker: float
    concurrent_trials: int
    retries: int

    @classmethod
    def of(cls, resources: Any) -> SlotResources:
        """Those of a study's `resources`."""
        return cls(**{field.name: getattr(resources, field.name) for field in dataclasses.fields(cls)})


def _work(config: dict[str, Any]) -> None:
    """Runs on each rank. Imported there alone: the other processes of a slot do not train."""
    from css_ray.execution.worker import take_jobs

    take_jobs(config)


class _Failures(UserCallback):
    """Reports to the slot, from the controller, why its workers start again."""

    def __init__(self, queue: Queue, handover: Handover) -> None:
        self.queue, self.handover = queue, handover

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.queue.put(Failure(self.handover.ask_why() or reason_of(worker_exceptions)))


class Slot:
    """A worker group of `resources`, started with its first job. `place` is a folder or URL for Ray Train's own notes.

    code: the `code_version` that its workers must have; None if they have the driver's, on its own machine.
    How many workers it has is chosen when it starts: of a job's `sizes` the largest for which there is room, else the
    smallest, for which Ray waits. If a job may have several sizes, the group ends with each failure, to start again as large
    as fits, and before a job for which there is room for more. To be used from one thread of a process that has joined a Ray
    cluster; the group ends with that process.
    """

    def __init__(self, resources: SlotResources, place: str, code: str | None = None) -> None:
        self.resources = resources
        self.place = place
        self.code = code
        self._count = 0
        self._size = 0
        self._fitting: threading.Thread | None = None

    def train(self, job: Job) -> Iterator[Message]:
        """Have the workers do `job`, and yield what happens until it is over.

        A failure of the workers sends them back to the job's last checkpoint, at most `resources.retries` times.
        """
        self._count += 1
        number, failures = self._count, 0
        if self._alive and self._size != self._best_size(job.sizes):
            self.end()
        self._ready(job.sizes)
        while self._news():  # of a job before
            pass
        self._handover.put(number, job)
        counted = False
        while True:
            over, waits = False, ""
            events: list[Event] = []
            for message in self._news(timeout=1.0):
                if isinstance(message, Failure):
                    failures, counted = failures + 1, True
                    spent = failures > self.resources.retries
                    yield _failed(events, message.reason, spent)
                    events = []
                    if spent:
                        self._handover.withdraw(number)
                        return
                elif message.job == number:
                    events += message.events
                    over, waits = over or message.over, message.waits
            # A job whose runs had all ended has no event to report, and Tune fails a trial that reports nothing.
            if events or waits or over:
                yield Message(events=events, waits=waits)
            if over:
                self._handover.withdraw(number)
                return
            if not self._alive:
                # They failed, and start again in another number; their controller died; or they had waited too long, and left
                # in the moment when the job came.
                new = bool(self._error) and not counted and STARTUP not in self._error
                failures += new
                spent = failures > self.resources.retries
                if new:
                    yield _failed([], self._error, spent)
                if spent:
                    return
                counted = False
                self._ready(job.sizes)
                self._handover.put(number, job)

    def end(self) -> None:
        """Have the workers leave, and wait until they have: before the next ones, or before this process leaves the cluster."""
        if self._fitting is not None and self._alive:
            self._handover.put(LEAVE, None)
            self._fitting.join(IDLE_SECONDS)

    @property
    def _alive(self) -> bool:
        return self._fitting is not None and self._fitting.is_alive()

    def _best_size(self, sizes: Sequence[int]) -> int:
        """The largest of `sizes`, the allowed numbers of workers, for which there is room; the smallest if there is none.

        Slots side by side share the cluster: none takes more than its part of all, so that the others find room as well.
        """
        if len(sizes) == 1:
            return sizes[0]
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        free = free_resources()
        share = self._room(alive.values()) // self.resources.concurrent_trials
        room = self._room(free.get(node, {}) for node in alive) + (self._size if self._alive else 0)
        return max((size for size in sizes if size <= min(share, room)), default=sizes[0])

    def _room(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """How many workers fit on nodes with these resources."""
        needs = {name: need for name, need in self._per_worker.items() if need}
        return sum(min(int(node.get(name, 0) / need) for name, need in needs.items()) for node in nodes)

    @property
    def _per_worker(self) -> dict[str, float]:
        gpus = self.resources.gpus_per_worker
        return {"CPU": self.resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})

    def _ready(self, sizes: Sequence[int]) -> None:
        """Start the workers, unless they are there."""
        if self._alive:
            return
        self._size = self._best_size(sizes)
        name = uuid.uuid4().hex
        self._handover = Handover(name)
        # On this node: with the loss of another one no news is lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._error = ""
        trainer = self._trainer(name, elastic=len(sizes) > 1)

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                self._error = last_line(error)

        self._fitting = threading.Thread(target=fit, name="css-ray-slot", daemon=True)
        self._fitting.start()

    def _news(self, timeout: float = 0.0) -> list[News | Failure]:
        """The messages that have come; waits for the first one at most `timeout` seconds."""
        try:
            first = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
        except Empty:
            return []
        return [first, *self._queue.get_nowait_batch(self._queue.qsize())]

    def _trainer(self, name: str, *, elastic: bool) -> Any:
        resources = self.resources
        gpus = resources.gpus_per_worker
        trainer = data_parallel_trainer()(
            _work,
            train_loop_config={
                "slot": name,
                "queue": self._queue,
                "cpus_per_worker": resources.cpus_per_worker,
                "code": self.code,
            },
            scaling_config=ScalingConfig(num_workers=self._size, use_gpu=gpus > 0, resources_per_worker=self._per_worker),
            backend_config=ProcessGroup("nccl" if gpus >= 1 else "gloo"),
            run_config=RunConfig(
                name=name,
                storage_path=self.place,
                # A slot outlives the failures of its trials, each of which counts its own; but for one that may have another
                # size afterwards, or that was promised room which a node took with it.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0)  # type: ignore[call-arg]
                if elastic
                else FailureConfig(max_failures=-1),
                callbacks=[_Failures(self._queue, self._handover)],  # type: ignore[list-item]
            ),
        )
        without_data(trainer)
        return trainer


_slot: Slot | None = None


def run_trial(config: dict[str, Any]) -> None:
    """The Tune trainable. config: trial, job, resources, place, code. Its process is Tune's to use again, its slot stays in it.

    If the workers failed too often the error is reported, not raised: Tune's retries are for the death of this process.
    """
    global _slot
    if _slot is None:
        _slot = Slot(SlotResources(**config["resources"]), config["place"], config["code"])
    for message in _slot.train(Job.from_json(config["job"])):
        ray.tune.report(message.to_json())


def reason_of(failures: dict[int, Exception]) -> str:
    """Why workers failed, in a line, from the exception of each rank that did."""
    rank, error = min(failures.items(), key=lambda pair: pair[0])
    for number, each in failures.items():
        if isinstance(each, OutOfMemoryError) or isinstance(each.__cause__, OutOfMemoryError):
            return f"rank {number} ran out of memory, and Ray ended it: {last_line(each)}"
    # Ray's message about a process that was killed is long, and mostly advice.
    return f"rank {rank}: {last_line(error).partition(' Some common causes')[0]}"


def _failed(events: list[Event], reason: str, spent: bool) -> Message:
    """A failure of the workers: the last one that is allowed ends the job, any other is tried again."""
    return Message(events=events, error=reason) if spent else Message(events=events, retry=reason)
