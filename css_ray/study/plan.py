"""What a study would do, in numbers and in words."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from css_ray.study.capacity import SMALLER, Capacity
from css_ray.study.cost import Estimate, Needs, StepMemoryError, estimate, needed_bytes, needs
from css_ray.study.definition import Problem, Resources, StudyDefinition, StudyError, TrialSpec
from css_ray.study.labels import labels
from css_ray.study.preflight import check


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 0.1e9 else f"{count / 1e6:.2g} MB"


def _workers_text(resources: Resources) -> str:
    workers = resources.workers
    return _count(workers, "worker") if isinstance(workers, int) else f"{min(workers)} to {max(workers)} workers"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study would do.

    trials: those of the grid; disk_bytes: the most that weights and checkpoints take; needs: the memory and the files of each
    row; warnings: what is valid, but probably a mistake; capacity: what the machine or the cluster holds, for which the plan
    was made; estimate: what it would cost, None if that was not measured. `print(plan)` prints all of it.
    """

    definition: StudyDefinition
    trials: tuple[TrialSpec, ...]
    disk_bytes: int
    needs: Mapping[str, Needs]
    warnings: tuple[str, ...]
    capacity: Capacity
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

    @property
    def side_by_side(self) -> int:
        """How many trials train at the same time, here and now: those that the study asks for, if it has them and they fit."""
        return side_by_side(self.definition, self.capacity)

    def __str__(self) -> str:
        study = self.definition
        lines = [f"{study.name}: {study.description}" if study.description else study.name]
        lines += [f"  trial {index}: {label}" for index, label in labels(self.trials).items()]
        if study.search is not None:
            row = study.search.method.get("row", study.search.method["name"])
            first, last = len(self.trials), len(self.trials) + study.search.trials - 1
            numbers = f"trial {first}" if first == last else f"trials {first}-{last}"
            lines.append(f"  {numbers}: {row}, drawn by {study.search.sampler} from")
            lines += [f"    {path}: {drawn.kind} {list(drawn.values)}" for path, drawn in study.space.items()]
        resources = study.resources
        devices = f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.cpus_per_worker} CPU"
        lines += [
            f"{_count(self.num_trials, 'trial')} x {_count(len(study.splits), 'split')} = {_count(self.num_runs, 'run')}, "
            f"{_count(self.num_steps, 'step')}",
            f"each trial: {_workers_text(resources)} of {devices}; {self._side_by_side_text()}",
            f"disk: up to {self.disk_bytes / 1e9:.2g} GB of weights and checkpoints",
            *self._needs_lines(),
        ]
        return "\n".join(lines)

    def _needs_lines(self) -> list[str]:
        """Rows that need the same share a line."""
        alike: dict[Needs, list[str]] = {}
        for row, each in self.needs.items():
            alike.setdefault(each, []).append(row)
        return [
            f"  {', '.join(rows)}: at least {_size(each.step)} of memory per worker for a step; {_size(each.checkpoint)} per "
            f"checkpoint, {_size(each.weights)} for the best weights of a run"
            for each, rows in alike.items()
        ]

    def _side_by_side_text(self) -> str:
        asked, number = self.definition.resources.concurrent_trials, self.side_by_side
        text = f"{_count(number, 'trial')} side by side"
        if number == asked:
            return text
        if number == self.num_trials:
            return f"{text} ({asked} asked for, the study has {number})"
        waits = "; the study would wait for nodes" if number < 1 else ""
        return f"{text} ({asked} asked for, {self.capacity.where} has {self.capacity}{waits})"


def make_plan(study: StudyDefinition, there: Capacity, *, local: bool, folder: str, measure: bool) -> Plan:
    """Check a study and report what it would do. Starts nothing, and writes no file.

    there: what the machine, or the cluster if not `local`, holds. folder: where the study would be kept. measure: time some
    steps on this machine. Raises StudyError with every problem that would stop a trial later.
    """
    with tempfile.TemporaryDirectory() as scratch:
        warned = check(study, local=local, capacity=there if local else None, folder=folder, scratch=scratch)
    timed = None
    if measure:
        try:
            # On a cluster that is empty now the study waits until one trial fits.
            timed = estimate(study, max(1, side_by_side(study, there)))
        except StepMemoryError as error:
            if local:
                raise StudyError([Problem("data.crop", f"{error}; {SMALLER}")], study.name) from None
            warned.append(f"{error}, so that no step was timed; the nodes of the cluster may have more")
    return Plan(study, tuple(study.grid_trials()), needed_bytes(study), needs(study), tuple(warned), there, timed)


def side_by_side(definition: StudyDefinition, capacity: Capacity) -> int:
    """How many trials of the study train at the same time."""
    return min(capacity.side_by_side(definition.resources), definition.num_trials)
