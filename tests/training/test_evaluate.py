"""Scores: windows, absent classes, ranks and pseudo-labels, against plain counts, scikit-learn and torchmetrics."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix
from torch import Tensor, distributed, nn
from torchmetrics.functional import classification

from css_ray.data.loaders import make_val_loader
from css_ray.data.shards import DatasetInfo, Shards, open_dataset
from css_ray.data.writing import Row, rows_source, write_dataset
from css_ray.methods import Method
from css_ray.training.evaluate import evaluate, evaluation_metrics, pseudo_label_quality
from css_ray.types import IGNORE_INDEX, Batch, Clock, Evaluation, Losses
from tests.ranks import run_ranks

V = IGNORE_INDEX
NAMES = ("sky", "road", "tree")


class Brightest(nn.Module):
    """Its logits are the channels, with more and more sky to the right of what it sees: a window's differ from the image's."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.sizes: list[tuple[int, int]] = []

    def predict(self, images: Tensor) -> Tensor:
        assert not self.training
        self.sizes.append((images.shape[2], images.shape[3]))
        return images + torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1) * torch.linspace(-1, 1, images.shape[3])


def score(predictor: nn.Module, batches: Any, **settings: Any) -> Any:
    return evaluate(predictor, batches, **settings)  # type: ignore[arg-type]


