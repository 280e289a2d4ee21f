"""`css-ray study export | curves`: the numbers of a study for other programs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from css_ray.messages import os_error_text, quoted

from ..errors import BadInput
from ..output import echo
from .options import bad_input, open_study, out_option, storage_option, warn
from .show import WATCH_SECONDS

_FILES = ("parquet", "optuna")  # no text


@click.command()
@click.argument("name")
@storage_option
@click.option("--format", "format_", type=click.Choice(["csv", "parquet"]), default="csv", show_default=True)
@out_option
def curves(name: str, storage: str, format_: str, out: str | None) -> None:
    """Print or export the learning curves of the study NAME: one row per run and step, one column per metric.

    A study that is running has the points that its journal holds so far.
    """
    _check_out(format_, out)
    study = open_study(name, storage)
    from css_ray.reports.frames import to_bytes

    with bad_input():
        frame = study.curves()
    if frame.empty:
        raise click.ClickException(f"no run of {name} has measured anything yet")
    _print_or_write(to_bytes(frame, format_), out)


@click.command()
@click.argument("name")
@storage_option
@click.option("--format", "format_", type=click.Choice(["csv", "parquet", "json", "optuna"]), default="csv", show_default=True)
@out_option
@click.option("--follow", is_flag=True, help="With --format optuna: keep the file up to date until the study ends or Ctrl-C.")
def export(name: str, storage: str, format_: str, out: str | None, follow: bool) -> None:
    """Print or export every number of the study NAME.

    csv and parquet have one number per row, with its metric, unit, split and the hash of the split's images; json has the
    study as a tree, with its settings. optuna is a file for `optuna-dashboard`: the trials of the search as a study of that
    name, those of the grid as NAME-grid.
    """
    _check_out(format_, out)
    if follow and format_ != "optuna":
        raise BadInput(f"--follow: keeps a file of --format optuna up to date, not one of {format_}")
    study = open_study(name, storage)
    if format_ == "optuna":
        assert out is not None
        _write_optuna(study.folder, out, follow)
        return
    from css_ray.reports.frames import numbers_frame, to_bytes
    from css_ray.reports.numbers import to_json
    from css_ray.study.journal import Follower, in_order
    from css_ray.study.order import Order

    with bad_input():
        events = list(in_order(Follower(study.folder).new(), Order(), study.folder))
    if format_ == "json":
        _print_or_write(to_json(events).encode(), out)
        return
    frame = numbers_frame(events)
    if frame.empty:
        raise click.ClickException(f"no run of {name} has measured anything yet")
    _print_or_write(to_bytes(frame, format_), out)


def _write_optuna(folder: str, out: str, follow: bool) -> None:
    from css_ray.storage import is_url
    from css_ray.study.optuna_file import OptunaFile

    file = OptunaFile(folder, out)
    try:
        with bad_input():
            count = file.update()
            echo(f"wrote {count} trial{'s' * (count != 1)} to {out}; to see them: optuna-dashboard {quoted(out)}")
            while follow and file.standing.status in ("running", "paused"):
                time.sleep(WATCH_SECONDS * (10 if is_url(folder) else 1))
                try:
                    file.update()
                except OSError as error:
                    warn(f"{os_error_text(error, 'write', out)}; trying again")
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    except KeyboardInterrupt:
        echo("", err=True)


def _check_out(format_: str, out: str | None) -> None:
    if format_ in _FILES and out is None:
        raise BadInput(f"--out: --format {format_} is not text; name a file")


def _print_or_write(data: bytes, out: str | None) -> None:
    if out is None:
        echo(data.decode(), nl=False)
        return
    try:
        Path(out).write_bytes(data)
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    echo(f"wrote {out}")
