"""Prototypes and indicators by hand, at their edges, and under autocast; test_oracles.py has their equations."""

import math

import pytest
import torch

from css_ray.functional.pseudo_labels import most_likely
from css_ray.functional.resizing import upsample
from css_ray.functional.similarity import (
    class_sums,
    closest_prototypes,
    cosine_similarity,
    highest_temperature,
    indicator_bound,
    moving_average,
    softmax_similarity,
)
from css_ray.types import IGNORE_INDEX as V

LABELS = torch.tensor([[[0, V], [2, 2]], [[0, 2], [V, 2]]])
REPRESENTATIONS = torch.randn(2, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def test_moving_average_starts_with_the_mean_and_skips_absent_classes() -> None:
    value = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    seen = torch.tensor([True, True, False])
    sums, counts = torch.tensor([[8.0, 0.0], [0.0, 0.0], [6.0, 9.0]]), torch.tensor([2.0, 0.0, 3.0])
    value, seen = moving_average(value, seen, sums, counts, decay=0.9)
    # Class 0: .9 * 1 + .1 * 4 and .9 * 1 + .1 * 0. Class 1 is absent. Class 2 is new: its mean, not a tenth of it.
    torch.testing.assert_close(value, torch.tensor([[1.3, 0.9], [2.0, 2.0], [2.0, 3.0]]))
    assert seen.tolist() == [True, True, True]


def test_class_sums_of_2x2_images() -> None:
    # The representation is the pixel's number, and its negative: 0 1 / 2 3 in the first image, 4 5 / 6 7 in the second.
    numbers = torch.arange(8.0).view(2, 1, 2, 2)
    sums, counts = class_sums(torch.cat([numbers, -numbers], dim=1), LABELS, 3)
    assert sums.tolist() == [[0 + 4, -4], [0, 0], [2 + 3 + 5 + 7, -17]]
    assert counts.tolist() == [2, 0, 4]


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


@pytest.mark.parametrize(("num_classes", "threshold"), [(21, 0.7), (19, 0.97), (5, 0.3), (2, 0.6)])
def test_above_the_highest_temperature_the_threshold_is_out_of_reach(num_classes: int, threshold: float) -> None:
    highest = highest_temperature(num_classes, threshold)
    assert indicator_bound(num_classes, highest) == pytest.approx(threshold)
    assert indicator_bound(num_classes, 0.99 * highest) > threshold > indicator_bound(num_classes, 1.01 * highest)


def test_at_any_temperature_a_threshold_of_chance_is_in_reach() -> None:
    assert highest_temperature(4, 0.25) == math.inf
    assert indicator_bound(4, 1e6) > 0.25 - 1e-9


def test_one_prototype_has_no_closest() -> None:
    assert closest_prototypes(torch.eye(3), torch.tensor([False, True, False]))[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_under_autocast(dtype: torch.dtype) -> None:
    representations, prototypes = REPRESENTATIONS.to(dtype), torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(3, dtype=torch.bool)

    def everything(representations: torch.Tensor) -> list[torch.Tensor]:
        sums, counts = class_sums(representations, LABELS, 3)
        cosines = cosine_similarity(representations, prototypes)
        moved, _ = moving_average(prototypes, seen, sums, counts, 0.9)
        indicator = softmax_similarity(upsample(cosines, (5, 7)), seen, 0.1)
        # Cosines and prototypes may come rounded: what is made of them is in float32 again.
        rounded = softmax_similarity(cosines.bfloat16(), seen, 0.1), cosine_similarity(representations, prototypes.bfloat16())
        return [sums, counts, moved, cosines, indicator, *rounded, upsample(representations, (5, 7))]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything(representations)
    for value, expected in zip(found, everything(representations.float()), strict=True):
        assert value.dtype == torch.float32 and torch.equal(value, expected)
