"""`css-ray study submit | stop | logs | drive`: studies whose driver runs on a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from css_ray.messages import DEFAULT_STORAGE, study_command

from ..address import dashboard_address
from ..errors import BadInput
from ..output import echo
from .options import bad_input, read_study, set_option, show_commands, storage_option

if TYPE_CHECKING:
    from css_ray.execution.jobs import Cluster, Submitted


submitted_to = click.option(
    "--address",
    metavar="URL",
    required=True,
    callback=dashboard_address,
    help="The dashboard of the cluster that it was submitted to.",
)


@click.command()
@click.argument("file", type=click.Path())
@set_option
@storage_option
@click.option(
    "--address",
    metavar="URL",
    required=True,
    callback=dashboard_address,
    help="The dashboard of a Ray cluster: http://host:8265.",
)
@click.option("--follow", is_flag=True, help="Print its driver's output until it ends; Ctrl-C ends only the printing.")
def submit(file: str, overrides: tuple[str, ...], storage: str, address: str, follow: bool) -> None:
    """Have a Ray cluster run the study in FILE: its driver runs there, and you can disconnect this machine.

    The code of css-ray and the study file are sent; the cluster must be able to reach data, storage and secrets itself.
    """
    definition = read_study(file, overrides)
    with cluster_answers():
        cluster = cluster_at(address)
        submitted = cluster.submit(definition, storage)
    show_submitted(cluster, submitted, follow)


@click.command()
@click.argument("name")
@submitted_to
def stop(name: str, address: str) -> None:
    """Stop the study NAME on the cluster that it was submitted to. Nothing that was trained is lost."""
    with cluster_answers():
        cluster = cluster_at(address)
        before = cluster.find(name)
        after = cluster.stop(name)
    if not before.active:
        echo(f"{name} was not running: its job {before.job} is {before.status.lower()}")
        return
    if after.active:
        logs = study_command("logs", name, DEFAULT_STORAGE, "--address", address)
        raise click.ClickException(f"the job {after.job} of {name} is still {after.status.lower()}; look at its logs: {logs}")
    echo(f"{name} was stopped; it continues with:")
    echo(f"  {study_command('resume', name, after.storage, '--address', address)}")


@click.command()
@click.argument("name")
@submitted_to
@click.option("--follow", is_flag=True, help="Until the driver ends; Ctrl-C ends only the printing.")
def logs(name: str, address: str, follow: bool) -> None:
    """Print the output of the driver of the study NAME on the cluster that it was submitted to."""
    with cluster_answers():
        cluster = cluster_at(address)
        print_logs(cluster, cluster.find(name), follow)


@click.command()
@click.option("--file", type=click.Path(), help="The file of a study to begin.")
@click.option("--name", help="A study that has begun, instead of --file.")
@set_option
@storage_option
@click.option("--code", hidden=True, help="The version of the code that must run here.")
def drive(file: str | None, name: str | None, overrides: tuple[str, ...], storage: str, code: str | None) -> None:
    """On a node of a cluster: begin or resume a study, and start its driver again if it dies.

    Used by what starts jobs on a cluster, such as `study submit` and the RayJob of cluster/kuberay.yaml.
    """
    from css_ray.execution.jobs import drive_commands, keep_driving
    from css_ray.study.code import code_version
    from css_ray.study.journal import study_folder

    if code not in (None, code_version()):
        raise BadInput(
            f"css-ray {code} was submitted, but this node runs {code_version()}: another installation takes precedence over "
            "what was sent; remove it from the nodes, or from PYTHONPATH"
        )
    if (file is None) == (name is None):
        raise BadInput("--file, --name: give exactly one of them")
    begun = name or read_study(str(file), overrides).name
    run_, resume_ = drive_commands(storage, file, begun, overrides)
    with bad_input():
        sys.exit(keep_driving(run_, resume_, study_folder(storage, begun)))


@contextmanager
def cluster_answers() -> Iterator[None]:
    """What goes wrong between this machine and a cluster is reported in one line."""
    from css_ray.execution.jobs import ClusterError

    try:
        with bad_input():
            yield
    except ClusterError as error:
        raise click.ClickException(str(error)) from None


def is_dashboard(address: str | None) -> bool:
    from css_ray.execution.address import is_jobs_address

    return is_jobs_address(address)


def cluster_at(address: str) -> Cluster:
    from css_ray.execution.jobs import Cluster

    return Cluster(address)


def show_submitted(cluster: Cluster, submitted: Submitted, follow: bool) -> None:
    def there(verb: str, *more: str) -> str:
        return study_command(verb, submitted.name, DEFAULT_STORAGE, "--address", cluster.address, *more)

    echo(f"{submitted.name} was submitted as the job {submitted.job}; you can disconnect this machine. From here:")
    show_commands(
        {
            there("logs", "--follow"): "the output of its driver",
            there("status"): "one row per trial, one column per split",
            there("stop"): "ends it; study resume continues it",
        }
    )
    if follow:
        with cluster_answers():
            print_logs(cluster, submitted, follow)


def print_logs(cluster: Cluster, submitted: Submitted, follow: bool) -> None:
    try:
        for piece in cluster.logs(submitted, follow=follow):
            echo(piece, nl=False)
    except KeyboardInterrupt:
        echo("\nthe study continues; only the printing has ended", err=True)
        return
    if not follow:
        return
    ended = cluster.find(submitted.name, submitted.job)
    if ended.status == "FAILED":
        sys.exit(1)


def remote_status(name: str, storage: str, address: str) -> None:
    """Print how far a study on a cluster is: what `study status` prints there."""
    from css_ray.execution.jobs import ClusterError

    with cluster_answers():
        cluster = cluster_at(address)
        try:
            submitted = cluster.find(name)
        except ClusterError:
            # It was perhaps submitted before the cluster's head was started again: its storage knows it.
            if storage == DEFAULT_STORAGE:
                raise
        else:
            storage = submitted.storage
            echo(f"job {submitted.job}: {submitted.status.lower()}")
            if submitted.reason:
                echo(f"  {submitted.reason}")
        succeeded, output = cluster.call("study", "status", name, "--storage", storage)
    echo(output, nl=False)
    if not succeeded:
        sys.exit(1)
