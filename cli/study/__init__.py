"""`css-ray study`: plan, run, submit, resume, confirm, status, list, stop, logs, table, compare, report, figures,
pseudo-labels, curves, export, sync, repair.

A thin layer over `css_ray.Study` and, if an `--address` is that of a cluster's dashboard, `css_ray.execution.jobs`.
"""

from __future__ import annotations

import click

from .export import curves, export
from .figures import figures
from .remote import drive, logs, stop, submit
from .run import confirm, plan, resume, run
from .show import compare, list_, pseudo_labels, repair, report, status, sync, table


@click.group()
def study() -> None:
    """Plan, run, resume and read studies."""


for command in (
    plan, run, submit, resume, confirm, status, list_, stop, logs, drive, table, compare, report, figures, pseudo_labels,
    curves, export, sync, repair,
):  # fmt: skip
    study.add_command(command)
