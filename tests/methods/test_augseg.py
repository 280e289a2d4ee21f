"""AugSeg: the contract, and its facts by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.config import ConfigError
from css_ray.functional.pseudo_labels import image_confidence
from css_ray.methods import AugSeg, augseg
from css_ray.testing import MethodContract, clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX, Batch, Prediction
from css_ray.views import Views


class TestAugSeg(MethodContract):
    method_class = AugSeg
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.26, "colours": "views"}


class TestAugSegPublished(MethodContract):
    method_class = AugSeg
    preset = "published"
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = None


class TestAugSegNotAdaptive(MethodContract):
    method_class = AugSeg
    settings: ClassVar = {"unsup_threshold": 0.0, "adaptive": False, "operations": (0, 0)}
    golden: ClassVar = None


STILL: dict[str, Any] = {"operations": (0, 0), "unsup_threshold": 0.0}


def make(**settings: Any) -> AugSeg:
    torch.manual_seed(0)
    method = make_method(AugSeg, **(STILL | settings)).train()
    assert isinstance(method, AugSeg)
    return method


def test_how_sure_an_image_is() -> None:
    """Uniform: 0; one class: 1; (1/2, 1/2, 0, 0): 1/2 * (1 - log 2 / log 4) = 1/4. Padding does not count."""
    pixels = torch.tensor([[0.25] * 4, [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    each = pixels.view(3, 4, 1, 1)
    everywhere = torch.ones(3, 1, 1, dtype=torch.bool)
    assert image_confidence(each, everywhere).tolist() == pytest.approx([0, 1, 0.25])
    row, valid = pixels.T.view(1, 4, 1, 3), torch.tensor([[[True, False, True]]])
    assert image_confidence(row, valid).item() == pytest.approx(0.125)
    assert image_confidence(row, torch.zeros_like(valid)).item() == 1


def numbered(num_labelled: int = 2, num_unlabelled: int = 3) -> Batch:
    """Images that show their own number: labelled ones 0.1, 0.2, .. and label 1; unlabelled ones 0.5, 0.6, .."""
    batch = make_batch(num_labelled=num_labelled, num_unlabelled=num_unlabelled)
    shape = batch.labelled_images.shape[1:]
    labelled = (0.1 + 0.1 * torch.arange(num_labelled)).view(-1, 1, 1, 1).expand(-1, *shape)
    unlabelled = (0.5 + 0.1 * torch.arange(num_unlabelled)).view(-1, 1, 1, 1).expand(-1, *shape)
    return dataclasses.replace(
        batch, labelled_images=labelled.contiguous(), unlabelled_images=unlabelled.contiguous(),
        labels=torch.ones_like(batch.labels),
    )  # fmt: skip


def seen_by(method: AugSeg, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """The strong images, their labels, and which of these passed."""
    seen: list[Tensor] = []
    see = method.see

    def seeing(labelled: Tensor, strong: Tensor, *, joint: bool) -> tuple[Prediction, Prediction]:
        seen.append(strong)
        return see(labelled, strong, joint=joint)

    def losing(logits: Tensor, labels: Tensor, passed: Tensor, reduction: str) -> Tensor:
        seen.extend((labels, passed))
        return logits.sum()

    monkeypatch.setattr(method, "see", seeing)
    monkeypatch.setattr(augseg, "unsupervised_cross_entropy", losing)
    method(batch, clock_at(0.5))
    images, labels, passed = seen
    return images, labels, passed


def sure(method: AugSeg, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augseg, "image_confidence", lambda probabilities, valid: torch.full((len(valid),), value))


def test_a_sure_image_gets_no_part_of_a_labelled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    sure(method, 1.0, monkeypatch)
    images, _, _ = seen_by(method, numbered(), monkeypatch)
    assert (images > 0.45).all()
    for number, image in enumerate(images):  # of its own and of the next one
        shown = {round(value, 4) for value in image[0].flatten().tolist()}
        assert shown <= {round(0.5 + 0.1 * number, 4), round(0.5 + 0.1 * ((number + 1) % 3), 4)}


def test_an_unsure_image_shows_a_labelled_one_only_within_the_second_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and images say the same everywhere, and a labelled pixel has passed however high the threshold is."""
    method = make(unsup_threshold=1.0, donor_beta=(2.0, 8.0))
    sure(method, 0.0, monkeypatch)
    batch = numbered()
    batch = dataclasses.replace(batch, labels=torch.where(torch.arange(24) % 2 == 0, batch.labels, IGNORE_INDEX))
    images, labels, passed = seen_by(method, batch, monkeypatch)
    from_labelled = images[:, 0] < 0.45
    assert from_labelled.any(dim=2).any(dim=1).all()  # eight parts in ten of each donor are labelled ones
    even = (torch.arange(24) % 2 == 0).expand_as(labels)
    assert (labels[from_labelled & even] == 1).all() and (labels[from_labelled & ~even] == IGNORE_INDEX).all()
    assert torch.equal(passed, from_labelled & even)
    for number, image in enumerate(images[:, 0]):
        own = (image - (0.5 + 0.1 * number)).abs() < 1e-4
        rows, columns = (~own).any(dim=1), (~own).any(dim=0)
        assert torch.equal(~own, rows[:, None] & columns)  # one box, whatever is in it


