"""Suggestions are a function of the study, the index and what may be known at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from css_ray.study.sampling import suggest
from css_ray.study.schema import Distribution, Search

ROOT = Path(__file__).parent.parent.parent
SPACE = {
    "method.temperature": Distribution("loguniform", (0.05, 1.0)),
    "method.hard_threshold": Distribution("uniform", (0.5, 1.0)),
    "method.num_queries": Distribution("int", (8, 64)),
    "method.negatives": Distribution("choice", ("shared", "per_anchor")),
}
FIRST = {"method.temperature": 0.5, "method.hard_threshold": 0.8, "method.num_queries": 32, "method.negatives": "shared"}


def search(**changes: object) -> Search:
    settings: dict[str, object] = {
        "method": {"name": "css"},
        "trials": 30,
        "space": {"-": 0},
        "startup_trials": 4,
        "first": [FIRST],
    }
    return Search(**{**settings, **changes})  # type: ignore[arg-type]


def score(params: dict) -> float:
    return -((params["method.hard_threshold"] - 0.7) ** 2)


def sequence(settings: Search, count: int, lag: int = 1) -> list[dict]:
    drawn: list[dict] = []
    for index in range(count):
        known = max(0, index - lag + 1)
        drawn.append(suggest(settings, SPACE, index, drawn, [score(params) for params in drawn[:known]]))
    return drawn


def test_the_first_trials_are_the_given_ones() -> None:
    assert sequence(search(), 1) == [FIRST]


def test_draws_lie_in_the_space() -> None:
    for params in sequence(search(), 12):
        assert 0.05 <= params["method.temperature"] <= 1
        assert 0.5 <= params["method.hard_threshold"] <= 1
        assert params["method.num_queries"] in range(8, 65)
        assert params["method.negatives"] in ("shared", "per_anchor")


def test_the_same_study_draws_the_same_trials_in_another_process() -> None:
    program = "from tests.study.test_sampling import *; print(sequence(search(), 8, lag=2))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == str(sequence(search(), 8, lag=2))


def test_another_seed_draws_others() -> None:
    assert sequence(search(seed=1), 3)[1:] != sequence(search(seed=2), 3)[1:]


def test_a_trial_may_be_suggested_alone_once_its_past_is_known() -> None:
    # What a resumed study does: trial 6 from the journal, without having asked for 0 to 5 in this process.
    drawn = sequence(search(), 7, lag=2)
    assert suggest(search(), SPACE, 6, drawn[:6], [score(params) for params in drawn[:5]]) == drawn[6]


def test_tpe_learns_from_the_scores() -> None:
    drawn = sequence(search(startup_trials=6), 30)
    early = [abs(params["method.hard_threshold"] - 0.7) for params in drawn[1:7]]
    late = [abs(params["method.hard_threshold"] - 0.7) for params in drawn[-10:]]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)


def test_failed_trials_are_no_scores() -> None:
    drawn = sequence(search(), 6)
    # All failed: TPE has nothing to go by and must not fall over.
    assert suggest(search(), SPACE, 6, drawn, [None] * 6).keys() == SPACE.keys()
