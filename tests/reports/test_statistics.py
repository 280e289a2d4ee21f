"""Bootstrap, interval, ranks, Holm and groups: against scipy, plain loops and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from css_ray.reports.statistics import (
    Array,
    difference,
    first_shares,
    groups,
    holm,
    image_freedom,
    left_out,
    resampled,
    score_of,
)

miou = score_of("val/miou", ("a", "b", "c"))
assert miou is not None


def pixels(seed: int, images: int = 40, *, right: float = 0.7) -> Array:
    """[3, N, 3] of images of which some lack a class; equal seeds have equal labels."""
    random = np.random.default_rng(seed)
    labelled = random.integers(0, 400, (images, 3)) * (random.random((images, 3)) < 0.6)
    hits = np.random.default_rng((seed, int(1000 * right))).binomial(labelled, right)
    return np.stack([hits, labelled, hits + np.roll(labelled - hits, 1, axis=1)]).astype(np.float64)


def plain_miou(counts: Array) -> float:
    """[3, C] -> percent, class by class; a class in neither is left out."""
    found = []
    for right, labelled, predicted in counts.T:
        if labelled + predicted > 0:
            found.append(100 * float(right) / float(labelled + predicted - right))
    return sum(found) / len(found)


def test_scores_of_class_pixels() -> None:
    # Class a: 6 of 8 labelled are found, and 1 more is called so: 6 / 9. Class b: 3 / 6. Class c is in neither.
    counts = np.array([[6.0, 3, 0], [8, 4, 0], [7, 5, 0]])
    assert miou is not None and float(miou(counts)) == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    accuracy, of_b = score_of("val/pixel_accuracy", "abc"), score_of("val/iou/b", "abc")
    assert accuracy is not None and float(accuracy(counts)) == 75
    assert of_b is not None and float(of_b(counts)) == 50
    assert score_of("val/iou/d", "abc") is None and score_of("pseudo/miou/mix", "abc") is None


def test_resampled_scores_are_those_of_a_plain_loop_over_the_drawn_images() -> None:
    runs = [pixels(1, 7), pixels(1, 7, right=0.9), pixels(2, 7)]
    found = resampled(runs, score_of("val/miou", "abc"), resamples=6, seed=3)  # type: ignore[arg-type]
    drawn = np.random.default_rng(3).integers(7, size=(6, 7))
    for number, images in enumerate(drawn):
        for run, counts in enumerate(runs):
            sums = np.zeros((3, 3))
            for image in images:
                sums += counts[:, image]
            assert found[number, run] == pytest.approx(plain_miou(sums), abs=1e-12)


def test_more_resamples_than_fit_into_a_chunk_are_other_draws() -> None:
    (found,) = resampled([pixels(1)], score_of("val/miou", "abc"), resamples=1203).T  # type: ignore[arg-type]
    assert found.shape == (1203,) and len(set(found.tolist())) > 1100
    assert np.array_equal(found, resampled([pixels(1)], score_of("val/miou", "abc"), resamples=1203)[:, 0])  # type: ignore[arg-type]


def test_the_interval_of_one_split_is_scipys_paired_bootstrap() -> None:
    base, new = pixels(1, 60), pixels(1, 60, right=0.75)
    assert miou is not None
    draws = resampled([base, new], miou)
    delta = plain_miou(new.sum(axis=1)) - plain_miou(base.sum(axis=1))
    found = difference(np.array([delta]), draws[:, 1:] - draws[:, :1])

    def statistic(indices: Array) -> float:
        chosen = indices.astype(int)
        return plain_miou(new[:, chosen].sum(axis=1)) - plain_miou(base[:, chosen].sum(axis=1))

    # scipy resamples the images' numbers; the statistic is of the sums over them.
    theirs = stats.bootstrap(
        (np.arange(60),), statistic, vectorized=False, method="percentile", n_resamples=4000, rng=np.random.default_rng(8)
    )
    # The standard error of a 2.5 % quantile of 4,000 draws is 0.05 standard deviations; of 10,000, 0.03.
    tolerance = 4 * 0.06 * float(theirs.standard_error)
    assert found.mean == delta
    assert found.lower == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert found.upper == pytest.approx(theirs.confidence_interval.high, abs=tolerance)
    assert (found.p < 0.05) == (found.lower > 0)


def test_without_noise_of_images_the_interval_is_the_paired_t_test() -> None:
    deltas = np.array([1.0, 2.5, 1.9, 0.4])
    found = difference(deltas, np.tile(deltas, (50, 1)))
    theirs = stats.ttest_1samp(deltas, 0)
    low, high = theirs.confidence_interval(0.95)
    assert (found.lower, found.upper, found.p) == pytest.approx((low, high, theirs.pvalue))


def test_without_noise_of_splits_the_interval_is_normal() -> None:
    """All splits differ by 1, and images move all of them together by a standard deviation of 0.4."""
    common = np.random.default_rng(0).normal(0, 0.4, 10_000)
    found = difference(np.ones(3), 1 + np.repeat(common[:, None], 3, axis=1))
    error = common.std(ddof=1)
    assert (found.lower, found.upper) == pytest.approx((1 - 1.959964 * error, 1 + 1.959964 * error), abs=1e-5)
    assert found.p == pytest.approx(2 * stats.norm.sf(1 / error))


def test_what_images_do_to_each_split_by_itself_counts_once() -> None:
    """The sample variance of the splits has it already: the interval is that of the t test."""
    deltas, random = np.array([1.0, 3.0, 2.3]), np.random.default_rng(0)
    draws = deltas + random.normal(0, 1.0, (200_000, 3))
    draws -= (draws - deltas).mean(axis=1, keepdims=True)  # nothing is common to all splits
    found, theirs = difference(deltas, draws), stats.ttest_1samp(deltas, 0).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((theirs.low, theirs.high))


def test_variances_and_degrees_of_freedom_by_hand() -> None:
    """s^2 / n = 1 / 3 and v = 1 / 6: variance 1 / 2, degrees of freedom 2 * (1 / 2) / (1 / 3) = 3."""
    common = np.array([-1.0, 1.0] * 5000) * (1 / 6 * 9999 / 10_000) ** 0.5
    found = difference(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]) + common[:, None])
    assert found.upper - 2 == pytest.approx(3.182446 * 0.5**0.5, abs=1e-5)
    assert found.p == pytest.approx(2 * stats.t.sf(2 / 0.5**0.5, 3))


def test_scores_without_one_image_are_those_of_a_plain_loop() -> None:
    runs = [pixels(1, 7), pixels(2, 7)]
    found = left_out(runs, score_of("val/miou", "abc"))  # type: ignore[arg-type]
    for image in range(7):
        for run, counts in enumerate(runs):
            others = counts[:, [other for other in range(7) if other != image]].sum(axis=1)
            assert found[image, run] == pytest.approx(plain_miou(others), abs=1e-12)


def test_degrees_of_freedom_of_images_by_hand() -> None:
    # Deviations -1, -1, -1, 3: second moment 3, fourth 21, kurtosis 21 / 9, so 2 * 4 / (21 / 9 - 1) = 6.
    assert image_freedom(np.array([0.0, 0, 0, 4])) == pytest.approx(6)
    normal = np.random.default_rng(0).normal(0, 1, 100_000)
    assert image_freedom(normal) == pytest.approx(100_000, rel=0.05)
    assert image_freedom(np.ones(5)) == 1e9


def test_few_images_that_matter_widen_the_interval() -> None:
    """Splits that all differ by 1: the degrees of freedom are those of the images, here 6."""
    common = np.random.default_rng(0).normal(0, 0.4, 10_000)
    draws = 1 + np.repeat(common[:, None], 3, axis=1)
    found = difference(np.ones(3), draws, np.repeat(np.array([[0.0], [0], [0], [4]]), 3, axis=1))
    assert found.upper - 1 == pytest.approx(stats.t.ppf(0.975, 6) * common.std(ddof=1))


def test_equal_rows_do_not_differ() -> None:
    found = difference(np.zeros(3), np.zeros((10, 3)))
    assert (found.mean, found.lower, found.upper, found.p) == (0, 0, 0, 1)
    assert difference(np.zeros(1), np.zeros((10, 1))).p == 1


def test_p_rank_1_of_one_split_is_the_share_of_the_draws() -> None:
    draws = np.array([[[3.0], [1.0]], [[2.0], [2.0]], [[1.0], [4.0]], [[5.0], [0.0]]])
    # The first row is higher in two of four draws, and shares one.
    assert first_shares(draws.mean(axis=0), draws).tolist() == [0.625, 0.375]


def test_p_rank_1_of_two_rows_is_an_integral() -> None:
    """Their difference is 1 + t * s / sqrt(n) + a normal part that all splits share."""
    base, new = np.array([50.0, 60.0, 70.0]), np.array([50.5, 61.0, 71.5])
    common = np.random.default_rng(0).normal(0, 0.5, 20_000)
    draws = np.stack([np.tile(base, (20_000, 1)), new + common[:, None]], axis=1)
    shares = first_shares(np.stack([base, new]), draws)
    s = 0.5 / 3**0.5
    expected, _ = integrate.quad(lambda z: stats.norm.pdf(z) * stats.t.cdf((1 + 0.5 * z) / s, 2), -8, 8)
    assert shares[1] == pytest.approx(expected, abs=0.01) and shares.sum() == pytest.approx(1)


def test_p_rank_1_of_equal_rows_is_shared_and_of_a_far_better_one_is_1() -> None:
    values = np.array([50.0, 60.0, 70.0])
    images = np.random.default_rng(0).normal(0, 1, (1000, 1, 3))
    scores = np.stack([values, values, values])
    assert first_shares(scores, scores + images).tolist() == pytest.approx([1 / 3] * 3)
    scores = np.stack([values, values + np.array([20, 20.1, 19.9]), values])
    assert first_shares(scores, scores + images)[1] > 0.99


def test_holm_by_hand() -> None:
    # In order: 3 * 0.01, 2 * 0.03, then 1 * 0.04, which is raised to the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_groups_that_are_not_separable() -> None:
    p = {("a", "b"): 0.001, ("a", "c"): 0.3, ("a", "d"): 0.0001, ("b", "c"): 0.2, ("b", "d"): 0.0002, ("c", "d"): 0.0003}
    # a and b differ from one another, but neither from c; d differs from all.
    assert groups("abcd", p) == [("a", "c"), ("b", "c")]
    # By Holm over six pairs none is below 0.05 if the lowest p is 0.01.
    assert groups("abcd", dict.fromkeys(p, 0.01)) == [("a", "b", "c", "d")]
    assert groups("abcd", dict.fromkeys(p, 0.001)) == []
