"""The built-in data set `digits`: scenes of real handwritten digits on cards, small enough to learn in half a minute on a CPU.

A scene shows up to four light cards on an uneven ground; each carries one digit in dark ink. A card is labelled, as a whole,
with its digit; all else is background. The paper leans weakly to a hue of its class. The digits are scikit-learn's (E. Alpaydin
and C. Kaynak, UCI 1998): training scenes use those below index 1200, validation scenes the rest.

Pixels are made by integer arithmetic from NumPy's frozen `RandomState` stream and stored in PNGs that are not compressed, so a
seed has the same content hash on every machine.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .description import DatasetInfo
from .writing import Row, Source, rows_source

INFO = DatasetInfo(
    name="digits",
    class_names=("background", "zero", "one", "three", "four", "seven"),
    palette=((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
)

_VERSION = 1  # of the scenes: any change of a pixel must raise it
_SIZE = 40  # height and width of a scene, pixels
_DIGITS = (0, 1, 3, 4, 7)  # class 1 is the digit 0, ...
_FIRST_VAL_DIGIT = 1200  # of scikit-learn's 1797
_HUES = 6 * 256  # the colour wheel in integers
_HUE_SPREAD = 230  # standard deviation of a card's hue around that of its class: 0.15 of the wheel

_Pixels = NDArray[np.int64]


def digits_source(*, num_train: int = 400, num_val: int = 200, seed: int = 0) -> Source:
    """The data set as a source for `write_dataset`; all scenes have masks. Ids are `train-0000`, ..., `val-0000`, ...

    Raises ValueError if a count is below 1.
    """
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")

    subsets = {
        "train": list(_scenes("train", num_train, np.random.RandomState([seed, 0]))),
        "val": list(_scenes("val", num_val, np.random.RandomState([seed, 1]))),
    }
    return rows_source(INFO, subsets, f"digits {_VERSION}")


def _scenes(subset: str, count: int, random: np.random.RandomState) -> Iterator[Row]:
    from sklearn.datasets import load_digits  # takes a second to import, and only a prepare needs it

    bunch: Any = load_digits()
    chosen = slice(None, _FIRST_VAL_DIGIT) if subset == "train" else slice(_FIRST_VAL_DIGIT, None)
    values = bunch.images[chosen].astype(np.int64)  # [N, 8, 8] in 0..16
    targets = bunch.target[chosen]
    by_class = [values[targets == digit] for digit in _DIGITS]
    for number in range(count):
        image, mask = _scene(random, by_class)
        yield Row(f"{subset}-{number:04d}", _png(image), _SIZE, _SIZE, mask)


def _scene(random: np.random.RandomState, by_class: list[_Pixels]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene [40, 40, 3] and its mask [40, 40]."""

    def draw(low: int, high: int, size: tuple[int, ...] | None = None) -> Any:
        return random.randint(low, high + 1, size, dtype=np.int64)  # both ends included

    ground = draw(50, 150, (4, 4, 3))
    image = np.stack([_enlarged(ground[..., channel], _SIZE) for channel in range(3)], axis=-1)
    mask = np.zeros((_SIZE, _SIZE), np.uint8)
    for _ in range(4):
        side = int(draw(13, 19))
        top, left = (int(draw(0, _SIZE - side)) for _ in range(2))
        index = int(draw(0, len(_DIGITS) - 1))
        glyph = by_class[index][draw(0, len(by_class[index]) - 1)]
        card = _card(draw, index, glyph, side)
        window = slice(top, top + side), slice(left, left + side)
        if mask[window].any():
            continue  # a card never hides another, so no digit is cut
        image[window] = card
        mask[window] = index + 1
    image += draw(-12, 12, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def _card(draw: Any, index: int, glyph: _Pixels, side: int) -> _Pixels:
    """A card [side, side, 3] of class `index` with a digit [8, 8] on it."""
    # The sum of three uniform numbers is close to normal, and has none of the logarithms that differ between machines.
    hue = index * _HUES // len(_DIGITS) + int(draw(-_HUE_SPREAD, _HUE_SPREAD, (3,)).sum())
    distance = np.abs((hue - np.array([0, _HUES // 3, 2 * _HUES // 3]) + _HUES // 2) % _HUES - _HUES // 2)
    wheel = (512 - distance).clip(0, 256)  # RGB: 256 at the channel's own hue and a sixth around it, 0 opposite
    paper = draw(190, 240) - draw(20, 70) * (256 - wheel) // 256
    ink = draw(10, 70)
    margin = int(draw(1, 2))
    strength = np.zeros((side, side, 1), np.int64)
    strength[margin:-margin, margin:-margin, 0] = _enlarged(16 * glyph, side - 2 * margin)  # 0..256
    card: _Pixels = (paper * (256 - strength) + ink * strength) // 256
    return card


def _enlarged(grid: _Pixels, size: int) -> _Pixels:
    """[n, n] -> [size, size]: bilinear between the centres of the cells, in whole numbers."""
    cells = grid.shape[0]
    position = ((2 * np.arange(size) + 1) * cells * 128 // size - 128).clip(0, 256 * (cells - 1))
    low, part = position // 256, position % 256
    high = np.minimum(low + 1, cells - 1)
    rows = grid[low] * (256 - part)[:, None] + grid[high] * part[:, None]
    enlarged: _Pixels = (rows[:, low] * (256 - part) + rows[:, high] * part) // 65536
    return enlarged


def _png(image: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] as a PNG with stored, not compressed, pixels: compressors differ between builds of zlib.

    One stored block holds 65535 bytes, enough for a scene.
    """
    height, width, _ = image.shape
    raw = b"".join(b"\0" + row.tobytes() for row in image)  # 0: the row is not filtered
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), 0xFFFF - len(raw)) + raw + struct.pack(">I", zlib.adler32(raw))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")
