"""`css-ray study status | list | table | pseudo-labels | sync`: what a study has come to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadInput
from .options import (
    EXIT_CODES,
    at_option,
    bad_input,
    ddof_option,
    format_option,
    open_study,
    remote_option,
    storage_option,
    warn,
)
from .remote import cluster_answers, cluster_at, remote_status

if TYPE_CHECKING:
    from rich.console import Console

    from css_ray.api import Study


WATCH_SECONDS = 1.0  # between two looks at the journal of a study that another process drives


@click.command()
@click.argument("name")
@storage_option
@remote_option
@click.option("--watch", is_flag=True, help="Follow the study until it ends or Ctrl-C, also one that has not begun yet.")
def status(name: str, storage: str, address: str | None, watch: bool) -> None:
    """Show how far the study NAME is: a row a trial, a cell a split.

    With --watch the exit code says how it ended, as that of `run` does; Ctrl-C ends the watching, not the study. With
    --address the cluster that it was submitted to is asked.
    """
    if address is not None:
        if watch:
            raise BadInput(f"--watch: follow a study on a cluster by: css-ray study logs {name} --address {address} --follow")
        remote_status(name, storage, address)
        return
    from rich.console import Console

    from ..view import MAX_ROWS, View

    console = Console()
    if watch:
        sys.exit(_watch(name, storage, console))
    console.print(View(open_study(name, storage).standing, MAX_ROWS, troubles=MAX_ROWS))


@click.command("list")
@storage_option
@remote_option
def list_(storage: str, address: str | None) -> None:
    """List the studies of a storage, or with --address those that were submitted to a cluster."""
    if address is not None:
        with cluster_answers():
            there = cluster_at(address).studies()
        if not there:
            click.echo(f"no study was submitted to the cluster at {address} since its head started")
        for each in there:
            begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started))
            click.echo(f"{each.name:32} {each.status.lower():12} {begun}  {each.storage}  {each.job}")
        return
    from css_ray.study.journal import studies_in

    names = studies_in(storage)
    if not names:
        click.echo(f"{storage} holds no study yet; start one with: css-ray study run studies/quickstart.yaml")
    for name in names:
        standing = open_study(name, storage).standing
        best = standing.best
        value = "" if best is None else f"  best {best.mean:.2f} (trial {best.index}, {best.row})"
        click.echo(f"{name:32} {standing.status:12} trials {standing.trials_ended}/{standing.num_trials}{value}")


@click.command()
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--trials", is_flag=True, help="One row a trial with its settings, instead of the study's table.")
@click.option(
    "--source",
    type=click.Choice(["journal", "mlflow"]),
    default="journal",
    show_default=True,
    help="Where the records are read.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the terminal.")
def table(name: str, storage: str, format_: str, at: str | None, ddof: int, trials: bool, source: str, out: str | None) -> None:
    """Print or export the mean ± std table of the study NAME."""
    kind = "trials" if trials else "results"
    print_or_write(table_text(open_study(name, storage), format_, kind=kind, at=at, ddof=ddof, source=source), out)


@click.command("pseudo-labels")
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the terminal.")
def pseudo_labels(name: str, storage: str, format_: str, at: str | None, ddof: int, out: str | None) -> None:
    """Print or export how good the pseudo-labels of the study NAME are, by source and class (the paper's Table 4)."""
    print_or_write(table_text(open_study(name, storage), format_, kind="pseudo_labels", at=at, ddof=ddof), out)


@click.command()
@click.argument("name")
@storage_option
def sync(name: str, storage: str) -> None:
    """Bring MLflow level with the journal of the study NAME."""
    study_ = open_study(name, storage)
    from css_ray.secrets import shown, without_secrets

    uri = study_.tracking_uri
    try:
        with bad_input():
            done = study_.sync()
    except click.ClickException:
        raise
    except ConnectionError as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:
        raise click.ClickException(f"MLflow at {shown(uri)} did not take the events: {without_secrets(error)}") from None
    click.echo(
        f"{done.events} events read, {done.runs_created} MLflow runs created, {done.points_sent} metric points sent "
        f"to {shown(uri)}"
    )


def _watch(name: str, storage: str, console: Console) -> int:
    """Follow the study from its journal until it ends; returns the exit code that says how."""
    from css_ray.standing import Standing
    from css_ray.storage import is_url
    from css_ray.study.definition import parse
    from css_ray.study.journal import Follower, study_folder

    from ..view import MAX_ROWS, View, Watcher

    follower = Follower(study_folder(storage, name))
    pause = WATCH_SECONDS * (10 if is_url(storage) else 1)  # an object store is listed anew each time
    watcher = None

    def look() -> list[Any]:
        time.sleep(pause)
        try:
            return follower.new()
        except OSError as error:
            warn(f"the journal cannot be read now ({error}); trying again")
            return []

    try:
        with bad_input():
            if not (events := follower.new()):
                click.echo(f"waiting for the study {name} to begin in {storage} (Ctrl-C ends this)")
            while not events:
                events = look()
            watcher = Watcher(Standing(parse).fold(events), console)
            if not watcher.moving:
                watcher.summary()
            with watcher.live():
                while watcher.standing.status == "running":
                    for event in look():
                        watcher.event(event)
    except KeyboardInterrupt:
        click.echo("", err=True)
    if watcher is None:
        return 130
    if watcher.moving:
        console.print(View(watcher.standing, MAX_ROWS))
    return EXIT_CODES.get(watcher.standing.status, 130)


def table_text(study_: Study, format_: str, **settings: Any) -> str:
    try:
        return study_.table(format_, **settings)  # type: ignore[arg-type]
    except LookupError as error:
        raise click.ClickException(f"{error}; bring it level with: css-ray study sync {study_.name}") from None
    except (ConnectionError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def print_or_write(text: str, out: str | None) -> None:
    if out is None:
        click.echo(text)
    else:
        Path(out).write_text(text + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
