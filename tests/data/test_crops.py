"""A crop that no training image fills is a warning with both sizes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from css_ray.data import images
from css_ray.data.crops import crop_warning
from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.writing import Row, rows_source, write_dataset


def prepared(folder: Path, sizes: list[tuple[int, int]]) -> DataSet:
    """Training images of these (height, width), and a larger one to be judged on."""

    def row(id: str, height: int, width: int) -> Row:
        png = io.BytesIO()
        Image.new("RGB", (width, height)).save(png, "PNG")
        return Row(id, png.getvalue(), height, width, np.zeros((height, width), np.uint8))

    train = [row(f"train-{number}", *size) for number, size in enumerate(sizes)]
    info = DatasetInfo("toy", ("ground",), ((0, 0, 0),))
    write_dataset(folder, rows_source(info, {"train": train, "val": [row("judge", 90, 90)]}))
    return open_dataset(folder)


def test_a_crop_larger_than_every_training_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(tmp_path / "toy", [(10, 40), (30, 16)])
    monkeypatch.setattr(images, "decode_image", None)  # sizes are known without decoding
    assert crop_warning(dataset, 40) is None  # one image has a side of 40
    # No image covers more than 30 x 40 = 1200 of 80 x 80 = 6400 pixels, 18.75 %.
    assert crop_warning(dataset, 80) == (
        "data.crop: 80 is larger than every training image of toy (at most 40x30, width x height), so at least 81 % of a crop is "
        "padding unless the image is scaled up; use 30 or less, or prepare larger images"
    )
    assert crop_warning(dataset, 41) is not None
