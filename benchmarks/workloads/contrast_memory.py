"""The peak memory of one side of the contrastive loss, in a process of its own.

`python -m benchmarks.workloads.contrast_memory SIDE` prints it in megabytes.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from benchmarks.workloads import contrast, run_alone

SIDES = {
    "per_anchor": lambda given: contrast.ours(given, "per_anchor"),
    "shared": lambda given: contrast.ours(given, "shared"),
    "published": contrast.published,
}


def peak_above_inputs(side: str) -> float:
    """Megabytes that one forward and backward pass holds at its peak, above the inputs, the library and its thread pools."""
    return float(run_alone("contrast_memory", side))


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux a process starts with the `ru_maxrss` of the one that started it; this number is its own.
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def main(side: str) -> None:
    torch.set_num_threads(2)
    SIDES[side](contrast.inputs(batch=1, channels=16, size=32, queries=16, negatives=16))
    given = contrast.inputs()
    before = _peak()
    SIDES[side](given)
    print(_peak() - before)


if __name__ == "__main__":
    main(sys.argv[1])
