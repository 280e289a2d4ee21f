"""What a study asks of the world, checked before anything starts: its data, and the devices of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.splits import make_split
from css_ray.records import Event
from css_ray.study.run import build_method
from css_ray.study.schema import Study, StudyError, TrialSpec
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch


def check(study: Study, *, local: bool, events: Sequence[Event] = ()) -> None:
    """Raise StudyError with every problem that would stop a trial later.

    local: the study runs on this machine, so that its GPUs are counted here; a cluster's are counted once it is joined.
    events: of a study that goes on; its splits must still be those it began with.
    """
    problems = []
    begun = {
        (event["dataset"], event["num_labelled"], event["split"]): event["split_hash"]
        for event in events
        if event["event"] == "run_started"
    }
    resources = study.resources
    wanted, present = resources.workers * resources.gpus_per_worker, torch.cuda.device_count()
    if local and wanted > present:
        problems.append(
            f"resources.gpus_per_worker: a trial wants {wanted:g} GPU{'s' if wanted > 1 else ''}, this machine has {present}; "
            "use --set resources.gpus_per_worker=0 for the CPU, or --address to join a cluster"
        )
    trials = study.grid_trials() or [study.search_trial(0, point) for point in (study.search.first[:1] if study.search else ())]
    for name, root, num_classes in dict.fromkeys(
        (trial.settings["data"]["dataset"], trial.settings["data"]["root"], trial.settings["data"]["num_classes"])
        for trial in trials
    ):
        try:
            dataset = ensure_dataset(name, root)
        except (OSError, ValueError) as error:
            problems.append(f"data: {error}")
            continue
        if num_classes is not None and num_classes != dataset.info.num_classes:
            problems.append(
                f"data.num_classes: {num_classes} here, but the shards in {root} have {dataset.info.num_classes}; "
                "drop the line or prepare the data anew"
            )
        counts = {trial.settings["data"]["labelled"] for trial in trials if trial.settings["data"]["root"] == root} | {
            study.data.labelled
        }
        for count in sorted(counts):
            for split in study.splits:
                try:
                    made = make_split(dataset, count, split)
                except ValueError as error:
                    problems.append(f"data.labelled: {error}")
                    break
                before = begun.get((dataset.info.name, count, split), made.hash)
                if made.hash != before:
                    problems.append(
                        f"data.root: split {split} with {count} labels is no longer the one this study began with "
                        f"({made.hash[:12]}, was {before[:12]}); "
                        f"restore the data set in {root}, or start another study"
                    )
    if problems:
        raise StudyError(problems, study.name)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a study would train.

    seconds_a_step: by row, measured on `device`. seconds: of all steps of the study at its concurrency, without evaluation.
    """

    device: str
    seconds_a_step: dict[str, float]
    seconds: float


def estimate(study: Study, *, steps: int = 3, concurrent: int | None = None) -> Estimate:
    """Time a few steps of every row on random images of the study's size, one worker's share of the batch, on this machine.

    It needs no data set. The first step of each row warms up and is not counted.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and study.resources.gpus_per_worker else "cpu")
    torch.set_num_threads(study.resources.cpus_per_worker)
    trials = study.grid_trials()
    rows: dict[str, list[TrialSpec]] = {}
    for trial in trials:
        rows.setdefault(trial.row, []).append(trial)
    timed = {row: _seconds_a_step(study, specs[0], device, steps) for row, specs in rows.items()}
    total = sum(timed[trial.row] * trial.settings["train"]["iterations"] for trial in trials)
    if study.search is not None:
        drawn = (
            study.search.first[0]
            if study.search.first
            else {path: distribution.values[0] for path, distribution in study.space.items()}
        )
        trial = study.search_trial(len(trials), drawn)
        timed[f"search: {trial.row}"] = _seconds_a_step(study, trial, device, steps)
        total += timed[f"search: {trial.row}"] * trial.settings["train"]["iterations"] * study.search.trials
    seconds = total * len(study.splits) / (concurrent or study.resources.concurrent_trials)
    return Estimate(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", timed, seconds)


def _seconds_a_step(study: Study, trial: TrialSpec, device: torch.device, steps: int) -> float:
    data = trial.settings["data"]
    num_classes = data["num_classes"] or 21
    method = build_method(trial.settings, num_classes).to(device)
    optimizer = make_optimizer(method, TrainConfig(**trial.settings["train"]))
    size, workers = data["crop"], study.resources.workers
    labelled = data["labelled_batch"] // workers
    unlabelled = data["unlabelled_batch"] // workers if method.needs_unlabelled else 0
    batch = Batch(
        torch.rand(labelled, 3, size, size),
        torch.randint(num_classes, (labelled, size, size)),
        torch.rand(unlabelled, 3, size, size),
        torch.ones(unlabelled, size, size, dtype=torch.bool),
    ).to(device)
    times = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        total = method(batch, 0.5).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
