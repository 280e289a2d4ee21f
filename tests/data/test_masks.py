"""Mask files of every coding: read exactly, kept byte for byte where possible, and refused by name where one would guess."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array
from torchvision.io import ImageReadMode, decode_image

from css_ray.data.masks import MaskCoding, make_coding, voc_palette
from css_ray.data.mat import read_mat
from css_ray.types import IGNORE_INDEX

# From the documentation of VOC 2012.
VOC_COLOURS = {
    0: (0, 0, 0),  # background
    1: (128, 0, 0),  # aeroplane
    2: (0, 128, 0),  # bicycle
    3: (128, 128, 0),  # bird
    4: (0, 0, 128),  # boat
    5: (128, 0, 128),  # bottle
    6: (0, 128, 128),  # bus
    7: (128, 128, 128),  # car
    8: (64, 0, 0),  # cat
    9: (192, 0, 0),  # chair
    10: (64, 128, 0),  # cow
    11: (192, 128, 0),  # diningtable
    12: (64, 0, 128),  # dog
    13: (192, 0, 128),  # horse
    14: (64, 128, 128),  # motorbike
    15: (192, 128, 128),  # person
    16: (0, 64, 0),  # pottedplant
    17: (128, 64, 0),  # sheep
    18: (0, 192, 0),  # sofa
    19: (128, 192, 0),  # train
    20: (0, 64, 128),  # tvmonitor
    255: (224, 224, 192),  # void
}
VOC = make_coding(21, palette=voc_palette(21), void_colours=[(224, 224, 192)], remedy="fetch the masks again")


def indices(height: int = 30, width: int = 41, seed: int = 0) -> NDArray[np.uint8]:
    """Every class of VOC and void, in noise."""
    return np.random.RandomState(seed).choice(np.array(list(VOC_COLOURS), np.uint8), (height, width))


def png(image: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "PNG", **options)
    return target.getvalue()


def grey(values: NDArray[np.uint8], **options: Any) -> bytes:
    return png(Image.fromarray(values), **options)


def paletted(values: NDArray[np.uint8], colours: NDArray[np.uint8] | None = None, **options: Any) -> bytes:
    """A palette PNG of 8 bits, with VOC's palette if no other is given."""
    image = Image.fromarray(values)
    image.putpalette((np.array(voc_palette(), np.uint8) if colours is None else colours).tobytes())
    assert image.mode == "P"
    return png(image, **options)


