"""PRCL: the contract, and its facts by hand."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.gaussians import (
    _CHUNK,
    LEAST_VARIANCE,
    Reduce,
    fuse,
    fusion_sums,
    mutual_likelihood,
    separation,
    variance_of,
)
from css_ray.methods import PRCL
from css_ray.methods.prcl import VarianceHead
from css_ray.testing import MethodContract, clock_at, make_batch, make_method
from css_ray.training.optimizer import parameter_groups
from css_ray.training.settings import TrainConfig
from css_ray.types import IGNORE_INDEX


class TestPRCL(MethodContract):
    method_class = PRCL
    settings: ClassVar = {
        "unsup_threshold": 0.0, "valid_threshold": 0.0, "hard_threshold": 1.0, "num_queries": 8, "num_negatives": 16,
        "contrast_weight": 1.0,
    }  # fmt: skip


class TestPRCLPublished(MethodContract):
    method_class = PRCL
    preset = "published"
    settings: ClassVar = {
        "unsup_threshold": 0.0, "valid_threshold": 0.0, "hard_threshold": 1.0, "num_queries": 8, "num_negatives": 16
    }  # fmt: skip


def make(**settings: Any) -> PRCL:
    torch.manual_seed(0)
    method = make_method(PRCL, **settings)
    assert isinstance(method, PRCL)
    return method


def test_the_score_by_hand() -> None:
    """Means (1, 0) and (0, 1), variances 1/2: the squares add up to 2, and log 1 is 0."""
    first, second, half = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.full((2,), 0.5)
    assert mutual_likelihood(first, half, second, half, "sum").item() == pytest.approx(-1)
    assert mutual_likelihood(first, half, second, half, "mean").item() == pytest.approx(-0.5)
    assert mutual_likelihood(first, half, first, half, "sum").item() == 0


def test_fusion_by_hand_and_over_ranks() -> None:
    means, variances = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    labels = torch.zeros(1, 1, 2, dtype=torch.long)
    weighted, precisions, counts = fusion_sums(means, variances, labels, 2)
    mean, variance = fuse(weighted, precisions)
    assert [mean[0].item(), variance[0].item()] == pytest.approx([1, 0.75])
    assert (mean[1].item(), variance[1].item()) == (0, 1) and counts.tolist() == [2, 0]
    halves = [fusion_sums(means[..., place], variances[..., place], labels[..., place], 2) for place in (slice(1), slice(1, 2))]
    joint = fuse(halves[0][0] + halves[1][0], halves[0][1] + halves[1][1])
    torch.testing.assert_close(joint, (mean, variance))
    # Equal variances: the mean of the means, s / n.
    mean, variance = fuse(*fusion_sums(means, torch.full_like(means, 0.5), labels, 2)[:2])
    assert [mean[0].item(), variance[0].item()] == pytest.approx([2, 0.25])


def test_variances_stay_within_their_bounds() -> None:
    numbers = torch.tensor([0.0, -50.0, 100.0, 1e4], requires_grad=True)
    found = variance_of(numbers)
    assert found[0].item() == pytest.approx(0.5, abs=1e-6) and found[1].item() == pytest.approx(1e-6, rel=1e-3)
    assert found[2:].tolist() == [1, 1]
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert numbers.grad is not None and numbers.grad.isfinite().all()


def test_the_head_is_the_students_alone_and_learns_slowly() -> None:
    method = make()
    assert not any("variance_head" in name for name, _ in method.teacher.named_parameters())
    groups = parameter_groups(method, TrainConfig())
    slow = [parameter for group in groups if group["lr_factor"] == 0.015625 for parameter in group["params"]]
    assert {id(parameter) for parameter in slow} == {id(parameter) for parameter in method.variance_head.parameters()}
    head, features = VarianceHead(5, 7).eval(), torch.randn(2, 5, 3, 4)
    variances = head(features)
    assert variances.shape == (2, 7, 3, 4) and (variances > 0).all() and (variances < 1).all()
    with torch.no_grad():
        head.first.weight *= 3  # its rows are taken at unit length
    torch.testing.assert_close(head(features), variances)


def gaussians(*shape: int, double: bool = True) -> tuple[Tensor, Tensor]:
    dtype = torch.double if double else torch.float
    return torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype).clamp(min=LEAST_VARIANCE)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("channels", [1, 2, 6, 7, 16])  # logarithms are of one, two or four channels
@pytest.mark.parametrize("anchors_together", [1, 3, 5, 100])  # of five
def test_separation_is_the_cross_entropy_of_the_scores(
    reduce: Reduce, channels: int, anchors_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is autograd through the table of all scores, in double precision."""
    torch.manual_seed(0)
    monkeypatch.setitem(_CHUNK, "cpu", anchors_together * 4 * channels + 1)
    anchors, keys = gaussians(5, channels), gaussians(4, channels)
    for tensor in anchors:
        tensor.requires_grad_()
    table = mutual_likelihood(anchors[0][:, None], anchors[1][:, None], *keys, reduce)
    expected = F.cross_entropy(table / 0.7, torch.zeros(5, dtype=torch.long))
    found = separation(*anchors, *keys, reduce, 0.7)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(3 * loss, anchors) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(separation(*anchors, *keys, reduce, 0.7), expected)


