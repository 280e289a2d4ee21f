"""Reads the class masks of SBD, the Semantic Boundaries Dataset: MATLAB files of level 5 with a struct `GTcls`.

scipy reads them too, and ends the process by a signal at some that are damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

START = b"MATLAB"
"""How such files start."""

_HEADER = 128  # bytes
_MOST_BYTES = 2**26  # that a compressed variable may have; those of SBD have less than 2**20
_MATRIX, _COMPRESSED, _INT8, _UINT8, _INT32, _UINT32 = 14, 15, 1, 2, 5, 6  # types of elements
_STRUCT, _UINT8_ARRAY = 2, 9  # classes of matrices


def read_mat(encoded: bytes) -> NDArray[np.uint8]:
    """The class indices uint8 [H, W] of a file of SBD's folder `cls`.

    Raises ValueError if it is not such a file.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}[encoded[126:128]]
        for kind, content in _elements(encoded[_HEADER:], order):
            if kind == _COMPRESSED:
                inflated = zlib.decompressobj().decompress(content, _MOST_BYTES)
                ((kind, content),) = _elements(inflated, order)
            name, fields = _struct(content, order) if kind == _MATRIX else ("", {})
            if name == "GTcls":
                return _indices(fields["Segmentation"], order)
        raise ValueError("no GTcls")
    except (KeyError, ValueError, struct.error, zlib.error):
        raise ValueError("is not a .mat file of SBD (GTcls.Segmentation, uint8 [H, W]); fetch it again") from None


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the content of each element."""
    start = 0
    while start < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, start)
        begin, end = start + 8, start + 8 + size
        if kind >> 16:  # a small one: its size, its type and its content take 8 bytes together
            kind, size = kind & 0xFFFF, kind >> 16
            begin, end = start + 4, start + 4 + size
            if size > 4:
                raise ValueError("a small element is too large")
        if end > len(content):
            raise ValueError("cut off")
        yield kind, content[begin:end]
        start = end if kind == _COMPRESSED else start + 8 if begin == start + 4 else end + -end % 8


def _matrix(content: bytes, order: str) -> tuple[int, tuple[int, ...], str, list[tuple[int, bytes]]]:
    """The class, the dimensions, the name and the other elements of a matrix."""
    (flags_kind, flags), (dimensions_kind, dimensions), (name_kind, name), *others = _elements(content, order)
    if (flags_kind, dimensions_kind, name_kind) != (_UINT32, _INT32, _INT8):
        raise ValueError("no matrix")
    (first,) = struct.unpack_from(f"{order}I", flags)
    return first & 0xFF, struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions), name.decode("latin-1"), others


def _struct(content: bytes, order: str) -> tuple[str, dict[str, bytes]]:
    """The name of a variable, and, if it is a struct of one element, its fields: matrices by name."""
    kind, dimensions, name, others = _matrix(content, order)
    if kind != _STRUCT or dimensions != (1, 1):
        return name, {}
    (_, length), (_, names), *values = others
    (width,) = struct.unpack(f"{order}i", length)
    if width < 1 or len(names) != width * len(values) or any(kind != _MATRIX for kind, _ in values):
        raise ValueError("no struct")
    keys = [names[start : start + width].split(b"\0")[0].decode("latin-1") for start in range(0, len(names), width)]
    return name, dict(zip(keys, (value for _, value in values), strict=True))


def _indices(content: bytes, order: str) -> NDArray[np.uint8]:
    kind, dimensions, _, others = _matrix(content, order)
    ((stored, pixels),) = others
    if kind != _UINT8_ARRAY or stored != _UINT8 or len(dimensions) != 2 or min(dimensions) < 1:
        raise ValueError("no uint8 [H, W]")
    if len(pixels) != dimensions[0] * dimensions[1]:
        raise ValueError("cut off")
    return np.ascontiguousarray(np.frombuffer(pixels, np.uint8).reshape(dimensions, order="F"))
