"""Each equation as a plain loop over pixels and classes, against the tensor code: random maps with void and absent classes.

The loops work in float64 on the numbers that the code under test was given.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from css_ray.functional.contrast import negative_class_distribution
from css_ray.functional.losses import (
    cross_entropy,
    ohem_cross_entropy,
    probability_consistency,
    unsupervised_cross_entropy,
)
from css_ray.functional.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from css_ray.functional.pseudo_labels import at_class, most_likely
from css_ray.functional.similarity import (
    class_means,
    class_sums,
    closest_prototypes,
    cosine_similarity,
    moving_average,
    softmax_similarity,
)
from css_ray.types import IGNORE_INDEX

B, C, D, H, W = 2, 6, 5, 4, 3
ABSENT = (1, 4)
PIXELS = [(b, y, x) for b in range(B) for y in range(H) for x in range(W)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

seeds = pytest.mark.parametrize("seed", range(4))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def draw(seed: int, dtype: torch.dtype, *size: int, scale: float = 2.0) -> torch.Tensor:
    """A leaf with a gradient; the same numbers in both types, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def draw_labels(seed: int) -> torch.Tensor:
    """[B, H, W]: a quarter is void, and the classes ABSENT do not occur."""
    generator = torch.Generator().manual_seed(1000 + seed)
    present = torch.tensor([c for c in range(C) if c not in ABSENT])
    labels = present[torch.randint(len(present), (B, H, W), generator=generator)]
    return torch.where(torch.rand(B, H, W, generator=generator) < 0.25, IGNORE_INDEX, labels)


def draw_mask(seed: int, *size: int) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(2000 + seed)) < 0.6


