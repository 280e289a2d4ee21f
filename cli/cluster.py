"""`css-ray cluster`: is a Ray cluster ready for studies, and if not, what fixes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from css_ray.messages import printable

from .address import any_address
from .errors import BadInput
from .output import echo

if TYPE_CHECKING:
    from css_ray.execution.nodes import Report


@click.group()
def cluster() -> None:
    """Check a Ray cluster."""


@cluster.command()
@click.option(
    "--address",
    default="auto",
    show_default=True,
    metavar="ADDRESS",
    callback=any_address,
    help="Of the cluster: auto on one of its nodes, host:port, or its dashboard (http://host:8265) from another machine.",
)
@click.option(
    "--storage", envvar="CSS_RAY_STORAGE", metavar="DIR", help="A folder or URL that every node must be able to write and read."
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URL",
    help="An MLflow server that every node must be able to reach.",
)
@click.pass_context
def check(ctx: click.Context, address: str, storage: str | None, tracking_uri: str | None) -> None:
    """Look at each node: versions, clocks, storage, MLflow, and the all-reduce between nodes; exit 1 if something is wrong."""
    from css_ray.execution.address import is_jobs_address

    if is_jobs_address(address):
        # The environment of this machine holds here; the cluster has its own.
        given = {"--storage": storage, "--tracking-uri": tracking_uri}
        typed = {
            option: value
            for option, value in given.items()
            if ctx.get_parameter_source(option.strip("-").replace("-", "_")) is click.core.ParameterSource.COMMANDLINE
        }
        _check_remotely(address, typed)
        return
    from css_ray.execution.joining import joined
    from css_ray.execution.nodes import check_cluster

    try:
        with joined(address):
            report = check_cluster(storage=storage, tracking_uri=tracking_uri)
    except ConnectionError as error:
        raise BadInput(str(error)) from None
    _show(report)
    sys.exit(1 if report.problems else 0)


def _check_remotely(address: str, typed: dict[str, str | None]) -> None:
    from css_ray.execution.jobs import Cluster, ClusterError
    from css_ray.secrets import BY_CLUSTER, credentials_text

    for option, value in typed.items():
        if refused := credentials_text(value or "", BY_CLUSTER):
            raise BadInput(f"{option}: {refused}")
    try:
        succeeded, output = Cluster(address).call("cluster", "check", *(str(part) for pair in typed.items() for part in pair))
    except ClusterError as error:
        raise click.ClickException(str(error)) from None
    echo(output, nl=False)
    sys.exit(0 if succeeded else 1)


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("node", "host", "CPUs", "GPUs", "python", "ray", "torch", "css-ray", "clock"):
        table.add_column(heading, justify="right" if heading in ("CPUs", "clock") else "left")
    for node in report.nodes:
        kinds = ", ".join(f"{node.gpus.count(kind)} x {kind}" for kind in dict.fromkeys(node.gpus))
        ahead, exactly = node.clock
        texts = (
            node.address, node.host, f"{node.cpus:g}", kinds or "–", node.python, node.versions["ray"], node.versions["torch"],
            node.code, f"{ahead:+.3f} s" if abs(ahead) > exactly else "0 s",
        )  # fmt: skip
        table.add_row(*(Text(printable(text)) for text in texts))
    Console().print(table)
    echo()
    for (first, second), speed in report.bandwidth.items():
        echo(f"ok     all-reduce {first} – {second}: {speed:.2f} GB/s")
    for line in report.passed:
        echo(f"ok     {line}")
    for problem in report.problems:
        echo(f"WRONG  {problem}")
