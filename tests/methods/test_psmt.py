"""PS-MT: the contract, and its facts by hand."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F

from css_ray.functional.losses import weighted_cross_entropy
from css_ray.functional.pseudo_labels import overwrite_unlikely
from css_ray.functional.schedules import cosine_ramp_up
from css_ray.methods import PSMT
from css_ray.models import Ensemble, Segmenter
from css_ray.testing import NUM_CLASSES, MethodContract, clock_at, enter_stages, make_batch, make_method
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

STILL = Views(jitter_probability=0, blur_probability=0)


class TestPSMT(MethodContract):
    method_class = PSMT
    settings: ClassVar = {"unsup_threshold": 0.0, "top_k": 2, "warm_up": 0.2}


class TestPSMTWithoutMoves(MethodContract):
    method_class = PSMT
    settings: ClassVar = {"unsup_threshold": 0.0, "top_k": 2, "vat_radius": 0.0, "cutmix": False, "ramp_up": 0.0}


def make(stage: int = 1, **settings: Any) -> PSMT:
    torch.manual_seed(0)
    method = enter_stages(make_method(PSMT, STILL, **{"top_k": 2, "unsup_threshold": 0.0, **settings}), stage)
    assert isinstance(method, PSMT)
    return method


def at(progress: float) -> Any:
    return clock_at(progress, 1)


def test_what_is_unlikely_to_the_assistant_is_the_cores() -> None:
    core, assist = (torch.tensor(values).view(1, 3, 1, 1) for values in ([1.0, 2.0, 3.0], [5.0, 4.0, 0.0]))
    corrected = overwrite_unlikely(core, assist, 1)
    assert corrected.flatten().tolist() == [5, 2, 3]
    assert ((core + corrected) / 2).flatten().tolist() == [3, 2, 3]
    assert torch.equal(overwrite_unlikely(core, assist, 3), assist)
    # A logit of exactly 0 among the top k stays, which the published code overwrites.
    kept = overwrite_unlikely(core, assist, 3 - 1)
    assert kept.flatten().tolist() == [5, 4, 3]
    alike = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert overwrite_unlikely(core, alike, 1).flatten().tolist() == [1, 1, 3]
    negative = torch.tensor([0.0, -4.0, -5.0]).view(1, 3, 1, 1)
    assert overwrite_unlikely(core, negative, 1).flatten().tolist() == [0, 2, 3]


def test_confidence_weighs_the_pixels_that_passed() -> None:
    """Two pixels with a cross entropy of 1, of which that with the confidence 0.9 passes 0.6: 0.9."""
    other = math.log(math.e - 1)  # logits (0, this): -log softmax of the first is 1
    logits = torch.tensor([0.0, other]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    labels, confidence = torch.tensor([[[0, IGNORE_INDEX]]]), torch.tensor([[[0.9, 0.5]]])
    assert weighted_cross_entropy(logits, labels, confidence).item() == pytest.approx(0.9)
    assert weighted_cross_entropy(logits, torch.full_like(labels, IGNORE_INDEX), confidence).item() == 0


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.075, 0.5), (0.15, 1.0), (0.9, 1.0)])
def test_the_weight_rises_as_half_a_cosine(progress: float, weight: float) -> None:
    assert cosine_ramp_up(progress, 0.15) == pytest.approx(weight)


def test_the_teachers_take_turns_and_follow_in_all_that_is_not_whole_numbers() -> None:
    method = make(switch_every=0.25, teacher_decay=0.75)
    for progress, active in ((0.0, 0), (0.2, 0), (0.25, 1), (0.4, 1), (0.5, 0), (0.99, 1)):
        with torch.no_grad():
            for value in method.student.state_dict().values():
                value.add_(1)
        before = copy.deepcopy(method.teachers.state_dict())
        method.after_step(at(progress))
        student = method.student.state_dict()
        for name, value in method.teachers.state_dict().items():
            number, own = name.split(".", 1)
            if int(number) == active and value.is_floating_point():
                assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[own]), name
            else:
                assert torch.equal(value, before[name]), name


def test_the_warm_up_trains_three_networks_of_their_own() -> None:
    method = make(stage=0)
    losses = method(make_batch(), clock_at(0.5, 0))
    assert set(losses.terms) == {"sup", "teachers"}
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    before = copy.deepcopy(method.teachers.state_dict())
    method.after_step(clock_at(0.5, 0))
    assert all(torch.equal(value, before[name]) for name, value in method.teachers.state_dict().items())
    first, second = (method._teacher(number).logits_head.state_dict()["3.weight"] for number in (0, 1))
    assert not torch.equal(first, second)


def test_in_main_the_teachers_are_frozen_and_moves_leave_no_trace() -> None:
    method = make()
    assert not any(parameter.requires_grad for parameter in method.teachers.parameters())
    features = torch.rand(2, method.student.decoder.out_channels, 6, 6)
    state = copy.deepcopy(method.state_dict())
    move = method._move(features)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters()) and method.teachers.training
    assert torch.linalg.vector_norm(move.flatten(1), dim=1).tolist() == pytest.approx([2, 2], rel=1e-3)

    def raised(direction: torch.Tensor) -> float:
        heads = [method._teacher(number).logits_head.eval() for number in (0, 1)]
        with torch.no_grad():
            found, target = (
                torch.stack([head(each) for head in heads]).mean(dim=0) for each in (features + direction, features)
            )
        return F.kl_div(found.log_softmax(1), target.softmax(1), reduction="sum").item()

    random = F.normalize(torch.randn_like(features).flatten(1)).view_as(features) * 2
    assert raised(move) > 5 * raised(random)


def test_the_loss_against_one_that_is_written_out() -> None:
    method, batch = make(vat_radius=0.0, cutmix=False, unsup_threshold=0.55, switch_every=0.5, ramp_up=0.0), make_batch()
    with torch.no_grad():
        for teacher in method.teachers:
            teacher.logits_head[-1].weight.mul_(20)  # type: ignore[union-attr, index]
    twin = copy.deepcopy(method)
    losses = method(batch, at(0.6))  # the second teacher's turn
    with torch.no_grad():
        size = (24, 24)
        active, other = (
            F.interpolate(twin.teachers[number](batch.unlabelled_images).logits, size, mode="bilinear", align_corners=True)
            for number in (1, 0)
        )
    total, count = 0.0, 0
    with torch.no_grad():
        both = twin.student(torch.cat([batch.labelled_images, batch.unlabelled_images])).logits[3:]
    own = F.interpolate(both, size, mode="bilinear", align_corners=True).log_softmax(dim=1)
    for image in range(2):
        for y in range(24):
            for x in range(24):
                a, b = active[image, :, y, x], other[image, :, y, x].clone()
                for unlikely in b.argsort(descending=True)[2:]:
                    b[unlikely] = a[unlikely]
                confidence, label = ((a + b) / 2).softmax(dim=0).max(dim=0)
                if batch.unlabelled_valid[image, y, x] and confidence >= 0.55:
                    total += float(-confidence * own[image, label, y, x])
                    count += 1
    assert 0 < count < 2 * 24 * 21
    assert losses.terms["unsup"].item() == pytest.approx(1.5 * total / count, rel=1e-4)
    assert losses.logs["unsup_pass_rate"].part.item() == count


def test_what_is_evaluated_is_the_mean_of_both_teachers() -> None:
    method = make().eval()
    images = torch.rand(1, 3, 19, 25)
    predictor = method.predictor()
    assert isinstance(predictor, Ensemble) and predictor.num_classes == NUM_CLASSES
    expected = (method._teacher(0).predict(images) + method._teacher(1).predict(images)) / 2
    assert torch.allclose(predictor.predict(images), expected)
    assert len(method.state_dict()) == 3 * len(method.student.state_dict())  # it adds none of its own


def test_degenerate_cases() -> None:
    batch = make_batch()
    assert make(unsup_threshold=1.0)(batch, at(0.5)).terms["unsup"].item() == 0
    same = make(top_k=1)
    same.teachers[1].load_state_dict(same.teachers[0].state_dict())
    assert same(batch, at(0.5)).logs["assisted"].part.item() == 0


def test_the_published_preset_says_what_is_void() -> None:
    published = make_method(PSMT, preset="published")
    (warning,) = PSMT.warnings(published.config, 21)
    assert warning.startswith("vat_xi 1e-06 gives") and warning.endswith("the direction is noise; use 0.1")
    assert isinstance(published, PSMT)
    encoder = published.student.encoder.state_dict()
    for teacher in published.teachers:
        assert isinstance(teacher, Segmenter)
        own = teacher.encoder.state_dict()
        assert any(not torch.equal(value, encoder[name]) for name, value in own.items())
    assert PSMT.warnings(PSMT.Config(top_k=4), 4) == [
        "top_k 4 is all of 4 classes, so the active teacher corrects nothing; use fewer"
    ]