def close(found: torch.Tensor, expected: torch.Tensor | Sequence[object], dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def same_value_and_gradient(found: torch.Tensor, expected: torch.Tensor, leaf: torch.Tensor, exact: torch.Tensor) -> None:
    """`leaf` is what `found` was computed from, `exact` its float64 copy that the loop read."""
    close(found, expected, leaf.dtype)
    gradient, expected_gradient = torch.autograd.grad(found, leaf)[0], torch.autograd.grad(expected, exact)[0]
    assert expected_gradient.any()
    close(gradient, expected_gradient, leaf.dtype)


def exact_copy(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.detach().double().requires_grad_()


def softmax(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def pixel_losses(logits: torch.Tensor, labels: torch.Tensor) -> dict[tuple[int, int, int], torch.Tensor]:
    """-log of the softmax at the label, for each pixel (image, row, column) that has one."""
    losses = {}
    for b, y, x in PIXELS:
        label = int(labels[b, y, x])
        if label != IGNORE_INDEX:
            total = sum(logits[b, c, y, x].exp() for c in range(C))
            losses[b, y, x] = -(logits[b, label, y, x].exp() / total).log()
    return losses


@seeds
@dtypes
def test_eq_1_label_and_confidence(seed: int, dtype: torch.dtype) -> None:
    logits = draw(seed, dtype, B, C, H, W).detach()
    confidence, labels = most_likely(logits.softmax(dim=1))
    for b, y, x in PIXELS:
        probabilities = softmax(logits[b, :, y, x].tolist())
        assert int(labels[b, y, x]) == max(range(C), key=lambda c: probabilities[c])
        close(confidence[b, y, x], max(probabilities), dtype)  # type: ignore[arg-type]


@seeds
@dtypes
def test_eq_2_mean_of_the_representations_of_a_class(seed: int, dtype: torch.dtype) -> None:
    representations, labels = draw(seed, dtype, B, D, H, W).detach(), draw_labels(seed)
    sums, counts = class_sums(representations, labels, C)
    means = class_means(sums, counts)
    for c in range(C):
        rows = [representations[b, :, y, x].tolist() for b, y, x in PIXELS if int(labels[b, y, x]) == c]
        assert int(counts[c]) == len(rows) and (len(rows) == 0) == (c in ABSENT)
        close(means[c], [sum(row[d] for row in rows) / len(rows) if rows else 0.0 for d in range(D)], dtype)
    # What two ranks sum up apart is the same mean.
    halves = [class_sums(representations[b : b + 1], labels[b : b + 1], C) for b in range(B)]
    close(class_means(sum(s for s, _ in halves), sum(n for _, n in halves)), means.double(), dtype)  # type: ignore[arg-type]


@seeds
@dtypes
def test_eq_3_moving_average_over_several_steps(seed: int, dtype: torch.dtype) -> None:
    decay = 0.9
    value, seen = torch.zeros(C, D, dtype=dtype), torch.zeros(C, dtype=torch.bool)
    expected: dict[int, list[float]] = {}
    for step in range(6):
        representations, labels = draw(10 * seed + step, dtype, B, D, H, W).detach(), draw_labels(10 * seed + step)
        missing = step % C  # comes first at a later step, or pauses for one
        labels = torch.where(labels == missing, IGNORE_INDEX, labels)
        value, seen = moving_average(value, seen, *class_sums(representations, labels, C), decay)
        for c in range(C):
            rows = [representations[b, :, y, x].tolist() for b, y, x in PIXELS if int(labels[b, y, x]) == c]
            if rows:
                mean = [sum(row[d] for row in rows) / len(rows) for d in range(D)]
                before = expected.get(c, mean)
                expected[c] = [decay * old + (1 - decay) * new for old, new in zip(before, mean, strict=True)]
        assert seen.tolist() == [c in expected for c in range(C)]
        close(value, [expected.get(c, [0.0] * D) for c in range(C)], dtype)
    assert set(expected) == set(range(C)) - set(ABSENT)


@seeds
@dtypes
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_eq_4_and_5_nearest_prototype_and_its_softmax_similarity(seed: int, dtype: torch.dtype, temperature: float) -> None:
    representations, prototypes = draw(seed, dtype, B, D, H, W).detach(), draw(seed + 50, dtype, C, D).detach()
    labels = draw_labels(seed)
    seen = torch.tensor([c not in ABSENT for c in range(C)])
    known = [c for c in range(C) if seen[c]]
    cosines = cosine_similarity(representations, prototypes)
    similarity = softmax_similarity(cosines, seen, temperature)
    indicator, pseudo_labels = most_likely(similarity)
    own = at_class(similarity, labels)
    for b, y, x in PIXELS:
        z = representations[b, :, y, x].tolist()
        sims = [cosine(z, prototypes[c].tolist()) for c in range(C)]
        close(cosines[b, :, y, x], sims, dtype)
        total = sum(math.exp(sims[c] / temperature) for c in known)
        expected = [math.exp(sims[c] / temperature) / total if c in known else 0.0 for c in range(C)]
        close(similarity[b, :, y, x], expected, dtype)
        nearest = max(known, key=lambda c: sims[c])
        assert int(pseudo_labels[b, y, x]) == nearest
        close(indicator[b, y, x], expected[nearest], dtype)  # type: ignore[arg-type]
        label = int(labels[b, y, x])
        close(own[b, y, x], 0.0 if label == IGNORE_INDEX else expected[label], dtype)  # type: ignore[arg-type]


@seeds
@dtypes
def test_gradient_of_the_softmax_similarity(seed: int, dtype: torch.dtype) -> None:
    temperature, prototypes = 0.5, draw(seed + 50, dtype, C, D).detach()
    representations, weights = draw(seed, dtype, B, D, H, W), draw(seed + 60, dtype, B, C, H, W).detach()
    exact, rows = exact_copy(representations), prototypes.double()
    expected = torch.zeros((), dtype=torch.float64)
    for b, y, x in PIXELS:
        z = exact[b, :, y, x]
        sims = [(z * rows[c]).sum() / ((z * z).sum().sqrt() * (rows[c] * rows[c]).sum().sqrt()) for c in range(C)]
        total = sum((sim / temperature).exp() for sim in sims)
        expected = expected + sum(weights[b, c, y, x].double() * (sims[c] / temperature).exp() / total for c in range(C))
    seen = torch.ones(C, dtype=torch.bool)
    similarity = softmax_similarity(cosine_similarity(representations, prototypes), seen, temperature)
    same_value_and_gradient((weights * similarity).sum(), expected, representations, exact)


@seeds
@dtypes
def test_eq_7_supervised_loss(seed: int, dtype: torch.dtype) -> None:
    logits, labels = draw(seed, dtype, B, C, H, W), draw_labels(seed)
    exact = exact_copy(logits)
    losses = pixel_losses(exact, labels)
    same_value_and_gradient(cross_entropy(logits, labels), sum(losses.values()) / len(losses), logits, exact)  # type: ignore[arg-type]


@seeds
@dtypes
@pytest.mark.parametrize("reduction", ["pixel", "pixel_fixmatch", "image_fraction", "image_fraction_overcounted"])
def test_eq_8_unsupervised_loss(seed: int, dtype: torch.dtype, reduction: str) -> None:
    logits, labels, passed = draw(seed, dtype, B, C, H, W), draw_labels(seed), draw_mask(seed, B, H, W)
    assert bool((passed & (labels == IGNORE_INDEX)).any())  # such a pixel must count nowhere
    exact = exact_copy(logits)
    losses = pixel_losses(exact, labels)
    chosen = [pixel for pixel in losses if passed[pixel]]
    expected = torch.zeros((), dtype=torch.float64)
    if reduction.startswith("image_fraction"):
        for b in range(B):
            of_image = [pixel for pixel in losses if pixel[0] == b]
            counted = of_image if reduction == "image_fraction" else [pixel for pixel in PIXELS if pixel[0] == b]
            share = sum(bool(passed[pixel]) for pixel in counted) / len(of_image)
            expected = expected + share * sum(losses[pixel] for pixel in of_image) / len(losses)
    else:
        for pixel in chosen:
            expected = expected + losses[pixel] / (len(chosen) if reduction == "pixel" else len(losses))
    found = unsupervised_cross_entropy(logits, labels, passed, reduction)  # type: ignore[arg-type]
    same_value_and_gradient(found, expected, logits, exact)


@seeds
@dtypes
def test_image_fraction_with_an_image_without_pseudo_labels(seed: int, dtype: torch.dtype) -> None:
    logits, labels, passed = draw(seed, dtype, B, C, H, W), draw_labels(seed), draw_mask(seed, B, H, W)
    labels[0] = IGNORE_INDEX
    exact = exact_copy(logits)
    losses = pixel_losses(exact, labels)
    share = sum(bool(passed[pixel]) for pixel in losses) / len(losses)
    expected = share * sum(losses.values()) / len(losses)
    same_value_and_gradient(unsupervised_cross_entropy(logits, labels, passed), expected, logits, exact)  # type: ignore[arg-type]


@seeds
@dtypes
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.7])
@pytest.mark.parametrize("min_kept", [1, 8, 15, 1000])
def test_ohem(seed: int, dtype: torch.dtype, threshold: float, min_kept: int) -> None:
    logits, labels = draw(seed, dtype, B, C, H, W), draw_labels(seed)
    exact = exact_copy(logits)
    losses = sorted(pixel_losses(exact, labels).values(), key=lambda loss: -float(loss.detach()))  # hardest first
    below = sum(math.exp(-float(loss.detach())) <= threshold for loss in losses)
    kept = losses[: max(below, min_kept)]
    found = ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept)
    same_value_and_gradient(found, sum(kept) / len(kept), logits, exact)  # type: ignore[arg-type]


