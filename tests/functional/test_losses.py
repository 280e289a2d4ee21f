"""Losses against loops written from their equations, values and gradients."""

import math

import pytest
import torch

from css_ray.functional.losses import (
    cross_entropy,
    ohem_cross_entropy,
    probability_consistency,
    unsupervised_cross_entropy,
)
from css_ray.types import IGNORE_INDEX


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)


LABELS = torch.tensor([[[0, IGNORE_INDEX], [2, 1]], [[IGNORE_INDEX, IGNORE_INDEX], [1, 1]]])
PASSED = torch.tensor([[[True, True], [False, False]], [[True, False], [True, False]]])


def pixel_losses(logits: torch.Tensor, labels: torch.Tensor) -> list[list[tuple[int, int, torch.Tensor]]]:
    """Per image: (row, column, -log softmax at the label) of each labelled pixel."""
    images = []
    for image, marks in zip(logits, labels, strict=True):
        pixels = []
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                label = int(marks[row, column])
                if label != IGNORE_INDEX:
                    scores = image[:, row, column]
                    pixels.append((row, column, -(scores[label] - scores.exp().sum().log())))
        images.append(pixels)
    return images


def same_with_gradient(loss: torch.Tensor, expected: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    gradient, expected_gradient = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_cross_entropy_averages_over_labelled_pixels(logits: torch.Tensor) -> None:
    pixels = [loss for image in pixel_losses(logits, LABELS) for _, _, loss in image]
    same_with_gradient(cross_entropy(logits, LABELS), torch.stack(pixels).mean(), logits)


@pytest.mark.parametrize("reduction", ["image_fraction", "pixel", "pixel_fixmatch"])
def test_unsupervised_reductions(logits: torch.Tensor, reduction: str) -> None:
    images = pixel_losses(logits, LABELS)
    num_labelled = sum(len(image) for image in images)
    passed = [[loss for row, column, loss in image if PASSED[index, row, column]] for index, image in enumerate(images)]
    num_passed = sum(len(image) for image in passed)
    expected = {
        # Image 0: 1 of 3 labelled pixels passed; the ignored pixel that passed counts nowhere. Image 1: 1 of 2.
        "image_fraction": (sum(p[2] for p in images[0]) / 3 + sum(p[2] for p in images[1]) / 2) / num_labelled,
        "pixel": (sum(passed[0]) + sum(passed[1])) / num_passed,
        "pixel_fixmatch": (sum(passed[0]) + sum(passed[1])) / num_labelled,
    }[reduction]
    same_with_gradient(unsupervised_cross_entropy(logits, LABELS, PASSED, reduction), expected, logits)  # type: ignore[arg-type]


def test_ohem_keeps_pixels_below_the_threshold_and_the_hardest_in_any_case() -> None:
    # Two classes; probabilities of the own class: .9, .6, .8, .2, and one ignored pixel.
    own = torch.tensor([0.9, 0.6, 0.8, 0.2, 0.5])
    logits = torch.stack([own.log(), (1 - own).log()]).view(1, 2, 1, 5)
    labels = torch.tensor([[[0, 0, 0, 0, IGNORE_INDEX]]])

    def mean(*probabilities: float) -> float:
        return sum(-math.log(p) for p in probabilities) / len(probabilities)

    for min_kept, kept in ((1, (0.6, 0.2)), (3, (0.6, 0.8, 0.2)), (50, (0.9, 0.6, 0.8, 0.2))):
        loss = ohem_cross_entropy(logits, labels, threshold=0.7, min_kept=min_kept)
        assert float(loss) == pytest.approx(mean(*kept)), min_kept


def test_probability_consistency_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)  # softmax .5, .5
    target = torch.tensor([[[[1.0, 0.9]], [[0.0, 0.1]]]])
    valid = torch.tensor([[[True, False]]])
    assert float(probability_consistency(logits, target, valid)) == pytest.approx(0.25)


def test_nothing_labelled_is_zero_with_a_zero_gradient(logits: torch.Tensor) -> None:
    void = torch.full((2, 2, 2), IGNORE_INDEX)
    passed = torch.ones_like(void, dtype=torch.bool)
    losses = [cross_entropy(logits, void), ohem_cross_entropy(logits, void, threshold=0.7, min_kept=2)]
    losses += [unsupervised_cross_entropy(logits, void, passed, r) for r in ("image_fraction", "pixel", "pixel_fixmatch")]  # type: ignore[arg-type]
    losses += [unsupervised_cross_entropy(logits, LABELS, torch.zeros_like(passed), "pixel")]
    for loss in losses:
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logits, retain_graph=True)[0].any()
