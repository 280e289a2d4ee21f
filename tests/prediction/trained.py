"""A study with real weights in seconds: its journal is made up around runs that were trained in this process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from css_ray.events import RunEvaluated, RunFinished, RunStarted, TrialFinished
from css_ray.matrices import write_matrices
from css_ray.records import mean_std
from css_ray.study.inputs import prepare
from css_ray.study.run import execute, run_spec
from css_ray.study.upkeep import matrices_of, models_of
from css_ray.training.best import write_best
from css_ray.training.reporter import SilentReporter
from tests.cli.made_up import Journal


def train_study(storage: Path, root: Path, trials: tuple[int, ...] = (0, 1), **sections: Any) -> Journal:
    """The study of `made_up.SPEC` on the data set in `root`, of which these trials of the grid have finished on all splits."""
    from tests.cli.made_up import SPEC

    data = {**SPEC["data"], "root": str(root), **sections.pop("data", {})}
    journal = Journal(storage, data=data, **sections)
    definition = journal.definition
    for index in trials:
        trial = journal.begin(index)
        scores: dict[int, float] = {}
        for split in definition.splits:
            prepared = prepare(run_spec(definition, trial, split))
            place: dict[str, Any] = {"time": journal.time, "trial": index, "split": split}
            journal.write(RunStarted(**place, **prepared.started(), workers=1))
            folder = Path(models_of(str(journal.path.parent), index)) / f"split_{split}"
            matrices = Path(matrices_of(str(journal.path.parent), index)) / f"split_{split}"
            fit = execute(
                prepared,
                SilentReporter(),
                keep_best=lambda weights, best, folder=folder: write_best(folder, weights, best),  # type: ignore[misc]
                keep_matrices=partial(write_matrices, matrices),
            )
            journal.write(RunEvaluated(**place, step=fit.step, metrics=fit.last))
            journal.write(
                RunFinished(**place, step=fit.step, last=fit.last, best=fit.best, best_step=fit.best_step, seconds=1.0)
            )
            scores[split] = fit.last["val/miou"]
        mean, std = mean_std(list(scores.values()))
        journal.write(
            TrialFinished(
                time=journal.time, trial=index, status="finished", reason="", mean=mean, std=std, n=len(scores),
                values={str(split): score for split, score in scores.items()}, num_splits=len(definition.splits),
            )
        )  # fmt: skip
    return journal


def best_of_runs(journal: Journal) -> dict[tuple[int, int], dict[str, float]]:
    """The metrics at the best evaluation of each finished run, as the journal has them, by trial and split."""
    events = [json.loads(line) for line in journal.path.read_text().splitlines()]
    return {(event["trial"], event["split"]): event["best"] for event in events if event["event"] == "run_finished"}
