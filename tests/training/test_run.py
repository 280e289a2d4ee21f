"""A run from data on disk to scores, on data that is awkward: small images, void masks, a class that never shows."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from css_ray.data.catalogue import prepare as prepare_dataset
from css_ray.data.shards import DataSet
from css_ray.functional.metrics import mean_iou, pixel_accuracy
from css_ray.matrices import read_matrices, write_matrices
from css_ray.methods import CSS, PSMT, Supervised
from css_ray.methods.stages import Border, Stage
from css_ray.study.inputs import prepare
from css_ray.study.run import execute
from css_ray.training.reporter import SilentReporter
from css_ray.types import IGNORE_INDEX, Batch, Clock
from tests.training.awkward import CLASSES, SIZES, make_awkward, prepared, spec

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_awkward(tmp_path_factory.mktemp("prepared") / "awkward")


def run(dataset: DataSet, method: str, labelled: tuple[int, ...], **train: Any) -> SilentReporter:
    reporter = SilentReporter()
    execute(prepared(dataset, method, labelled, **train), reporter)
    return reporter


def test_the_matrices_that_a_run_keeps_are_of_its_images_and_give_its_scores(dataset: DataSet, tmp_path: Path) -> None:
    reporter = SilentReporter()
    fit = execute(prepared(dataset, "supervised", (2, 3)), reporter, keep_matrices=partial(write_matrices, tmp_path))
    for at, metrics in (("last", fit.last), ("best", fit.best)):
        matrices = read_matrices(tmp_path, at)  # type: ignore[arg-type]
        assert matrices is not None
        assert (matrices.ids, matrices.class_names) == (dataset.val.ids, CLASSES)
        total = torch.from_numpy(matrices.dense().sum(axis=0))
        assert 100 * mean_iou(total)[0] == metrics["val/miou"]
        assert 100 * pixel_accuracy(total) == metrics["val/pixel_accuracy"]
        labelled = matrices.class_pixels()[1]
        for number in range(len(dataset.val)):
            mask = dataset.val[number].mask
            assert mask is not None
            assert labelled[number].tolist() == [int((mask == label).sum()) for label in range(3)]


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
        "pseudo/unkept_classes/dark": 0.0,
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


VALUES = {number: 30 * (number + 1) for number in range(8)}  # of all pixels of a training image, 8 bits
MASKED = (1, 4, 6)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them, prepared: of eight training images three have masks, the rest have none."""
    root = tmp_path_factory.mktemp("mixed")
    for folder in ("train", "train_masks", "val", "val_masks"):
        (root / folder).mkdir()
    half = np.zeros((20, 24), np.uint8)
    half[:, 12:] = 1
    for number, value in VALUES.items():
        Image.new("RGB", (24, 20), (value, value, value)).save(root / "train" / f"{number}.png")
        if number in MASKED:
            Image.fromarray(half).save(root / "train_masks" / f"{number}.png")
    for number in range(2):
        Image.new("RGB", (24, 20), (250, 5, number)).save(root / "val" / f"val{number}.png")
        Image.fromarray(half).save(root / "val_masks" / f"val{number}.png")
    description = {
        "name": "mixed",
        "classes": list(CLASSES),
        "train": {"images": "train", "masks": "train_masks"},
        "val": {"images": "val", "masks": "val_masks"},
    }
    (root / "mixed.yaml").write_text(json.dumps(description))  # JSON is YAML
    prepare_dataset(root / "mixed.yaml", root / "prepared")
    return root / "prepared"


