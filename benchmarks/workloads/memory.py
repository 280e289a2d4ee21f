"""The memory of the process that asks."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def private_megabytes() -> float:
    """Private memory of this process now, without the pages of mapped files. Linux only."""
    found = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 / 1e6