def test_separation_of_the_surest_and_of_one_key() -> None:
    """Products of four variances stay above the least float; a fused class may be surer than any pixel."""
    torch.manual_seed(0)
    means, _ = gaussians(3, 8, double=False)
    keys, least = gaussians(4, 8, double=False)[0], torch.full((3, 8), LEAST_VARIANCE).requires_grad_()
    key_variances = torch.full((4, 8), LEAST_VARIANCE)
    key_variances[0] = 1e-12
    double = [tensor.detach().double() for tensor in (means, least, keys, key_variances)]
    table = mutual_likelihood(double[0][:, None], double[1][:, None], double[2], double[3], "sum")
    found = separation(means, least, keys, key_variances, "sum", 1.0)
    assert found.item() == pytest.approx(F.cross_entropy(table, torch.zeros(3, dtype=torch.long)).item(), rel=1e-5)
    alone = separation(means, least, keys[:1], key_variances[:1], "sum", 1.0)
    (gradient,) = torch.autograd.grad(alone, least)
    assert alone.item() == 0 and not gradient.any()


def alike(num_pixels: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances, labels and logits of cells that are alike within each of two classes, half of the cells each."""
    labels = (torch.arange(num_pixels).view(1, 2, num_pixels // 2) >= num_pixels // 2).long()
    table = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    spread = torch.tensor([[0.2, 0.4, 0.3], [0.5, 0.1, 0.6]])
    means, variances = (values[labels].permute(0, 3, 1, 2).contiguous() for values in (table, spread))
    return means, variances, labels, torch.zeros(1, 2, 2, num_pixels // 2)


@pytest.mark.parametrize(("reduce", "temperature"), [("sum", 1.0), ("sum", 0.5), ("mean", 2.0)])
def test_the_contrast_by_hand_where_the_draw_does_not_matter(reduce: Any, temperature: float) -> None:
    method = make(reduce=reduce, temperature=temperature, num_queries=5, num_negatives=7)
    means, variances, labels, logits = alike()
    means.requires_grad_()
    found = method._contrast(means, variances, labels, logits)
    unit = torch.eye(3)[:2]
    losses = []
    for own, other in ((0, 1), (1, 0)):
        spread = {label: variances[0, :, label, 0] for label in (0, 1)}
        towards = mutual_likelihood(unit[own], spread[own], unit[own], spread[own] / 4, reduce) / temperature
        away = mutual_likelihood(unit[own], spread[own], unit[other], spread[other], reduce) / temperature
        losses.append(math.log(1 + 7 * math.exp(away - towards)))
    assert found.item() == pytest.approx(sum(losses) / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, means)
    assert gradient.any()


def test_what_takes_part() -> None:
    method = make(num_queries=5, num_negatives=7)
    means, variances, labels, logits = alike()
    one_class = torch.where(labels == 1, IGNORE_INDEX, labels)
    assert method._contrast(means, variances, one_class, logits).item() == 0
    assert method._contrast(means, variances, torch.full_like(labels, IGNORE_INDEX), logits).item() == 0
    both = method._contrast(means, variances, labels, logits).item()
    sure = logits.clone()
    sure[:, 0] += 10 * (labels == 0)  # no anchor of class 0 is left, which counts in the mean all the same
    assert 0 < method._contrast(means, variances, labels, sure).item() < both


def test_the_weight_falls() -> None:
    method = make(unsup_threshold=0.0, valid_threshold=0.0, hard_threshold=1.0, num_queries=8, num_negatives=8)
    terms = []
    for progress in (0.0, 0.9999):
        torch.manual_seed(1)
        terms.append(method.eval()(make_batch(), clock_at(progress)).terms["contrast"].item())
    assert terms[1] / terms[0] == pytest.approx(math.exp(-5), rel=0.01)


def test_what_is_void_is_said() -> None:
    (warning,) = PRCL.warnings(PRCL.configure("published"), 21)
    assert warning.startswith("temperature 100 of mean scores") and "use reduce: sum with temperature 1" in warning
    assert PRCL.warnings(PRCL.configure(), 21) == []
