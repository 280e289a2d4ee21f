"""Which earlier trials a suggestion waits for; the driver without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_keep import driver, small

from css_ray.study.runner import Runner


def begin(runner: Runner) -> int | None:
    trial = runner.next_trial(set(runner.ledger.starts) - set(runner.ledger.ends))
    if trial is None:
        return None
    assert not isinstance(trial, str)
    runner.begin(trial)
    return trial.index


def end(runner: Runner, trial: int) -> None:
    runner.end(trial, "made up")


@pytest.mark.parametrize(
    ("concurrent", "pruners", "ahead"),
    [(1, [], 1), (2, [], 2), (1, [{"name": "median"}], 1), (2, [{"name": "median"}], 4)],
)
def test_a_suggestion_waits_for_as_few_as_pruning_asks_for(
    concurrent: int, pruners: list[dict[str, Any]], ahead: int, tmp_path: Path
) -> None:
    """While the first trial runs, `ahead - 1` after it are begun, however soon they end; the next one waits for it."""
    search = {
        "method": {"name": "supervised"},
        "trials": 8,
        "sampler": "random",
        "space": {"train.lr": {"uniform": [0.01, 0.1]}},
        "pruners": pruners,
    }
    resources = {"concurrent_trials": concurrent, "failed_share": 1.0}
    study = small(tmp_path, search=search, grid={}, resources=resources)
    runner = driver(study, tmp_path)
    assert begin(runner) == 0
    for trial in range(1, ahead):
        assert begin(runner) == trial
        end(runner, trial)
    assert begin(runner) is None
    end(runner, 0)
    assert begin(runner) == ahead
