"""Image files as they come: what is whole, told without decoding it, and what is not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from css_ray.data.images import image_size


def encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(target, kind)
    return target.getvalue()


def deep() -> bytes:
    """An RGB PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"".join(b"\0" + bytes(6 * 30) for _ in range(20)))
    header = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")],
)
def test_whole_images(kind: str, mode: str) -> None:
    assert image_size(encoded(kind, mode)) == (20, 30)


def test_padding_after_the_end_is_harmless() -> None:
    assert image_size(encoded("JPEG") + bytes(3)) == (20, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_images(kind: str) -> None:
    whole = encoded(kind)
    for length in (5, 40, len(whole) // 2, len(whole) - 20):
        with pytest.raises(ValueError, match="image is not a readable"):
            image_size(whole[:length])


def test_a_png_with_a_wrong_byte() -> None:
    whole = bytearray(encoded("PNG"))
    whole[len(whole) // 2] ^= 1
    with pytest.raises(ValueError, match="image is not a readable"):
        image_size(bytes(whole))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"GIF89a", "not a readable"),
        (deep(), "has 16 bits per channel, must have 8; convert it"),
    ],
)
def test_what_is_no_image(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_size(content)
