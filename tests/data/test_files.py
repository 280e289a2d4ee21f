"""Image files as they come: what is whole, and what is not, before anything decodes them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from css_ray.data.images import decode_rgb, image_size


def encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(target, kind)
    return target.getvalue()


Chunks = list[tuple[bytes, bytes]]


def png_of(chunks: Chunks) -> bytes:
    """A PNG of these chunks, whose checksums are right."""
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int = 30, height: int = 20, depth: int = 8, colours: int = 2, rest: bytes = b"\0\0\0") -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBB", width, height, depth, colours) + rest


END = (b"IEND", b"")
ROWS = b"".join(b"\1" + bytes(range(90)) for _ in range(20))  # RGB, 30 x 20
PIXELS = (b"IDAT", zlib.compress(ROWS))
HALVES = (b"IDAT", PIXELS[1][:50]), (b"IDAT", PIXELS[1][50:])


def deep() -> bytes:
    """An RGB PNG of 16 bits per channel, which Pillow cannot write."""
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * 30) for _ in range(20)))
    return png_of([header(depth=16), (b"IDAT", rows), END])


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


@pytest.mark.parametrize("chunks", [[header(), PIXELS, END], [header(), *HALVES, END]], ids=["one piece", "two"])
def test_a_whole_png_is_what_the_decoder_reads(chunks: Chunks) -> None:
    assert image_size(png_of(chunks)) == (20, 30)
    with Image.open(io.BytesIO(png_of(chunks))) as image:
        assert np.array_equal(decode_rgb(png_of(chunks)).permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(
    "chunks",
    [
        [header(), (b"IDAT", b"no pixels"), END],
        [header(), (b"IDAT", PIXELS[1][:60]), END],
        [header(), (b"IDAT", zlib.compress(ROWS[:-1])), END],
        [header(), (b"IDAT", zlib.compress(b"\5" + ROWS[1:])), END],  # a filter that does not exist
        [header(), END],
        [header(), (b"IDAT", b""), END],
        [header(width=0), PIXELS, END],
        [header(height=2**31), PIXELS, END],
        [header(width=1_000_001, height=1), (b"IDAT", zlib.compress(bytes(3_000_004))), END],
        [header(depth=3), PIXELS, END],
        [header(colours=5), PIXELS, END],
        [header(rest=b"\1\0\0"), PIXELS, END],
        [header(rest=b"\0\0\2"), PIXELS, END],
        [header(colours=3), (b"IDAT", zlib.compress(bytes(31 * 20))), END],  # colours of a palette, which is not there
        [header(colours=3), (b"PLTE", bytes(4)), (b"IDAT", zlib.compress(bytes(31 * 20))), END],
        [header(), PIXELS, (b"PLTE", bytes(3)), END],
        [header(), HALVES[0], (b"tEXt", b"a\0b"), HALVES[1], END],
        [header(), (b"ABCD", b""), PIXELS, END],  # capitals: no decoder may skip it
        [header(), header(), PIXELS, END],
        [PIXELS, header(), END],
        [(b"IHDR", b"short"), PIXELS, END],
    ],
)
def test_a_png_whose_decoder_would_end_the_process(chunks: Chunks) -> None:
    """Its checksums are right. torchvision 0.29 ends by a signal at most of these."""
    with pytest.raises(ValueError, match="image is not a readable"):
        image_size(png_of(chunks))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 1), (9, 17)])
def test_interlaced_pngs(mode: str, size: tuple[int, int]) -> None:
    """Rows of seven passes, which Pillow reads and does not write."""
    width, height = size
    bits = {"1": 1, "L": 8, "P": 8, "RGB": 24, "RGBA": 32, "LA": 16}[mode]
    depth, colours = {"1": (1, 0), "L": (8, 0), "P": (8, 3), "RGB": (8, 2), "RGBA": (8, 6), "LA": (8, 4)}[mode]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # x, y, dx, dy
    rows = b""
    for left, top, right, down in passes:
        columns, lines = len(range(left, width, right)), len(range(top, height, down))
        rows += b"".join(b"\0" + bytes(-(-columns * bits // 8)) for _ in range(lines)) if columns else b""
    palette = [(b"PLTE", bytes(3))] if mode == "P" else []
    start = [header(width, height, depth, colours, b"\0\0\1"), *palette]
    whole = png_of([*start, (b"IDAT", zlib.compress(rows)), END])
    assert image_size(whole) == (height, width)
    assert decode_rgb(whole).shape == (3, height, width)
    with pytest.raises(ValueError, match="cut off"):
        image_size(png_of([*start, (b"IDAT", zlib.compress(rows[:-1])), END]))


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    target = io.BytesIO()
    frames[0].save(target, kind, save_all=True, append_images=frames[1:])
    return target.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="image is an animation of 3 frames, must have one"):
        image_size(animated(kind))


def test_an_animated_gif_under_another_name() -> None:
    with pytest.raises(ValueError, match=r"image is not a readable .* \(it starts with b'GIF8"):
        image_size(animated("GIF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_limit_of_pixels(kind: str) -> None:
    assert image_size(encoded(kind), 600) == (20, 30)
    with pytest.raises(ValueError, match=r"image has 600 pixels \(30x20, width x height\), at most 599 are allowed") as caught:
        image_size(encoded(kind), 599)
    assert "--max-pixels 600" in str(caught.value)


def test_an_aerial_photograph_needs_a_setting_and_nothing_more() -> None:
    """20,000 x 10,000 pixels, which Pillow takes for an attack."""
    rows = zlib.compressobj(1)
    deflated = b"".join(rows.compress(bytes(2501)) for _ in range(10_000)) + rows.flush()
    aerial = png_of([header(20_000, 10_000, 1, 0), (b"IDAT", deflated), END])
    with pytest.raises(ValueError, match=r"has 200,000,000 pixels .* at most 178,956,970 are allowed"):
        image_size(aerial)
    assert image_size(aerial, 200_000_000) == (10_000, 20_000)


def test_a_bomb_is_refused_by_its_header() -> None:
    """Its pixels are never inflated: they would take 10 GB."""
    with pytest.raises(ValueError, match="has 3,600,000,000 pixels"):
        image_size(png_of([header(60_000, 60_000), PIXELS, END]))
    # Within the limit: what is inflated is bound by the size that it declares.
    bomb = png_of([header(), (b"IDAT", zlib.compress(ROWS + bytes(500_000_000))), END])
    assert image_size(bomb) == (20, 30)


@pytest.mark.parametrize(
    "content", [b"x", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"]
)
def test_messages_are_for_users(content: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        image_size(content)
    assert "BytesIO" not in str(caught.value) and "object at" not in str(caught.value), str(caught.value)