def test_the_share_of_aided_images_is_what_the_teacher_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    sure(method, 0.7, monkeypatch)
    losses = [method(make_batch(num_unlabelled=8), clock_at(0.5)) for _ in range(60)]
    rates = [each.logs["aided"] for each in losses]
    assert sum(int(rate[0]) for rate in rates) / sum(int(rate[1]) for rate in rates) == pytest.approx(0.3, abs=0.07)


def test_the_loss_is_over_all_valid_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image, its own partner: the cross entropy of the sure pixels / the number of the valid ones, times the weight."""
    threshold = 0.2766
    method = make(adaptive=False, unsup_threshold=threshold, unsup_weight=2.0).eval()
    batch = make_batch(num_unlabelled=1)
    valid = torch.ones_like(batch.unlabelled_valid)
    valid[:, :10] = False
    batch = dataclasses.replace(batch, unlabelled_valid=valid)
    with torch.no_grad():
        size = (valid.shape[1], valid.shape[2])
        logits, other = (
            F.interpolate(network(batch.unlabelled_images).logits, size, mode="bilinear", align_corners=True)
            for network in (method.student, method.teacher)
        )
        confidence, labels = other.softmax(dim=1).max(dim=1)
        losses = -logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        chosen = valid & (confidence >= threshold)
        assert 0 < chosen.sum() < valid.sum()
        expected = 2 * losses[chosen].sum() / valid.sum()
    found = method(batch, clock_at(0.5)).terms["unsup"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_colours_are_its_own_or_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images, calls = torch.rand(2, 3, 8, 8), []

    def unchanged(images: Tensor, how_many: tuple[int, int]) -> Tensor:
        calls.append(how_many)
        return images

    monkeypatch.setattr(augseg, "random_intensity", unchanged)
    assert torch.equal(make(operations=(2, 4))._changed(images), images) and calls == [(2, 4)]
    other = make_method(AugSeg, Views(jitter_probability=1.0, labelled_colours="strong"), colours="views")
    assert isinstance(other, AugSeg)
    assert not torch.equal(other._changed(images), images) and calls == [(2, 4)]
    # Labelled images look alike in all methods, if the study wants it so.
    torch.manual_seed(1)
    expected = other.strong_colours(images)
    torch.manual_seed(1)
    assert torch.equal(other.labelled_colours(images, strong=False), expected) and calls == [(2, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operations": (3, 1)}, "operations must be two numbers, the smaller first"),
        ({"donor_beta": (8.0,)}, r"donor_beta must be two numbers, a and b of Beta\(a, b\)"),
        ({"donor_beta": (8.0, 0.0)}, "donor_beta"),
        ({"operations": (0, 12)}, "operations"),
    ],
)
def test_what_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugSeg.configure(**settings)
