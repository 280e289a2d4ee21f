"""Which settings a search tries next: Optuna's samplers, asked so that a study gives the same trials however often it is
interrupted.

The trial at `index` is drawn by a sampler seeded from (search seed, index), from what the trials up to `index - lag` scored,
where `lag` is how many trials run side by side; trials between are known to the sampler as running. So a suggestion does not
depend on which of two neighbours happened to end first, nor on a kill. Optuna's study is rebuilt from those trials for each
suggestion: there is no second state to keep in step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from css_ray.study.schema import Distribution, Search

optuna.logging.set_verbosity(optuna.logging.WARNING)


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed from several parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def suggest(
    search: Search,
    space: Mapping[str, Distribution],
    index: int,
    drawn: Sequence[Mapping[str, Any]],
    values: Sequence[float | None],
) -> dict[str, Any]:
    """Settings of the trial at `index` of the search.

    drawn: the settings of the trials 0 .. index-1. values: what the first len(values) of them scored, higher is better; None
    for a trial that failed on a split, which is no fair comparison and counts as failed. The others are running.
    """
    if index < len(search.first):
        return dict(search.first[index])
    study = optuna.create_study(direction="maximize", sampler=_sampler(search, derived_seed(search.seed, index)))
    distributions = {path: _distribution(distribution) for path, distribution in space.items()}
    for position, params in enumerate(drawn):
        if position >= len(values):
            state, value = optuna.trial.TrialState.RUNNING, None
        elif values[position] is None:
            state, value = optuna.trial.TrialState.FAIL, None
        else:
            state, value = optuna.trial.TrialState.COMPLETE, values[position]
        study.add_trial(optuna.trial.create_trial(state=state, value=value, params=dict(params), distributions=distributions))
    return dict(study.ask(distributions).params)


def _sampler(search: Search, seed: int) -> optuna.samplers.BaseSampler:
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # Running trials count as bad ones (constant_liar, Optuna's default), so that neighbours do not try the same.
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials, constant_liar=True)


def _distribution(distribution: Distribution) -> optuna.distributions.BaseDistribution:
    if distribution.kind == "choice":
        return optuna.distributions.CategoricalDistribution(distribution.values)
    low, high = distribution.values
    if distribution.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=distribution.kind == "loguniform")
