"""`css-ray study status | list | table | compare | report | pseudo-labels | sync | repair`: how far a study is, and what came
of it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from css_ray.messages import DEFAULT_STORAGE, at_storage, command, os_error_text, study_command

from ..errors import BadInput
from ..output import echo
from .options import (
    EXIT_CODES,
    at_option,
    bad_input,
    ddof_option,
    format_option,
    open_study,
    out_option,
    remote_option,
    source_option,
    storage_option,
    warn,
    writable,
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
    """Show how far the study NAME is: one row per trial, one column per split.

    With --watch the exit code is that of `run`: how the study ended; Ctrl-C ends the watching, not the study. With --address
    the cluster is asked that the study was submitted to.
    """
    if address is not None:
        if watch:
            logs = study_command("logs", name, DEFAULT_STORAGE, "--address", address, "--follow")
            raise BadInput(f"--watch: follow a study on a cluster with: {logs}")
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
    """List the studies in a storage, or with --address those that were submitted to a cluster."""
    if address is not None:
        with cluster_answers():
            there = cluster_at(address).studies()
        if not there:
            echo(f"no study was submitted to the cluster at {address} since its head started")
        for each in there:
            begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started))
            echo(f"{each.name:32} {each.status.lower():12} {begun}  {each.storage}  {each.job}")
        return
    from css_ray.study.journal import studies_in

    from ..view import labels_of

    names = studies_in(storage)
    if not names:
        run = command("study", "run", "studies/quickstart.yaml", *at_storage(storage))
        echo(f"{storage} holds no study yet; start one with: {run}")
    for name in names:
        try:
            with bad_input():
                standing = open_study(name, storage).standing
        except BadInput as error:  # one may be damaged, or name a method whose package was uninstalled
            warn(f"{name} is not listed: {error.message}")
            continue
        best = standing.best
        label = "" if best is None else labels_of(standing).get(best.index, best.row)
        value = "" if best is None else f"  best {best.mean:.2f} (trial {best.index}, {label})"
        echo(f"{name:32} {standing.status:12} trials {standing.trials_ended}/{standing.num_trials}{value}")


@click.command()
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--trials", is_flag=True, help="One row per trial with its settings, instead of the study's table.")
@click.option("--against", metavar="ROW", help="Add the differences to this row, with their 95 % intervals.")
@source_option
@out_option
def table(
    name: str,
    storage: str,
    format_: str,
    at: str | None,
    ddof: int,
    trials: bool,
    against: str | None,
    source: str,
    out: str | None,
) -> None:
    """Print or export the mean ± std table of the study NAME."""
    if trials and against is not None:
        raise BadInput("--against: compares rows of the study's table, not trials; leave out --trials")
    study_, kind = open_study(name, storage), "trials" if trials else "results"
    settings = {"kind": kind, "against": against, "at": at, "ddof": ddof, "source": source}
    print_or_write(table_text(study_, format_, width=text_width(out), **settings), out)


@click.command()
@click.argument("name")
@click.argument("other", required=False)
@click.option(
    "--against", metavar="ROW", help="The row to compare with: by default the first, or of OTHER the row of the same name."
)
@click.option("--row", "rows", multiple=True, metavar="ROW", help="A row of NAME to compare; may be repeated. By default all.")
@storage_option
@format_option
@at_option
@ddof_option
@source_option
@out_option
def compare(
    name: str,
    other: str | None,
    against: str | None,
    rows: tuple[str, ...],
    storage: str,
    format_: str,
    at: str | None,
    ddof: int,
    source: str,
    out: str | None,
) -> None:
    """Print or export the differences between rows of the study NAME on the same splits, or between NAME and OTHER.

    Each split is compared with itself, since the choice of the labelled images moves a score more than the method does. Splits
    whose images differ are refused. The 95 % interval, P(rank 1) and the groups of rows that are not separable take both the
    splits and the validation images into account.
    """
    study_, there = open_study(name, storage), None if other is None else open_study(other, storage)
    settings: dict[str, Any] = {"against": against, "rows": rows, "at": at, "ddof": ddof, "source": source}
    with table_problems():
        text = study_.compare(there, format_, width=text_width(out), **settings)  # type: ignore[arg-type]
    print_or_write(text, out)


@click.command()
@click.argument("name")
@click.argument("others", metavar="[OTHER]...", nargs=-1)
@click.option("--against", metavar="ROW", help="The row to compare with; of several studies STUDY: ROW. By default the first.")
@storage_option
@at_option
@ddof_option
@click.option(
    "--out", type=click.Path(dir_okay=False), default="report.html", show_default=True, callback=writable, help="The page."
)
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Write each chart as SVG and PDF, too, into a folder, which is made.",
)
@click.option(
    "--pictures", is_flag=True, help="Put the figures of `css-ray study figures` on it: needs the weights and the data."
)
@click.option("--device", help="Of --pictures: cpu or cuda; by default cuda if there is one.")
def report(
    name: str,
    others: tuple[str, ...],
    against: str | None,
    storage: str,
    at: str | None,
    ddof: int,
    out: str,
    figures: str | None,
    pictures: bool,
    device: str | None,
) -> None:
    """Write a page about the study NAME, with OTHER studies in the same table: one HTML file that loads nothing.

    It is made from the journal, also of a study that is still running: the verdict with its interval, the table, each split,
    learning curves, the search, pseudo-labels, classes, where it comes from and how to reproduce it. With --pictures it also
    shows what the models of NAME predict.
    """
    study_, more = open_study(name, storage), [open_study(other, storage) for other in others]
    settings: dict[str, Any] = {"against": against, "at": at, "ddof": ddof, "figures": figures}
    if pictures:
        from .figures import illustrated

        settings["pictures"] = illustrated(study_, device, against=None if others else against)
    try:
        with table_problems():
            html = study_.report(*more, **settings)
    except OSError as error:
        raise BadInput(f"--figures: {os_error_text(error, 'write', figures)}") from None
    print_or_write(html, out)
    if figures is not None:
        echo(f"wrote the charts to {figures}")


@click.command("pseudo-labels")
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@out_option
def pseudo_labels(name: str, storage: str, format_: str, at: str | None, ddof: int, out: str | None) -> None:
    """Print or export how good the pseudo-labels of the study NAME are, by source and class (the paper's Table 4)."""
    settings = {"kind": "pseudo_labels", "at": at, "ddof": ddof}
    print_or_write(table_text(open_study(name, storage), format_, width=text_width(out), **settings), out)


@click.command()
@click.argument("name")
@storage_option
def sync(name: str, storage: str) -> None:
    """Backfill MLflow from the journal of the study NAME."""
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
    echo(
        f"{done.events} events read, {done.runs_created} MLflow runs created, {done.points_sent} metric points sent "
        f"to {shown(uri)}"
    )


@click.command()
@click.argument("name")
@storage_option
@click.option(
    "--drop-unknown",
    is_flag=True,
    help="Give up what this version does not know, too. Only if no newer version of css-ray has worked on the study.",
)
def repair(name: str, storage: str, drop_unknown: bool) -> None:
    """Repair the journal of the study NAME, if it is damaged: what is sound is kept.

    Prints what is given up, and what `resume` trains to its end then. The journal as it was is kept beside it. Nothing is
    changed while a driver is at work on the study.
    """
    from css_ray.api import Study

    try:
        with bad_input():
            repaired = Study.repair(name, storage, drop_unknown=drop_unknown)
    except OSError as error:
        raise BadInput(os_error_text(error, "repair", storage)) from None
    echo(repaired)
    if repaired.lost:
        echo(f"\nnext: {study_command('resume', name, storage)}")


def _watch(name: str, storage: str, console: Console) -> int:
    """Follow the study from its journal until it ends; returns the exit code for how it ended."""
    from css_ray.standing import Standing
    from css_ray.storage import is_url
    from css_ray.study.journal import Follower, in_order, study_folder
    from css_ray.study.order import Order

    from ..view import MAX_ROWS, View, Watcher

    follower, order = Follower(study_folder(storage, name)), Order()
    pause = WATCH_SECONDS * (10 if is_url(storage) else 1)  # an object store is listed again each time
    watcher = None

    def look() -> list[Any]:
        time.sleep(pause)
        try:
            return list(in_order(follower.new(), order, follower.folder))
        except OSError as error:
            warn(f"{os_error_text(error, 'read')}; trying again")
            return []

    try:
        with bad_input():
            if not (events := list(in_order(follower.new(), order, follower.folder))):
                echo(f"waiting for the study {name} to begin in {storage} (Ctrl-C ends this)")
            while not events:
                events = look()
            watcher = Watcher(Standing(order.parsed).fold(events), console)
            if not watcher.moving:
                watcher.summary()
            with watcher.live():
                while watcher.standing.status in ("running", "paused"):
                    for event in look():
                        watcher.event(event)
    except KeyboardInterrupt:
        echo("", err=True)
    if watcher is None:
        return 130
    if watcher.moving:
        console.print(View(watcher.standing, MAX_ROWS))
    return EXIT_CODES.get(watcher.standing.status, 130)


@contextmanager
def table_problems() -> Iterator[None]:
    """Report why a table cannot be made."""
    try:
        yield
    except (LookupError, ConnectionError) as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise BadInput(str(error)) from None


def table_text(study_: Study, format_: str, **settings: Any) -> str:
    with table_problems():
        return study_.table(format_, **settings)  # type: ignore[arg-type]


def text_width(out: str | None = None) -> int:
    """Characters of a line of text: those of the terminal; 100 in a file or a pipe."""
    from css_ray.reports.render import TEXT_WIDTH

    if out is not None or not sys.stdout.isatty():
        return TEXT_WIDTH
    return shutil.get_terminal_size((TEXT_WIDTH, 24)).columns


def print_or_write(text: str, out: str | None) -> None:
    if out is None:
        echo(text)
        return
    try:
        Path(out).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    echo(f"wrote {out}")
