"""Other processes of this machine that share work with this one: they leave Ctrl-C to it, and end when it does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from signal import SIG_IGN, SIGINT, signal
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class ParallelMap(Protocol):
    """Applies a function to tasks, here or elsewhere; results come in the order of the tasks."""

    def __call__(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]: ...


def in_processes(count: int) -> ParallelMap:
    """A map over `count` processes of this machine; over this one alone if 1 suffices.

    Raises ValueError if count < 1; while it is iterated, what the function raises, and OSError if a process dies.
    """
    if count < 1:
        raise ValueError(f"processes must be >= 1, got {count}")

    def run(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
        workers = min(count, len(tasks))
        if workers <= 1:
            yield from map(function, tasks)
            return
        with make_pool(workers) as pool:
            try:
                yield from pool.map(function, tasks)
            except BrokenProcessPool:
                raise OSError(
                    f"one of the {workers} processes that share the work was killed or crashed; usually memory ran out: share "
                    "it among fewer with --processes, or give the machine more memory"
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return run


def make_pool(count: int, begin: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """A pool of `count` processes, each of which first calls `begin` with the arguments."""
    # A forked process has torch imported already; a fresh one would take seconds for it.
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    return ProcessPoolExecutor(count, context, _begin, (os.getpid(), begin, arguments))


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(parent: int, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Make a process of a pool leave Ctrl-C to its parent, and end when that was killed."""
    signal(SIGINT, SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*arguments)