@seeds
@dtypes
def test_probability_consistency(seed: int, dtype: torch.dtype) -> None:
    logits, valid = draw(seed, dtype, B, C, H, W), draw_mask(seed, B, H, W)
    target = draw(seed + 70, dtype, B, C, H, W).detach().softmax(dim=1)
    exact = exact_copy(logits)
    squares = []
    for b, y, x in PIXELS:
        total = sum(exact[b, c, y, x].exp() for c in range(C))
        if valid[b, y, x]:
            squares += [(exact[b, c, y, x].exp() / total - target[b, c, y, x].double()) ** 2 for c in range(C)]
    same_value_and_gradient(probability_consistency(logits, target, valid), sum(squares) / len(squares), logits, exact)  # type: ignore[arg-type]


@seeds
@dtypes
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_relation_graph(seed: int, dtype: torch.dtype, temperature: float) -> None:
    prototypes = draw(seed, dtype, C, D).detach()
    present = torch.tensor([c not in ABSENT for c in range(C)])
    found = negative_class_distribution(prototypes, present, temperature)
    for c in range(C):
        others = [k for k in range(C) if present[k] and k != c]
        chances = softmax([cosine(prototypes[c].tolist(), prototypes[k].tolist()) / temperature for k in others])
        expected = dict(zip(others, chances, strict=True))
        close(found[c], [expected.get(k, 0.0) for k in range(C)], dtype)


