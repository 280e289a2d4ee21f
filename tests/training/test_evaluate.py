"""Scores: sliding windows, absent classes, and the quality of pseudo-labels, against counts by hand and plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from css_ray.methods import Method
from css_ray.training.evaluate import evaluate, evaluation_metrics, pseudo_label_quality
from css_ray.types import IGNORE_INDEX, Batch, Losses

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


class Scripted(Method):
    """Gives the pseudo-labels that it was told, one image after the other, and notes in which mode."""

    name = "scripted"

    def __init__(self, answers: dict[str, list[Tensor]]) -> None:
        nn.Module.__init__(self)
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
        self.answers, self.position, self.probes = answers, 0, 0

    def forward(self, batch: Batch, progress: float) -> Losses:
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
        "pseudo/kept/best": 100.0,
        "pseudo/iou/best/sky": 100.0,
        "pseudo/iou/best/road": 100.0,
        "pseudo/miou/best": 100.0,
        "pseudo/kept/mix": 0.0,  # and no IoU of nothing
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert method.probes == 0
    assert method.training and method.norm.training and not method.frozen.training
    for key, value in before.items():
        assert torch.equal(value, method.state_dict()[key]), key


def test_without_pixels_to_score_nothing_is_said() -> None:
    void = torch.full((1, 2, 4), V)
    method = Scripted({"logits": [torch.zeros(2, 4, dtype=torch.int64)]})
    assert pseudo_label_quality(method, [(torch.rand(1, 3, 2, 4), void)], NAMES) == {}
    assert pseudo_label_quality(method, [], NAMES) == {} and method.probes == 1  # a rank alone without an image
    assert pseudo_label_quality(Scripted({}), [(torch.rand(1, 3, 2, 4), torch.zeros_like(void))], NAMES) == {}
