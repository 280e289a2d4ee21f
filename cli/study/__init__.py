"""`css-ray study`: plan, run, submit, resume, confirm, status, list, stop, logs, table, pseudo-labels, sync.

A thin layer over `css_ray.Study` and, where an `--address` is that of a cluster's dashboard, `css_ray.execution.jobs`.
"""

from __future__ import annotations

import click


@click.group()
def study() -> None:
    """Plan, run, resume and read studies."""


# They register their commands.
from . import remote, run, show  # noqa: E402, F401
