"""Damaged images and masks: refused in words, or decoded to what their headers declare; no process dies of them."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat

from css_ray.data.catalogue import prepare
from css_ray.data.images import decode_mask, decode_rgb, image_size
from css_ray.data.masks import make_coding, read_mat
from css_ray.data.png import SIGNATURE, read_chunks
from css_ray.data.shards import open_dataset
from css_ray.types import IGNORE_INDEX
from tests.fuzz.mutate import Tally, apart, case_random, damage, outcome_of, share_and_whole

HEIGHT, WIDTH = 37, 50
CLASSES = 5
MOST_PIXELS = 4_000_000  # so that a case that is accepted takes little memory


@functools.cache
def images() -> list[bytes]:
    """Images of every kind that is taken, and of some that are not."""
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((WIDTH, HEIGHT))
    made = [
        encoded(picture.convert(mode), "JPEG", **options)
        for mode in ("RGB", "L", "CMYK")
        for options in ({}, {"progressive": True}, {"quality": 30, "subsampling": 0}, {"comment": b"x" * 50})
    ]
    made += [encoded(picture.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "1", "P")]
    made += [
        encoded(picture.convert(mode), "WEBP", lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (True, False)
    ]
    made += [encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(90)])]
    return made + [encoded(picture, kind) for kind in ("GIF", "BMP", "TIFF", "PPM")]


@functools.cache
def masks() -> list[bytes]:
    indices = np.random.RandomState(1).choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (HEIGHT, WIDTH))
    grey = Image.fromarray(indices)
    palette = Image.fromarray(indices)
    palette.putpalette(np.random.RandomState(2).randint(0, 256, 768).tolist())
    few = Image.fromarray(indices % 3)
    few.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    made = [
        encoded(each, "PNG")
        for each in (grey, palette, few, palette.convert("RGB"), Image.fromarray(indices * 257.0).convert("I;16"))
    ]
    for compressed in (False, True):
        target = io.BytesIO()
        segmentation = {"Segmentation": np.minimum(indices, CLASSES - 1), "Boundaries": np.zeros(3)}
        savemat(target, {"GTcls": segmentation}, do_compression=compressed)
        made.append(target.getvalue())
    return made


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def damaged(content: bytes, random: Random) -> tuple[str, bytes]:
    """Damage to the bytes; to a PNG also to what its checksums protect, which are made right again."""
    if not content.startswith(SIGNATURE) or random.random() < 0.3:
        return damage(content, random)
    chunks = read_chunks(content)
    number = random.randrange(len(chunks))
    word, chunks = random.choice((_inside, _inside, _pixels, _kinds, _order))(chunks, number, random)
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return word, SIGNATURE + b"".join(parts)


Chunks = list[tuple[bytes, bytes]]


def _inside(chunks: Chunks, number: int, random: Random) -> tuple[str, Chunks]:
    kind, content = chunks[number]
    word, content = damage(content, random)
    return f"{kind.decode()}: {word}", [*chunks[:number], (kind, content), *chunks[number + 1 :]]


def _pixels(chunks: Chunks, number: int, random: Random) -> tuple[str, Chunks]:
    """Damage to the rows before they were deflated."""
    rows = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    word, rows = damage(rows, random)
    first = next(place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return f"rows: {word}", [*others[:first], (b"IDAT", zlib.compress(rows)), *others[first:]]


def _kinds(chunks: Chunks, number: int, random: Random) -> tuple[str, Chunks]:
    kind = random.choice(
        (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"gAMA", b"ABCD", b"abcd", b"acTL", b"\0\0\0\0")
    )
    content = random.choice((chunks[number][1], b"", random.randbytes(13), random.randbytes(300)))
    return f"{kind!r} at {number}", [*chunks[:number], (kind, content), *chunks[number + random.randrange(2) :]]


def _order(chunks: Chunks, number: int, random: Random) -> tuple[str, Chunks]:
    other = random.randrange(len(chunks))
    moved = chunks[:number] + chunks[number + 1 :]
    return f"{number} to {other}", [*moved[:other], chunks[number], *moved[other:]]


# Functions that run in a process of their own


def judge_image(content: bytes) -> str:
    """An image that is taken decodes to the size that was found, or is refused then."""

    def act() -> None:
        size = image_size(content, MOST_PIXELS)
        assert size[0] * size[1] <= MOST_PIXELS
        assert decode_rgb(content).shape == (3, *size)

    return outcome_of(act)


def judge_mask(content: bytes) -> str:
    """The values of a mask that is taken are classes or void, and training decodes the same from what is kept of it."""

    def act() -> None:
        coding = make_coding(CLASSES, palette=[(value, 0, 0) for value in range(CLASSES)])
        if content.startswith(b"MATLAB"):
            indices = read_mat(content)
            coding.check_values(set(indices.ravel().tolist()))
            return
        indices, png = coding(content)
        assert set(np.unique(indices).tolist()) <= {*range(CLASSES), IGNORE_INDEX}
        assert png is None or np.array_equal(decode_mask(png).numpy(), indices)

    return outcome_of(act)


def tried(
    kind: str, bases: list[bytes], judge: Callable[[bytes], str], count: int, property: Callable[[str, object], None]
) -> None:
    cases = []
    for number in range(count):
        random = case_random(kind, number)
        cases.append(damaged(bases[number % len(bases)], random))
    tally = Tally(kind)
    for number, ((word, _), outcome) in enumerate(zip(cases, apart(judge, [content for _, content in cases]), strict=True)):
        tally.count(f"{number} of {kind}, base {number % len(bases)}: {word}", outcome)
    tally.check(property)


@share_and_whole(300, 30_000)
def test_images(count: int, record_property: Callable[[str, object], None]) -> None:
    tried("images", images(), judge_image, count, record_property)


@share_and_whole(150, 15_000)
def test_masks(count: int, record_property: Callable[[str, object], None]) -> None:
    tried("masks", masks(), judge_mask, count, record_property)


def judge_folder(case: tuple[str, str, bytes, bool]) -> str:
    """What `prepare` makes of a folder with a damaged file; its message names the file."""
    folder, name, content, resize = case
    root, out = Path(folder), Path(folder) / "out"
    path = root / name
    whole = path.read_bytes()
    path.write_bytes(content)
    try:

        def act() -> None:
            assert prepare(root / "set.yaml", out, root=root, resize=(20, 16) if resize else None, max_pixels=MOST_PIXELS)
            dataset = open_dataset(out)
            for shards in (dataset.train, dataset.val):
                for index, size in enumerate(shards.sizes):
                    assert shards[index].image.shape == (3, *size)

        return outcome_of(act)
    finally:
        path.write_bytes(whole)
        for file in out.glob("*"):
            file.unlink()
        if out.exists():
            out.rmdir()


@share_and_whole(60, 3_000)
def test_folders(count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    names = {"a.jpg": images()[0], "b.png": images()[12], "c.webp": images()[19]}
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name, content in names.items():
        (tmp_path / "images" / name).write_bytes(content)
        (tmp_path / "masks" / f"{name[0]}.png").write_bytes(masks()[0])
    for part, listed in (("train", "a\nb\n"), ("val", "c\n")):
        (tmp_path / f"{part}.txt").write_text(listed)
    parts = {part: {"images": "images", "masks": "masks", "list": f"{part}.txt"} for part in ("train", "val")}
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"name": "damaged", "classes": list("vwxyz"), **parts}))
    files = [*(f"images/{name}" for name in names), *(f"masks/{name[0]}.png" for name in names)]
    cases, words = [], []
    for number in range(count):
        random = case_random("folders", number)
        name = files[number % len(files)]
        word, content = damaged((tmp_path / name).read_bytes(), random)
        words.append(f"{number}, {name}: {word}")
        cases.append((str(tmp_path), name, content, random.random() < 0.3))
    tally = Tally("folders of images, prepared")
    for (_, name, _, _), word, outcome in zip(cases, words, apart(judge_folder, cases), strict=True):
        tally.count(word, outcome, named=[f"  {Path(name).stem}:", f"the image of {Path(name).stem} "])
    tally.check(record_property)
