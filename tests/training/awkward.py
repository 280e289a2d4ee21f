"""Data that is awkward: small images of several sizes, void masks, a class that never shows; and a small run on it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.splits import Split
from css_ray.data.writing import Row, rows_source, write_dataset
from css_ray.study.inputs import Prepared
from css_ray.study.job import RunSpec
from css_ray.types import IGNORE_INDEX

CLASSES = ("dark", "bright", "unicorn")  # of the last there is no pixel
PALETTE = ((0, 0, 0), (255, 255, 255), (255, 0, 255))
SIZES = ((20, 28), (12, 10), (40, 24))  # height, width: the crop of 32 is larger than each in one side at least


def row(id: str, number: int, masked: bool, void: bool = False) -> Row:
    height, width = SIZES[number % len(SIZES)]
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    image = np.random.RandomState(number).randint(0, 60, (height, width, 3)) + 150 * mask[:, :, None]
    if void:
        mask[:] = IGNORE_INDEX
    png = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(png, "PNG")
    return Row(id, png.getvalue(), height, width, mask if masked else None)


def make_awkward(folder: Path) -> DataSet:
    """Training images 0 and 1 are all void, 2 and 3 labelled, 4 and 5 have masks too, 6 and 7 have none."""
    train = [row(f"train-{number}", number, number < 6, number < 2) for number in range(8)]
    val = [row(f"val-{number}", number, True) for number in range(3)]
    write_dataset(folder, rows_source(DatasetInfo("awkward", CLASSES, PALETTE), {"train": train, "val": val}))
    return open_dataset(folder)


def spec(method: str, train: dict[str, Any]) -> RunSpec:
    model = {"encoder": "tiny", "output_stride": 4, "pretrained": False}
    small = {"decoder_channels": 8, "low_level_channels": 4, "representation_dim": 8}
    data = {"crop": 32, "labelled_batch": 2, "unlabelled_batch": 2, "val_batch": 4, "loader_workers": 0}
    settings: dict[str, dict[str, Any]] = {
        "data": data,
        "model": model | small,
        "views": {},
        "train": {"iterations": 3, "lr": 0.05, "log_every": 1, "evaluate_every": 2} | train,
        "method": {"name": method},
    }
    return RunSpec(trial=0, split=0, seed=1, settings=settings)


def prepared(dataset: DataSet, method: str, labelled: tuple[int, ...], **train: Any) -> Prepared:
    """The run of `method` that has the masks of these training images."""
    ids = dataset.train.ids
    chosen = tuple(ids[number] for number in labelled)
    split = Split(0, chosen, tuple(id for id in ids if id not in chosen), "0" * 64)
    return Prepared(spec(method, train), dataset, split)
