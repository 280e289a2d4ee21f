"""Pseudo-labels on maps small enough to label by hand."""

import torch

from css_ray.functional.pseudo_labels import agreement, at_class, collaborate, most_likely
from css_ray.types import IGNORE_INDEX as V

# 2x2 images: both spaces agree on the left column.
A, B = torch.tensor([[[0, 1], [2, 0]]]), torch.tensor([[[0, 2], [2, 1]]])
AGREED = torch.tensor([[[0, V], [2, V]]])
PROBABILITIES = torch.tensor([[[[0.7, 0.1]], [[0.2, 0.5]], [[0.1, 0.4]]]])  # two pixels, three classes


def test_most_likely() -> None:
    value, labels = most_likely(PROBABILITIES)
    assert labels.tolist() == [[[0, 1]]]
    torch.testing.assert_close(value, torch.tensor([[[0.7, 0.5]]]))


def test_at_class_reads_the_own_class_and_0_where_there_is_none() -> None:
    torch.testing.assert_close(at_class(PROBABILITIES, torch.tensor([[[2, V]]])), torch.tensor([[[0.1, 0.0]]]))


def test_at_class_of_a_2x2_image_is_not_the_largest_entry() -> None:
    first = torch.tensor([[0.9, 0.3], [0.6, 0.2]])
    probabilities = torch.stack([first, 1 - first]).unsqueeze(0)
    own = at_class(probabilities, torch.tensor([[[0, 0], [1, V]]]))
    torch.testing.assert_close(own, torch.tensor([[[0.9, 0.3], [0.4, 0.0]]]))
    assert at_class(probabilities.double(), torch.zeros(1, 2, 2, dtype=torch.int64)).dtype == torch.float64


def test_agreement() -> None:
    assert torch.equal(agreement(A, B), AGREED) and torch.equal(agreement(B, A), AGREED)
    # Where one has no label there is nothing to agree on, nor where both have none.
    with_void = torch.tensor([[[0, V], [V, 0]]])
    assert agreement(A, with_void).tolist() == [[[0, V], [V, 0]]]
    assert agreement(with_void, with_void).tolist() == with_void.tolist()


def test_each_strategy_gives_each_loss_its_labels() -> None:
    for strategy, (unsup, contrast) in {
        "logits": (A, A),
        "representations": (B, B),
        "mix": (AGREED, AGREED),
        "cross": (B, A),  # each space learns from the other
    }.items():
        targets = collaborate(strategy, A, B)  # type: ignore[arg-type]
        assert torch.equal(targets[0], unsup) and torch.equal(targets[1], contrast), strategy


def test_each_strategy_with_void_of_a_2x2_image() -> None:
    logits, representations = torch.tensor([[[1, V], [2, 0]]]), torch.tensor([[[1, 2], [V, 1]]])
    for strategy, unsup, contrast in (
        ("logits", [[1, V], [2, 0]], [[1, V], [2, 0]]),
        ("representations", [[1, 2], [V, 1]], [[1, 2], [V, 1]]),
        ("mix", [[1, V], [V, V]], [[1, V], [V, V]]),
        ("cross", [[1, 2], [V, 1]], [[1, V], [2, 0]]),
    ):
        targets = collaborate(strategy, logits, representations)  # type: ignore[arg-type]
        assert [target[0].tolist() for target in targets] == [unsup, contrast], strategy
    assert logits.tolist() == [[[1, V], [2, 0]]]  # the inputs stay as they were
