"""`--address`: refused before any work if it cannot be that of a cluster."""

from __future__ import annotations

import click

from .errors import BadInput


def joining_address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The address of a cluster to join: HOST:PORT, or auto."""
    from css_ray.execution.address import joining_problem

    if value is not None and (problem := joining_problem(value)):
        raise BadInput(problem)
    return value


def dashboard_address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The address of a cluster's dashboard: http://HOST:PORT."""
    from css_ray.execution.address import dashboard_problem

    if value is not None and (problem := dashboard_problem(value)):
        raise BadInput(problem)
    return value


def any_address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The address of a cluster to join, or that of its dashboard."""
    from css_ray.execution.address import is_jobs_address

    return dashboard_address(ctx, parameter, value) if is_jobs_address(value) else joining_address(ctx, parameter, value)
