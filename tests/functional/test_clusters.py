"""Prototypes of a class that has several: by hand, and against loops over features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.clusters import cluster_sums, cosines_to, kmeans, move_clusters
from css_ray.functional.losses import cross_entropy
from css_ray.types import IGNORE_INDEX

TWO = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.6, 0.8]]])
"""Two prototypes of each of two classes."""


def test_logits_by_hand() -> None:
    """f = (1, 0): the nearest of class 0 has the cosine 1, the nearest of class 1, its second, 0.6."""
    cosines = cosines_to(torch.tensor([[1.0, 0.0]]), TWO)
    logits = cosines.amax(dim=2) / 0.1
    assert logits[0].tolist() == pytest.approx([10, 6])
    assert cosines.argmax(dim=2)[0].tolist() == [0, 1]
    loss = cross_entropy(logits, torch.tensor([0])).item()
    assert loss == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-4) == pytest.approx(0.01815, abs=1e-5)


def test_lengths_do_not_matter() -> None:
    torch.manual_seed(0)
    features, prototypes = torch.randn(5, 3), torch.randn(4, 2, 3)
    expected = cosines_to(features, prototypes)
    torch.testing.assert_close(cosines_to(7 * features, prototypes), expected)
    torch.testing.assert_close(cosines_to(features, 7 * prototypes), expected)
    assert cosines_to(torch.zeros(1, 3), prototypes).tolist() == [[[0, 0]] * 4]


def looped(features: Tensor, prototypes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    sums, counts = torch.zeros_like(prototypes), torch.zeros(prototypes.shape[:2])
    for feature, label in zip(features, labels.tolist(), strict=True):
        if label == IGNORE_INDEX:
            continue
        nearest = max(
            range(prototypes.shape[1]), key=lambda k: float(F.cosine_similarity(feature, prototypes[label, k], dim=0))
        )
        sums[label, nearest] += feature
        counts[label, nearest] += 1
    return sums, counts


@pytest.mark.parametrize(("num_classes", "count"), [(3, 2), (2, 1), (150, 3)])  # 450 numbers of clusters: 255 is one of them
def test_features_join_the_nearest_prototype_of_their_class(num_classes: int, count: int) -> None:
    torch.manual_seed(0)
    features, prototypes = torch.randn(700, 4), torch.randn(num_classes, count, 4)
    labels = torch.randint(0, num_classes, (700,))
    labels[::5] = IGNORE_INDEX
    found = cluster_sums(features, cosines_to(features, prototypes), labels)
    torch.testing.assert_close(found, looped(features, prototypes, labels))


def test_prototypes_move_to_the_mean_of_raw_features() -> None:
    features, labels = torch.tensor([[2.0, 0.0], [4.0, 1.0], [0.0, 3.0], [9.0, 9.0]]), torch.tensor([0, 0, 0, IGNORE_INDEX])
    seen = torch.tensor([True, True])
    sums, counts = cluster_sums(features, cosines_to(features, TWO), labels)
    value, after = move_clusters(TWO, seen, sums, counts, 0.75)
    assert value[0].flatten().tolist() == pytest.approx([0.75 + 0.25 * 3, 0.25 * 0.5, 0, 0.75 + 0.25 * 3])
    assert torch.equal(value[1], TWO[1]) and torch.equal(after, seen)  # without a pixel it stays
    # One prototype and a decay of 0: the mean.
    one = TWO[:, :1]
    sums, counts = cluster_sums(features, cosines_to(features, one), labels)
    assert move_clusters(one, seen, sums, counts, 0.0)[0][0, 0].tolist() == pytest.approx([2, 4 / 3])
    assert torch.equal(move_clusters(TWO, seen, *cluster_sums(features, cosines_to(features, TWO), labels), 1.0)[0], TWO)


def test_a_class_that_is_met_starts_at_its_mean() -> None:
    """Its prototypes are a thousandth apart, so that they part its features from then on."""
    torch.manual_seed(0)
    value = F.normalize(torch.randn(2, 3, 8), dim=2)
    seen = torch.tensor([False, False])
    features, labels = 2 + torch.rand(40, 8), torch.ones(40, dtype=torch.long)
    moved, after = move_clusters(value, seen, *cluster_sums(features, cosines_to(features, value), labels), 0.99)
    assert after.tolist() == [False, True] and torch.equal(moved[0], value[0])
    torch.testing.assert_close(moved[1, 0], features.mean(dim=0))
    torch.testing.assert_close(moved[1, 1:], features.mean(dim=0) + 1e-3 * value[1, 1:])
    _, counts = cluster_sums(features, cosines_to(features, moved), labels)
    assert (counts[1] > 0).sum() > 1


# K-means


def test_clusters_that_are_apart_are_found() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    rows = centres.repeat_interleave(25, dim=0) + 0.1 * torch.randn(100, 2)
    expected = rows.view(4, 25, 2).mean(dim=1).double()
    for seed in range(10):
        torch.manual_seed(seed)
        found = kmeans(rows, 4)
        assert found.dtype == torch.float64
        order = torch.cdist(expected, found).argmin(dim=1)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        torch.testing.assert_close(found[order], expected)


def test_centres_are_the_means_of_what_is_nearest_to_them() -> None:
    torch.manual_seed(0)
    rows = torch.randn(200, 3).double()
    found = kmeans(rows, 5, rounds=100)
    nearest = [min(range(5), key=lambda k: float((row - found[k]).square().sum())) for row in rows]
    for k in range(5):
        mine = torch.stack([row for row, own in zip(rows, nearest, strict=True) if own == k])
        torch.testing.assert_close(found[k], mine.mean(dim=0))


def test_one_cluster_is_the_mean() -> None:
    rows = torch.randn(50, 4)
    torch.testing.assert_close(kmeans(rows, 1)[0], rows.double().mean(dim=0))


def test_features_fewer_than_clusters_are_repeated() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    found = kmeans(rows, 5)
    assert torch.equal(found[:2], rows.double())
    apart = found[2:] - rows.double()[[0, 1, 0]]
    assert (apart != 0).all() and apart.abs().max() < 6e-3
    alike = kmeans(torch.ones(9, 3), 4)  # none is far from another
    torch.testing.assert_close(alike, torch.ones(4, 3).double())
