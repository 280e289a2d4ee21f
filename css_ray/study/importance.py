"""How much each setting of a search mattered, by PED-ANOVA (Watanabe et al., IJCAI 2023) over its finished trials."""

from __future__ import annotations

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from css_ray.standing import Standing
from css_ray.study.definition import StudyDefinition, contains
from css_ray.study.sampling import distribution_of

FEWEST = 20
"""Trials below which there is no importance: the best tenth of them must be two."""


def importance(standing: Standing[StudyDefinition]) -> dict[str, float]:
    """The share of each setting of the search's space in what makes a trial one of the best tenth; the shares sum to 1.

    Empty below `FEWEST` finished trials, and without a search.
    """
    space = standing.definition.space
    distributions = {path: distribution_of(each) for path, each in space.items()}
    study = optuna.create_study(direction="maximize")
    for trial in standing.best_trials():
        # One of an earlier, wider space does not lie in this one.
        if trial.source == "search" and all(contains(space[path], trial.params[path]) for path in space):
            params = {path: trial.params[path] for path in space}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=trial.score))
    if not space or len(study.get_trials(deepcopy=False)) < FEWEST:
        return {}
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {path: float(share) for path, share in found.items()}
