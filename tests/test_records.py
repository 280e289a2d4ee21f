"""The mean and standard deviation of a trial, and how a score is written."""

from __future__ import annotations

import numpy as np
import pytest

from css_ray.records import mean_std, score_text


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_mean_std_is_numpys(n: int, ddof: int) -> None:
    values = np.random.default_rng(n).normal(70, 4, n).tolist()
    assert mean_std(values, ddof) == pytest.approx((np.mean(values), np.std(values, ddof=ddof)), rel=1e-12)


def test_mean_std_of_too_few_values() -> None:
    assert mean_std([]) == (None, None)
    assert mean_std([5.0]) == (5.0, None)
    assert mean_std([5.0], ddof=0) == (5.0, 0.0)


def test_score_text_never_hides_a_missing_split() -> None:
    assert score_text(68.094, 4.886, 3, 3) == "68.09 ± 4.89"
    assert score_text(66.0, None, 1, 1) == "66.00"
    assert score_text(66.0, 1.0, 2, 3) == "66.00 ± 1.00 (n=2 of 3)"
    assert score_text(None, None, 0, 3) == "– (n=0 of 3)"
