"""Prototypes and indicators against loops over pixels and hand-worked numbers."""

import math

import pytest
import torch

from css_ray.functional.pseudo_labels import most_likely
from css_ray.functional.similarity import (
    class_means,
    class_sums,
    cosine_similarity,
    indicator_bound,
    moving_average,
    present_classes,
    softmax_similarity,
)
from css_ray.types import IGNORE_INDEX as V

LABELS = torch.tensor([[[0, V], [2, 2]], [[0, 2], [V, 2]]])
REPRESENTATIONS = torch.randn(2, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def test_class_sums_and_means_over_a_loop() -> None:
    sums, counts = class_sums(REPRESENTATIONS, LABELS, 3)
    assert counts.tolist() == [2, 0, 4]
    for c in range(3):
        rows = [REPRESENTATIONS[b, :, y, x] for b in range(2) for y in range(2) for x in range(2) if LABELS[b, y, x] == c]
        expected = torch.stack(rows).sum(dim=0) if rows else torch.zeros(5)
        torch.testing.assert_close(sums[c], expected)
        torch.testing.assert_close(class_means(sums, counts)[c], expected / max(len(rows), 1))


def test_moving_average_starts_with_the_mean_and_skips_absent_classes() -> None:
    value = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    seen = torch.tensor([True, True, False])
    sums, counts = torch.tensor([[8.0, 0.0], [0.0, 0.0], [6.0, 9.0]]), torch.tensor([2.0, 0.0, 3.0])
    value, seen = moving_average(value, seen, sums, counts, decay=0.9)
    # Class 0: .9 * 1 + .1 * 4 and .9 * 1 + .1 * 0. Class 1 is absent. Class 2 is new: its mean, not a tenth of it.
    torch.testing.assert_close(value, torch.tensor([[1.3, 0.9], [2.0, 2.0], [2.0, 3.0]]))
    assert seen.tolist() == [True, True, True]


def test_cosine_and_indicator_by_hand() -> None:
    representations = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    prototypes = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    cosines = cosine_similarity(representations, prototypes)
    torch.testing.assert_close(cosines.flatten(), torch.tensor([0.6, 0.8, 0.0]))
    indicator = softmax_similarity(cosines, torch.tensor([True, True, False]), temperature=0.1)
    expected = 1 / (1 + math.exp(-2))  # cosines .8 against .6, a tenth each
    torch.testing.assert_close(indicator.flatten(), torch.tensor([1 - expected, expected, 0.0]))


def test_an_unseen_class_never_wins_even_against_negative_cosines() -> None:
    cosines = torch.tensor([-0.5, 0.0, -0.2]).view(1, 3, 1, 1)
    _, labels = most_likely(softmax_similarity(cosines, torch.tensor([True, False, True]), 0.5))
    assert labels.item() == 2
    # Before any class is seen there is no opinion, and no NaN.
    torch.testing.assert_close(
        softmax_similarity(cosines * 0, torch.zeros(3, dtype=torch.bool), 0.5), torch.full((1, 3, 1, 1), 1 / 3)
    )


@pytest.mark.parametrize(("num_classes", "temperature", "bound"), [(21, 0.5, 0.732), (19, 0.5, 0.752), (2, 1.0, 0.881)])
def test_the_bound_is_reached_by_the_best_possible_cosines(num_classes: int, temperature: float, bound: float) -> None:
    cosines = -torch.ones(1, num_classes, 1, 1)
    cosines[:, 0] = 1
    reached = softmax_similarity(cosines, torch.ones(num_classes, dtype=torch.bool), temperature).max()
    assert (
        float(reached) == pytest.approx(bound, abs=5e-4) == pytest.approx(indicator_bound(num_classes, temperature), abs=5e-4)
    )


def test_present_classes() -> None:
    assert present_classes(LABELS, 4).tolist() == [True, False, True, False]


def test_float32_under_autocast() -> None:
    prototypes = torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, _ = class_sums(REPRESENTATIONS, LABELS, 3)
        cosines = cosine_similarity(REPRESENTATIONS, prototypes)
    assert torch.equal(sums, class_sums(REPRESENTATIONS, LABELS, 3)[0])
    assert torch.equal(cosines, cosine_similarity(REPRESENTATIONS, prototypes))
