"""What a slot says of its failures, and the watch over ranks that hang; whole slots are met in test_runner.py."""

from __future__ import annotations

import subprocess
import sys
import time

from ray.exceptions import OutOfMemoryError

from css_ray.study.slot import last_line, reason_of

STANDS_STILL = """
import sys, time
from css_ray.study.worker import Watchdog
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
    assert reason.startswith("rank 0 stood still for more than 0.4 s") and "resources.hang_seconds" in reason


def test_out_of_memory_is_named_whichever_rank_it_was() -> None:
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.")
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
    assert last_line(KeyError()) == "KeyError, without a word"
