"""The time that a driver spends with Ray: how it joins or starts a cluster, and how a signal ends it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import torch

from css_ray.execution.joining import join, joined, start_here
from css_ray.execution.nodes import check_code
from css_ray.execution.ray_internals import NO_IDLE_WORKERS, keep_from_trials, machine_cpus, start_coordinator
from css_ray.execution.reclaim import driver_config
from css_ray.execution.start_up import set_up_process
from css_ray.study.capacity import ENLARGE, Capacity
from css_ray.study.definition import StudyDefinition

_log = logging.getLogger(__name__)


def connect(study: StudyDefinition, address: str | None) -> int:
    """Start Ray here, or join the cluster at `address`; returns how many trials run side by side.

    On this machine the number that fits; on a cluster the number that the study asks for, since an autoscaler may bring nodes.
    Raises RuntimeError if not even one trial fits on this machine, with what it needs and what is there; ConnectionError if no
    cluster answers.
    """
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2" if address is None else "2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0" if address is None else "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # with it Tune prints a banner whatever its verbosity
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # For a process that shows no sign of life; one that makes no progress reports that itself, see `watchdog.Watchdog`.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(max(60, math.ceil(study.resources.hang_seconds))),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    threads = str(study.resources.cpus_per_worker)
    # Tune would hand on the driver's AWS keys in the runtime environment of its trials, which Ray writes to a log on each node.
    keep_from_trials(["AWS_"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {
        "job_config": driver_config(),
        "runtime_env": {
            "env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            | {name: os.environ[name] for name in settings},
            "worker_process_setup_hook": set_up_process,
        },
    }
    if address is None:
        # The dashboard is needed: Ray Train frees the cores of a killed trial through it. It listens on loopback.
        start_here(include_dashboard=True, **NO_IDLE_WORKERS, **own)
        start_coordinator()
    else:
        join(address, **own)
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray's own handler of SIGTERM ends the process on the spot
            if handler is not None:  # None: it was not Python's
                signal.signal(number, handler)
    if address is not None:
        check_code()
    there = _joined_capacity(address)
    shortage = there.shortage(study.resources)
    if address is not None:
        if shortage:
            _log.warning("%s; until then the study waits for nodes", shortage)
        return study.resources.concurrent_trials
    if shortage:
        raise RuntimeError(f"{shortage}; {ENLARGE}")
    return there.side_by_side(study.resources)


def capacity(address: str | None) -> Capacity:
    """What this machine holds, or the Ray cluster at `address` now. Raises ConnectionError if no cluster answers."""
    if address is None:
        return Capacity("this machine", machine_cpus(), torch.cuda.device_count())
    with joined(address):
        return _joined_capacity(address)


def _joined_capacity(address: str | None) -> Capacity:
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    where = "this machine" if address is None else f"the cluster at {address}"
    return Capacity(where, has.get("CPU", 0.0), has.get("GPU", 0.0), nodes)


_interrupted = False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt inside; a second one ends the process immediately."""
    global _interrupted

    def interrupt(number: int, frame: Any) -> None:
        global _interrupted
        _interrupted = True
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, frame: os._exit(130))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _interrupted = False
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal came whose own one was lost.

    Python only prints what is raised in a finalizer or in a hook of `os.fork`, such as logging's, and Ray forks often.
    """
    if _interrupted:
        raise KeyboardInterrupt
