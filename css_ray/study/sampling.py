"""Which settings a search tries next: Optuna's samplers, asked so that a study gives the same trials however often it is
interrupted.

The trial at `index` is drawn by a sampler seeded from (search seed, index), from what the trials up to `index - lag` scored,
where `lag` is at least how many trials run side by side; trials between are known to the sampler as running. So a suggestion
does not depend on which of two neighbours happened to end first, nor on a kill. Optuna's study lives in memory and is fed from
the journal: there is no second state to keep in step. Samplers that remember more than trials (CMA-ES, NSGA-II, QMC) are asked
for every trial again after a resume, in the same order.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import TrialState

from css_ray.study.definition import Distribution, Objective, Search, contains, points_of
from css_ray.study.optuna_internals import trial_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

ATTEMPTS, OWN_ATTEMPTS = 100, 10
"""Draws of one trial that may miss the constraints, and how many of them are the sampler's own: one that has learned to like
what is out of bounds draws it again and again, so the others are uniform."""

_LEARNING = ("tpe", "gp", "cmaes", "nsga2")  # samplers whose suggestions depend on results
_REMEMBERING = ("cmaes", "nsga2", "qmc")  # samplers with a state of their own in Optuna's study
_HEEDING = ("tpe", "gp", "nsga2")  # samplers that heed constraints


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed from several parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial of the search ended, as it is reported to Optuna.

    status: finished; pruned; infeasible, if it failed for reasons of its own, such as a loss that became NaN; or failed,
    if its machinery did, which reveals nothing about its settings. values: what the objective asks for, of a finished trial.
    curve: its evaluations by step, counted on over the splits; what is known of a pruned one.
    """

    status: Literal["finished", "pruned", "infeasible", "failed"]
    values: tuple[float, ...] = ()
    curve: Mapping[int, float] = field(default_factory=dict)


def suggestion_lag(search: Search, side_by_side: int) -> int:
    """How many trials, the one to suggest among them, may be without their results: a suggestion waits for those before.

    The number that run side by side; all, if the sampler learns nothing from results.
    """
    return side_by_side if search.sampler in _LEARNING else search.trials


class Sampling:
    """Draws the trials of one search, in order.

    feasible: whether settings make sense together; others are drawn again, at most ATTEMPTS times.
    """

    def __init__(
        self,
        search: Search,
        space: Mapping[str, Distribution],
        objective: Objective | None = None,
        feasible: Callable[[Mapping[str, Any]], bool] = lambda drawn: True,
    ) -> None:
        self.search = search
        self.space = space
        self.objective = objective or Objective()
        self.feasible = feasible
        self._distributions = {path: distribution_of(distribution) for path, distribution in space.items()}
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [maximize, minimize] if self.objective.aggregate == "mean_and_std" else [maximize]
        self._study = optuna.create_study(directions=directions, sampler=self._sampler(0))
        self._numbers: list[int] = []  # the trial of Optuna's study at each position
        self._told = 0

    def suggest(self, drawn: Sequence[Mapping[str, Any]], results: Sequence[Result], lag: int = 1) -> dict[str, Any]:
        """Settings of the trial after those `drawn`.

        results: how the first of them ended; the others are running. lag: how many trials run side by side, which is how the
        trials before were asked for, too.
        """
        position = len(drawn)
        for earlier in range(len(self._numbers), position):
            self._tell(results, min(len(results), earlier - lag + 1))
            if self.search.sampler in _REMEMBERING and earlier >= len(self.search.first):
                number, params = self._ask(earlier)
                if params == dict(drawn[earlier]):
                    self._numbers.append(number)
                    continue
                self._study.tell(number, state=TrialState.FAIL)  # an older version, or a wider space, drew another one
            self._numbers.append(self._add(drawn[earlier]))
        self._tell(results, len(results))
        if position < len(self.search.first):
            return dict(self.search.first[position])
        if self.search.sampler == "grid":
            return _grid_point(self.space, position - len(self.search.first))
        number, params = self._ask(position)
        if self.search.sampler in _REMEMBERING:
            self._numbers.append(number)
        else:
            self._study.tell(number, state=TrialState.FAIL)  # it comes back among those drawn, or never started
        return params

    def _ask(self, position: int) -> tuple[int, dict[str, Any]]:
        """The next feasible draw."""
        for attempt in range(ATTEMPTS):
            parts = (self.search.seed, position, attempt) if attempt else (self.search.seed, position)
            seed = derived_seed(*parts)
            self._study.sampler = self._sampler(seed) if attempt < OWN_ATTEMPTS else optuna.samplers.RandomSampler(seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a first trial that some samplers draw at random
                trial = self._study.ask(self._distributions)
            params = dict(trial.params)
            if attempt == ATTEMPTS - 1 or self.feasible(params):
                break
            self._study.tell(trial.number, state=TrialState.FAIL)
        return trial.number, params

    def _add(self, params: Mapping[str, Any]) -> int:
        # Of a trial of another space, what lies in this one.
        fitting = {path: value for path, value in params.items() if path in self.space and contains(self.space[path], value)}
        distributions = {path: self._distributions[path] for path in fitting}
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, params=fitting, distributions=distributions)
        self._study.add_trial(trial)
        return len(self._study.get_trials(deepcopy=False)) - 1

    def _tell(self, results: Sequence[Result], count: int) -> None:
        """Report the first `count` results to Optuna; those that were reported are not looked at again."""
        for position in range(self._told, min(count, len(self._numbers))):
            result, number = results[position], self._numbers[position]
            several = len(self._study.directions) > 1
            if result.status == "finished":
                self._close(number, TrialState.COMPLETE, result.values)
            elif result.status == "infeasible":
                # No mIoU at all, and for the samplers that ask: not allowed.
                self._close(number, TrialState.COMPLETE, (0.0, 0.0) if several else (0.0,), violated=True)
            elif result.status == "pruned" and not several:
                for step, value in sorted(result.curve.items()):
                    self._trial(number).report(value, step)
                self._close(number, TrialState.PRUNED)
            else:
                self._study.tell(number, state=TrialState.FAIL)
            self._told += 1

    def _close(self, number: int, state: TrialState, values: tuple[float, ...] = (), violated: bool = False) -> None:
        if self.search.sampler in _HEEDING:
            self._trial(number).set_constraint("stays finite", 1.0 if violated else 0.0)  # met at 0 or less
        self._study.tell(number, list(values) or None, state=state)

    def _trial(self, number: int) -> optuna.trial.Trial:
        return trial_of(self._study, number)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        search, samplers = self.search, optuna.samplers
        if search.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if search.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=search.startup_trials)
        if search.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
        if search.sampler == "qmc":
            # The scrambling must be the same for every trial: the sequence is what spreads them evenly.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return samplers.QMCSampler(scramble=True, seed=derived_seed(search.seed), warn_asynchronous_seeding=False)
        if search.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, search.startup_trials))
        # Running trials count as bad ones (constant_liar, Optuna's default), so that neighbours do not try the same.
        return samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials, constant_liar=True)


def _grid_point(space: Mapping[str, Distribution], position: int) -> dict[str, Any]:
    """The point of the grid at `position`, the last setting varying fastest."""
    points = itertools.product(*map(points_of, space.values()))
    return dict(zip(space, next(itertools.islice(points, position, None)), strict=True))


def distribution_of(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    """The same in Optuna."""
    if distribution.kind == "choice":
        return optuna.distributions.CategoricalDistribution(distribution.values)
    low, high = distribution.values
    if distribution.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=distribution.kind == "loguniform")
