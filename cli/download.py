"""`css-ray data download`: fetch the original files of data sets, or explain how."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from css_ray.messages import command, printable

from .errors import BadInput, bad_input
from .output import echo

_CITYSCAPES = """\
Cityscapes requires a registration. From https://www.cityscapes-dataset.com/downloads/ fetch
  leftImg8bit_trainvaltest.zip   11 GB    the images
  gtFine_trainvaltest.zip        241 MB   the masks
and unpack both into {folder}:
  unzip -n leftImg8bit_trainvaltest.zip -d {folder}
  unzip -n gtFine_trainvaltest.zip -d {folder}
so that these files exist:
  {folder}/leftImg8bit/{{train,val}}/CITY/CITY_xxxxxx_xxxxxx_leftImg8bit.png
  {folder}/gtFine/{{train,val}}/CITY/CITY_xxxxxx_xxxxxx_gtFine_labelIds.png"""


@click.command()
@click.argument("name", type=click.Choice(["voc", "sbd", "cityscapes"]))
@click.option(
    "--root", default="data/raw", show_default=True, type=click.Path(file_okay=False), help="Folder of all original files."
)
@click.option("--url", help="Another address of the same archive; its MD5 must be the same.")
@click.option(
    "--keep-archive/--no-keep-archive", help="Keep the archive in --root once it is unpacked; by default it is deleted."
)
def download(name: str, root: str, url: str | None, keep_archive: bool) -> None:
    """Fetch the original files of VOC 2012 (2.0 GB) or SBD (1.4 GB); of Cityscapes, explain what to fetch by hand.

    After an interruption the same command continues where it stopped.

    \b
    css-ray data download voc --root data/raw
    css-ray data download sbd --root data/raw
    css-ray data download cityscapes --root data/raw
    """
    if name == "cityscapes":
        if url is not None:
            raise BadInput("--url: Cityscapes requires a registration; fetch it by hand")
        _say_cityscapes(Path(root))
        return
    from css_ray.data import download as archives

    try:
        if (folder := archives.find(name, root)) is not None:
            echo(f"{folder} holds all of {name} already; nothing was done")
        else:
            with _progress() as (progress, say):
                folder = archives.download(name, root, url=url, keep_archive=keep_archive, progress=progress, say=say)
            echo(f"{name} is in {folder}")
        # Both data sets of VOC need the names of the images that SBD adds.
        absent = [other for other in ("voc", "sbd") if archives.find(other, root) is None]
    except (OSError, ValueError) as error:
        raise bad_input(error, "write", root) from None
    except KeyboardInterrupt:
        echo("\ninterrupted; the same command continues where it stopped", err=True)
        sys.exit(130)
    prepared = "voc_classic" if name == "voc" else "voc_blender"
    commands = [command("data", "download", other, "--root", root) for other in absent]
    _say_next(*commands, command("data", "prepare", prepared, "--root", root, "--out", f"data/{prepared}"))


def _say_next(*commands: str) -> None:
    echo("\n".join(["", "next:", *(f"  {line}" for line in commands)]))


def _say_cityscapes(root: Path) -> None:
    from css_ray.data.download import count_cityscapes

    folder = root if (root / "leftImg8bit").is_dir() else root / "cityscapes"
    counts = count_cityscapes(folder)
    whole = {"train": 2975, "val": 500}
    if any(images for images, _ in counts.values()):
        echo(f"{folder} holds Cityscapes:")
        for subset, (images, masks) in counts.items():
            echo(f"  {subset:5} {images:5} images, {masks:5} with masks, of {whole[subset]}")
    if counts != {subset: (count, count) for subset, count in whole.items()}:
        echo(_CITYSCAPES.format(folder=shlex.quote(str(folder))))
    _say_next(command("data", "prepare", "cityscapes", "--root", str(folder), "--out", "data/cityscapes"))


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """How much of the archive is here, and what happens: a bar on the terminal, elsewhere one line per tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("downloading", total=None)
        tenth = -1

        def show(done: int, total: int) -> None:
            nonlocal tenth
            bar.update(task, completed=done, total=total or None)
            if not console.is_terminal and total and done * 10 // total != tenth:
                tenth = done * 10 // total
                echo(f"{done / 1e6:.1f} of {total / 1e6:.1f} MB", err=True)

        def say(line: str) -> None:
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

        yield show, say
