"""What a study would do, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from css_ray.study.cost import Estimate
from css_ray.study.definition import Resources, StudyDefinition, TrialSpec


def _workers_text(resources: Resources) -> str:
    workers = resources.workers
    if not isinstance(workers, int):
        return f"{min(workers)} to {max(workers)} workers"
    return f"{workers} worker{'s' if workers > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study would do.

    trials: those known before it runs, of the grid; disk_bytes: what weights and checkpoints take at most; warnings: what is
    allowed but hardly meant; estimate: what it would cost, None if that was not measured. `print(plan)` tells it all.
    """

    definition: StudyDefinition
    trials: tuple[TrialSpec, ...]
    disk_bytes: int
    warnings: tuple[str, ...]
    estimate: Estimate | None

    @property
    def num_trials(self) -> int:
        """Trials of the grid and the search together."""
        return self.definition.num_trials

    @property
    def num_runs(self) -> int:
        """Trials times splits."""
        return self.num_trials * len(self.definition.splits)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all runs, before anything is pruned."""
        search = self.definition.search
        drawn = search.trials * self.definition.train.iterations if search else 0
        in_grid: int = sum(trial.settings["train"]["iterations"] for trial in self.trials)
        return (in_grid + drawn) * len(self.definition.splits)

    def __str__(self) -> str:
        study = self.definition
        lines = [f"{study.name}: {study.description}" if study.description else study.name]
        for trial in self.trials:
            varied = ", ".join(f"{key}={value}" for key, value in trial.params.items() if not key.startswith("method."))
            lines.append(f"  trial {trial.index}: {trial.row}" + (f" ({varied})" if varied else ""))
        if study.search is not None:
            row = study.search.method.get("row", study.search.method["name"])
            first, last = len(self.trials), len(self.trials) + study.search.trials - 1
            lines.append(f"  trials {first}-{last}: {row}, drawn by {study.search.sampler} from")
            lines += [f"    {path}: {drawn.kind} {list(drawn.values)}" for path, drawn in study.space.items()]
        resources = study.resources
        devices = f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.cpus_per_worker} CPU"
        lines += [
            f"{self.num_trials} trials x {len(study.splits)} splits = {self.num_runs} runs, {self.num_steps} steps",
            f"each trial: {_workers_text(resources)} of {devices}; {resources.concurrent_trials} trials side by side",
            f"disk: up to {self.disk_bytes / 1e9:.2g} GB of weights and checkpoints",
        ]
        return "\n".join(lines)
