"""A trial of two runs as its ranks leave it: the job, the events of its runs, and checkpoints of a real method."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from css_ray.events import RunEvaluated, RunEvent, RunFinished, RunStarted
from css_ray.execution.checkpoints import COMPLETE
from css_ray.execution.trial_file import write_trial
from css_ray.study.definition import StudyDefinition, parse
from css_ray.study.driver import make_job
from css_ray.study.inputs import prepare
from css_ray.study.job import Job
from css_ray.study.run import build_method, run_spec
from css_ray.training.checkpoint import write_checkpoint
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from tests.places import SPEC


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, which is quicker for networks as small as these where processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tiny_study(data: Path) -> StudyDefinition:
    """One trial of supervised training with a tiny network on the digits in `data`; two splits of 30 steps."""
    train = SPEC["train"] | {"iterations": 30}
    return parse(SPEC | {"data": SPEC["data"] | {"root": str(data)}, "train": train, "search": None, "resources": {}})


def job_of(data: Path, folder: Path | str, **changes: Any) -> Job:
    """What the ranks of the trial are handed; its checkpoints are in `folder`/checkpoints/trial_0000."""
    study = tiny_study(data)
    (trial,) = study.grid_trials()
    job = make_job(study, 0, [run_spec(study, trial, split) for split in study.splits], str(folder), None)
    return dataclasses.replace(job, **{"min_free": 0.0, **changes})


def told(job: Job, split: int, *steps: int, ended: bool = False) -> list[RunEvent]:
    """What a run reports up to its latest evaluation, or to its end."""
    of: dict[str, Any] = {"time": 1.0, "trial": job.trial, "split": split}
    (spec,) = (run for run in job.runs if run.split == split)
    events: list[RunEvent] = [RunStarted(**of, **prepare(spec).started(), workers=1)]
    events += [RunEvaluated(**of, step=step, metrics={"val/miou": float(step)}) for step in steps]
    if ended:
        scores = {"val/miou": float(steps[-1])}
        events.append(RunFinished(**of, step=steps[-1], last=scores, best=scores, best_step=steps[-1], seconds=1.0))
    return events


def state_at(job: Job, step: int) -> dict[str, Any]:
    """What all ranks share at a step: a fresh network, and an optimizer that has made a step."""
    spec = job.runs[0]
    torch.manual_seed(step)
    method = build_method(spec.settings, prepare(spec).dataset.info.num_classes)
    optimizer = make_optimizer(method, TrainConfig(**spec.settings["train"]))
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scores = {"val/miou": float(step)}
    progress = {"step": step, "last": scores, "best": scores, "best_step": step, "seconds": 1.5, "stage": 0}
    return {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}


def write(folder: Path, job: Job, events: list[RunEvent], state: dict[str, Any] | None) -> Path:
    """A checkpoint as a worker writes it; without `state` the one at the end of a split."""
    folder.mkdir(parents=True)
    if state is not None:
        write_checkpoint(folder, state)
    write_trial(folder, events, job.runs[0].settings)
    (folder / COMPLETE).write_text('{"ranks": 1}')
    return folder
