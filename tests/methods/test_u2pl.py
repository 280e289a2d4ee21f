"""U2PL: the contract, its queue, and its facts by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.contrast import noise_contrast
from css_ray.functional.pseudo_labels import entropy, percentile, rank_of_classes
from css_ray.methods import U2PL
from css_ray.methods.queue import FeatureQueue
from css_ray.testing import NUM_CLASSES, MethodContract, clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX, Prediction
from css_ray.views import Views

SMALL: dict[str, Any] = {
    "num_queries": 16, "num_negatives": 16, "queue": 64, "num_new": 16, "low_rank": 1, "class_threshold": 0.0, "warm_up": 0.0
}  # fmt: skip


class TestU2PL(MethodContract):
    method_class = U2PL
    settings: ClassVar = SMALL


def make(**settings: Any) -> U2PL:
    torch.manual_seed(0)
    method = make_method(U2PL, Views(), **(SMALL | settings))
    assert isinstance(method, U2PL)
    return method


# Functions


def test_the_percentile_is_numpys() -> None:
    """Of 0 to 9 the 80th is 7.2."""
    values = torch.arange(10.0)
    everywhere = torch.ones(10, dtype=torch.bool)
    assert percentile(values, 80, everywhere).item() == pytest.approx(7.2)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 5, 7, generator=generator)
    mask = torch.rand(3, 5, 7, generator=generator) < 0.4
    for percent in (0.0, 12.5, 50.0, 99.0, 100.0):
        assert percentile(values, percent, mask).item() == pytest.approx(np.percentile(values[mask].numpy(), percent), rel=1e-5)
    assert percentile(values, 50, torch.zeros_like(mask)).isinf()


def test_entropy_and_ranks_by_hand() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).view(1, 5, 1, 1)
    expected = -sum(float(p) * np.log(float(p)) for p in probabilities.flatten())
    assert entropy(probabilities).item() == pytest.approx(expected, rel=1e-5)
    assert entropy(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).item() == 0
    assert rank_of_classes(probabilities).flatten().tolist() == [0, 1, 2, 3, 4]
    assert rank_of_classes(probabilities.flip(1)).flatten().tolist() == [4, 3, 2, 1, 0]


def test_one_anchor_at_its_mean_with_50_negatives_at_right_angles() -> None:
    anchor = torch.tensor([[[1.0, 0.0]]])
    keys = torch.tensor([[0.0, 1.0]]).half()
    found = noise_contrast(anchor, anchor, keys, torch.zeros(1, 50, dtype=torch.int64), 0.5)
    assert found.item() == pytest.approx(np.log(1 + 50 * np.exp(-2)), rel=1e-5) == pytest.approx(2.04985, abs=1e-4)


# The queue


def test_a_queue_keeps_the_newest_of_each_class_as_unit_vectors() -> None:
    queue = FeatureQueue(3, 5, 2)
    kept: dict[int, list[list[float]]] = {0: [], 1: [], 2: []}
    for step in range(6):
        angle = torch.arange(4) + 4.0 * step
        features = 3 * torch.stack([angle.cos(), angle.sin()], dim=1)
        members = torch.zeros(3, 4, dtype=torch.bool)
        members[0, 0] = members[0, 2] = members[2, 2] = True  # one row enters two queues, class 1 gets none
        torch.manual_seed(step)
        queue.push(features, members, most=4)
        kept[0] += [(features[i] / 3).tolist() for i in (0, 2)]
        kept[2].append((features[2] / 3).tolist())
    assert queue.length.tolist() == [5, 0, 5]
    for label in (0, 2):
        rows = queue.rows[label * 5 : (label + 1) * 5].float().tolist()
        # Two rows of a step enter in any order: the last four of class 0 are there, and one of the two before.
        sure = kept[label][-4:] if label == 0 else kept[label][-5:]
        for expected in sure:
            assert any(np.allclose(expected, row, atol=2e-3) for row in rows)
    assert not queue.rows[-1].any() and not queue.rows[5:10].any()


def test_a_queue_takes_at_most_so_many_each_as_likely() -> None:
    counts = torch.zeros(6)
    for seed in range(600):
        torch.manual_seed(seed)
        queue = FeatureQueue(1, 8, 6)
        queue.push(torch.eye(6), torch.tensor([[True, True, False, True, True, True]]), most=2)
        assert queue.length.item() == 2
        counts += queue.rows[:8].float().sum(dim=0)
    assert counts[2] == 0 and counts.sum() == 1200
    assert (counts[[0, 1, 3, 4, 5]] - 240).abs().max() < 65  # five standard deviations


def test_draws_are_of_the_class_and_of_what_it_has() -> None:
    queue = FeatureQueue(2, 4, 2)
    queue.push(torch.eye(2), torch.tensor([[True, False], [False, True]]), most=2)
    queue.push(torch.eye(2), torch.tensor([[True, False], [False, False]]), most=2)
    torch.manual_seed(0)
    places = queue.draw(torch.tensor([0, 1]).repeat(200))
    assert sorted(set(places[::2].tolist())) == [0, 1] and set(places[1::2].tolist()) == {4}


# The losses


@pytest.mark.parametrize(("progress", "percent", "share"), [(0.0, 80, 20), (0.5, 90, 10)])
def test_the_shares_of_entropy_over_training(
    progress: float, percent: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def remember(values: Tensor, wanted: float, mask: Tensor) -> Tensor:
        asked.append(wanted)
        return percentile(values, wanted, mask)

    monkeypatch.setattr("css_ray.methods.u2pl.percentile", remember)
    make()(make_batch(), clock_at(progress))
    assert asked == pytest.approx([percent, share, 100 - share])


def test_the_unsupervised_loss_counts_all_pixels_and_averages_the_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pixels of a cross entropy of 1 of which 8 are kept make 1.25: here, whatever is kept of a batch."""
    method, batch = make(contrast_weight=0.0, cutmix_probability=0.0), make_batch()
    monkeypatch.setattr("css_ray.methods.u2pl.cross_entropy", lambda logits, labels: logits.sum() * 0 + 1)
    losses = method(batch, clock_at(0.0))
    rate = losses.logs["unsup_pass_rate"]
    assert isinstance(rate, tuple)
    kept, valid = (part.item() for part in rate)
    assert valid == batch.unlabelled_valid.sum() and kept / valid == pytest.approx(0.8, abs=0.02)
    assert losses.terms["unsup"].item() == pytest.approx(valid / kept)