def test_classes_without_a_union_are_left_out_and_counted() -> None:
    # Predicted 0, 1, 1 where 0, 0, 1 is right, and a void pixel: IoUs of 1/2 and 1/2, and no tree anywhere.
    images = torch.eye(3)[[0, 1, 1, 2]].T.reshape(1, 3, 1, 4) * 10
    found = score(Brightest(), [(images, torch.tensor([[[0, 0, 1, V]]]))])
    assert (found.num_absent_classes, found.iou, found.num_images) == (1, (50.0, 50.0, None), 1)
    metrics = evaluation_metrics(found, NAMES)
    assert metrics == {
        "val/miou": 50.0,
        "val/pixel_accuracy": pytest.approx(200 / 3),
        "val/absent_classes": 1.0,
        "val/iou/sky": 50.0,
        "val/iou/road": 50.0,
    }


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_of_the_crop(average: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(2, 3, 6, 9, generator=generator), torch.randint(3, (2, 6, 9), generator=generator)
    predictor = Brightest()
    found = score(predictor, [(images, labels)], window=6, average=average)
    assert predictor.sizes == [(6, 6), (6, 6)]

    # 9 columns, stride 4: windows at 0 and 3, so columns 3..5 are seen twice.
    weighed = torch.zeros(2, 3, 6, 9)
    for left in (0, 3):
        logits = predictor.eval().predict(images[..., left : left + 6])
        weighed[..., left : left + 6] += logits.softmax(dim=1) if average == "probabilities" else logits
    weighed[..., 3:6] /= 2
    right = int((weighed.argmax(dim=1) == labels).sum())
    assert found.pixel_accuracy == pytest.approx(100 * right / labels.numel())
    whole = predictor.predict(images).argmax(dim=1)
    assert not torch.equal(weighed.argmax(dim=1), whole)


class Given(nn.Module):
    """Predicts the classes that are written into the images, as a share of 255."""

    num_classes = 6

    def predict(self, images: Tensor) -> Tensor:
        classes = (images[:, 0] * 255).round().long()
        return nn.functional.one_hot(classes, self.num_classes).movedim(3, 1).float()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("window", [None, 8])
def test_scores_are_those_of_torchmetrics_and_scikit_learn(seed: int, window: int | None) -> None:
    # Class 4 is in neither, class 1 is never predicted, class 3 is only predicted; a quarter of the pixels is void.
    generator = torch.Generator().manual_seed(seed)
    batches, truth, guess = [], [], []
    for size in ((2, 11, 8), (1, 8, 13), (3, 5, 6)):
        labels = torch.tensor([0, 1, 2, 5])[torch.randint(4, size, generator=generator)]
        labels = torch.where(torch.rand(size, generator=generator) < 0.25, V, labels)
        predicted = torch.tensor([0, 2, 3, 5])[torch.randint(4, size, generator=generator)]
        batches.append(((predicted / 255).unsqueeze(1).expand(-1, 3, -1, -1), labels))
        truth.append(labels.flatten())
        guess.append(predicted.flatten())
    found = score(Given(), batches, window=window)
    labels, predicted = torch.cat(truth), torch.cat(guess)

    counted = labels != V
    matrix = confusion_matrix(labels[counted], predicted[counted], labels=range(6))
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal()
    assert [iou is None for iou in found.iou] == [False, False, False, False, True, False] == (union == 0).tolist()
    iou = matrix.diagonal()[union > 0] / union[union > 0]
    assert [value for value in found.iou if value is not None] == pytest.approx(100 * iou)
    assert found.miou == pytest.approx(100 * iou.mean())
    assert found.pixel_accuracy == pytest.approx(100 * accuracy_score(labels[counted], predicted[counted]))
    assert (found.num_images, found.num_absent_classes) == (6, 1)

    jaccard = classification.multiclass_jaccard_index(predicted, labels, 6, average="macro", ignore_index=V)
    assert found.miou == pytest.approx(100 * float(jaccard), rel=1e-5)
    each = classification.multiclass_jaccard_index(predicted, labels, 6, average="none", ignore_index=V)
    assert [value or 0.0 for value in found.iou] == pytest.approx((100 * each.nan_to_num()).tolist(), rel=1e-5)
    micro = classification.multiclass_accuracy(predicted, labels, 6, average="micro", ignore_index=V)
    assert found.pixel_accuracy == pytest.approx(100 * float(micro), rel=1e-5)


NUM_IMAGES = 10


def write_images(folder: Path) -> None:
    """Validation images of two sizes: the red channel is what `Given` predicts, often the mask's class."""
    rows = []
    for number in range(NUM_IMAGES):
        random = np.random.default_rng(number)
        size = (9, 14) if number % 4 else (12, 6)
        mask = random.choice(np.array([0, 1, 2, 5, V], np.uint8), size)
        shown = np.where((random.random(size) < 0.6) & (mask != V), mask, random.integers(0, 3, size)).astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(np.stack([shown] * 3, axis=2)).save(png, "PNG")
        rows.append(Row(f"{number}", png.getvalue(), *size, mask))
    info = DatasetInfo("six", tuple("abcdef"), ((0, 0, 0),) * 6)
    write_dataset(folder, rows_source(info, {"train": rows[:1], "val": rows}))


def by_image(shards: Shards) -> list[list[int]]:
    """The cells of each image's matrix, counted pixel by pixel."""
    counts: Counter[tuple[int, int, int]] = Counter()
    for number in range(NUM_IMAGES):
        _, image, mask = shards[number]
        assert mask is not None
        pixels = zip(mask.flatten().tolist(), image[0].flatten().tolist(), strict=True)
        counts.update((number, label, predicted) for label, predicted in pixels if label != V)
    return [list(values) for values in zip(*((*cell, count) for cell, count in sorted(counts.items())), strict=True)]


def scores(shards: Shards, rank: int, world_size: int) -> list[dict[str, Any]]:
    found: list[Evaluation] = []
    for window in (None, 8):
        loader = make_val_loader(shards, rank=rank, world_size=world_size, batch_size=2)
        found.append(score(Given(), loader, window=window))
    return [dataclasses.asdict(evaluation) | {"cells": evaluation.cells.tolist()} for evaluation in found]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    shards = open_dataset(f"{folder}/six").val
    found = {}
    for world_size in (3, 2):  # the third rank has only the first meeting
        if rank < world_size:
            meeting = f"file://{folder}/meeting{world_size}"
            distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
            found[world_size] = scores(shards, rank, world_size)
            distributed.destroy_process_group()
    torch.save(found, f"{folder}/result{rank}.pt")


def test_each_image_counts_once_however_many_ranks_there_are(tmp_path: Path) -> None:
    write_images(tmp_path / "six")
    shards = open_dataset(tmp_path / "six").val
    alone = scores(shards, 0, 1)
    labels = np.concatenate([shards[number].mask.numpy().ravel() for number in range(NUM_IMAGES)])  # type: ignore[union-attr]
    predicted = np.concatenate([shards[number].image[0].numpy().ravel() for number in range(NUM_IMAGES)])
    matrix = confusion_matrix(labels[labels != V], predicted[labels != V], labels=range(6))
    for found in alone:
        assert found["num_images"] == NUM_IMAGES
        assert found["pixel_accuracy"] == pytest.approx(100 * matrix.diagonal().sum() / matrix.sum())
        assert found["cells"] == by_image(shards)
    run_ranks(_rank, str(tmp_path), ranks=3)
    for rank in range(3):
        result = torch.load(tmp_path / f"result{rank}.pt", weights_only=True)
        assert result[3] == alone  # to the last digit: counts are added, not scores
        if rank < 2:
            assert result[2] == alone


class Scripted(Method):
    """Gives the pseudo-labels that it was told, one image after the other, and notes in which mode."""

    name = "scripted"

    def __init__(self, answers: dict[str, list[Tensor]]) -> None:
        nn.Module.__init__(self)
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
        self.answers, self.position, self.probes = answers, 0, 0

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        raise NotImplementedError

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        assert not self.training and not self.norm.training
        self.norm(images)
        if not images.any():
            self.probes += 1
            return {source: torch.zeros_like(images[:, 0], dtype=torch.int64) for source in self.answers}
        start, self.position = self.position, self.position + len(images)
        return {source: torch.stack(labels[start : self.position]) for source, labels in self.answers.items()}


def test_pseudo_labels_are_scored_where_there_is_ground_truth_too() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [1, V, V, 0]], [[0, 1, 1, 0], [0, 0, 0, V]]])  # 6 + 7 pixels that are no void
    logits = [torch.tensor([[0, 1, 1, V], [V, 2, V, 0]]), torch.tensor([[0, 1, V, V], [0, 2, V, 0]])]
    # Both: sky as sky 2 + 2, sky as road 1, sky as tree 1, road as road 1 + 1: 8 of 13 pixels.
    nothing = [torch.full((2, 4), V)] * 2
    perfect = [torch.where(label == V, 0, label) for label in labels]
    method = Scripted({"logits": logits, "mix": nothing, "best": perfect})
    method.train()
    method.frozen.eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    images = torch.rand(2, 3, 2, 4)
    found = pseudo_label_quality(method, [(images[:1], labels[:1]), (images[1:], labels[1:])], NAMES)
    expected = {
        "pseudo/kept/logits": 100 * 8 / 13,
        "pseudo/iou/logits/sky": 100 * 4 / 6,
        "pseudo/iou/logits/road": 100 * 2 / 3,
        "pseudo/iou/logits/tree": 0.0,
        "pseudo/miou/logits": 100 * (4 / 6 + 2 / 3 + 0) / 3,
        "pseudo/unkept_classes/logits": 0.0,
        "pseudo/kept/best": 100.0,
        "pseudo/iou/best/sky": 100.0,
        "pseudo/iou/best/road": 100.0,
        "pseudo/miou/best": 100.0,
        "pseudo/unkept_classes/best": 0.0,
        "pseudo/kept/mix": 0.0,  # and no IoU of nothing
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert method.probes == 0
    assert method.training and method.norm.training and not method.frozen.training
    for key, value in before.items():
        assert torch.equal(value, method.state_dict()[key]), key


def test_a_class_of_which_a_source_keeps_nothing_has_an_iou_of_zero() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [1, V, V, 0]]])
    sure_of_the_sky = [torch.tensor([[0, 0, V, V], [V, V, V, 0]])]
    found = pseudo_label_quality(Scripted({"logits": sure_of_the_sky}), [(torch.rand(1, 3, 2, 4), labels)], NAMES)
    assert found == {
        "pseudo/kept/logits": 50.0,
        "pseudo/iou/logits/sky": 100.0,
        "pseudo/iou/logits/road": 0.0,
        "pseudo/miou/logits": 50.0,
        "pseudo/unkept_classes/logits": 1.0,  # road; the images have no tree
    }


def test_without_pixels_to_score_nothing_is_said() -> None:
    void = torch.full((1, 2, 4), V)
    method = Scripted({"logits": [torch.zeros(2, 4, dtype=torch.int64)]})
    assert pseudo_label_quality(method, [(torch.rand(1, 3, 2, 4), void)], NAMES) == {}
    assert pseudo_label_quality(method, [], NAMES) == {} and method.probes == 1  # a rank alone without an image
    assert pseudo_label_quality(Scripted({}), [(torch.rand(1, 3, 2, 4), torch.zeros_like(void))], NAMES) == {}
