"""Freed memory is used again: counted in page faults of a process of its own, not in time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from css_ray.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
images = torch.rand(8, 3, 256, 256)
def work():
    changed = images * 2 + 1
    for _ in range(3):
        changed = torch.cat([changed[:, :, 1:], changed[:, :, :1]], dim=2).clamp(0, 1)
    torch.stack([changed, images]).mean()
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_the_next_step_takes_the_memory_of_the_last() -> None:
    faults = {}
    # glibc's own thresholds, held: it raises them by itself, but not always, and not to what a step needs.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    for how in ("keep", "give back"):
        command = [sys.executable, "-c", PROGRAM, how]
        found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        faults[how] = int(found.stdout)
    assert faults["keep"] < 0.1 * faults["give back"], faults
