"""How sure a difference between two rows is, from the confusion matrix of each validation image on each split.

A score depends on two choices that nobody meant to make: which images were labelled (the split) and which images it is measured
on. `resampled` draws the images again, the same ones for all rows and splits (paired bootstrap): scores are of the summed
matrices of the drawn images. `difference` adds to what the images leave open what the splits do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

RESAMPLES = 10_000
CONFIDENCE = 0.95

_CHUNK = 500  # resamples whose weights are in memory together: 6 MB of 1,449 images
_MOST_FREEDOM = 1e9  # degrees of freedom from which Student's t is the normal distribution

Array = NDArray[np.float64]
Score = Callable[[Array], Array]
"""[3, ..., C], pixels of each class that are right, labelled and predicted -> [...], a score in percent."""

_Row = TypeVar("_Row")


def score_of(metric: str, class_names: Sequence[str]) -> Score | None:
    """How to compute a metric of `evaluation_metrics` from class pixels; None for one that they do not give."""
    if metric == "val/miou":
        return _mean_iou
    if metric == "val/pixel_accuracy":
        return lambda pixels: 100 * pixels[0].sum(axis=-1) / pixels[1].sum(axis=-1)
    name = metric.removeprefix("val/iou/")
    if name != metric and name in class_names:
        place = class_names.index(name)
        return lambda pixels: _iou(pixels[..., place])
    return None


def _iou(pixels: Array) -> Array:
    right, labelled, predicted = pixels
    with np.errstate(invalid="ignore"):  # a class in neither has no IoU
        iou: Array = 100 * right / (labelled + predicted - right)
    return iou


def _mean_iou(pixels: Array) -> Array:
    iou = _iou(pixels)
    there = ~np.isnan(iou)
    mean: Array = np.where(there, iou, 0).sum(axis=-1) / there.sum(axis=-1)
    return mean


def resampled(pixels: Sequence[Array], score: Score, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Scores of images drawn with replacement, the same images for all runs.

    Args:
        pixels: Of each of R runs, [3, N, C]: pixels of each image and class that are right, labelled and predicted.
        score: Of the sums over the images.
        resamples: How often N of the N images are drawn.
        seed: Of what is drawn.

    Returns:
        [resamples, R].
    """
    _, num_images, num_classes = pixels[0].shape
    columns = _columns(pixels).reshape(num_images, -1)
    random, found = np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = random.integers(num_images, size=(size, num_images)) + num_images * np.arange(size)[:, None]
        # How often each image was drawn is all that a sum needs to know.
        weights = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images).astype(np.float64)
        sums = (weights @ columns).reshape(size, 3, len(pixels), num_classes)
        found.append(score(sums.transpose(1, 0, 2, 3)))
    return np.concatenate(found)


def left_out(pixels: Sequence[Array], score: Score) -> Array:
    """Scores of all images but one, each in turn: [N, R]; pixels and score as of `resampled`."""
    columns = _columns(pixels)
    return score((columns.sum(axis=0) - columns).transpose(1, 0, 2, 3))


