"""A run from data on disk to scores, on data that is awkward: small images, void masks, a class that never shows."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.splits import Split
from css_ray.data.writing import Row, rows_source, write_dataset
from css_ray.study.run import Prepared, execute
from css_ray.training.reporter import SilentReporter
from css_ray.types import IGNORE_INDEX

torch.set_num_threads(1)

CLASSES = ("dark", "bright", "unicorn")  # of the last there is no pixel
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


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Training images 0 and 1 are all void, 2 and 3 labelled, 4 and 5 have masks too, 6 and 7 have none."""

    train = [row(f"train-{number}", number, number < 6, number < 2) for number in range(8)]
    val = [row(f"val-{number}", number, True) for number in range(3)]
    folder = tmp_path_factory.mktemp("prepared") / "awkward"
    info = DatasetInfo("awkward", CLASSES, ((0, 0, 0),) * 3)
    write_dataset(folder, rows_source(info, {"train": train, "val": val}))
    return open_dataset(folder)


def spec(method: str, train: dict[str, Any]) -> dict[str, Any]:
    model = {"encoder": "tiny", "output_stride": 4, "pretrained": False}
    small = {"decoder_channels": 8, "low_level_channels": 4, "representation_dim": 8}
    data = {"crop": 32, "labelled_batch": 2, "unlabelled_batch": 2, "val_batch": 4, "loader_workers": 0}
    settings = {
        "data": data,
        "model": model | small,
        "views": {},
        "train": {"iterations": 3, "lr": 0.05, "log_every": 1, "evaluate_every": 2} | train,
        "method": {"name": method},
    }
    return {"trial": 0, "split": 0, "seed": 1, "settings": settings}


def run(dataset: DataSet, method: str, labelled: tuple[int, ...], **train: Any) -> SilentReporter:
    ids = dataset.train.ids
    chosen = tuple(ids[number] for number in labelled)
    split = Split(0, chosen, tuple(id for id in ids if id not in chosen), "")
    reporter = SilentReporter()
    execute(Prepared(spec(method, train), dataset, split), reporter)
    return reporter


@pytest.mark.parametrize("evaluation", ["whole_image", "sliding_window"])
@pytest.mark.parametrize("labelled", [(0, 2), (0, 1)], ids=["one void mask in each batch", "void masks alone"])
@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "cutmix", "css"])
def test_awkward_data_gives_finite_losses(dataset: DataSet, method: str, labelled: tuple[int, ...], evaluation: str) -> None:
    reporter = run(dataset, method, labelled, evaluation=evaluation)
    assert [step for step, _ in reporter.logs] == [1, 2, 3]
    for _, metrics in reporter.logs:
        assert all(math.isfinite(value) for value in metrics.values())
        assert {"train/loss", "train/sup"} <= set(metrics)
        assert (metrics["train/sup"] == 0) == (labelled == (0, 1))
    for _, metrics in reporter.evaluations:
        assert all(math.isfinite(value) for value in metrics.values())


def test_pseudo_labels_are_scored_on_hidden_masks(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.methods import METHODS

    seen: list[int] = []

    def all_dark(self: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(images))
        return {"dark": torch.zeros_like(images[:, 0], dtype=torch.int64)}

    for method in METHODS.values():
        monkeypatch.setattr(method, "pseudo_labels", all_dark)
    # Labelled: 2 and 3. Unlabelled with a mask: the void 0 and 1, and 4 and 5, of which one half is dark.
    _, metrics = run(dataset, "cutmix", (2, 3)).evaluations[-1]
    assert sum(seen) == 2 * 4  # two evaluations
    scores = {name: value for name, value in metrics.items() if name.startswith("pseudo/")}
    assert scores == {
        "pseudo/kept/dark": 100.0, "pseudo/iou/dark/dark": 50.0, "pseudo/iou/dark/bright": 0.0, "pseudo/miou/dark": 25.0,
    }  # fmt: skip

    seen.clear()
    run(dataset, "cutmix", (2, 3), diagnose_images=3)
    assert sum(seen) == 2 * 3
    seen.clear()
    run(dataset, "cutmix", (2, 3), diagnose_images=0)
    run(dataset, "supervised", (2, 3))
    run(dataset, "cutmix", (0, 1, 2, 3, 4, 5))  # no mask is left to score with
    assert seen == []


def test_windows_are_the_crop_of_the_study(dataset: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from css_ray.models import Segmenter

    seen: set[tuple[int, int]] = set()
    predict = Segmenter.predict

    def watched(self: Segmenter, images: torch.Tensor) -> torch.Tensor:
        seen.add((images.shape[2], images.shape[3]))
        return predict(self, images)

    monkeypatch.setattr(Segmenter, "predict", watched)
    run(dataset, "supervised", (2, 3), evaluation="sliding_window")
    assert seen == {(20, 28), (12, 10), (32, 24)}
    seen.clear()
    run(dataset, "supervised", (2, 3))
    assert seen == set(SIZES)
