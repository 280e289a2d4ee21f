"""What each process of a study does as it starts, before all else: so this file imports little."""

from __future__ import annotations

import os

import ray

from css_ray.temporary import keep_temporary_files_here


def set_up_process() -> None:
    """Remember the cluster that the process belongs to, and write temporary files where they are cleared if it is killed."""
    keep_temporary_files_here()
    _remember_address()


def _remember_address() -> None:
    """What Ray's own parts ask of "the" cluster, they ask of this one.

    Without it the guard of a placement group looks for the one Ray of the machine, and gives up if there are two: the cores
    of a trial whose process died would be held forever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
