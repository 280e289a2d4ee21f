import math

import pytest
import torch

from css_ray.functional.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy, quantiles
from css_ray.types import IGNORE_INDEX


def test_scores_of_a_hand_counted_image() -> None:
    labels = torch.tensor([[0, 0, 1, IGNORE_INDEX], [0, 1, 1, IGNORE_INDEX]])
    predictions = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 0]])
    matrix = confusion_matrix(predictions, labels, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = class_iou(matrix)
    assert iou[:2].tolist() == [0.5, 0.5] and iou[2:].isnan().all()
    # Class 2 is predicted only where the label is ignored, class 3 never: both have no union and are left out.
    assert mean_iou(matrix) == (0.5, 2)
    assert pixel_accuracy(matrix) == pytest.approx(4 / 6)


def test_a_class_that_is_only_predicted_counts_as_0() -> None:
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)
    assert mean_iou(matrix) == (0.25, 1)


def test_matrices_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, labels = (torch.randint(0, 5, (2, 30), generator=generator) for _ in range(2))
    whole = confusion_matrix(predictions, labels, 5)
    assert torch.equal(whole, sum(confusion_matrix(p, y, 5) for p, y in zip(predictions, labels, strict=True)))  # type: ignore[arg-type]
    assert int(whole[3, 1]) == sum(p == 1 and y == 3 for p, y in zip(predictions.flatten(), labels.flatten(), strict=True))


def test_nothing_counted() -> None:
    assert math.isnan(mean_iou(torch.zeros(2, 2))[0]) and math.isnan(pixel_accuracy(torch.zeros(2, 2)))


def test_quantiles_of_the_valid_values() -> None:
    values = torch.arange(101.0).flip(0)
    doubled, valid = torch.cat([values, values + 1000]), torch.arange(202) < 101
    found = {name: float(value) for name, value in quantiles("confidence", doubled, valid).items()}
    assert found == {"confidence_q05": 5.0, "confidence_q50": 50.0, "confidence_q95": 95.0}
    assert all(value.isnan() for value in quantiles("confidence", values, torch.zeros(101, dtype=torch.bool)).values())
