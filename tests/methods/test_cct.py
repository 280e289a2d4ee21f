"""CCT: the contract, and its facts by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from css_ray.functional.losses import bootstrapped_cross_entropy, probability_consistency
from css_ray.functional.schedules import exponential_ramp_up, logarithmic
from css_ray.methods import CCT
from css_ray.testing import NUM_CLASSES, MethodContract, clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

ONE_EACH: dict[str, Any] = {
    "drop": 1, "feature_drop": 1, "feature_noise": 1, "vat": 1, "cut_out": 1, "context": 1, "objects": 1
}  # fmt: skip


class TestCCT(MethodContract):
    method_class = CCT
    settings: ClassVar = {**ONE_EACH, "background": 0}


class TestCCTWithoutBackground(MethodContract):
    method_class = CCT
    settings: ClassVar = {**ONE_EACH, "supervised_loss": "bootstrapped", "unsup_threshold": 0.1}
    golden: ClassVar = None


def make(**settings: Any) -> CCT:
    torch.manual_seed(0)
    method = make_method(CCT, Views(jitter_probability=0.0, blur_probability=0.0), **settings)
    assert isinstance(method, CCT)
    return method


def test_the_weight_over_training() -> None:
    found = [30 * exponential_ramp_up(0.1 * part, 0.1) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.2021, 1.8016, 8.5951, 21.948, 30.0], rel=1e-3)
    assert exponential_ramp_up(0.7, 0.1) == 1


def test_the_consistency_by_hand() -> None:
    """Probabilities (1/2, 1/2) and (1/4, 3/4): a mean square of 1/16."""
    logits = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1)
    other = torch.tensor([1.0, 3.0]).log().view(1, 2, 1, 1)
    found = probability_consistency(logits, other.softmax(dim=1), torch.ones(1, 1, 1, dtype=torch.bool))
    assert found.item() == pytest.approx(0.0625)


def test_pixels_that_are_sure_enough_leave_the_bootstrapped_loss() -> None:
    probabilities = torch.tensor([[0.3, 0.6, 0.9], [0.7, 0.4, 0.1]])
    logits = probabilities.log().view(1, 2, 1, 3)
    labels = torch.tensor([[[0, 0, 0]]])
    expected = -(torch.tensor([0.3, 0.6]).log().sum()) / 2
    assert bootstrapped_cross_entropy(logits, labels, 0.7).item() == pytest.approx(expected.item())
    assert bootstrapped_cross_entropy(logits, labels, 0.1).item() == 0
    assert bootstrapped_cross_entropy(logits, torch.full_like(labels, IGNORE_INDEX), 1.0).item() == 0
    assert logarithmic(0.0, 0.4) == 0 and logarithmic(0.2, 0.4) == pytest.approx(1 - 0.082085, abs=1e-5)
    assert logarithmic(0.4, 0.4) == logarithmic(0.0, 0.0) == 1


def test_how_many_heads_there_are() -> None:
    assert len(make().auxiliary) == 8  # without a background four kinds are left
    assert len(make(background=0).auxiliary) == 14
    assert len(make(**dict.fromkeys(ONE_EACH, 0)).auxiliary) == 0
    published = make_method(CCT, preset="published", background=0)
    assert isinstance(published, CCT) and len(published.auxiliary) == 30


def test_without_heads_it_is_supervised_training() -> None:
    losses = make(**dict.fromkeys(ONE_EACH, 0))(make_batch(), clock_at(0.5))
    assert losses.terms["unsup"].item() == 0 and losses.terms["sup"].item() > 0


def test_the_main_head_learns_nothing_from_the_consistency_and_what_lies_below_does() -> None:
    method = make(background=0)
    method(make_batch(), clock_at(0.5)).terms["unsup"].backward()
    assert all(parameter.grad is None for parameter in method.student.logits_head[-1].parameters())
    for module in (method.student.logits_head[0], method.student.encoder, method.student.decoder, method.auxiliary):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_a_weight_of_0_has_gradients_of_0() -> None:
    method = make(background=0, unsup_weight=0.0)
    method(make_batch(), clock_at(0.5)).total.backward()
    for parameter in method.auxiliary.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_padding_has_no_part_in_the_mean() -> None:
    method, batch = make(**{**ONE_EACH, "vat": 0, "drop": 0, "feature_drop": 0, "feature_noise": 0}, background=0), make_batch()
    batch.unlabelled_valid[:] = False
    assert method(batch, clock_at(0.5)).terms["unsup"].item() == 0


def test_warnings_name_what_is_void() -> None:
    published = CCT.configure("published")
    assert any("vat_xi 1e-06" in sentence and "noise" in sentence for sentence in CCT.warnings(published, 21))
    assert any("background 30 is not one of 21" in sentence for sentence in CCT.warnings(CCT.configure(background=30), 21))
    assert CCT.warnings(CCT.configure(background=NUM_CLASSES - 1), NUM_CLASSES) == []