def coloured(values: NDArray[np.uint8], mode: str = "RGB") -> bytes:
    table = np.zeros((256, 3), np.uint8)
    for index, colour in VOC_COLOURS.items():
        table[index] = colour
    return png(Image.fromarray(table[values]).convert(mode))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def by_hand(values: NDArray[np.uint8], colour_type: int, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG of one byte a pixel, as the standard describes it, without Pillow; interlaced by its seven passes."""
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, interlaced)
    starts = [(0, 0, 1, 1)]
    if interlaced:
        starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [values[top::down, left::right] for top, left, down, right in starts]
    raw = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    compressed = zlib.compress(raw)
    half = len(compressed) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", compressed[:half])
        + chunk(b"IDAT", compressed[half:])
        + chunk(b"IEND", b"")
    )


def both_decoders_see(encoded: bytes) -> NDArray[np.uint8]:
    """What Pillow and torchvision make of a grey PNG, which must be the same."""
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == "L"
        pillow = np.array(image)
    decoded = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    assert decoded.shape == (1, *pillow.shape) and np.array_equal(decoded[0].numpy(), pillow)
    return pillow


def pixels_of(encoded: bytes) -> list[bytes]:
    """The content of each IDAT chunk."""
    found, start = [], 8
    while start < len(encoded):
        length = int.from_bytes(encoded[start : start + 4], "big")
        if encoded[start + 4 : start + 8] == b"IDAT":
            found.append(encoded[start + 8 : start + 8 + length])
        start += 12 + length
    return found


def refused(coding: MaskCoding, encoded: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        coding(encoded)
    return str(caught.value)


def test_voc_palette() -> None:
    palette = voc_palette()
    assert len(set(palette)) == 256
    assert {index: palette[index] for index in VOC_COLOURS} == VOC_COLOURS
    assert voc_palette(21) == palette[:21]


def test_grey_masks_keep_their_bytes() -> None:
    encoded = grey(indices())
    mask = VOC(encoded)
    assert mask.indices.dtype == np.uint8 and np.array_equal(mask.indices, indices())
    assert mask.png == encoded


def test_palette_masks_become_grey_around_the_same_pixels() -> None:
    remark = PngImagePlugin.PngInfo()
    remark.add_text("Software", "a drawing program")
    encoded = paletted(indices(200, 300), transparency=0, pnginfo=remark)
    assert b"PLTE" in encoded and b"tRNS" in encoded and b"tEXt" in encoded
    mask = VOC(encoded)
    assert np.array_equal(mask.indices, indices(200, 300))
    assert mask.png is not None and np.array_equal(both_decoders_see(mask.png), indices(200, 300))
    assert pixels_of(mask.png) == pixels_of(encoded) and len(pixels_of(encoded)) > 0
    assert not any(kind in mask.png for kind in (b"PLTE", b"tRNS", b"tEXt"))


@pytest.mark.parametrize("interlaced", [False, True])
def test_several_pixel_chunks_and_interlacing(interlaced: bool) -> None:
    plain = by_hand(indices(), 0, interlaced=interlaced)
    assert VOC(plain).png == plain and np.array_equal(VOC(plain).indices, indices())
    assert np.array_equal(both_decoders_see(plain), indices())
    table = chunk(b"PLTE", np.array(voc_palette(), np.uint8).tobytes())
    mask = VOC(by_hand(indices(), 3, interlaced=interlaced, extra=table))
    assert mask.png is not None and np.array_equal(mask.indices, indices())
    assert mask.png == plain


def test_a_transparent_value_of_a_grey_mask_stays_a_value() -> None:
    encoded = by_hand(indices(), 0, extra=chunk(b"tRNS", struct.pack(">H", 0)))
    assert np.array_equal(VOC(encoded).indices, indices()) and np.array_equal(both_decoders_see(encoded), indices())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_masks_of_few_bits(bits: int) -> None:
    values = indices() % (1 << bits)
    encoded = paletted(values, np.array(voc_palette(1 << bits), np.uint8), bits=bits)
    assert encoded[24] == bits
    mask = VOC(encoded)
    assert np.array_equal(mask.indices, values) and mask.png is None


def test_a_palette_of_its_own_says_nothing() -> None:
    for colours in (np.random.RandomState(1).randint(0, 256, (256, 3)), np.zeros((256, 3))):
        mask = VOC(paletted(indices(), colours.astype(np.uint8)))
        assert np.array_equal(mask.indices, indices())


def test_a_reordered_palette_is_refused() -> None:
    # What programs that make PNGs small do: the colours stay, their indices change.
    order = np.roll(np.arange(256), 1)
    encoded = paletted(indices(), np.array(voc_palette(), np.uint8)[order])
    with Image.open(io.BytesIO(encoded)) as image:  # else the test would say nothing
        assert image.convert("RGB").getpixel((0, 0)) != VOC_COLOURS[int(indices()[0, 0])]
    message = refused(make_coding(21, range(21, 256), voc_palette(21), voc_palette()[21:]), encoded)
    assert "has the index 0 in the colour (224, 224, 192), which is that of void, not of class 0" in message


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_read_through_the_palette(mode: str) -> None:
    mask = VOC(coloured(indices(), mode))
    assert mask.png is None and mask.indices.dtype == np.uint8
    assert np.array_equal(mask.indices, indices())


def test_values_are_translated() -> None:
    coding = MaskCoding({7: 0, 8: 1, 0: IGNORE_INDEX, 255: IGNORE_INDEX}, {}, "mend it")
    values = np.random.RandomState(0).choice(np.array([0, 7, 8, 255], np.uint8), (5, 9))
    expected = np.select([values == 7, values == 8], [0, 1], IGNORE_INDEX)
    for encoded in (grey(values), paletted(values)):
        mask = coding(encoded)
        assert mask.png is None and mask.indices.dtype == np.uint8 and np.array_equal(mask.indices, expected)


def test_only_what_is_there_needs_a_translation() -> None:
    coding = make_coding(3, void=[11])
    mask = coding(grey(np.array([[0, 1, 2]], np.uint8)))
    assert mask.png is not None
    mask = coding(grey(np.array([[0, 1, 11]], np.uint8)))
    assert mask.png is None and mask.indices.tolist() == [[0, 1, IGNORE_INDEX]]


@pytest.mark.parametrize(
    ("mode", "named"),
    [("1", "mode 1 with 1 bits"), ("LA", "mode LA with 8 bits"), ("I;16", "mode I;16 with 16 bits")],
)
def test_other_kinds_are_named(mode: str, named: str) -> None:
    message = refused(VOC, png(Image.new(mode, (4, 3))))
    assert f"has {named}, must be L with 8 bits, P, or RGB with 8 bits; write class indices as grey" in message


def test_colours_of_16_bits_and_grey_of_4_are_named() -> None:
    # Pillow shows the first as RGB of 8 bits, and spreads the second over 0..255.
    for colour_type, bits, row, named in ((2, 16, bytes(24), "RGB with 16 bits"), (0, 4, bytes(2), "L with 4 bits")):
        header = struct.pack(">IIBBBBB", 4, 3, bits, colour_type, 0, 0, 0)
        pixels = zlib.compress((b"\0" + row) * 3)
        encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        assert f"has mode {named}" in refused(VOC, encoded)


def test_values_of_no_class_are_named_with_the_bounds() -> None:
    values = np.array([[0, 20, 21, 77, 255]], np.uint8)
    assert refused(VOC, grey(values)) == "has the values 21, 77; classes are 0..20, void is 255: fetch the masks again"
    assert "has the values 21, 77" in refused(VOC, paletted(values))
    many = refused(make_coding(2, void=[]), grey(np.arange(256, dtype=np.uint8)[None]))
    assert "has the values 2, 3, 4, 5, 6, 7, 8, 9 and 246 more; classes are 0..1, void is none" in many


def test_luminances_are_recognised() -> None:
    with Image.open(io.BytesIO(paletted(indices()))) as image:
        for wrong in (image.convert("L"), image.convert("RGB").convert("L")):
            message = refused(VOC, png(wrong))
            assert "has the values 34, 38, " in message and "look like the luminances of the palette's colours" in message
    other = grey(np.array([[0, 38, 201]], np.uint8))  # one of them is no luminance
    assert "luminances" not in refused(VOC, other)
    assert "luminances" not in refused(make_coding(3), grey(np.array([[38]], np.uint8)))  # no palette is known


def test_colours_of_no_class_are_named() -> None:
    encoded = png(Image.fromarray(np.array([[(0, 0, 0), (1, 2, 3), (255, 255, 255)]], np.uint8)))
    message = refused(VOC, encoded)
    assert message == (
        "has the colours (1, 2, 3), (255, 255, 255), which are neither of a class nor void: fetch the masks again"
    )
    photo = np.random.RandomState(0).randint(0, 256, (30, 30, 3), np.uint8)
    assert "has more than 256 colours" in refused(VOC, png(Image.fromarray(photo)))
    assert "no palette says which; give a `palette`" in refused(make_coding(21), coloured(indices()))


def test_transparent_colours_are_refused() -> None:
    encoded = png(Image.new("RGBA", (4, 3), (128, 0, 0, 200)))
    assert "has mode RGBA and is transparent" in refused(VOC, encoded)


def test_damaged_files_are_refused() -> None:
    encoded = grey(indices())
    assert "starts with b''" in refused(VOC, b"")
    assert "starts with b'\\xff\\xd8" in refused(VOC, b"\xff\xd8\xff\xe0 a JPEG")
    for length in (8, 20, 60, len(encoded) - 1):
        assert f"cut off at {length} bytes" in refused(VOC, encoded[:length])
    start = encoded.index(b"IDAT") + 40
    damaged = encoded[:start] + bytes([encoded[start] ^ 1]) + encoded[start + 1 :]
    assert "chunk b'IDAT' is damaged" in refused(VOC, damaged)
    assert "is not a readable PNG" in refused(VOC, by_hand(indices(), 0)[:33] + chunk(b"IEND", b""))  # a header alone


def test_a_reader_travels_to_other_processes() -> None:
    copy = pickle.loads(pickle.dumps(VOC))
    assert copy == VOC and np.array_equal(copy(coloured(indices())).indices, indices())


def mat(segmentation: object, name: str = "GTcls", compressed: bool = True) -> bytes:
    """A file as SBD has them: a struct with the boundaries of each class, the mask, and the classes present."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_array(np.eye(5) > index) if index % 3 else np.zeros((2, 2), np.uint8)
    fields = {"Boundaries": boundaries, "Segmentation": segmentation, "CategoriesPresent": np.array([[1], [15]], np.uint8)}
    target = io.BytesIO()
    savemat(target, {"first": np.arange(3), name: fields, "last": "a text"}, do_compression=compressed)
    return target.getvalue()


def test_mat_files_of_sbd() -> None:
    values = indices() % 21
    encoded = mat(values)
    assert encoded.startswith(b"MATLAB 5.0 MAT-file")
    read = read_mat(encoded)
    assert read.dtype == np.uint8 and np.array_equal(read, values)


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_files_are_read_as_scipy_reads_them(compressed: bool) -> None:
    for seed, shape in enumerate([(1, 1), (1, 3), (2, 2), (4, 1), (3, 5), (375, 500)]):  # up to four bytes lie in the tag
        encoded = mat(np.random.RandomState(seed).randint(0, 21, shape).astype(np.uint8), compressed=compressed)
        expected = loadmat(io.BytesIO(encoded))["GTcls"][0]["Segmentation"][0]
        assert np.array_equal(read_mat(encoded), expected) and read_mat(encoded).shape == shape


@pytest.mark.parametrize(
    "encoded",
    [
        b"MATLAB 5.0 MAT-file" + bytes(300),
        mat(np.zeros((4, 4), np.uint8))[:250],
        mat(np.zeros((4, 4), np.uint8), name="GTinst"),
        mat(np.zeros((4, 4), np.float64)),
        mat(np.zeros((4, 4, 2), np.uint8)),
    ],
    ids=["zeros", "cut", "another struct", "no bytes", "three axes"],
)
def test_other_mat_files_are_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not a \.mat file of SBD \(GTcls\.Segmentation, uint8 \[H, W\]\); fetch it again"):
        read_mat(encoded)
