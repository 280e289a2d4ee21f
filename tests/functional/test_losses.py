"""Losses by hand, at their edges, and under autocast; test_oracles.py has their equations."""

import math
from collections.abc import Callable

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
REDUCTIONS = ("image_fraction", "image_fraction_overcounted", "pixel", "pixel_fixmatch")
PASSED = torch.tensor([[[True, True], [False, False]], [[True, False], [True, False]]])


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
    losses += [unsupervised_cross_entropy(logits, void, passed, r) for r in REDUCTIONS]  # type: ignore[arg-type]
    losses += [unsupervised_cross_entropy(logits, LABELS, torch.zeros_like(passed), "pixel")]
    for loss in losses:
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, logits, retain_graph=True)[0].any()


def test_eq_7_and_8_of_a_2x2_image() -> None:
    # Softmaxes .8 / .2, .4 / .6, .5 / .5, and one pixel of which nothing is known.
    first = torch.tensor([[0.8, 0.4], [0.5, 0.9]])
    logits = torch.stack([first.log(), (1 - first).log()]).unsqueeze(0)
    labels = torch.tensor([[[0, 1], [0, IGNORE_INDEX]]])
    losses = [-math.log(0.8), -math.log(0.6), -math.log(0.5)]
    assert float(cross_entropy(logits, labels)) == pytest.approx(sum(losses) / 3)
    passed = torch.tensor([[[True, False], [True, True]]])
    for reduction, expected in {
        "pixel": (losses[0] + losses[2]) / 2,
        "pixel_fixmatch": (losses[0] + losses[2]) / 3,
        "image_fraction": 2 / 3 * sum(losses) / 3,
        "image_fraction_overcounted": 3 / 3 * sum(losses) / 3,
    }.items():
        found = unsupervised_cross_entropy(logits, labels, passed, reduction)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(expected), reduction


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits: cross_entropy(logits, LABELS),
        lambda logits: ohem_cross_entropy(logits, LABELS, threshold=0.5, min_kept=2),
        lambda logits: unsupervised_cross_entropy(logits, LABELS, PASSED, "image_fraction"),
        lambda logits: unsupervised_cross_entropy(logits, LABELS, PASSED, "image_fraction_overcounted"),
        lambda logits: unsupervised_cross_entropy(logits, LABELS, PASSED, "pixel"),
        lambda logits: unsupervised_cross_entropy(logits, LABELS, PASSED, "pixel_fixmatch"),
        lambda logits: probability_consistency(logits, torch.full((2, 3, 2, 2), 1 / 3), PASSED),
    ],
    ids=["supervised", "ohem", *REDUCTIONS, "consistency"],
)
def test_float32_under_autocast(logits: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half)
    whole = half.detach().float().requires_grad_()
    expected = loss(whole)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    gradient, exact = torch.autograd.grad(found, half)[0], torch.autograd.grad(expected, whole)[0]
    assert exact.any() and torch.equal(gradient, exact.bfloat16())
