"""What a study asks of the world, checked before anything starts: its data, and the devices of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.splits import make_split
from css_ray.methods import METHODS
from css_ray.models.encoders import make_encoder
from css_ray.records import Event
from css_ray.study.run import build_method, method_config
from css_ray.study.schema import Study, StudyError, TrialSpec, ends
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch


def check(study: Study, *, local: bool, events: Sequence[Event] = ()) -> list[str]:
    """Raise StudyError with every problem that would stop a trial later; return what is allowed but hardly meant.

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
    trials = study.grid_trials()
    if study.search is not None:
        trials += [study.search_trial(len(trials), point) for point in (*study.search.first, *ends(study.space))]
    problems += _models(trials) + _batches(study, trials)
    num_classes_in: dict[str, int] = {}
    for name, root, num_classes in dict.fromkeys(
        (trial.settings["data"]["dataset"], trial.settings["data"]["root"], trial.settings["data"]["num_classes"])
        for trial in trials
    ):
        try:
            dataset = ensure_dataset(name, root)
        except (OSError, ValueError) as error:
            problems.append(f"data: {error}")
            continue
        num_classes_in[root] = dataset.info.num_classes
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
                needy = [trial.row for trial in trials if METHODS[trial.settings["method"]["name"]].needs_unlabelled]
                if needy and not made.unlabelled:
                    problems.append(
                        f"data.labelled: {count} labels all training images, but {needy[0]} learns from unlabelled ones"
                    )
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
    return _warnings(trials, num_classes_in)


def _warnings(trials: Sequence[TrialSpec], num_classes_in: Mapping[str, int]) -> list[str]:
    """What the methods say of their settings, each sentence once, with the rows it holds for."""
    rows: dict[str, list[str]] = {}
    for trial in trials:
        config = method_config(trial.settings)
        for warning in METHODS[trial.settings["method"]["name"]].warnings(
            config, num_classes_in[trial.settings["data"]["root"]]
        ):
            rows.setdefault(warning, []).append(trial.row)
    return [f"{', '.join(dict.fromkeys(where))}: {warning}" for warning, where in rows.items()]


def _models(trials: Sequence[TrialSpec]) -> list[str]:
    """What is wrong with the networks; nothing is downloaded."""
    problems = []
    settings = [trial.settings["model"] for trial in trials]
    for encoder, stride, pretrained in dict.fromkeys(
        (each["encoder"], each["output_stride"], each["pretrained"]) for each in settings
    ):
        try:
            make_encoder(encoder, stride, pretrained if isinstance(pretrained, str) or encoder == "tiny" else False)
        except (OSError, ValueError) as error:
            problems.append(f"model: {error}")
    return problems


def _batches(study: Study, trials: Sequence[TrialSpec]) -> list[str]:
    """Batch statistics need two images where they are not shared over GPUs."""
    workers = study.resources.workers
    if workers > 1 and study.resources.gpus_per_worker:
        return []
    small = dict.fromkeys(
        (key, trial.settings["data"][key])
        for trial in trials
        for key in ("labelled_batch", "unlabelled_batch")
        if trial.settings["data"][key] // workers < 2
    )
    return [
        f"data.{key}: {batch} over {workers} worker(s) is less than 2 images each, which BatchNorm needs"
        for key, batch in small
    ]


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a study would train.

    seconds_a_step: by row, measured on `device`. seconds: of all steps of the study at its concurrency, without evaluation.
    """

    device: str
    seconds_a_step: dict[str, float]
    seconds: float


def estimate(study: Study) -> Estimate:
    """Time a few steps of every row on random images of the study's size, one worker's share of the batch, on this machine.

    It needs no data set. The first step of each row warms up and is not counted.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and study.resources.gpus_per_worker else "cpu")
    torch.set_num_threads(study.resources.cpus_per_worker)
    trials = study.grid_trials()
    rows: dict[str, list[TrialSpec]] = {}
    for trial in trials:
        rows.setdefault(trial.row, []).append(trial)
    timed = {row: _seconds_a_step(study, specs[0], device) for row, specs in rows.items()}
    total = sum(timed[trial.row] * trial.settings["train"]["iterations"] for trial in trials)
    if study.search is not None:
        drawn = study.search.first[0] if study.search.first else ends(study.space)[0]
        trial = study.search_trial(len(trials), drawn)
        timed[f"search: {trial.row}"] = _seconds_a_step(study, trial, device)
        total += timed[f"search: {trial.row}"] * trial.settings["train"]["iterations"] * study.search.trials
    seconds = total * len(study.splits) / study.resources.concurrent_trials
    return Estimate(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", timed, seconds)


TIMED_STEPS = 3


def _seconds_a_step(study: Study, trial: TrialSpec, device: torch.device) -> float:
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
    for _ in range(TIMED_STEPS + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=trial.settings["train"]["precision"] == "bf16"):
            total = method(batch, 0.5).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        method.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
