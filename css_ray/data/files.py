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

from .problems import Problems as Problems
from .shards import DatasetInfo, decode_rgb
from .writing import Row, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MASK_SUFFIXES = (".png",)  # lossy formats would invent classes

_JPEG_END = b"\xff\xd9"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


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
    problems: Problems,
) -> Source:
    """The images of `train` and `val` as a source.

    version: what determines the rows beside the files: the reader and its version, and its settings.
    resize: (width, height) in pixels that all images (antialiased bilinear) and masks (nearest) get; a JPEG stays one, at
    quality 95, anything else becomes a PNG. Without it the files' bytes are kept.
    problems: of the listing. They are raised with those of the files, which are read when the source is written.

    Raises ValueError if a side of `resize` is below 1.
    """
    if resize is not None and min(resize) < 1:
        raise ValueError(f"resize must be at least 1x1, got {resize[0]}x{resize[1]}")
    names = {name: Counter(item.id for item in items) for name, items in subsets.items()}
    for name, counts in names.items():
        if not counts:
            problems.add("has no image", name)
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
        read=_FileReader(read_mask, resize),
        place=str(root),
        problems=problems.found,
    )


@dataclass(frozen=True, slots=True)
class _FileReader:
    """Reads the files of an item into a row."""

    read_mask: MaskReader
    resize: tuple[int, int] | None

    def digest(self, item: FileItem) -> bytes:
        """The hash of the files' content, not of their dates: a copy is the same source."""
        return _digest(item.image.read_bytes(), None if item.mask is None else item.mask.read_bytes())

    def __call__(self, item: FileItem) -> Row:
        image = item.image.read_bytes()
        encoded = None if item.mask is None else item.mask.read_bytes()
        size = image_size(image)
        mask, png = None, None
        if encoded is not None:
            try:
                mask, png = self.read_mask(encoded)
            except ValueError as error:
                raise ValueError(f"mask {error}") from None
            if mask.shape != size:
                raise ValueError(
                    f"mask is {mask.shape[1]}x{mask.shape[0]} (width x height), must be as its image {size[1]}x{size[0]}"
                )
        source = _digest(image, encoded)
        if self.resize is not None and self.resize != (size[1], size[0]):
            image = _resized(image, self.resize)
            if mask is not None:
                mask, png = np.asarray(Image.fromarray(mask).resize(self.resize, Image.Resampling.NEAREST)), None
            size = (self.resize[1], self.resize[0])
        return Row(item.id, image, size[0], size[1], mask, png, source)


def _digest(image: bytes, mask: bytes | None) -> bytes:
    return hashlib.sha256(image).digest() + (b"" if mask is None else hashlib.sha256(mask).digest())


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels of a JPEG, PNG or WebP that is whole.

    It reads the header, looks for the end, and compares the checksums of a PNG; only an unusual file is decoded.
    `css-ray data check` decodes every pixel.

    Raises ValueError with what is wrong.
    """
    if not encoded:
        raise ValueError("image is empty (0 bytes); fetch it again")
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            usual = image.mode in ("RGB", "L", "P", "1") and _ends_well(encoded, image.format)
            depth = encoded[24] if image.format == "PNG" else 8
            if image.format == "PNG":
                image.verify()
            elif not usual:
                image.load()
        if depth > 8:
            raise _Unfit(f"image has {depth} bits per channel, must have 8; convert it")
        if not usual:
            decode_rgb(encoded)
    except _Unfit:
        raise
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        raise ValueError(f"image is not a readable {'/'.join(IMAGE_SUFFIXES)} ({str(error).splitlines()[0]})") from None
    return height, width


class _Unfit(ValueError):
    """A whole image, but not one to train on."""


def _ends_well(encoded: bytes, kind: str | None) -> bool:
    """Whether the last bytes are those that its kind ends with; padding after them is left to a decoder to judge."""
    if kind == "JPEG":
        return encoded.endswith(_JPEG_END)
    if kind == "PNG":
        return encoded.endswith(_PNG_END)
    return len(encoded) >= 8 + int.from_bytes(encoded[4:8], "little")  # RIFF: the length of what follows


def _resized(encoded: bytes, size: tuple[int, int]) -> bytes:
    """The encoded image in another (width, height)."""
    pixels = decode_rgb(encoded).permute(1, 2, 0).numpy()  # by the decoder that training uses
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)  # Pillow averages when it shrinks
    target = io.BytesIO()
    if encoded.startswith(b"\xff\xd8"):
        image.save(target, "JPEG", quality=95)
    else:
        image.save(target, "PNG")
    return target.getvalue()
