"""Which cluster a process belongs to. Every process of a study imports this file as it starts, so it imports little."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import ray


def guard_token() -> None:
    """Keep Ray's token, the key to the cluster, from other users of the machine: Ray writes its file readable for all."""
    with contextlib.suppress(OSError):  # of somebody else, or on a disk that cannot
        folder = Path.home() / ".ray"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def remember_address() -> None:
    """What Ray's own parts ask of "the" cluster, they ask of this one.

    Without it the guard of a placement group looks for the one Ray of the machine, and gives up where there are two: the cores
    of a trial whose process died would be held for ever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
