"""Paired differences: by hand, and against a test written by others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from css_ray.records import Record
from css_ray.reports.compare import compare, sign_flip_p
from css_ray.reports.render import to_csv, to_markdown


def runs(trial: int, row: str, values: dict[int, float]) -> list[Record]:
    known = Record(study="toy", trial=trial, split=0, row=row, source="grid", params={}, status="finished")
    return [replace(known, split=split, last={"val/miou": value}) for split, value in values.items()]


def test_splits_are_paired() -> None:
    """A gain of one point on every split is plain, though the splits differ by ten."""
    records = runs(0, "base", {0: 50.0, 1: 60.0, 2: 70.0}) + runs(1, "new", {2: 71.0, 0: 51.5, 1: 60.5})
    (difference,) = compare(records, "base").differences
    assert difference.deltas == {0: 1.5, 1: 0.5, 2: 1.0}
    assert (difference.mean, difference.std, difference.wins, difference.p) == (1.0, 0.5, 3, None)
    text = to_markdown(compare(records, "base"))
    assert "| new | val/miou | +1.00 ± 0.50 | 3/3 | n < 6 | +1.50 | +0.50 | +1.00 |" in text
    assert "no such test can reach 0.05" in text
    assert to_csv(compare(records, "base")).splitlines()[1].startswith("toy,new,base,val/miou,last,1,1.0,0.5,3,3,,1.5,0.5,1.0")


def test_only_shared_splits_count_and_losses_may_be_better() -> None:
    records = runs(0, "base", {0: 5.0, 1: 6.0}) + runs(1, "new", {1: 4.0, 2: 1.0}) + runs(2, "far", {3: 1.0})
    new, far = compare(records, "base", mode="min").differences
    assert (new.deltas, new.std, new.wins) == ({1: -2.0}, None, 1)
    assert (far.deltas, far.mean, far.wins) == ({}, None, 0)
    with pytest.raises(ValueError, match="toy has no row 'nobody' to compare with; choose one of base, new, far"):
        compare(records, "nobody")


@pytest.mark.parametrize("n", [6, 9])
def test_sign_flip_test_is_scipys_exact_permutation_test(n: int) -> None:
    deltas = np.random.default_rng(n).normal(0.7, 1.0, n).tolist()
    expected = stats.permutation_test(
        (deltas,), np.sum, permutation_type="samples", n_resamples=math.inf, vectorized=False, alternative="two-sided"
    ).pvalue
    assert sign_flip_p(deltas) == pytest.approx(expected, abs=1e-12)


def test_six_splits_all_one_way_are_the_first_that_can_reach_five_percent() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32 and sign_flip_p([1.0] * 6) == 2 / 64
    # Where nothing differs, every pattern of signs is as far from 0 as what was observed.
    assert sign_flip_p([0.0] * 6) == 1
    values = dict.fromkeys(range(6), 1.0)
    (difference,) = compare(runs(0, "base", values) + runs(1, "new", {split: 2.0 for split in values}), "base").differences
    assert difference.p == 0.03125
