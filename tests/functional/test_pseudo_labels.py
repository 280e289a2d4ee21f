"""Pseudo-labels on maps small enough to label by hand."""

import pytest
import torch
from torch.nn import functional as F

from css_ray.functional.pseudo_labels import (
    agreement,
    at_class,
    augmented_probabilities,
    collaborate,
    most_likely,
    reliability,
)
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


def test_reliability_is_the_mean_iou_with_the_final_prediction() -> None:
    """[0, 1, 1, 1] against [0, 0, 1, 1]: class 0 has 1 of 2 pixels, class 1 has 2 of 3."""
    final = torch.tensor([[[0, 0], [1, 1]], [[2, 2], [2, 2]]])
    other = torch.tensor([[[0, 1], [1, 1]], [[2, 2], [2, 0]]])
    first, second = (1 / 2 + 2 / 3) / 2, (3 / 4 + 0) / 2  # of the second image, class 0 is in one prediction alone
    assert reliability([other], final, 4).tolist() == pytest.approx([0.58333, 0.375], abs=1e-5)
    assert reliability([final], final, 4).tolist() == [1, 1]  # one class alone, too
    assert reliability([final, other], final, 4).tolist() == pytest.approx([(1 + first) / 2, (1 + second) / 2])


def pixelwise(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images, 1 - images[:, :1]], dim=1) * 5


@pytest.mark.parametrize("flip", [False, True])
def test_one_scale_of_a_pixelwise_network_is_its_prediction(flip: bool) -> None:
    images = torch.rand(3, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    found = augmented_probabilities(pixelwise, images, (1.0,), flip=flip)
    torch.testing.assert_close(found, pixelwise(images).softmax(dim=1))


def test_scales_and_mirrored_images_are_averaged_one_by_one() -> None:
    images = torch.rand(5, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 3, 64)
    calls: list[tuple[int, ...]] = []

    def predict(copies: torch.Tensor) -> torch.Tensor:  # neither pixelwise nor symmetric
        calls.append(tuple(copies.shape))
        return pixelwise(copies) * ramp[: copies.shape[3]] + F.avg_pool2d(copies, 3, 1, 1).mean(dim=1, keepdim=True)

    found = augmented_probabilities(predict, images, (0.5, 1.0, 2.0), flip=True)
    assert calls == 2 * [(5, 3, 4, 7)] + 2 * [(5, 3, 9, 14)] + 10 * [(1, 3, 18, 28)]  # never more pixels than at 1
    for image, probabilities in zip(images, found, strict=True):
        parts = []
        for height, width in ((4, 7), (9, 14), (18, 28)):
            copy = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)
            for mirrored in (False, True):
                logits = predict(copy.flip(-1) if mirrored else copy)
                part = (logits.flip(-1) if mirrored else logits).softmax(dim=1)
                parts.append(F.interpolate(part, (9, 14), mode="bilinear", align_corners=True)[0])
        torch.testing.assert_close(probabilities, torch.stack(parts).mean(dim=0))
