"""What is to be predicted: images in folders, lists and globs, or in a prepared data set; each with a name for its mask."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from torch import Tensor

from css_ray.data.description import DESCRIPTION
from css_ray.data.images import IMAGE_SUFFIXES
from css_ray.data.shards import DatasetInfo, Shards, open_dataset
from css_ray.messages import did_you_mean, os_error_text, printable, quoted
from css_ray.secrets import shown
from css_ray.storage import is_url

UNREADABLE_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2")
"""Of files that are images, too, and that css-ray cannot read: they are named, not passed over."""

_LIST_SUFFIX = ".txt"

Subset = Literal["val", "train"]


class Picture(Protocol):
    """One image. name: its path without a suffix, from which the names of its masks are made. place: what messages call it."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    def encoded(self) -> bytes:
        """The bytes of its file. Raises OSError."""

    def truth(self) -> Tensor | None:
        """Its mask, uint8 [H, W]; None if none is known. Raises ValueError."""

    def changed(self) -> float:
        """When its file was changed, in seconds as `st_mtime`; 0 if it never is."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image in a file of its own."""

    name: str
    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def encoded(self) -> bytes:
        if not self.path.is_file() and self.path.exists():  # to open a FIFO is to wait
            kind = "a folder" if self.path.is_dir() else "neither a file nor a link to one"
            raise OSError(f"it is {kind}")
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise OSError(os_error_text(error, "read", self.path)) from None

    def truth(self) -> Tensor | None:
        return None

    def changed(self) -> float:
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0  # what is wrong with it is found when it is read


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """An image of a prepared data set, whose shards were compared with their hashes. masked: whether it has a mask."""

    name: str
    place: str
    shards: Shards
    index: int
    masked: bool

    def encoded(self) -> bytes:
        return bytes(memoryview(self.shards.encoded(self.index)[0]))

    def truth(self) -> Tensor | None:
        return self.shards.sample(self.index).mask if self.masked else None

    def changed(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images in the order in which they are predicted. info: of the data set that they are, None for files."""

    pictures: tuple[Picture, ...]
    info: DatasetInfo | None = None

    @property
    def has_truth(self) -> bool:
        """Whether each of them has a mask."""
        return self.info is not None and all(isinstance(picture, StoredPicture) and picture.masked for picture in self.pictures)


def find_pictures(places: Sequence[str | Path], *, out: Path, subset: Subset = "val") -> Pictures:
    """The images that are meant, in the order of their names.

    Args:
        places: Folders (with all folders below), image files, globs, `.txt` files with one path per line, relative to the
            folder of the list; or one prepared data set, a folder or a URL. Names are relative to the one folder that is given,
            else to the deepest folder that has all the images.
        out: Where the masks will be: what lies there is not an image.
        subset: Of a data set.

    Raises:
        ValueError: Nothing is there, or it is not what was meant; with all problems.
        OSError: A list or a data set cannot be read.
    """
    texts = [os.fspath(place) for place in places]
    stored = [text for text in texts if is_url(text) or (Path(text) / DESCRIPTION).is_file()]
    if stored:
        if len(texts) > 1:
            raise ValueError(f"{shown(stored[0])} is a prepared data set; predict it by itself, into a folder of its own")
        return _of_dataset(stored[0], subset)
    files: list[Path] = []
    problems: list[str] = []
    for text in texts:
        try:
            found = _files_of(text, out)
        except ValueError as error:
            problems.append(str(error))
            continue
        files += found
    if problems:
        raise ValueError("; ".join(problems))
    files = list(dict.fromkeys(files))
    only = Path(texts[0]) if len(texts) == 1 and Path(texts[0]).is_dir() else None
    pictures = sorted(_named(files, only), key=lambda picture: picture.name)
    return Pictures(tuple(pictures))


def _files_of(text: str, out: Path) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise ValueError(
                f"--out {quoted(text)} is the folder of the images; choose another, such as {quoted(text + '-masks')}"
            )
        found = [file for file in _below(path, out.resolve()) if file.suffix.lower() in (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)]
        if not found:
            raise ValueError(f"{quoted(text)} has no image ({', '.join(IMAGE_SUFFIXES)}); give a folder of images")
        return found
    if path.exists():
        return _listed(path) if path.suffix.lower() == _LIST_SUFFIX else [path]
    if glob.has_magic(text):
        matched = [Path(each) for each in sorted(glob.glob(text, recursive=True))]
        if found := [file for file in matched if not file.is_dir()]:
            return found
        raise ValueError(f"{quoted(text)} matches no file; check the pattern")
    beside = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
    near = did_you_mean(path.name, beside) if beside else ""
    raise ValueError(f"{quoted(text)} does not exist{near if near.startswith(' (') else ''}; give a folder, files, or a list")


def _below(folder: Path, out: Path) -> Iterable[Path]:
    """The files in a folder and those below it, without hidden ones and what lies in `out`."""
    for above, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (Path(above) / name).resolve() != out)
        yield from (Path(above) / name for name in sorted(names) if not name.startswith("."))


def _listed(path: Path) -> list[Path]:
    """The files that a list names, one per line; blank lines count for nothing."""
    if not path.is_file():
        raise ValueError(f"{quoted(path)} is not a file; give a list of images, one per line")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{quoted(path)} is not text; give a list of images, one per line") from None
    found = [path.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{quoted(path)} is empty; list one image per line")
    return found


def _named(files: Sequence[Path], folder: Path | None) -> list[PictureFile]:
    """The images, each with its path below `folder`, or below the deepest folder that has them all."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    top = Path(os.path.abspath(folder)) if folder is not None else Path(os.path.commonpath([file.parent for file in absolute]))
    return [
        PictureFile(place.relative_to(top).with_suffix("").as_posix(), file)
        for place, file in zip(absolute, files, strict=True)
    ]


def _of_dataset(place: str, subset: Subset) -> Pictures:
    dataset = open_dataset(place)
    shards: Shards = getattr(dataset, subset)
    pictures = [
        StoredPicture(_plain(id), f"{id} of {shown(place)}", shards, index, classes is not None)
        for index, (id, classes) in enumerate(zip(shards.ids, shards.classes, strict=True))
    ]
    return Pictures(tuple(pictures), dataset.info)


def _plain(id: str) -> str:
    """The id of an image as a path below a folder. Raises ValueError if it would lead out of it."""
    parts = PurePosixPath(id).parts
    if not parts or id.startswith("/") or ".." in parts or "\x00" in id:
        raise ValueError(f"the data set has an image with the id {printable(id)!r}, which is not a path below a folder")
    return "/".join(parts)