def _columns(pixels: Sequence[Array]) -> Array:
    """[N, 3, R, C]."""
    return np.stack(pixels).transpose(2, 1, 0, 3).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its 95 % interval, and the two-sided p of "no difference"."""

    mean: float
    lower: float
    upper: float
    p: float


def difference(deltas: Array, draws: Array, without: Array | None = None) -> Difference:
    """The mean difference of two rows over n splits.

    With one split: the percentile interval of the draws, which holds for that split. With more, Student's t interval with

        variance = s^2 / n + v,  variance / degrees of freedom = (s^2 / n) / (n - 1) + v / f:

    s^2 is the sample variance of the deltas, and v what the images do to all splits alike: the variance of the draws' mean less
    the part of it that differs from split to split, which s^2 / n has already. The degrees of freedom are n - 1 if the splits
    are all that matters, and f if the images are, see `image_freedom`. (Satterthwaite's, of squared variances, are too many at
    n = 3.)

    Args:
        deltas: [n], row minus base on each split.
        draws: [resamples, n], the same of resampled images.
        without: [N, n], the same without one image; if not given, v counts as known.
    """
    n, mean = len(deltas), float(deltas.mean())
    if n == 1:
        outside = (1 - CONFIDENCE) / 2
        lower, upper = np.quantile(draws[:, 0], (outside, 1 - outside))
        one_sided = (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (1 + len(draws))
        return Difference(mean, float(lower), float(upper), min(1.0, 2 * float(one_sided)))
    of_splits = float(deltas.var(ddof=1)) / n
    own = float((draws - deltas).var(axis=1, ddof=1).mean()) / n  # of the mean, by what differs from split to split
    variance = of_splits + max(0.0, float(draws.mean(axis=1).var(ddof=1)) - own)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    of_images = _MOST_FREEDOM if without is None else image_freedom(without.mean(axis=1))
    freedom = variance / (of_splits / (n - 1) + (variance - of_splits) / of_images)
    error = math.sqrt(variance)
    margin = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Difference(mean, mean - margin, mean + margin, float(2 * special.stdtr(freedom, -abs(mean) / error)))


def image_freedom(without: Array) -> float:
    """Degrees of freedom of a variance over images, from the N values without one image each: 2 N / (kurtosis - 1).

    They are N if what an image changes is normal, and a few if a few images make most of it, as those of a rare class do.
    """
    squares = (without - without.mean()) ** 2
    if not squares.any():
        return _MOST_FREEDOM
    kurtosis = float((squares**2).mean() / squares.mean() ** 2)
    return min(_MOST_FREEDOM, 2 * len(without) / max(kurtosis - 1, 1e-9))


def first_shares(scores: Array, draws: Array, *, seed: int = 0) -> Array:
    """P(rank 1) of K rows: in which share of draws of all means that of a row is the highest; equal ones share it.

    With one split the means are those of the resampled images. With n, they are the observed ones, plus a draw of what the
    splits do (Student's t with n - 1 degrees of freedom and the rows' sample covariance over the splits), plus one of what the
    images do to all splits alike (normal). A plain resampling of three splits would be far too sure.

    Args:
        scores: [K, n], of each row on each split.
        draws: [resamples, K, n], the same of resampled images.
        seed: Of what is drawn.

    Returns:
        [K], which add up to 1.
    """
    num_rows, n = scores.shape
    if n == 1:
        means = draws[:, :, 0]
    else:
        random = np.random.default_rng(seed)
        residuals = scores - scores.mean(axis=1, keepdims=True)
        scale = np.sqrt(random.chisquare(n - 1, len(draws)) / (n - 1) * n * (n - 1))
        of_splits = random.standard_normal((len(draws), n)) @ residuals.T / scale[:, None]
        changes = draws - scores
        own = changes - changes.mean(axis=2, keepdims=True)
        covariance = np.cov(changes.mean(axis=2), rowvar=False).reshape(num_rows, num_rows)
        covariance -= np.einsum("bks,bls->kl", own, own) / (len(draws) * (n - 1) * n)
        values, vectors = np.linalg.eigh(covariance)
        # The difference of two estimates need not be a covariance; what is negative of it, or rounding, counts as 0.
        values = np.where(values > 1e-12 * abs(values).max(), values, 0)
        of_images = random.standard_normal((len(draws), num_rows)) @ (vectors * np.sqrt(values)).T
        means = scores.mean(axis=1) + of_splits + of_images
    first = means >= means.max(axis=1, keepdims=True) - 1e-9
    shares: Array = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted by Holm's step-down method: those below 0.05 hold together at this level."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def groups(rows: Sequence[_Row], p_values: Mapping[tuple[_Row, _Row], float]) -> list[tuple[_Row, ...]]:
    """The largest sets of rows of which no two are separable: of none of their pairs is Holm's p below 0.05.

    Args:
        rows: In the order in which a group lists them.
        p_values: Of every pair of rows, in their order; not adjusted.

    Returns:
        Groups of two rows or more; a row may be in several.
    """
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    alike: dict[_Row, set[_Row]] = {row: set() for row in rows}
    for first, second in itertools.combinations(rows, 2):
        if adjusted[first, second] >= 1 - CONFIDENCE:
            alike[first].add(second)
            alike[second].add(first)
    found = [clique for clique in _cliques(alike, set(), set(rows), set()) if len(clique) > 1]
    order = {row: place for place, row in enumerate(rows)}
    return sorted((tuple(sorted(clique, key=order.__getitem__)) for clique in found), key=lambda group: order[group[0]])


def _cliques(alike: Mapping[_Row, set[_Row]], clique: set[_Row], left: set[_Row], seen: set[_Row]) -> Iterator[set[_Row]]:
    """Bron and Kerbosch's algorithm with a pivot."""
    if not left and not seen:
        yield clique
        return
    pivot = max(left | seen, key=lambda row: len(alike[row] & left))
    for row in list(left - alike[pivot]):
        yield from _cliques(alike, clique | {row}, left & alike[row], seen & alike[row])
        left, seen = left - {row}, seen | {row}
