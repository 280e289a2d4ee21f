"""Which cluster a process belongs to. Every process of a study imports this file as it starts, so it imports little."""

from __future__ import annotations

import os

import ray


def remember_address() -> None:
    """What Ray's own parts ask of "the" cluster, they ask of this one.

    Without it the guard of a placement group looks for the one Ray of the machine, and gives up if there are two: the cores
    of a trial whose process died would be held forever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
