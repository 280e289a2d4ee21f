"""`css-ray study figures`: the paper's figures of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from css_ray.messages import os_error_text, quoted

from ..device import chosen_device
from ..errors import BadInput
from ..output import echo
from ..progress import images_progress
from .options import bad_input, open_study, storage_option, warn

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.illustration import Illustration


def _writable_folder(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A folder that cannot be written is refused before the work."""
    from css_ray.storage import check_writable_folder, is_url

    if not value or is_url(value):
        raise BadInput("--out: must be a folder of this machine, such as figures")
    try:
        check_writable_folder(value)
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', value)}") from None
    return value


@click.command()
@click.argument("name")
@click.option(
    "--out",
    metavar="DIR",
    default="figures",
    show_default=True,
    callback=_writable_folder,
    help="Folder of the figures, which is made.",
)
@click.option(
    "--row",
    "rows",
    multiple=True,
    metavar="ROW",
    help="A row to show, repeatable: the first is the base, the last is compared with it. By default the base and the best.",
)
@click.option("--against", metavar="ROW", help="The base; by default the table's first row.")
@click.option("--column", metavar="VALUE", help="The table's column; by default the first.")
@click.option("--split", type=click.IntRange(0), help="Whose runs are shown; by default the first that all rows have finished.")
@click.option("--class", "class_name", metavar="CLASS", help="Of the figure of similarity and confidence.")
@click.option("--images", type=click.IntRange(1, 20), default=3, show_default=True, help="Images that each figure shows.")
@click.option(
    "--examine",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Images that are predicted to choose those that the figures of both spaces show.",
)
@click.option("--device", help="cpu or cuda; by default cuda if there is one.")
@storage_option
def figures(name: str, storage: str, out: str, device: str | None, **settings: Any) -> None:
    """Draw the paper's Figures 3 to 6 for the study NAME: PNG and PDF files, and their captions.

    \b
    pseudo-labels          of the logit and the representation space, with the pixels that pass each threshold
    similarity-confidence  similarity to the prototype of a class against the confidence in it
    confusing-regions      where one space is unsure, and where the other is
    qualitative            predictions of several rows, differences to the base marked

    Images are chosen by rules, which the captions state, not by hand: at evenly spaced ranks of what a figure is about, so with
    three the highest, the median and the lowest. The best weights of each run are used, and the data set must be in its place.
    """
    drawn = illustrated(open_study(name, storage), device, **settings)
    try:
        paths = drawn.write(out)
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    for path in paths:
        echo(quoted(path))


def illustrated(study: Study, device: str | None, **settings: Any) -> Illustration:
    """The figures of a study; what is left out is a warning. Exits with 1 if all are."""
    where = chosen_device(device)
    with _problems(), images_progress("drawing") as told:
        drawn = study.illustrate(device=where, progress=told, **settings)
    for remark in drawn.remarks:
        warn(remark)
    if not drawn.drawings:
        raise click.ClickException("no figure could be drawn")
    return drawn


@contextmanager
def _problems() -> Iterator[None]:
    try:
        with bad_input():
            yield
    except ValueError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(os_error_text(error, "read", error.filename)) from None
