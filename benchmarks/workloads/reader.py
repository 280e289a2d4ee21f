"""The memory that reading a prepared data set takes, in a process of its own.

`python -m benchmarks.workloads.reader FOLDER TIMES` prints it in megabytes.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

from benchmarks import UnavailableError
from benchmarks.workloads import run_alone
from benchmarks.workloads.memory import STATUS, private_megabytes
from css_ray.data.shards import Shards
from css_ray.training.memory import keep_freed_memory

READS = 1000


def memory_of_reader(folder: Path, times: int = 1) -> float:
    """Megabytes of private memory that opening the training images and reading 1,000 of them at random take at most.

    Pages of mapped files are not among them: they belong to the page cache, which gives them up when memory is short.
    times: how often the reader maps each file, which makes the data set look that much larger.
    """
    if not STATUS.exists():
        raise UnavailableError("private memory is read from /proc/self/status, which only Linux has")
    return float(run_alone("reader", folder, times))


def main(folder: str, times: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run on a CPU does, and so its loaders
    before = private_megabytes()
    shards = Shards(sorted(Path(folder).glob("train-*.arrow")) * int(times))
    draw = random.Random(0)
    most = before
    for _ in range(READS):
        sample = shards.sample(draw.randrange(len(shards)))
        most = max(most, private_megabytes())
        del sample
    print(most - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
