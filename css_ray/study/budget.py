"""What a study may still spend: its budget against what its drivers and workers have used."""

from __future__ import annotations

from css_ray.standing import Standing
from css_ray.study.definition import Budget, StudyDefinition


def spent(standing: Standing[StudyDefinition]) -> dict[str, float]:
    """What the study has cost so far, over all its resumes, in hours: see `Budget`."""
    return {"hours": standing.wall_seconds / 3600, "gpu_hours": standing.gpu_hours, "cpu_hours": standing.cpu_hours}


def overdrawn(budget: Budget, standing: Standing[StudyDefinition]) -> str:
    """Which bound of the budget is reached, in words; empty if none is."""
    used = spent(standing)
    for name, bound in budget.model_dump().items():
        if bound is not None and used[name] >= bound:
            return f"the budget of {bound:g} {name.replace('_', '-')} is spent ({used[name]:.2f})"
    return ""


def affordable(study: StudyDefinition, standing: Standing[StudyDefinition], running: int) -> bool:
    """Whether another trial is likely to end inside the budget, judged by those that ended and those that run."""
    seconds = standing.times.by_trial
    ended = [seconds.get(trial, 0.0) for trial, end in standing.ended.items() if end.status == "finished"]
    if not ended:
        return not overdrawn(study.budget, standing)
    resources, used = study.resources, spent(standing)
    one, workers = sum(ended) / len(ended), standing.sizes.latest or resources.fewest
    ahead = one + sum(max(0.0, one - seconds.get(trial, 0.0)) for trial in standing.running)
    side_by_side = max(1, min(resources.concurrent_trials, running + 1))
    costs = {
        "hours": ahead / side_by_side / 3600,
        "gpu_hours": ahead / 3600 * workers * resources.gpus_per_worker,
        "cpu_hours": ahead / 3600 * workers * resources.cpus_per_worker,
    }
    bounds = study.budget.model_dump()
    return all(bound is None or used[name] + costs[name] <= bound for name, bound in bounds.items())
