"""`css-ray study curves`: the numbers of a study for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from css_ray.messages import os_error_text

from ..errors import BadInput
from ..output import echo
from .options import bad_input, open_study, out_option, storage_option


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
    print_or_write_bytes(to_bytes(frame, format_), out)


def _check_out(format_: str, out: str | None) -> None:
    if format_ == "parquet" and out is None:
        raise BadInput("--out: parquet is not text; name a file")


def print_or_write_bytes(data: bytes, out: str | None) -> None:
    if out is None:
        echo(data.decode(), nl=False)
        return
    try:
        Path(out).write_bytes(data)
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    echo(f"wrote {out}")
