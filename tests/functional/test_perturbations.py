"""Perturbations of features, by hand and by loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.perturbations import (
    adversarial,
    complementary_masks,
    cut_out,
    feature_drop,
    feature_noise,
    hide_context,
    hide_objects,
)


def test_the_strongest_response_is_dropped() -> None:
    means = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    features = torch.stack([means - 1, means + 1]).unsqueeze(0)
    dropped = feature_drop(features, 0.8)
    kept = torch.tensor([[True, True], [True, False]])  # .8 * 4 = 3.2
    assert torch.equal(dropped, features * kept)


def test_alike_everywhere_is_dropped_whole_and_nothing_of_what_is_not_positive() -> None:
    assert not feature_drop(torch.ones(1, 3, 2, 2), 0.8).any()
    for value in (-1.0, 0.0):
        features = torch.full((1, 3, 2, 2), value)
        assert torch.equal(feature_drop(features, 0.8), features)


def test_noise_is_one_for_all_images_and_bounded() -> None:
    torch.manual_seed(0)
    features = torch.rand(3, 8, 10, 10) + 0.5
    ratio = feature_noise(features, 0.3) / features
    assert torch.allclose(ratio[0], ratio[1]) and torch.allclose(ratio[0], ratio[2])
    assert 0.7 <= ratio.min() < 0.72 and 1.28 < ratio.max() <= 1.3 + 1e-6
    assert not torch.allclose(ratio[0, 0], ratio[0, 1])


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (4, 2), (5, 2), (3, 3)])
def test_complementary_masks_add_up_to_two_for_each_image_and_channel(count: int, kept: int) -> None:
    torch.manual_seed(0)
    masks = complementary_masks(count, (6, 9, 6), kept, torch.device("cpu"))
    assert [tuple(each.shape) for pair in masks for each in pair] == [(count, k, 1, 1) for k in (6, 6, 9, 9, 6, 6)]
    assert all(torch.equal(one, other) for one, other in zip(masks[0], masks[2], strict=True))  # the same number of channels
    untouched = []
    for first, second in masks:
        for image in range(count):
            pairs = {(float(m), float(n)) for m, n in zip(first[image].flatten(), second[image].flatten(), strict=True)}
            assert pairs == {(1.0, 1.0)} or pairs <= {(0.0, 2.0), (2.0, 0.0)}
            untouched.append(pairs == {(1.0, 1.0)})
    of_level = [untouched[:count], untouched[count : 2 * count], untouched[2 * count :]]
    assert sum(of_level[0]) == kept and of_level[0] == of_level[1] == of_level[2]


def test_channels_are_dropped_with_even_chance_each_by_itself_and_any_image_may_be_kept() -> None:
    torch.manual_seed(0)
    draws = [complementary_masks(3, (40, 50), 1, torch.device("cpu")) for _ in range(400)]
    for level, channels in ((0, 40), (1, 50)):
        first = torch.stack([each[level][0].flatten(1) for each in draws])  # [400, 3, K]
        kept = (first == 1).all(dim=2)
        assert (kept.sum(dim=1) == 1).all()
        assert kept.float().mean(dim=0) == pytest.approx([1 / 3] * 3, abs=0.08)  # 400 draws: a deviation of .024
        dropped = first[~kept]
        assert dropped.shape == (800, channels) and (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.02)
        together = (dropped[:, 0] == dropped[:, 1]).float().mean()
        assert together == pytest.approx(0.5, abs=0.1)  # a channel says nothing about the next one


def test_context_and_objects_are_the_two_parts() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(2, 4, 6, 6), torch.randint(3, (2, 6, 6))
    objects, context = hide_context(features, labels, 0), hide_objects(features, labels, 0)
    torch.testing.assert_close(objects + context, features)
    assert not objects[(labels == 0).unsqueeze(1).expand_as(features)].any()
    assert not hide_context(features, torch.zeros_like(labels), 0).any()


def test_a_box_of_each_object_is_cut_out() -> None:
    """Object 1 lies in rows 2 to 11 and columns 0 to 4, object 2 is one cell: boxes of 4 x 2 cells, and of none."""
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[0, 2:12, 0:5] = 1
    labels[0, 15, 15] = 2
    seen = torch.zeros(16, 16)
    for seed in range(300):
        torch.manual_seed(seed)
        zero = (cut_out(torch.ones(1, 3, 16, 16), labels, 0, 4) == 0)[0]
        assert torch.equal(zero[0], zero[1]) and torch.equal(zero[0], zero[2])
        rows, columns = zero[0].any(dim=1).nonzero().flatten().tolist(), zero[0].any(dim=0).nonzero().flatten().tolist()
        assert len(rows) == 4 and len(columns) == 2 and int(zero[0].sum()) == 8
        seen += zero[0]
    inside = seen > 0
    assert inside[2:12, 0:5].all() and int(inside.sum()) == 50


def test_without_objects_nothing_is_cut_out() -> None:
    features = torch.randn(2, 3, 6, 6)
    assert torch.equal(cut_out(features, torch.zeros(2, 6, 6, dtype=torch.int64), 0, 4), features)


def decoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(64, 3, 1)


def divergence(features: Tensor, moved: Tensor, decode: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(F.kl_div(decode(moved).log_softmax(1), decode(features).softmax(1), reduction="sum"))


def test_the_adversarial_move_has_its_length_and_beats_a_random_one_tenfold() -> None:
    decode = decoder()
    features = torch.randn(4, 64, 8, 8)
    move = adversarial(features, decode, 2.0)
    torch.testing.assert_close(move.flatten(1).norm(dim=1), torch.full((4,), 2.0), atol=1e-3, rtol=0)
    gains = []
    for _ in range(5):
        random = F.normalize(torch.randn_like(features).flatten(1), dim=1).view_as(features) * 2
        gains.append(divergence(features, features + move, decode) / divergence(features, features + random, decode))
    assert min(gains) >= 10


def test_the_adversarial_move_is_that_of_differences() -> None:
    """In float64 the direction is that of the divergence's gradient at xi d, which differences give, too."""
    torch.manual_seed(3)
    decode = torch.nn.Conv2d(3, 2, 1).double()
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    torch.manual_seed(4)
    move = adversarial(features, decode, 1.0, xi=0.1)
    torch.manual_seed(4)
    start = torch.rand_like(features) - 0.5
    start = start / start.norm()
    gradient = torch.zeros(features.numel(), dtype=torch.float64)
    for place in range(features.numel()):
        step = torch.zeros(features.numel(), dtype=torch.float64)
        step[place] = 1e-5
        high, low = (divergence(features, features + 0.1 * (start + sign * step.view_as(start)), decode) for sign in (1, -1))
        gradient[place] = (high - low) / 2e-5
    torch.testing.assert_close(move.flatten(), gradient / gradient.norm(), atol=1e-6, rtol=0)


