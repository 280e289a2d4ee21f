"""`css-ray data`: prepare data sets, look at prepared ones."""

from __future__ import annotations

import re
import sys

import click

from .errors import BadInput


@click.group()
def data() -> None:
    """Prepare data sets and look at them."""


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if (match := re.fullmatch(r"(\d+)x(\d+)", value)) is None:
        raise click.BadParameter(f"must be WIDTHxHEIGHT in pixels, such as 160x120, got {value!r}")
    return int(match[1]), int(match[2])


@data.command()
@click.argument("name_or_yaml")
@click.option("--root", type=click.Path(file_okay=False), help="Folder of the original files; the YAML's own if not given.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to write, all or nothing.")
@click.option("--resize", callback=_size, metavar="WxH", help="Size of all images and masks, in pixels; kept if not given.")
def prepare(name_or_yaml: str, root: str | None, out: str, resize: tuple[int, int] | None) -> None:
    """Write the data set NAME_OR_YAML to a folder that studies read: `digits`, or a YAML description of a folder of images.

    \b
    css-ray data prepare digits --out data/digits
    css-ray data prepare studies/data/camvid.yaml --root PATH/TO/camvid --out data/camvid --resize 160x120
    """
    from css_ray.data import catalogue

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done} of {total} images", nl=done == total, err=True)

    try:
        written = catalogue.prepare(name_or_yaml, out, root=root, resize=resize, progress=progress)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    if not written:
        click.echo(f"{out} holds this data set already; nothing was done")
    _describe(out)


@data.command()
@click.argument("folder", metavar="DIR")
@click.option("--contact-sheet", "sheet", type=click.Path(dir_okay=False), help="PNG to write: some images under their masks.")
def info(folder: str, sheet: str | None) -> None:
    """Show what the prepared data set in DIR holds: counts, sizes, how frequent each class is."""
    _describe(folder)
    from css_ray.data.overview import contact_sheet, count_classes
    from css_ray.data.shards import open_dataset

    try:
        dataset = open_dataset(folder)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    about = dataset.info
    train, val = (count_classes(subset, about.num_classes) for subset in (dataset.train, dataset.val))
    width = max(12, *map(len, about.class_names))
    click.echo(f"\n{'class':>{width + 4}}   share of pixels   images with it")
    click.echo(f"{'':>{width + 4}}     train     val      train    val")
    for index, name in enumerate(about.class_names):
        shares = f"{train.shares[index]:7.2f} % {val.shares[index]:6.2f} %"
        click.echo(f"{index:3} {name:>{width}} {shares} {train.images[index]:8} {val.images[index]:6}")
    click.echo(f"{'ignored':>{width + 4}} {train.ignored_share:7.2f} % {val.ignored_share:6.2f} %")
    if sheet is not None:
        try:
            contact_sheet(dataset).save(sheet, "PNG")
        except OSError as error:
            raise BadInput(f"--contact-sheet: {error}") from None
        click.echo(f"\ncontact sheet: {sheet}")


def _describe(folder: str) -> None:
    """Print what the description of a prepared data set says; decodes nothing."""
    from css_ray.data.shards import open_dataset

    try:
        dataset = open_dataset(folder)
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    click.echo(f"{dataset.info.name}: {dataset.info.num_classes} classes, content {dataset.info.content[:12]}, in {folder}")
    for name, subset in (("train", dataset.train), ("val", dataset.val)):
        masks = sum(classes is not None for classes in subset.classes)
        heights, widths = zip(*subset.sizes, strict=True)
        size = f"{min(widths)}x{min(heights)}"
        if len(set(subset.sizes)) > 1:
            size += f" to {max(widths)}x{max(heights)}"
        click.echo(f"  {name:5} {len(subset):6} images, {masks} with masks, {size} (width x height)")
