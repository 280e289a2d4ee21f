"""A run from data on disk to scores, on data that is awkward: small images, void masks, a class that never shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from css_ray.data.shards import DataSet
from css_ray.study.run import execute
from css_ray.training.reporter import SilentReporter
from tests.training.awkward import SIZES, make_awkward, prepared

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_awkward(tmp_path_factory.mktemp("prepared") / "awkward")


def run(dataset: DataSet, method: str, labelled: tuple[int, ...], **train: Any) -> SilentReporter:
    reporter = SilentReporter()
    execute(prepared(dataset, method, labelled, **train), reporter)
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
