"""Which earlier trials a suggestion waits for; the driver without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_keep import driver, small

from css_ray.execution.runner import Runner


def begin(runner: Runner) -> int | None:
    trial = runner.next_trial(set(runner.ledger.starts) - set(runner.ledger.ends))
    if trial is None:
        return None
    assert not isinstance(trial, str)
    runner.begin(trial)
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
    runner = driver(study, tmp_path)
    assert begin(runner) == 0
    for trial in range(1, ahead):
        assert begin(runner) == trial
        runner.end(trial, "made up")
    if ahead < 8:
        assert begin(runner) is None
        runner.end(0, "made up")
        assert begin(runner) == ahead
