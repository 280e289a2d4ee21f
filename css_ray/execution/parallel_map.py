"""Shares out independent work, such as the shards of `css-ray data prepare`, among the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.exceptions

from css_ray.data.processes import ParallelMap
from css_ray.execution.joining import join, start_here

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # tasks submitted per core: the next one is there when one ends, and results do not pile up


@contextmanager
def on_cluster(address: str | None) -> Iterator[ParallelMap]:
    """A map whose tasks run on all cores of the cluster at `address` (None starts Ray here); each takes one core.

    What the tasks read and write must be visible from every node.

    Raises ConnectionError if there is no such cluster.
    """
    if address is None:
        start_here(include_dashboard=False)
    else:
        join(address)
    try:
        yield _run
    finally:
        ray.shutdown()


def _run(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    remote: Any = ray.remote(num_cpus=1)(_call)
    sent = ray.put(function)
    cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    pending: list[Any] = []
    try:
        for task in tasks:
            if len(pending) >= _AHEAD * cores:
                yield _result(pending.pop(0))
            pending.append(remote.remote(sent, task))
        while pending:
            yield _result(pending.pop(0))
    finally:
        for reference in pending:
            ray.cancel(reference)


def _call(function: Callable[[T], R], task: T) -> R:
    return function(task)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # what the task raised, without the node's stack in its message
