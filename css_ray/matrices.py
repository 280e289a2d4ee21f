"""The confusion matrix of each validation image, as a file: what shows how far a score depends on the choice of the images.

A file holds the cells that are not 0, in the order of the images, compressed. The sum over the images is the matrix whose
scores the journal records.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from css_ray.secrets import shown
from css_ray.storage import below, locate, put, read_blocks

FORMAT = 1

At = Literal["last", "best"]
"""Which evaluation of a run: that of its last step, or the one with the highest mean IoU."""

Counts = NDArray[np.int64]


class MatricesError(ValueError):
    """A file of matrices that is damaged, or of another version."""


@dataclass(frozen=True, eq=False, slots=True)
class ImageMatrices:
    """The confusion matrices of N images with C classes, by their cells that are not 0: three arrays of equal length.

    ids: of the images, in the order of the set. images: the index of each cell's image, ascending; cells: label * C +
    prediction, ascending within an image; pixels: how many the cell counts.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    images: Counts
    cells: Counts
    pixels: Counts

    def dense(self) -> Counts:
        """[N, C, C], row: label, column: prediction."""
        classes = len(self.class_names)
        matrices = np.zeros((len(self.ids), classes * classes), np.int64)
        matrices[self.images, self.cells] = self.pixels
        return matrices.reshape(-1, classes, classes)

    def class_pixels(self) -> Counts:
        """[3, N, C]: how many pixels of each image and class are right, labelled and predicted."""
        classes = len(self.class_names)
        labels, predictions = self.cells // classes, self.cells % classes
        counts = np.zeros((3, len(self.ids), classes), np.int64)
        right = labels == predictions
        counts[0, self.images[right], labels[right]] = self.pixels[right]
        np.add.at(counts[1], (self.images, labels), self.pixels)
        np.add.at(counts[2], (self.images, predictions), self.pixels)
        return counts


def write_matrices(folder: str | Path, at: At, matrices: ImageMatrices) -> None:
    """Write the file of an evaluation into `folder`, a path or a URL, which is made; it is replaced as a whole.

    Equal matrices make equal bytes. Raises OSError if it cannot be written.
    """
    filesystem, path = locate(folder)
    filesystem.create_dir(path, recursive=True)
    put(filesystem, f"{path}/{at}.npz", encoded(matrices))


def read_matrices(folder: str | Path, at: At) -> ImageMatrices | None:
    """The matrices of an evaluation, or None if `folder` has no file of it.

    Raises MatricesError if the file is damaged, OSError if it cannot be read.
    """
    filesystem, path = locate(folder)
    try:
        data = b"".join(read_blocks(filesystem, f"{path}/{at}.npz"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return decoded(data, below(folder, f"{at}.npz"))


def encoded(matrices: ImageMatrices) -> bytes:
    """The content of a file."""
    about = {"format": FORMAT, "ids": matrices.ids, "class_names": matrices.class_names}
    small = len(matrices.class_names) <= 256  # then a cell needs two bytes
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        cells_per_image=np.bincount(matrices.images, minlength=len(matrices.ids)).astype("<u4"),
        cells=matrices.cells.astype("<u2" if small else "<u4"),
        pixels=matrices.pixels.astype("<u4"),
    )
    return buffer.getvalue()


def decoded(data: bytes, place: str | Path) -> ImageMatrices:
    """The matrices of a file's content. place: of the file, for the message. Raises MatricesError."""
    remedy = "remove it to have tables without its intervals, or train the run again"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            per_image, cells, pixels = (file[name].astype(np.int64) for name in ("cells_per_image", "cells", "pixels"))
        version, ids, class_names = about["format"], _texts(about["ids"]), _texts(about["class_names"])
    except Exception:  # what zipfile and NumPy raise of altered bytes is of many kinds
        raise MatricesError(f"{shown(place)} is damaged; {remedy}") from None
    if version != FORMAT:
        raise MatricesError(f"{shown(place)} has format {version!r:.80}, this version of css-ray reads {FORMAT}; {remedy}")
    fits = per_image.shape == (len(ids),) and cells.shape == pixels.shape == (per_image.sum(),)
    if not fits or not np.all(per_image >= 0) or not np.all(pixels > 0) or not np.all(cells < len(class_names) ** 2):
        raise MatricesError(f"{shown(place)} is damaged: its arrays do not fit together; {remedy}")
    images = np.repeat(np.arange(len(ids)), per_image)
    if not np.all(np.diff(images * len(class_names) ** 2 + cells) > 0):
        raise MatricesError(f"{shown(place)} is damaged: its cells are not in order; {remedy}")
    return ImageMatrices(ids, class_names, images, cells, pixels)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        raise TypeError(values)
    return tuple(values)
