"""`css-ray data splits`: show, write, compare and check which training images are labelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import bad_input
from .output import echo

if TYPE_CHECKING:
    from css_ray.data.shards import DataSet
    from css_ray.data.splits import Split

labelled_option = click.option("--labelled", required=True, type=click.IntRange(min=1), help="Number of labelled images.")
split_option = click.option(
    "--split",
    "indices",
    multiple=True,
    type=click.IntRange(min=0),
    default=(0, 1, 2),
    show_default=True,
    help="Index of a split; may be repeated.",
)
independent_option = click.option(
    "--independent",
    is_flag=True,
    help="Choose each count independently; otherwise the images of a count are among those of a larger one.",
)


@click.group()
def splits() -> None:
    """Show, write, compare and check which training images are labelled."""


@splits.command()
@click.argument("data", metavar="DATA")
@labelled_option
@split_option
@independent_option
def show(data: str, labelled: int, indices: tuple[int, ...], independent: bool) -> None:
    """Show the splits of the prepared data set DATA: counts, hashes, and how many labelled images show each class."""
    from css_ray.data.splits import count_shown

    dataset = _open(data)
    made = _made(dataset, labelled, indices, independent)
    shown = [count_shown(dataset, split.labelled) for split in made]
    present = _classes_present(dataset)
    echo(f"{'split':>5} {'labelled':>9} {'unlabelled':>11} {'classes':>9}  hash")
    for split, counts in zip(made, shown, strict=True):
        classes = f"{sum(map(bool, counts))} of {present}"
        echo(f"{split.index:5} {len(split.labelled):9} {len(split.unlabelled):11} {classes:>9}  {split.hash[:12]}")
    names = dataset.info.class_names
    width = max(24, *map(len, names))
    echo(f"\n{'labelled images with it':>{width + 4}}" + "".join(f" {f'split {split.index}':>9}" for split in made))
    for index, name in enumerate(names):
        echo(f"{index:3} {name:>{width}}" + "".join(f" {counts[index]:9}" for counts in shown))


@splits.command()
@click.argument("data", metavar="DATA")
@labelled_option
@split_option
@independent_option
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to write DIR/LABELLED/SPLIT/*.txt into.")
def write(data: str, labelled: int, indices: tuple[int, ...], independent: bool, out: str) -> None:
    """Write splits of the prepared data set DATA as lists of ids, for other programs or for `data.labelled_list` of a study.

    \b
    css-ray data splits write data/camvid --labelled 20 --split 0 --out splits/camvid
    """
    from css_ray.data.splits import write_split

    for split in _made(_open(data), labelled, indices, independent):
        folder = Path(out) / str(labelled) / str(split.index)
        try:
            written = write_split(split, folder)
        except OSError as error:
            raise bad_input(error, "write", folder) from None
        counts = f"{len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled, {split.hash[:12]}"
        echo(f"{folder}: {counts}" + ("" if written else "; there already, nothing was done"))


@splits.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--data", metavar="DATA", help="Find the ids in this prepared data set; without it, only names are compared.")
def compare(a: str, b: str, data: str | None) -> None:
    """Compare two split files, or the `labeled.txt` of two folders: how many images they share."""
    first, second = (_images(place, data) for place in (a, b))
    both = first & second
    echo(f"{len(first):7} images in {a}")
    echo(f"{len(second):7} images in {b}")
    echo(f"{len(both):7} shared")
    for only, other in ((first - second, a), (second - first, b)):
        some = f": {', '.join(sorted(only)[:5])}{', ...' if len(only) > 5 else ''}" if only else ""
        echo(f"{len(only):7} only in {other}{some}")
    echo(f"{len(both) / len(first | second):7.4f} Jaccard index (shared of all)")


@splits.command()
@click.argument("data", metavar="DATA")
@click.option("--labelled-list", required=True, metavar="FILE", help="Split file of the labelled images.")
@click.option("--unlabelled-list", metavar="FILE", help="Split file of the unlabelled images; all others if not given.")
def check(data: str, labelled_list: str, unlabelled_list: str | None) -> None:
    """Check split files against the prepared data set DATA: print every problem together, or describe the split."""
    from css_ray.data.lists import listed_ids
    from css_ray.data.splits import count_shown, listed_split

    dataset = _open(data)
    try:
        split = listed_split(dataset, 0, *listed_ids(dataset, labelled_list, unlabelled_list))
    except ValueError as error:
        raise bad_input(error) from None
    num_rest = len(dataset.train) - len(split.labelled) - len(split.unlabelled)
    echo(f"{len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled, {num_rest} training images in neither part")
    counts = count_shown(dataset, split.labelled)
    echo(f"{sum(map(bool, counts))} of {_classes_present(dataset)} classes are labelled")
    echo(f"hash {split.hash}")


def _open(data: str) -> DataSet:
    from css_ray.data.shards import open_dataset

    try:
        return open_dataset(data)
    except (OSError, ValueError) as error:
        raise bad_input(error) from None


def _made(dataset: DataSet, labelled: int, indices: tuple[int, ...], independent: bool) -> list[Split]:
    from css_ray.data.splits import make_split

    try:
        return [make_split(dataset, labelled, index, nested=not independent) for index in dict.fromkeys(indices)]
    except ValueError as error:
        raise bad_input(error) from None


def _classes_present(dataset: DataSet) -> int:
    """The number of classes that occur in training masks."""
    return len({shown for classes in dataset.train.classes for shown in classes or ()})


def _images(place: str, data: str | None) -> set[str]:
    """The images of a split file: ids of the data set, or what any list would call them."""
    from css_ray.data.lists import read_lines, resolve, stem
    from css_ray.data.problems import Problems
    from css_ray.data.splits import LABELLED_FILE

    path = Path(place) / LABELLED_FILE if Path(place).is_dir() else place
    problems = Problems()
    try:
        lines = read_lines(path)
        if data is None:
            return {stem(line) for line in lines.values()}
        dataset = _open(data)
        ids = resolve(lines, (*dataset.train.ids, *dataset.val.ids), problems)
        problems.raise_any(path, "it cannot be compared")
    except (OSError, ValueError) as error:
        raise bad_input(error) from None
    return set(ids.values())
