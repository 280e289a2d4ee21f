"""UniMatch V2: the contract, and its facts by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from css_ray.functional.schedules import teacher_keep
from css_ray.methods import FixMatch, UniMatchV2
from css_ray.models import ModelConfig
from css_ray.testing import MODEL, MethodContract, clock_at, make_batch, make_method
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.views import Views

PLAIN = Views(jitter_probability=0.0, blur_probability=0.0)
"""Strong views with the colours of the weak one."""

VIT = ModelConfig(encoder="test_vit", pretrained=False)


class TestUniMatchV2(MethodContract):
    method_class = UniMatchV2
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestUniMatchV2WithWholeChannels(MethodContract):
    method_class = UniMatchV2
    settings: ClassVar = {"unsup_threshold": 0.0, "complementary": False, "teacher": "none"}
    golden: ClassVar = None


def make(network: ModelConfig = MODEL, **settings: Any) -> UniMatchV2:
    torch.manual_seed(0)
    method = make_method(UniMatchV2, PLAIN, network=network, **settings).train()  # the teacher then labels in eval mode
    assert isinstance(method, UniMatchV2)
    return method


def test_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """L_x 1, L_s1 2, L_s2 4: (1 + (2 + 4) / 2) / 2 = 2."""
    method = make()
    values = iter((2.0, 4.0))
    monkeypatch.setattr(method, "unsupervised", lambda *arguments: torch.tensor(next(values)))
    monkeypatch.setattr(method, "supervised", lambda *arguments: torch.tensor(1.0))
    losses = method(make_batch(), clock_at(0.5))
    assert losses.total.item() == pytest.approx(2.0)
    assert {name: term.item() for name, term in losses.terms.items()} == {"sup": 0.5, "strong_1": 0.5, "strong_2": 1.0}


def ratios(method: UniMatchV2, num_unlabelled: int) -> tuple[list[Tensor], list[Tensor]]:
    """By which each channel [B, K] of each level was multiplied, for the first views and for the second ones."""
    seen: list[tuple[Tensor, ...]] = []
    encode, decode = method.student.encode, method.student.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method.student, "encode", lambda images: seen.append(encode(images)) or seen[-1])  # type: ignore[func-returns-value]
        patch.setattr(method.student, "decode", lambda levels: seen.append(levels) or decode(levels))  # type: ignore[func-returns-value]
        method(make_batch(num_unlabelled=num_unlabelled), clock_at(0.5))
    before, after = seen[-2:]  # the strong views come last
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for clean, masked in zip(before, after, strict=True):
        assert clean.shape == masked.shape and len(clean) == 2 * num_unlabelled
        factor = (masked.flatten(2).sum(dim=2) / clean.flatten(2).sum(dim=2)).round()
        torch.testing.assert_close(masked, clean * factor[:, :, None, None])
        for views, part in zip(found, factor.chunk(2), strict=True):
            views.append(part)
    return found


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("network", [MODEL, VIT], ids=["tiny", "ViT"])
def test_what_one_view_loses_the_other_one_has_twice(network: ModelConfig, count: int) -> None:
    first, second = ratios(make(network), count)
    kept = [(each == 1).all(dim=1) for each in first]
    for one, other, stays in zip(first, second, kept, strict=True):
        assert torch.equal(one + other, torch.full_like(one, 2.0))
        assert int(stays.sum()) == count // 2  # a single image is always dropped
        assert set(one[~stays].flatten().tolist()) == {0.0, 2.0} and torch.equal(stays, kept[0])
    if network is VIT:
        assert len(first) == 4 and all(torch.equal(each, first[0]) for each in first)
    else:
        assert [each.shape[1] for each in first] == [32, 64]  # of its own each
        assert not torch.equal(first[1][:, :32], first[0])


def test_all_images_are_dropped_if_none_is_kept_and_none_without_masks() -> None:
    first, _ = ratios(make(VIT, keep_half=False), 4)
    assert all(set(each.flatten().tolist()) == {0.0, 2.0} for each in first)
    first, second = ratios(make(VIT, complementary=False), 4)
    assert all((each == 1).all() for each in (*first, *second))


def test_boxes_come_from_the_other_end_of_the_batch() -> None:
    method = make(cutmix_probability=1.0)
    images = torch.rand(3, 3, 24, 24)
    strong, _, _ = method.strong_view(images, torch.zeros(3, 24, 24, dtype=torch.int64), torch.ones(3, 24, 24))
    pasted = (strong != images).any(dim=1)
    torch.testing.assert_close(strong, torch.where(pasted.unsqueeze(1), images[[2, 1, 0]], images))
    assert pasted[0].any() and pasted[2].any() and not pasted[1].any()  # the middle one is mixed with itself


def test_without_masks_and_boxes_it_is_fixmatch_with_two_views() -> None:
    settings: dict[str, Any] = {"unsup_threshold": 0.3, "cutmix_probability": 0.0}
    ours, batch = make(complementary=False, **settings), make_batch()
    fixmatch = make_method(FixMatch, PLAIN, **settings)
    fixmatch.load_state_dict(ours.state_dict())
    totals = [method.eval()(batch, clock_at(0.5)).total.detach() for method in (ours, fixmatch)]
    torch.testing.assert_close(totals[0], totals[1])


def test_the_teacher_follows_by_the_published_schedule_in_parameters_and_statistics() -> None:
    assert teacher_keep(249, 0.996) == pytest.approx(0.996) and teacher_keep(9, 0.996) == pytest.approx(0.9)
    method = make()
    assert method.teacher is not None and method.config.teacher_decay == 0.996
    method.teacher.num_updates += 9
    averaged, own = method.teacher.model.state_dict(), method.student.state_dict()
    before = {name: value.clone() for name, value in averaged.items()}
    with torch.no_grad():
        for name, value in own.items():
            if value.is_floating_point() and name not in ("mean", "std"):
                value += 1
    method.after_step(clock_at(0.5))
    moved = [name for name in before if not torch.equal(averaged[name], before[name])]
    assert any(name.endswith("running_var") for name in moved)
    for name in moved:
        torch.testing.assert_close(averaged[name], before[name] + 0.1)
    method.train()
    assert not method.teacher.model.training


def test_the_published_recipe_has_a_ratio_of_rates_and_frozen_encoders_learn_nothing() -> None:
    method = make(VIT)
    encoder = {id(value) for value in method.student.encoder.parameters()}
    published = make_optimizer(method, TrainConfig(optimizer="adamw", lr=2e-4, encoder_lr_factor=0.025, min_lr=0.0))
    rates = {id(value) in encoder: group["lr_factor"] for group in published.param_groups for value in group["params"]}
    assert rates == {True: 0.025, False: 1.0} and 2e-4 * rates[True] == pytest.approx(5e-6)
    assert sum(len(group["params"]) for group in published.param_groups) == len([*method.student.parameters()])

    frozen = make_optimizer(method, TrainConfig(optimizer="adamw", lr=2e-4, encoder_lr_factor=0.0, min_lr=0.0))
    trained = {id(value) for group in frozen.param_groups for value in group["params"]}
    assert trained == {id(value) for value in method.student.parameters()} - encoder
    method(make_batch(), clock_at(0.5)).total.backward()
    assert all((value.grad is None) == (id(value) in encoder) for value in method.student.parameters())


def test_what_is_probably_a_mistake() -> None:
    def warned(**settings: Any) -> list[str]:
        return UniMatchV2.warnings(UniMatchV2.configure(**settings), 21)

    assert warned() == warned(keep_half=False) == warned(complementary=False) == warned(cutmix_probability=0.0) == []
    assert [each.split()[0] for each in warned(complementary=False, keep_half=False)] == ["keep_half"]
    assert [each.split(";")[1] for each in warned(complementary=False, cutmix_probability=0.0)] == [" use fixmatch"]
