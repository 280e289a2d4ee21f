"""PNG files, chunk by chunk: which of them a decoder will read to the end.

torchvision's decoder ends the process by a signal if libpng gives up. So what would make libpng give up is looked for here,
without decoding: wrong checksums, chunks that are unknown, missing or in a wrong order, rows that cannot be inflated.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
"""Colour types."""

Chunk = tuple[bytes, bytes]
"""The kind and the content of a chunk."""

_CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, 4: 2, 6: 4}  # by colour type; the last two have transparency
_DEPTHS = {GREY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)}  # by colour type; the others have 8 or 16
_MOST_SIDE = 1_000_000  # pixels, a bound of libpng
_MOST_FILTER = 4
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Of an interlaced PNG: the first row and column of each pass, and how far the next ones are."""


class Header(NamedTuple):
    """What a PNG declares, in pixels and bits per channel."""

    width: int
    height: int
    depth: int
    colours: int
    interlaced: bool

    def rows(self) -> Iterator[tuple[int, int]]:
        """Of each pass that has pixels: the number of its rows, and the bytes of one with the byte of its filter."""
        for top, left, down, right in _PASSES if self.interlaced else ((0, 0, 1, 1),):
            count, length = -(-(self.height - top) // down), -(-(self.width - left) // right)
            if count > 0 and length > 0:
                yield count, 1 + -(-length * self.depth * _CHANNELS[self.colours] // 8)


def read_chunks(encoded: bytes) -> list[Chunk]:
    """The chunks of a PNG up to its end. Raises ValueError if it is none, is cut off, or a checksum is wrong."""
    if not encoded.startswith(SIGNATURE):
        raise ValueError(f"it starts with {encoded[:8]!r}")
    chunks: list[Chunk] = []
    start, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(encoded[start : start + 4], "big")
        kind, end = encoded[start + 4 : start + 8], start + 8 + length
        if len(encoded) < end + 4:
            raise ValueError(f"it is cut off at {len(encoded)} bytes")
        content = encoded[start + 8 : end]
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(encoded[end : end + 4], "big"):
            raise ValueError(f"its chunk {kind!r} is damaged")
        chunks.append((kind, content))
        start = end + 4
    return chunks


def read_header(chunks: Sequence[Chunk]) -> Header:
    """What the first chunk declares. Raises ValueError if no decoder would take it."""
    kind, content = chunks[0]
    if kind != b"IHDR" or len(content) != 13:
        raise ValueError("its first chunk is not a header")
    width, height = int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big")
    depth, colours, compression, filters, interlace = content[8:]
    if not (0 < width <= _MOST_SIDE and 0 < height <= _MOST_SIDE):
        raise ValueError(f"its header declares {width}x{height} pixels")
    if colours not in _CHANNELS or depth not in _DEPTHS.get(colours, (8, 16)) or compression or filters or interlace > 1:
        raise ValueError("its header declares a kind of pixels that does not exist")
    return Header(width, height, depth, colours, bool(interlace))


def declared_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) as the header declares them, which is looked at no further; None if this is not a PNG."""
    if not encoded.startswith(SIGNATURE) or encoded[12:16] != b"IHDR" or len(encoded) < 24:
        return None
    return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")


def check_pixels(header: Header, chunks: Sequence[Chunk]) -> None:
    """Raise ValueError if a decoder would stop before the last pixel. It takes the memory of the pixels, and no more."""
    kinds = [kind for kind, _ in chunks]
    for kind in set(kinds):
        if not kind.isalpha() or (kind[:1].isupper() and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND")):
            raise ValueError(f"its chunk {kind!r} is unknown")
    if b"IDAT" not in kinds:
        raise ValueError("it has no pixels")
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    palettes = [content for kind, content in chunks[:first] if kind == b"PLTE"]
    if kinds.count(b"IHDR") > 1 or kinds.count(b"PLTE") > len(palettes) or kinds[first : first + count] != [b"IDAT"] * count:
        raise ValueError("its chunks are in a wrong order")
    if len(palettes) > 1 or (header.colours == PALETTE and not palettes):
        raise ValueError(f"it has {len(palettes)} palettes, must have one")
    if palettes and (len(palettes[0]) % 3 or not 3 <= len(palettes[0]) <= 3 * 256):
        raise ValueError(f"its palette has {len(palettes[0])} bytes")
    _check_rows(header, b"".join(content for _, content in chunks[first : first + count]))


def _check_rows(header: Header, deflated: bytes) -> None:
    wanted = sum(count * length for count, length in header.rows())
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(deflated, wanted + 1)  # one more, to reach the end
    except zlib.error:
        raise ValueError("its pixels are damaged") from None
    if len(rows) != wanted or not inflate.eof:
        found = f"{len(rows):,} bytes" if len(rows) <= wanted else "more"
        raise ValueError(f"its pixels are cut off, or do not end: {found} of {wanted:,}")
    start = 0
    for count, length in header.rows():
        if max(rows[start : start + count * length : length]) > _MOST_FILTER:
            raise ValueError("its pixels are damaged")
        start += count * length
