"""FixMatch and UniMatch: the contract, and their facts by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from css_ray.methods import FixMatch, UniMatch
from css_ray.methods.weak_to_strong import WeakToStrong
from css_ray.testing import MethodContract, clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

PLAIN = Views(jitter_probability=0.0, blur_probability=0.0)
"""Strong views with the colours of the weak one."""


class TestFixMatch(MethodContract):
    method_class = FixMatch
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestFixMatchPublished(MethodContract):
    method_class = FixMatch
    preset = "published"
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3, "joint_forward": False}


class TestUniMatch(MethodContract):
    method_class = UniMatch
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestUniMatchWithATeacher(MethodContract):
    method_class = UniMatch
    settings: ClassVar = {"unsup_threshold": 0.0, "teacher": "average"}
    golden: ClassVar = None


class TestUniMatchLabelledInEvalMode(MethodContract):
    method_class = UniMatch
    settings: ClassVar = {"unsup_threshold": 0.0, "pseudo_from": "eval"}
    golden: ClassVar = None


def make(method_class: type[WeakToStrong], **settings: Any) -> WeakToStrong:
    torch.manual_seed(0)
    method = make_method(method_class, PLAIN, **settings)
    assert isinstance(method, WeakToStrong)
    return method


def test_sure_pixels_over_all_valid_ones() -> None:
    """Cross entropies 1, 2, 3, 4 of confidences .96, .9, .95, .99 at a threshold of .95: (1 + 3 + 4) / 4; padding is not there."""
    wanted, confidence = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]), torch.tensor([0.96, 0.9, 0.95, 0.99, 0.99])
    # Of two classes with logits (0, z) the first costs log(1 + e^z).
    logits = torch.stack([torch.zeros(5), (wanted.exp() - 1).log()]).view(1, 2, 1, 5)
    labels = torch.tensor([0, 0, 0, 0, IGNORE_INDEX]).view(1, 1, 5)
    found = WeakToStrong.unsupervised(logits, labels, (confidence >= 0.95).view(1, 1, 5))
    assert found.item() == pytest.approx(2.0)


def test_without_a_valid_pixel_the_loss_is_0() -> None:
    nothing = torch.full((1, 2, 2), IGNORE_INDEX)
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = WeakToStrong.unsupervised(logits, nothing, torch.ones(1, 2, 2, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_labels_and_confidence_come_from_where_the_pixels_come_from() -> None:
    method = make(FixMatch, cutmix_probability=1.0, unsup_threshold=0.5)
    images = torch.rand(3, 3, 24, 24)
    labels = torch.randint(4, (3, 24, 24))
    confidence = torch.rand(3, 24, 24)
    strong, moved, passed = method.strong_view(images, labels, confidence)
    pasted = (strong != images).any(dim=1)
    assert 0 < pasted.float().mean() < 0.4
    following = [1, 2, 0]
    torch.testing.assert_close(strong, torch.where(pasted.unsqueeze(1), images[following], images))
    assert torch.equal(moved, torch.where(pasted, labels[following], labels))
    assert torch.equal(passed, torch.where(pasted, confidence[following], confidence) >= 0.5)


def test_strong_and_weak_view_share_their_geometry() -> None:
    method = make(FixMatch, cutmix_probability=0.0)
    images = torch.rand(2, 3, 24, 24)
    strong, _, _ = method.strong_view(images, torch.zeros(2, 24, 24, dtype=torch.int64), torch.ones(2, 24, 24))
    torch.testing.assert_close(strong, images)  # but for the colours, which PLAIN leaves alone


def test_padding_is_never_labelled() -> None:
    method, batch = make(FixMatch), make_batch()
    _, labels = method.labels(batch)
    assert torch.equal(labels == IGNORE_INDEX, ~batch.unlabelled_valid)


def test_who_labels() -> None:
    batch = make_batch()
    averaged = make(FixMatch)
    assert averaged.teacher is not None and averaged.predictor() is averaged.teacher.model
    alone = make(FixMatch, teacher="none")
    assert alone.predictor() is alone.student and alone.student.training
    before = {name: value.clone() for name, value in alone.student.named_buffers()}
    confidence, _ = alone.labels(batch)
    assert alone.student.training and not confidence.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in alone.student.named_buffers())


def test_the_averaged_teacher_averages_its_statistics_too() -> None:
    method = make(FixMatch, teacher_decay=0.75)
    assert method.teacher is not None
    for _ in range(5):  # the first updates copy
        method.after_step(clock_at(0.5))
    (name, running), *_ = ((key, value) for key, value in method.student.named_buffers() if key.endswith("running_mean"))
    of_teacher = dict(method.teacher.model.named_buffers())[name]
    before = of_teacher.clone()
    running += 1
    method.after_step(clock_at(0.5))
    torch.testing.assert_close(of_teacher, before + 0.25)
    method.train()
    assert not method.teacher.model.training and method.student.training


def test_weights_of_unimatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """L_x 1, L_s1 2, L_s2 4, L_fp 3: (1 + .25 * 2 + .25 * 4 + .5 * 3) / 2 = 2."""
    method = make(UniMatch)
    values = iter((2.0, 4.0, 3.0))
    monkeypatch.setattr(method, "unsupervised", lambda *arguments: torch.tensor(next(values)))
    monkeypatch.setattr(method, "supervised", lambda *arguments: torch.tensor(1.0))
    assert method(make_batch(), clock_at(0.5)).total.item() == pytest.approx(2.0)


def test_channels_of_both_levels_are_dropped_or_doubled_for_unlabelled_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = make(UniMatch), []
    real = method.student.decode

    def remember(levels: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(levels)
        return real(levels)

    monkeypatch.setattr(method.student, "decode", remember)
    method(make_batch(num_labelled=3, num_unlabelled=2), clock_at(0.5))
    weak, strong = seen  # the strong views, too, are decoded
    assert [len(level) for level in weak] == [7, 7] and [len(level) for level in strong] == [4, 4]
    for level in weak:
        clean, dropped = level[3:5], level[5:]
        zero = (dropped == 0).flatten(2).all(dim=2)
        doubled = torch.isclose(dropped, 2 * clean).flatten(2).all(dim=2)
        assert (zero | doubled).all() and 0 < zero.float().mean() < 1
        assert not torch.equal(zero[0], zero[1])


def test_labels_of_unimatch_have_no_gradient_into_the_weak_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(UniMatch, unsup_threshold=0.0)
    real = method.strong_view
    seen: list[Tensor] = []

    def remember(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.extend(arguments)
        return real(*arguments)

    monkeypatch.setattr(method, "strong_view", remember)
    method(make_batch(), clock_at(0.5))
    assert len(seen) == 6 and not any(tensor.requires_grad for tensor in seen)
