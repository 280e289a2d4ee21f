"""`css-ray data`: fetch data sets, prepare them, check and show prepared ones, and split them."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import click

from .address import joining_address
from .download import download
from .errors import bad_input
from .output import echo
from .progress import images_progress
from .splits import splits

if TYPE_CHECKING:
    from css_ray.data.shards import DataSet


@click.group()
def data() -> None:
    """Fetch, prepare, check, show and split data sets."""


data.add_command(splits)
data.add_command(download)


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if (match := re.fullmatch(r"(\d+)x(\d+)", value)) is None:
        raise click.BadParameter(f"must be WIDTHxHEIGHT in pixels, such as 160x120, got {value!r}")
    return int(match[1]), int(match[2])


max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    help="Pixels that an image may have; by default 178,956,970. A small file may be an image that fills the memory.",
)
processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Number of processes that share the work; by default the number of cores.",
)


@data.command()
@click.argument("name_or_yaml")
@click.option("--root", type=click.Path(file_okay=False), help="Folder of the original files; the YAML's own if not given.")
@click.option("--out", required=True, metavar="DIR_OR_URL", help="Where to write, all or nothing: a folder, or s3://...")
@click.option("--resize", callback=_size, metavar="WxH", help="Size of all images and masks, in pixels; kept if not given.")
@max_pixels_option
@processes_option
@click.option(
    "--address",
    metavar="ADDRESS",
    callback=joining_address,
    help="Share the work among the nodes of this Ray cluster; all must see --root and --out.",
)
def prepare(
    name_or_yaml: str,
    root: str | None,
    out: str,
    resize: tuple[int, int] | None,
    max_pixels: int | None,
    processes: int | None,
    address: str | None,
) -> None:
    """Write the data set NAME_OR_YAML to a place that studies read: a built-in name, or a YAML description of a folder.

    \b
    css-ray data prepare voc_classic --root data/raw --out data/voc_classic
    css-ray data prepare voc_blender --root data/raw --out s3://bucket/voc_blender
    css-ray data prepare cityscapes --root data/raw/cityscapes --out data/cityscapes
    css-ray data prepare studies/data/camvid.yaml --root PATH/TO/camvid --out data/camvid --resize 160x120
    """
    from css_ray.data import catalogue
    from css_ray.data.images import MAX_PIXELS
    from css_ray.data.processes import in_processes, num_cores
    from css_ray.secrets import shown

    with contextlib.ExitStack() as stack:
        try:
            if address is not None:
                from css_ray.execution.parallel_map import on_cluster

                spread = stack.enter_context(on_cluster(address))
            else:
                spread = in_processes(processes or num_cores())
            progress = stack.enter_context(images_progress("preparing"))
            limit = MAX_PIXELS if max_pixels is None else max_pixels
            written = catalogue.prepare(
                name_or_yaml, out, root=root, resize=resize, max_pixels=limit, progress=progress, spread=spread
            )
        except (OSError, ValueError) as error:
            raise bad_input(error) from None
    if not written:
        echo(f"{shown(out)} contains this data set already; nothing was done")
    _describe(out)


@data.command()
@click.argument("place", metavar="DIR_OR_URL")
@max_pixels_option
@processes_option
def check(place: str, max_pixels: int | None, processes: int | None) -> None:
    """Read every byte and every pixel of the prepared data set in DIR_OR_URL again, and list every problem.

    It finds files that were cut short or changed, images and masks that cannot be decoded or differ in size, labels of unknown
    classes, ids that are listed twice, and validation images among the training images. It exits with 1 if it finds anything.
    """
    from css_ray.data.check import check_dataset
    from css_ray.data.description import read_description
    from css_ray.data.images import MAX_PIXELS
    from css_ray.data.processes import in_processes, num_cores
    from css_ray.secrets import shown

    try:
        described = read_description(place)
        total = 0 if described is None else sum(subset.images for subset in described.subsets.values())
        done = 0
        with images_progress("checking") as progress:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress(done, total)

            limit = MAX_PIXELS if max_pixels is None else max_pixels
            images, problems = check_dataset(place, advance, in_processes(processes or num_cores()), max_pixels=limit)
    except (OSError, ValueError) as error:
        raise bad_input(error) from None
    if problems.found:
        count = f"{problems.count} problem{'s' * (problems.count > 1)}"
        raise click.ClickException("\n  ".join([f"{count} in {shown(place)}:", *problems.lines()]))
    bare = 0 if described is None else described.subsets["train"].images - described.subsets["train"].masks
    unlabelled = f", {bare} of them unlabelled" if bare else ""
    echo(f"{shown(place)}: {images} images read{unlabelled}, nothing is wrong")


@data.command()
@click.argument("place", metavar="DIR_OR_URL")
@click.option(
    "--contact-sheet", "sheet", type=click.Path(dir_okay=False), help="PNG to write: some images with their masks on top."
)
def info(place: str, sheet: str | None) -> None:
    """Describe the prepared data set in DIR_OR_URL: counts, sizes, and the frequency of each class."""
    from css_ray.data.overview import contact_sheet, count_classes

    dataset = _describe(place)
    about = dataset.info
    try:
        train, val = (count_classes(subset, about.num_classes) for subset in (dataset.train, dataset.val))
    except ValueError as error:
        raise bad_input(error) from None
    width = max(12, *map(len, about.class_names))
    echo(f"\n{'class':>{width + 4}}   share of pixels   images with it")
    echo(f"{'':>{width + 4}}     train     val      train    val")
    for index, name in enumerate(about.class_names):
        shares = f"{train.shares[index]:7.2f} % {val.shares[index]:6.2f} %"
        echo(f"{index:3} {name:>{width}} {shares} {train.images[index]:8} {val.images[index]:6}")
    echo(f"{'ignored':>{width + 4}} {train.ignored_share:7.2f} % {val.ignored_share:6.2f} %")
    if sheet is not None:
        try:
            contact_sheet(dataset).save(sheet, "PNG")
        except (OSError, ValueError) as error:
            raise bad_input(error, "write", sheet) from None
        echo(f"\ncontact sheet: {sheet}")


def _describe(place: str) -> DataSet:
    """Open a prepared data set and print its description; decodes nothing."""
    from css_ray.data.shards import open_dataset
    from css_ray.secrets import shown

    try:
        dataset = open_dataset(place)
    except (OSError, ValueError) as error:
        raise bad_input(error) from None
    about = dataset.info
    echo(f"{about.name}: {about.num_classes} classes, content {about.content[:12]}, in {shown(place)}")
    for name, subset in (("train", dataset.train), ("val", dataset.val)):
        heights, widths = zip(*subset.sizes, strict=True)
        size = f"{min(widths)}x{min(heights)}"
        if len(set(subset.sizes)) > 1:
            size += f" to {max(widths)}x{max(heights)}"
        masks, bare = subset.num_masks, len(subset) - subset.num_masks
        parts = f"{masks} with masks" + (f", the other {bare} unlabelled" if bare else "")
        echo(f"  {name:5} {len(subset):6} image{'s' * (len(subset) != 1)}, {parts}, {size} (width x height)")
    return dataset
