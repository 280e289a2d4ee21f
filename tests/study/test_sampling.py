"""Suggestions are a function of the study, the index and what may be known at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from css_ray.study.definition import Distribution, Objective, Search
from css_ray.study.sampling import Result, Sampling

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


def score(params: Mapping[str, Any]) -> float:
    return -((float(params["method.hard_threshold"]) - 0.7) ** 2)


def results_of(drawn: list[dict[str, Any]]) -> list[Result]:
    return [Result("finished", (score(params),)) for params in drawn]


def sequence(
    settings: Search, count: int, lag: int = 1, resumed_at: int | None = None, space: Mapping[str, Distribution] = SPACE
) -> list[dict[str, Any]]:
    """The first trials of a search; with `resumed_at` a new Sampling goes on there from what is known."""
    drawn: list[dict[str, Any]] = []
    sampling = Sampling(settings, space)
    for index in range(count):
        if index == resumed_at:
            sampling = Sampling(settings, space)
        known = max(0, index - lag + 1)
        drawn.append(sampling.suggest(drawn, results_of(drawn[:known]), lag))
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


NUMBERS = {path: distribution for path, distribution in SPACE.items() if distribution.kind != "choice"}
SAMPLERS = ("tpe", "gp", "random", "qmc", "nsga2", "cmaes")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("lag", [1, 3])
def test_a_resumed_search_draws_what_the_undisturbed_one_does(sampler: str, lag: int) -> None:
    settings = search(sampler=sampler, first=[])
    undisturbed = sequence(settings, 9, lag, space=NUMBERS)
    assert len({str(params) for params in undisturbed}) == 9
    for moment in (1, 5, 8):
        assert sequence(settings, 9, lag, resumed_at=moment, space=NUMBERS) == undisturbed


def test_grid_visits_every_point_once() -> None:
    space = {
        "method.num_queries": Distribution("int", (8, 10)),
        "method.negatives": Distribution("choice", ("shared", "per_anchor")),
    }
    sampling = Sampling(search(sampler="grid", first=[]), space)
    drawn: list[dict[str, Any]] = []
    for _ in range(6):
        drawn.append(sampling.suggest(drawn, [Result("failed")] * len(drawn)))
    assert [tuple(params.values()) for params in drawn] == [
        (8, "shared"), (8, "per_anchor"), (9, "shared"), (9, "per_anchor"), (10, "shared"), (10, "per_anchor")
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_what_is_not_feasible_is_not_drawn(sampler: str) -> None:
    def feasible(params: Mapping[str, Any]) -> bool:
        return bool(params["method.hard_threshold"] < 0.6)  # a fifth of the space

    sampling = Sampling(search(sampler=sampler, first=[]), NUMBERS, feasible=feasible)
    drawn: list[dict[str, Any]] = []
    for _ in range(12):
        drawn.append(sampling.suggest(drawn, results_of(drawn)))
    assert all(feasible(params) for params in drawn)
    again = Sampling(search(sampler=sampler, first=[]), NUMBERS, feasible=feasible)
    assert again.suggest(drawn[:11], results_of(drawn[:11])) == drawn[11]


def test_optuna_is_told_how_trials_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(search(), SPACE)
    drawn = sequence(search(), 4)
    results = [
        Result("finished", (50.0,)),
        Result("pruned", curve={100: 20.0, 200: 30.0}),
        Result("infeasible"),
        Result("failed"),
    ]
    sampling.suggest(drawn, results)
    told = [sampling._study.trials[number] for number in sampling._numbers]
    states = optuna.trial.TrialState
    assert [trial.state for trial in told] == [states.COMPLETE, states.PRUNED, states.COMPLETE, states.FAIL]
    assert told[0].value == 50.0 and told[1].intermediate_values == {100: 20.0, 200: 30.0}
    assert [trial.constraints for trial in told[:3]] == [{"stays finite": 0.0}, {"stays finite": 0.0}, {"stays finite": 1.0}]


def test_mean_and_std_are_two_objectives() -> None:
    sampling = Sampling(search(sampler="nsga2", first=[]), SPACE, Objective(aggregate="mean_and_std"))
    drawn: list[dict[str, Any]] = []
    for _ in range(8):
        results = [Result("finished", (score(params), params["method.hard_threshold"])) for params in drawn]
        drawn.append(sampling.suggest(drawn, results))
    assert len(sampling._study.best_trials) >= 2  # a front, not one best


def test_tpe_learns_from_the_scores() -> None:
    drawn = sequence(search(startup_trials=6), 30)
    early = [abs(params["method.hard_threshold"] - 0.7) for params in drawn[1:7]]
    late = [abs(params["method.hard_threshold"] - 0.7) for params in drawn[-10:]]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)


def test_failed_trials_are_no_scores() -> None:
    drawn = sequence(search(), 6)
    # All failed: TPE has nothing to go by and must not fall over.
    assert Sampling(search(), SPACE).suggest(drawn, [Result("failed")] * 6).keys() == SPACE.keys()