@pytest.mark.parametrize("method", ["mean_teacher", "cutmix", "css"])
def test_images_without_masks_are_trained_on_unlabelled(mixed: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.methods import METHODS

    labelled: list[list[int]] = []
    unlabelled: list[int] = []
    scored: list[int] = []
    learned: set[int] = set()
    forward = METHODS[method].forward

    def numbers(images: torch.Tensor) -> list[int]:
        """Which training images these are, by their one value."""
        values = (255 * images).round().int().flatten(1)
        assert (values == values[:, :1]).all()
        return [value // 30 - 1 for value in values[:, 0].tolist()]

    def watched(self: Any, batch: Batch, clock: Clock) -> Any:
        labelled.append(sorted(numbers(batch.labelled_images)))
        unlabelled.extend(numbers(batch.unlabelled_images))
        learned.update(batch.labels.unique().tolist())  # type: ignore[no-untyped-call]
        return forward(self, batch, clock)

    def all_dark(self: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
        scored.extend(numbers(images))
        return {"dark": torch.zeros_like(images[:, 0], dtype=torch.int64)}

    monkeypatch.setattr(METHODS[method], "forward", watched)
    monkeypatch.setattr(METHODS[method], "pseudo_labels", all_dark)
    asked = spec(method, {"iterations": 3, "evaluate_every": 3})
    settings: Any = asked.settings
    settings["data"] |= {"dataset": "folder", "root": str(mixed), "labelled": 2, "nested_splits": True}
    settings["data"] |= {"labelled_list": None, "unlabelled_list": None}
    prepared = prepare(asked)
    chosen = sorted(map(int, prepared.split.labelled))
    (spare,) = set(MASKED) - set(chosen)
    reporter = SilentReporter()
    execute(prepared, reporter)

    assert labelled == [chosen] * 3  # two images with masks
    assert sorted(unlabelled) == sorted({*VALUES} - {*chosen})  # one epoch: each other image once, with a mask or without
    assert learned <= {0, 1, IGNORE_INDEX} and {0, 1} <= learned
    assert scored == [spare]  # the one unlabelled image whose mask exists
    ((_, metrics),) = reporter.evaluations
    assert math.isfinite(metrics["val/miou"]) and metrics["pseudo/iou/dark/dark"] == 50.0
    assert all(math.isfinite(value) for _, logged in reporter.logs for value in logged.values())


def test_more_labels_than_masks_are_one_error(mixed: Path) -> None:
    asked = spec("cutmix", {})
    settings: Any = asked.settings
    settings["data"] |= {"dataset": "folder", "root": str(mixed), "labelled": 4, "nested_splits": True}
    settings["data"] |= {"labelled_list": None, "unlabelled_list": None}
    with pytest.raises(
        ValueError, match="cannot label 4 images: 3 of the 8 training images of mixed have a mask; label 1 to 3"
    ):
        prepare(asked)


class WithOwnHead(Supervised):
    """A method that makes a head with BatchNorm by itself."""

    name = "with_own_head"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.own = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))


@pytest.mark.parametrize("encoder", ["tiny", "tf_efficientnet_lite0"])
def test_batch_norm_is_synchronised_in_all_that_a_method_is_made_of(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.methods.registry import Methods
    from css_ray.study import run

    monkeypatch.setattr(run, "METHODS", Methods((WithOwnHead, CSS)))
    settings: Any = {
        "model": {"encoder": encoder, "output_stride": 8, "pretrained": False, "decoder_channels": 8},
        "views": {},
    }
    for name in ("with_own_head", "css"):
        plain, synchronised = (
            run.build_method(settings | {"method": {"name": name}}, 3, synchronise_batch_norm=on) for on in (False, True)
        )
        norms = [module for module in synchronised.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(module, torch.nn.SyncBatchNorm) for module in norms)
        assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in plain.modules())
        assert plain.state_dict().keys() == synchronised.state_dict().keys()


def test_a_method_enters_its_stages_with_the_images_of_its_split(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelled images with their masks, in batches of equal size; unlabelled ones without."""
    found: list[tuple[int, int, int]] = []
    kinds: list[tuple[int, int, int]] = []
    forward = PSMT.forward

    def enter(self: PSMT, border: Border) -> None:
        labelled = list(border.labelled())
        assert all(labels.shape == images[:, 0].shape for images, labels in labelled)
        found.append(
            (self.stage, sum(len(images) for images, _ in labelled), sum(len(images) for images in border.unlabelled()))
        )

    def watched(self: PSMT, batch: Batch, clock: Clock) -> Any:
        kinds.append((clock.stage, len(batch.labelled_images), len(batch.unlabelled_images)))
        return forward(self, batch, clock)

    monkeypatch.setattr(PSMT, "enter", enter)
    monkeypatch.setattr(PSMT, "forward", watched)
    monkeypatch.setattr(PSMT, "stages", lambda self: (Stage("warm_up", 1 / 3, "labelled"), Stage("main", 2 / 3)))
    asked = prepared(dataset, "psmt", (2, 3))
    execute(asked, SilentReporter())
    num_labelled, num_unlabelled = len(asked.split.labelled), len(asked.split.unlabelled)
    assert found == [(0, num_labelled, num_unlabelled), (1, num_labelled, num_unlabelled)]
    data = asked.spec.settings["data"]
    whole = data["labelled_batch"], data["unlabelled_batch"]
    assert kinds == [(0, whole[0], 0), (1, *whole), (1, *whole)]
