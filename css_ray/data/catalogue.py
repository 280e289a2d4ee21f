"""Which data sets there are: by name, or by a description of a folder of images and masks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from css_ray.data.description import DESCRIPTION
from css_ray.messages import command, did_you_mean, file_argument
from css_ray.secrets import shown
from css_ray.storage import is_url

from .cityscapes import cityscapes_source
from .digits import digits_source
from .folder import folder_source
from .images import MAX_PIXELS
from .processes import ParallelMap, in_processes
from .shards import DataSet, open_dataset
from .voc import voc_source
from .writing import Source, write_dataset


class Reader(Protocol):
    """Finds the original files of a data set."""

    def __call__(self, root: Path | None, resize: tuple[int, int] | None, *, max_pixels: int) -> Source:
        """root: where they lie, resize: (width, height); None if the user gave nothing. max_pixels: of an image."""


def _digits(root: Path | None, resize: tuple[int, int] | None, *, max_pixels: int) -> Source:
    if root is not None or resize is not None:
        raise ValueError("digits are built in and have one size, 40x40; give neither a root nor a resize")
    return digits_source()


def _folder(root: Path | None, resize: tuple[int, int] | None, *, max_pixels: int) -> Source:
    raise ValueError("folder needs a description: give a YAML file such as studies/data/camvid.yaml in place of the name")


DATASETS: dict[str, Reader] = {
    "digits": _digits,
    "voc_classic": functools.partial(voc_source, blender=False),
    "voc_blender": functools.partial(voc_source, blender=True),
    "cityscapes": cityscapes_source,
    "folder": _folder,
}
"""The names that `css-ray data prepare` knows. A new data set is one reader and one line here."""


def make_source(
    name_or_description: str | Path,
    root: str | Path | None = None,
    resize: tuple[int, int] | None = None,
    out: str | Path = "OUT",
    *,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """What the reader of a data set of DATASETS, or of one that a YAML file describes, finds.

    root: where the original files lie. resize: (width, height) in pixels of all images and masks; as they are if None.
    max_pixels: how many an image may have, before it is resized.

    Raises FileNotFoundError if a file or folder is absent, ValueError with all that is wrong in the description.
    """
    root = None if root is None else Path(root)
    if (reader := DATASETS.get(str(name_or_description))) is not None:
        return reader(root, resize, max_pixels=max_pixels)
    if Path(name_or_description).suffix not in (".yaml", ".yml"):
        raise ValueError(_unknown(str(name_or_description), out))
    source = folder_source(name_or_description, root, resize, max_pixels=max_pixels)
    if source.info.name in DATASETS:
        raise ValueError(f"{name_or_description}: the name {source.info.name} is taken by css-ray; choose another")
    return source


def prepare(
    name_or_description: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    resize: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    spread: ParallelMap | None = None,
) -> bool:
    """Write a data set of DATASETS, or the one that a YAML file describes, to `out`; False if it was there already.

    out: a folder, or a URL that pyarrow's file systems open. root, resize, max_pixels: as for `make_source`.
    progress: called after each shard with how many images are done, and of how many. spread: see `write_dataset`.

    Raises FileNotFoundError if a file or folder is absent, ValueError with all that is wrong in description or images,
    FileExistsError if `out` holds anything else.
    """
    source = make_source(name_or_description, root, resize, out, max_pixels=max_pixels)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, source.num_rows)

    return write_dataset(out, source, advance, spread or in_processes(1))


def ensure_dataset(name: str, root: str | Path, scratch: str | Path | None = None) -> DataSet:
    """Open the prepared data set in `root`, a folder or a URL.

    `digits` is made in its folder first if it is absent, also when several processes ask at the same time.

    name: what the set must be called; `folder` takes any. scratch: a folder in which `digits` is made instead of in `root`, for
    who wants to look at it and write nothing.

    Raises FileNotFoundError if there is none; ValueError if it is another, or `name` is unknown; OSError if a URL cannot
    be reached.
    """
    if not is_url(root) and not (Path(root) / DESCRIPTION).is_file():
        if name == "digits":
            root = root if scratch is None else Path(scratch) / name
            prepare(name, root)
        elif name not in DATASETS:
            raise FileNotFoundError(f"{root} holds no prepared data set; {_unknown(name, root)}")
        elif name != "folder":
            make = command("data", "prepare", name, "--root", "ORIGINAL_FILES", "--out", str(root))
            raise FileNotFoundError(f"{root} holds no prepared data set; make it with: {make}")
    dataset = open_dataset(root)
    if name not in ("folder", dataset.info.name):
        remedy = f"name {dataset.info.name} or folder to use it" if name in DATASETS else _unknown(name, "ANOTHER_FOLDER")
        raise ValueError(f"{shown(root)} holds the data set {dataset.info.name}, not {name}; {remedy}")
    return dataset


def _unknown(name: str, out: str | Path) -> str:
    """Why css-ray cannot make the data set `name` by itself, and how to have it all the same."""
    prepare = command("data", "prepare", file_argument(f"{name}.yaml"), "--root", "ORIGINAL_FILES", "--out", str(out))
    return (
        f"{name} is not a built-in data set{did_you_mean(name, DATASETS)}; describe its folders and classes in a YAML file as "
        f"studies/data/camvid.yaml does, with `name: {name}`, then run: {prepare}"
    )
