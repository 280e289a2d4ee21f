"""What a slot says of its failures, and the watch over ranks that hang; its size; whole slots are met in test_runner.py."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from css_ray.execution import slot as module
from css_ray.execution.slot import Slot, SlotResources, reason_of
from css_ray.messages import last_line
from css_ray.study.definition import Resources

STANDS_STILL = """
import sys, time
from css_ray.execution.watchdog import Watchdog
said = []
with Watchdog(0.4, lambda reason: print(reason, flush=True)) as watchdog:
    time.sleep(1.0)  # opens its data: not watched yet
    for _ in range(8):
        watchdog.beat()
        time.sleep(0.1)
    print("stands still", flush=True)
    time.sleep(60)
"""


def test_a_rank_that_stands_still_says_so_and_ends() -> None:
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", STANDS_STILL], capture_output=True, text=True, timeout=50)
    assert time.monotonic() - started < 45
    assert ended.returncode == 1, ended.stderr
    first, reason = ended.stdout.splitlines()
    assert first == "stands still"
    assert reason.startswith("rank 0 made no progress for more than 0.4 s") and "resources.hang_seconds" in reason


def test_out_of_memory_is_named_whichever_rank_it_was() -> None:
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.")  # type: ignore[no-untyped-call]
    assert reason_of({0: RuntimeError("connection closed by peer"), 1: killed}) == (
        "rank 1 ran out of memory, and Ray ended it: Task was killed due to the node running low on memory."
    )


def test_a_process_that_was_killed_is_told_without_rays_advice() -> None:
    dead = RuntimeError(
        "The actor is dead because its worker process has died. Some common causes include: (1) the process ..."
    )
    assert reason_of({0: dead}) == "rank 0: The actor is dead because its worker process has died."


def test_the_reason_is_the_line_that_names_the_exception() -> None:
    text = "Traceback (most recent call last):\n  File 'x'\nValueError: crop 41 is odd\n\n"
    assert reason_of({2: RuntimeError(text)}) == "rank 2: ValueError: crop 41 is odd"
    assert last_line(KeyError()) == "KeyError (no message)"


# ------------------------------------------------------------------------------------------------------------ how many workers


def slot(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, tuple[float, float]], **resources: Any) -> Slot:
    """A slot in a cluster whose nodes have so many cores, and so many of them free; None of them when it is negative: dead."""
    listed = [{"NodeID": name, "Alive": free >= 0, "Resources": {"CPU": cores}} for name, (cores, free) in nodes.items()]
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    free = {name: {"CPU": free} for name, (_, free) in nodes.items()}
    monkeypatch.setattr(module, "free_resources", lambda: free)
    return Slot(SlotResources.of(Resources(**resources)), "nowhere")


@pytest.mark.parametrize(
    ("nodes", "resources", "size"),
    [
        ({"a": (8, 8)}, {}, 8),
        ({"a": (8, 5)}, {}, 4),  # 5 does not divide the batch
        ({"a": (8, 1)}, {}, 2),  # the smallest, for which Ray waits
        ({"a": (4, 4), "b": (8, -1)}, {}, 4),  # a dead node has no room
        ({"a": (8, 8), "b": (8, 8)}, {"concurrent_trials": 4}, 4),  # its part of 16
        ({"a": (3, 3), "b": (3, 3)}, {"cpus_per_worker": 2}, 2),  # a worker does not lie across two nodes
    ],
)
def test_a_slot_is_as_large_as_there_is_room(
    nodes: dict[str, tuple[float, float]], resources: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = slot(monkeypatch, nodes, workers=[2, 8], **resources)
    assert made._best_size([2, 4, 8]) == size


def test_a_slot_of_one_size_asks_nobody() -> None:
    assert Slot(SlotResources.of(Resources(workers=3)), "nowhere")._best_size([3]) == 3
