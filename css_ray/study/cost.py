"""What a study would cost: time, measured on a few steps of each row, and room on its disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from css_ray.study.definition import StudyDefinition, TrialSpec, ends
from css_ray.study.run import build_method
from css_ray.training.settings import TrainConfig
from css_ray.training.timing import seconds_per_step

ASSUMED_CLASSES = 21
"""What a data set that does not say its classes is taken for where only sizes and times matter."""


def needed_bytes(study: StudyDefinition) -> int:
    """What the files of a study take on its disk at most, in bytes: weights and checkpoints in float32.

    Of each run the best weights; of each trial that is kept (see `Keep`) its last checkpoint; of each that runs two
    checkpoints, and one that is being written. Nothing is downloaded, and no memory taken.
    """
    trials = study.grid_trials()
    kept = dict(enumerate(trials))
    if study.search is not None:
        drawn = study.search.first[0] if study.search.first else ends(study.space)[0]
        count = min(study.search.trials, study.keep.top or study.search.trials)
        kept |= dict.fromkeys(range(len(trials), len(trials) + count), study.search_trial(len(trials), drawn))
    sizes: dict[tuple[str, ...], tuple[int, int]] = {}
    total = largest = 0
    for trial in kept.values():
        key = str(trial.settings["model"]), trial.settings["method"]["name"]
        if key not in sizes:
            sizes[key] = _file_sizes(trial)
        weights, checkpoint = sizes[key]
        total += len(study.splits) * weights + checkpoint
        largest = max(largest, checkpoint)
    return total + 3 * min(study.resources.concurrent_trials, study.num_trials) * largest


def _file_sizes(trial: TrialSpec) -> tuple[int, int]:
    """Bytes of the best weights of one run, and of one checkpoint: the method's state, and SGD's momentum."""
    settings = {**trial.settings, "model": {**trial.settings["model"], "pretrained": False}}
    with torch.device("meta"):
        method = build_method(settings, settings["data"]["num_classes"] or ASSUMED_CLASSES)
    weights, state = (
        sum(tensor.numel() * tensor.element_size() for tensor in each.state_dict().values())
        for each in (method.predictor(), method)
    )
    momentum = sum(parameter.numel() * 4 for parameter in method.parameters() if parameter.requires_grad)
    return weights, state + momentum


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a study would train.

    seconds_a_step: by row, measured on `device`. seconds: of all steps of the study at its concurrency, without evaluation.
    """

    device: str
    seconds_a_step: dict[str, float]
    seconds: float


def estimate(study: StudyDefinition) -> Estimate:
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


def _seconds_a_step(study: StudyDefinition, trial: TrialSpec, device: torch.device) -> float:
    data = trial.settings["data"]
    num_classes, workers = data["num_classes"] or ASSUMED_CLASSES, study.resources.sizes(data)[0]
    return seconds_per_step(
        build_method(trial.settings, num_classes),
        TrainConfig(**trial.settings["train"]),
        num_classes=num_classes,
        crop=data["crop"],
        labelled_batch=data["labelled_batch"] // workers,
        unlabelled_batch=data["unlabelled_batch"] // workers,
        device=device,
    )