def test_the_published_step_is_noise_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """xi = 1e-6: the direction has little to do with the true one, in float64; xi = .1 finds that in float32."""
    decode = decoder()
    features = torch.randn(4, 64, 8, 8)
    start = torch.rand(features.shape, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda like: start.to(like.dtype))
    true = adversarial(features.double(), decode.double(), 1.0, xi=1e-3)
    decode.float()

    def cosine(xi: float) -> float:
        return float((adversarial(features, decode, 1.0, xi=xi) * true).flatten(1).sum(dim=1).mean())

    assert cosine(0.1) > 0.99
    assert abs(cosine(1e-6)) < 0.1


def test_a_decoder_that_does_not_change_gives_no_move_and_no_parameter_gets_a_gradient() -> None:
    decode = decoder()
    features = torch.randn(2, 64, 4, 4, requires_grad=True)
    with torch.no_grad():
        moved = adversarial(features, decode, 2.0)
    assert moved.any() and not moved.requires_grad
    assert features.grad is None and all(parameter.grad is None for parameter in decode.parameters())
    for parameter in decode.parameters():
        torch.nn.init.zeros_(parameter)
    assert not adversarial(features, decode, 2.0).any()


@pytest.mark.parametrize("steps", [1, 3])
def test_more_power_iterations_change_the_prediction_at_least_as_much(steps: int) -> None:
    decode = decoder()
    features = torch.randn(2, 64, 4, 4)
    torch.manual_seed(0)
    one = divergence(features, features + adversarial(features, decode, 2.0, steps=1), decode)
    torch.manual_seed(0)
    assert divergence(features, features + adversarial(features, decode, 2.0, steps=steps), decode) >= 0.95 * one