@seeds
@dtypes
def test_closest_prototypes(seed: int, dtype: torch.dtype) -> None:
    prototypes = draw(seed, dtype, C, D).detach()
    seen = torch.tensor([c not in ABSENT for c in range(C)])
    pairs = {
        (first, second): cosine(prototypes[first].tolist(), prototypes[second].tolist())
        for first in range(C)
        for second in range(first + 1, C)
        if seen[first] and seen[second]
    }
    largest, first, second = closest_prototypes(prototypes, seen)
    expected = max(pairs, key=lambda pair: pairs[pair])
    assert (int(first), int(second)) == expected
    close(largest, pairs[expected], dtype)  # type: ignore[arg-type]


@seeds
def test_scores_against_a_loop_and_scikit_learn(seed: int) -> None:
    labels = draw_labels(seed)
    # Class 4 is predicted though absent, class 1 is neither; void pixels are predicted too.
    predicted = [c for c in range(C) if c != 1]
    drawn = torch.randint(len(predicted), (B, H, W), generator=torch.Generator().manual_seed(seed))
    predictions = torch.where(draw_mask(seed, B, H, W) & (labels != IGNORE_INDEX), labels, torch.tensor(predicted)[drawn])
    matrix = confusion_matrix(predictions, labels, C)

    pairs = [(int(labels[p]), int(predictions[p])) for p in PIXELS if int(labels[p]) != IGNORE_INDEX]
    assert matrix.tolist() == [[pairs.count((row, column)) for column in range(C)] for row in range(C)]
    ious: list[float] = []
    for c in range(C):
        union = sum(c in pair for pair in pairs)
        ious.append(pairs.count((c, c)) / union if union else math.nan)
    assert class_iou(matrix).tolist() == pytest.approx(ious, rel=1e-10, nan_ok=True)
    counted = [iou for iou in ious if not math.isnan(iou)]
    mean, absent = mean_iou(matrix)
    assert mean == pytest.approx(sum(counted) / len(counted), rel=1e-10) and absent == C - len(counted)
    assert math.isnan(ious[1])

    truth, guess = zip(*pairs, strict=True)
    assert matrix.tolist() == sklearn_metrics.confusion_matrix(truth, guess, labels=range(C)).tolist()
    occurring = sorted(set(truth) | set(guess))
    score = sklearn_metrics.jaccard_score(truth, guess, labels=occurring, average="macro")
    assert mean_iou(matrix)[0] == pytest.approx(score, rel=1e-10)
    assert pixel_accuracy(matrix) == pytest.approx(sklearn_metrics.accuracy_score(truth, guess), rel=1e-6)
