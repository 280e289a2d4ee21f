"""Data sets that lie in loose files, one image and at most one mask per image, as a source whose bytes are kept."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .description import DatasetInfo, is_name
from .images import MAX_PIXELS, decode_rgb, image_size
from .png import declared_size
from .problems import Problems as Problems
from .writing import Row, Source

MASK_SUFFIXES = (".png",)  # lossy formats would invent classes


class Mask(NamedTuple):
    """What a mask file holds.

    indices: uint8 [H, W], IGNORE_INDEX where void. png: a grey 8-bit PNG of just these; None if one must be made.
    """

    indices: NDArray[np.uint8]
    png: bytes | None


MaskReader = Callable[[bytes], Mask]
"""Reads the bytes of a mask file. It is sent to other processes. Raises ValueError with what is wrong and how to fix it."""


class FileItem(NamedTuple):
    """The files of one image. mask: None if it has none, or if none may be looked at."""

    id: str
    image: Path
    mask: Path | None


def files_source(
    info: DatasetInfo,
    subsets: Mapping[str, Sequence[FileItem]],
    read_mask: MaskReader,
    *,
    root: Path,
    version: str,
    resize: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    problems: Problems,
) -> Source:
    """The images of `train` and `val` as a source.

    version: what determines the rows beside the files: the reader and its version, and its settings.
    resize: (width, height) in pixels that all images (antialiased bilinear) and masks (nearest) get; a JPEG stays one, at
    quality 95, anything else becomes a PNG. Without it the files' bytes are kept.
    max_pixels: how many an image may have, before it is resized.
    problems: of the listing. They are raised with those of the files, which are read when the source is written.

    Raises ValueError if a side of `resize` or `max_pixels` is below 1.
    """
    if resize is not None and min(resize) < 1:
        raise ValueError(f"resize must be at least 1x1, got {resize[0]}x{resize[1]}")
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be >= 1, got {max_pixels}")
    for name, items in subsets.items():
        if not items:
            problems.add("has no image", name)
    subsets = {name: [item for item in items if _is_fit(item, problems)] for name, items in subsets.items()}
    names = {name: Counter(item.id for item in items) for name, items in subsets.items()}
    for name, counts in names.items():
        for id, count in counts.items():
            if count > 1:
                problems.add(f"is listed {count} times in {name}", id)
    for id in sorted(names["train"].keys() & names["val"].keys()):
        problems.add("is in train and in val", id)
    return Source(
        info=info,
        version=f"{version} {info.name} {info.class_names} {info.palette} {resize}",
        subsets=subsets,
        sizes={name: [item.image.stat().st_size for item in items] for name, items in subsets.items()},
        read=_FileReader(read_mask, resize, max_pixels),
        place=str(root),
        problems=problems.found,
        distinct=True,
    )


def _is_fit(item: FileItem, problems: Problems) -> bool:
    """Whether the files of an item can be opened, and its id can be stored; else why not goes to `problems`."""
    if not is_name(item.id):
        try:
            item.id.encode()
            problems.add("has a name with control characters, or of more than 1000 characters; rename the file", ascii(item.id))
        except UnicodeEncodeError:
            problems.add("has a name that is not UTF-8; rename the file (convmv renames many)", ascii(item.id))
        return False
    for what, path in (("image", item.image), ("mask", item.mask)):
        if path is not None and not path.is_file():  # to open a FIFO is to wait, and a device may have no end
            kind = "a folder, not a file" if path.is_dir() else "neither a file nor a link to one"
            problems.add(f"{what} is {kind}; remove it, or put the file there", item.id)
            return False
    return True


@dataclass(frozen=True, slots=True)
class _FileReader:
    """Reads the files of an item into a row."""

    read_mask: MaskReader
    resize: tuple[int, int] | None
    max_pixels: int

    def digest(self, item: FileItem) -> bytes:
        """The hash of the files' content, not of their dates: a copy is the same source."""
        return _digest(item.image.read_bytes(), None if item.mask is None else item.mask.read_bytes())

    def __call__(self, item: FileItem) -> Row:
        image = item.image.read_bytes()
        encoded = None if item.mask is None else item.mask.read_bytes()
        size = image_size(image, self.max_pixels)
        mask, png = None, None
        if encoded is not None:
            if (
                declared := declared_size(encoded)
            ) is not None:  # before its pixels are decoded, of which there may be too many
                _compare(declared, size)
            try:
                mask, png = self.read_mask(encoded)
            except ValueError as error:
                raise ValueError(f"mask {error}") from None
            _compare(mask.shape, size)
        source = _digest(image, encoded)
        if self.resize is not None and self.resize != (size[1], size[0]):
            image = resized(image, self.resize)
            if mask is not None:
                mask, png = np.asarray(Image.fromarray(mask).resize(self.resize, Image.Resampling.NEAREST)), None
            size = (self.resize[1], self.resize[0])
        return Row(item.id, image, size[0], size[1], mask, png, source)


def _compare(mask: tuple[int, ...], image: tuple[int, int]) -> None:
    """Raises ValueError if the (height, width) of a mask and of its image differ."""
    if mask != image:
        raise ValueError(f"mask is {mask[1]}x{mask[0]} (width x height), must be as its image {image[1]}x{image[0]}")


def _digest(image: bytes, mask: bytes | None) -> bytes:
    return hashlib.sha256(image).digest() + (b"" if mask is None else hashlib.sha256(mask).digest())


def resized(encoded: bytes, size: tuple[int, int]) -> bytes:
    """The encoded image in another (width, height), as `files_source` resizes it. Raises ValueError if it cannot be decoded."""
    pixels = decode_rgb(encoded).permute(1, 2, 0).numpy()  # by the decoder that training uses
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)  # Pillow averages when it shrinks
    target = io.BytesIO()
    if encoded.startswith(b"\xff\xd8"):
        image.save(target, "JPEG", quality=95)
    else:
        image.save(target, "PNG")
    return target.getvalue()
