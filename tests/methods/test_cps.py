"""CPS: the contract, and its facts by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from css_ray.functional.losses import cross_entropy
from css_ray.methods import CPS
from css_ray.testing import MethodContract, clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views


class TestCPS(MethodContract):
    method_class = CPS


class TestCPSPlain(MethodContract):
    method_class = CPS
    settings: ClassVar = {"cutmix": False, "on_labelled": True, "unsup_weight": 1.5}


def make(**settings: Any) -> CPS:
    torch.manual_seed(0)
    method = make_method(CPS, Views(), **settings)
    assert isinstance(method, CPS)
    return method


def test_the_loss_by_hand() -> None:
    """z1 = (2, 0) and z2 = (0, 2): each costs log(1 + e^2) against the other's class, 4.25386 together."""
    first, second = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    crossed = cross_entropy(first, CPS._labels(second, valid)) + cross_entropy(second, CPS._labels(first, valid))
    assert crossed.item() == pytest.approx(4.25386, abs=1e-5)


@pytest.mark.parametrize("cutmix", [True, False])
def test_no_gradient_reaches_who_labels(cutmix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make(cutmix=cutmix), make_batch()
    kept: list[Tensor] = []

    def keep(logits: Tensor, labels: Tensor) -> Tensor:
        kept.append(cross_entropy(logits, labels))
        return kept[-1]

    monkeypatch.setattr("css_ray.methods.cps.cross_entropy", keep)
    method(batch, clock_at(0.5))
    for loss, own, other in zip(kept, (method.student, method.second), (method.second, method.student), strict=True):
        gradients = torch.autograd.grad(loss, list(own.parameters()), retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients)
        gradients = torch.autograd.grad(loss, list(other.parameters()), retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in gradients)


def test_the_encoders_begin_equal_and_the_heads_differ_and_both_learn() -> None:
    method = make()
    for own, other in zip(method.student.encoder.parameters(), method.second.encoder.parameters(), strict=True):
        assert torch.equal(own, other)
    heads = [next(network.logits_head.parameters()) for network in (method.student, method.second)]
    assert not torch.equal(heads[0], heads[1])
    method(make_batch(), clock_at(0.5)).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters())
    assert method.predictor() is method.student


def test_one_optimizer_over_both_is_two() -> None:
    def trained(joint: bool) -> list[Tensor]:
        method = make()
        parts = [list(method.student.parameters()), list(method.second.parameters())]
        groups = [[*parts[0], *parts[1]]] if joint else parts
        optimizers = [torch.optim.SGD(group, lr=0.05, momentum=0.9, weight_decay=1e-4) for group in groups]
        torch.manual_seed(1)
        for step in range(3):
            method.zero_grad()
            method(make_batch(step), clock_at(0.5)).total.backward()
            for optimizer in optimizers:
                optimizer.step()
        return list(method.parameters())

    for one, two in zip(trained(True), trained(False), strict=True):
        assert torch.equal(one, two)


def test_mixed_labels_are_those_of_the_pixels_source(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = make(), make_batch(num_unlabelled=3)
    boxes = torch.zeros(3, 24, 24, dtype=torch.bool)
    boxes[:, 4:11, 6:20] = True
    monkeypatch.setattr("css_ray.methods.cps.xor_boxes", lambda *arguments, **settings: boxes)
    seen: list[Tensor] = []

    def remember(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return cross_entropy(logits, labels)

    monkeypatch.setattr("css_ray.methods.cps.cross_entropy", remember)
    torch.manual_seed(5)
    method(batch, clock_at(0.5))
    again = make()
    again.train()
    with torch.no_grad():
        for network in (again.student, again.second):
            network(batch.labelled_images)  # as the step does before it labels; batch statistics do not depend on it
        whole = [
            again._labels(network(batch.unlabelled_images).logits, batch.unlabelled_valid)
            for network in (again.second, again.student)
        ]
    for labels, source in zip(seen, whole, strict=True):
        assert torch.equal(labels, torch.where(boxes, source[[1, 2, 0]], source))
        assert (labels == IGNORE_INDEX).any()


def test_an_image_mixed_with_itself_is_plain() -> None:
    batch = make_batch()
    batch = dataclasses.replace(batch, unlabelled_images=batch.unlabelled_images[[0, 0]])

    def loss(cutmix: bool) -> Tensor:
        return make(cutmix=cutmix)(batch, clock_at(0.5)).terms["unsup"]  # type: ignore[no-any-return]

    torch.testing.assert_close(loss(True), loss(False))
