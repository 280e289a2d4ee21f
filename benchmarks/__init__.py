"""What is measured, as ratios of two things taken in one run. `make bench`, or `make bench ONLY=method` for one group.

A group is a module of `groups/` with `rows() -> Iterator[Row]`; `workloads/` holds what they measure. The command prints a
table and one JSON line per row, and exits 1 if a row does not hold. benchmarks/README.md says what each row means.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""


class UnavailableError(Exception):
    """Raised by a group that cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: `ours` must take at most `target` times what `other` takes; both in `unit`."""

    name: str
    ours: float
    other: float
    target: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    @property
    def holds(self) -> bool:
        return self.ratio <= self.target


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], target: float, *, repeats: int = 5) -> Row:
    """Time two functions in turn, so that a machine whose speed drifts is fair to both; medians, after one warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, taken in zip((ours, other), times, strict=True):
            started = time.perf_counter()
            function()
            if repeat:
                taken.append(time.perf_counter() - started)
    return Row(name, statistics.median(times[0]), statistics.median(times[1]), target)
