"""Which earlier trials a suggestion waits for; the driver without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from css_ray.study.driver import Driver
from tests.drivers import new_driver, small


def begin(driver: Driver) -> int | None:
    trial = driver.next_trial(set(driver.standing.running))
    if trial is None:
        return None
    assert not isinstance(trial, str)
    driver.begin(trial)
    return trial.index


@pytest.mark.parametrize(
    ("sampler", "concurrent", "ahead"), [("tpe", 1, 1), ("tpe", 2, 2), ("gp", 3, 3), ("random", 2, 8), ("qmc", 1, 8)]
)
def test_a_suggestion_waits_for_the_results_it_may_learn_from(
    sampler: str, concurrent: int, ahead: int, tmp_path: Path
) -> None:
    """While the first trial runs, `ahead - 1` after it are begun, however soon they end; the next one waits for it."""
    search = {
        "method": {"name": "supervised"},
        "trials": 8,
        "sampler": sampler,
        "space": {"train.lr": {"uniform": [0.01, 0.1]}},
    }
    study = small(tmp_path, search=search, grid={}, resources={"concurrent_trials": concurrent, "failed_share": 1.0})
    driver = new_driver(study, tmp_path)
    assert begin(driver) == 0
    for trial in range(1, ahead):
        assert begin(driver) == trial
        driver.end(trial, "made up")
    if ahead < 8:
        assert begin(driver) is None
        driver.end(0, "made up")
        assert begin(driver) == ahead
