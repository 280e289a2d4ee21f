"""JPEGs about as large and as detailed as CamVid's frames, made from noise: loose files, and the prepared data set of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.writing import Row, rows_source, write_dataset

HEIGHT, WIDTH = 360, 480
CLASSES = 11


def photograph(number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """uint8 [H, W, 3] and its mask, uint8 [H, W]: rectangles of a colour a class over smooth noise, with fine grain."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (18, 24, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * 0.5
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for _ in range(40):
        label = random.integers(CLASSES)
        top, left = random.integers(HEIGHT), random.integers(WIDTH)
        height, width = random.integers(8, 160, 2)
        box = slice(top, top + height), slice(left, left + width)
        mask[box] = label
        image[box] = image[box] * 0.6 + random.integers(0, 100, 3)
    image += random.normal(0, 5, (HEIGHT, WIDTH, 1))
    return image.clip(0, 255).astype(np.uint8), mask


def write_loose(folder: Path, count: int) -> list[Path]:
    """NUMBER.jpg with NUMBER.png, its mask, beside it."""
    paths = []
    for number in range(count):
        image, mask = photograph(number)
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(image).save(paths[-1], quality=90)
        Image.fromarray(mask).save(paths[-1].with_suffix(".png"))
    return paths


def write_prepared(folder: Path, paths: list[Path], count: int) -> DataSet:
    """`count` training images with the files' bytes, again and again in a ring; the first as the only validation image."""
    files = []
    for path in paths:
        png = path.with_suffix(".png").read_bytes()
        files.append((path.read_bytes(), np.array(Image.open(io.BytesIO(png))), png))
    rows = [
        Row(f"{number:05d}", files[number % len(files)][0], HEIGHT, WIDTH, *files[number % len(files)][1:])
        for number in range(count)
    ]
    info = DatasetInfo("noise", tuple(f"class {number}" for number in range(CLASSES)), ((0, 0, 0),) * CLASSES)
    write_dataset(folder, rows_source(info, {"train": rows, "val": [rows[0]._replace(id="val")]}))
    return open_dataset(folder)
