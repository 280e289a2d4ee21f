"""Pseudo-labels on maps small enough to label by hand."""

import torch

from css_ray.functional.pseudo_labels import agreement, at_class, collaborate, most_likely
from css_ray.types import IGNORE_INDEX as V

A, B = torch.tensor([[[0, 1], [2, 0]]]), torch.tensor([[[0, 2], [2, 1]]])
AGREED = torch.tensor([[[0, V], [2, V]]])
PROBABILITIES = torch.tensor([[[[0.7, 0.1]], [[0.2, 0.5]], [[0.1, 0.4]]]])  # two pixels, three classes


def test_most_likely() -> None:
    value, labels = most_likely(PROBABILITIES)
    assert labels.tolist() == [[[0, 1]]]
    torch.testing.assert_close(value, torch.tensor([[[0.7, 0.5]]]))


def test_at_class_reads_the_own_class_and_0_where_there_is_none() -> None:
    torch.testing.assert_close(at_class(PROBABILITIES, torch.tensor([[[2, V]]])), torch.tensor([[[0.1, 0.0]]]))


def test_agreement() -> None:
    assert torch.equal(agreement(A, B), AGREED)


def test_each_strategy_gives_each_loss_its_labels() -> None:
    for strategy, (unsup, contrast) in {
        "logits": (A, A),
        "representations": (B, B),
        "mix": (AGREED, AGREED),
        "cross": (B, A),  # each space learns from the other
    }.items():
        targets = collaborate(strategy, A, B)  # type: ignore[arg-type]
        assert torch.equal(targets[0], unsup) and torch.equal(targets[1], contrast), strategy