def queues_after(probabilities: Tensor, labels: Tensor, confused: Tensor, count: int, **settings: Any) -> list[int]:
    torch.manual_seed(0)
    method = make_method(U2PL, **(SMALL | settings))
    assert isinstance(method, U2PL)
    classes = probabilities.shape[1]
    method.queue = FeatureQueue(classes, 64, 6)
    method.student.num_classes = classes
    rows = torch.randn(len(labels), 6, *labels.shape[1:])
    method._remember(rows, probabilities, labels, labels != IGNORE_INDEX, confused, count)
    return method.queue.length.tolist()


def test_which_queues_an_unsure_pixel_feeds() -> None:
    """Of five classes with .4, .3, .15, .1, .05: those of rank 3 and 4; above high_rank none."""
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).view(1, 5, 1, 1)
    label, unsure = torch.tensor([[[0]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    assert queues_after(probabilities, label, unsure, 0, low_rank=3) == [0, 0, 0, 1, 1]
    assert queues_after(probabilities, label, unsure, 0, low_rank=3, high_rank=4) == [0, 0, 0, 1, 0]
    assert queues_after(probabilities, label, ~unsure, 0, low_rank=3) == [0] * 5


def test_which_queues_a_labelled_pixel_feeds() -> None:
    """Of the likeliest three classes, those that it is not."""
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).view(1, 5, 1, 1)
    nowhere = torch.zeros(1, 1, 1, dtype=torch.bool)
    assert queues_after(probabilities, torch.tensor([[[1]]]), nowhere, 1, low_rank=3) == [1, 0, 1, 0, 0]
    assert queues_after(probabilities, torch.tensor([[[4]]]), nowhere, 1, low_rank=3) == [1, 1, 1, 0, 0]
    assert queues_after(probabilities, torch.tensor([[[IGNORE_INDEX]]]), nowhere, 1, low_rank=3) == [0] * 5


def test_the_contrast_by_a_loop() -> None:
    """With queues of one vector each, anchors that are alike and no chance left, against Eq. 5 of the paper class by class."""
    method = make(num_queries=3, num_negatives=2, class_threshold=0.0, entropy=0.0)
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(NUM_CLASSES, 6, generator=generator)
    labels = (torch.arange(36).view(1, 6, 6) // 12).repeat(2, 1, 1)  # classes 0, 1 and 2 of four
    student, teacher = (each[labels].permute(0, 3, 1, 2) for each in (table, table + 0.3))
    sharp = 20 * F.one_hot(labels, NUM_CLASSES).permute(0, 3, 1, 2).float()
    vectors = F.normalize(torch.randn(NUM_CLASSES, 6, generator=generator), dim=1)
    method.queue.push(vectors, torch.eye(NUM_CLASSES, dtype=torch.bool), most=1)
    method.queue.pushed[1] = 0  # class 1 has no negative: it counts in the mean all the same
    method._remember = lambda *arguments: None  # type: ignore[method-assign]
    found = method._contrast(student, Prediction(sharp, teacher), labels[:1], labels[1:], 0.5)
    losses = []
    for label in (0, 2):
        positive = F.cosine_similarity(table[label], table[label] + 0.3, dim=0) / 0.5
        negative = F.cosine_similarity(table[label], vectors[label], dim=0) / 0.5
        losses.append(-torch.log(positive.exp() / (positive.exp() + 2 * negative.exp())))
    assert found.item() == pytest.approx(float(sum(losses)) / 3, rel=2e-3)  # the queue is of half precision


def test_one_class_has_no_contrast() -> None:
    method, batch = make(), make_batch()
    batch.labels[:] = 0
    with torch.no_grad():
        for network in (method.student, method.teacher.model):
            bias = network.logits_head[-1].bias
            assert isinstance(bias, Tensor)
            bias[0] += 100
    loss = method(batch, clock_at(0.5)).terms["contrast"]
    loss.backward()
    assert loss.item() == 0


# The teacher


def test_the_teacher_is_a_copy_until_unlabelled_images_come() -> None:
    method = make(warm_up=0.5)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)

    def step(progress: float) -> list[float]:
        losses = method(make_batch(), clock_at(progress))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step(clock_at(progress))
        return [losses.terms[name].item() for name in ("unsup", "contrast")]

    def distance() -> float:
        pairs = zip(method.student.parameters(), method.teacher.model.parameters(), strict=True)
        return float(sum((own - other).detach().abs().sum() for own, other in pairs))

    assert step(0.1) == [0.0, 0.0] and distance() == 0 and method.teacher.num_updates == 0
    assert all(
        own is not other for own, other in zip(method.student.parameters(), method.teacher.model.parameters(), strict=True)
    )
    step(0.6)  # the first update copies once more: 1 - 1 / 1
    assert distance() == 0
    step(0.6)
    assert distance() > 0


def test_a_window_without_ranks_is_a_warning() -> None:
    config = U2PL.configure(low_rank=3)
    assert U2PL.warnings(config, 21) == []
    (sentence,) = U2PL.warnings(config, 3)
    assert sentence == "low_rank 3 leaves no class of 3 for which an unsure pixel is a negative; use at most 2"
