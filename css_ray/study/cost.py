"""What a study would cost: time, measured on a few steps of each row, memory for a step, and space on its disk."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from css_ray.data.description import SetDescription, read_description
from css_ray.methods import METHODS, Method
from css_ray.models.segmenter import make_segmenter
from css_ray.study.capacity import step_memory
from css_ray.study.definition import StudyDefinition, TrialSpec, ends
from css_ray.study.run import build_method, model_config
from css_ray.training.optimizer import parameter_groups
from css_ray.training.settings import TrainConfig
from css_ray.training.timing import seconds_per_step

ASSUMED_CLASSES = 21
"""The classes of a data set that is not there yet, if only sizes and times depend on them."""


def needed_bytes(study: StudyDefinition) -> int:
    """The most that the files of a study take on its disk, in bytes: weights and checkpoints in float32, and pseudo-labels.

    These are the best weights of each run, the last checkpoint of each trial that is kept (see `Keep`), and for each trial that
    runs two checkpoints, one that is being written, and the labels that its method makes at the borders of its stages. Nothing
    is downloaded, and no memory is allocated.
    """
    trials = study.grid_trials()
    kept = dict(enumerate(trials))
    if study.search is not None:
        drawn = study.search.first[0] if study.search.first else ends(study.space)[0]
        count = min(study.search.trials, study.keep.top or study.search.trials)
        kept |= dict.fromkeys(range(len(trials), len(trials) + count), study.search_trial(len(trials), drawn))
    sizes: dict[tuple[str, ...], tuple[int, int]] = {}
    total = largest = labels = 0
    for trial in kept.values():
        key = str(trial.settings["model"]), trial.settings["method"]["name"]
        if key not in sizes:
            sizes[key] = _file_sizes(trial)
        weights, checkpoint = sizes[key]
        total += len(study.splits) * weights + checkpoint
        largest, labels = max(largest, checkpoint), max(labels, _label_bytes(trial))
    return total + min(study.resources.concurrent_trials, study.num_trials) * (3 * largest + labels)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a row needs, in bytes.

    step: the memory of a worker for a step, at least (see `least_memory`); infinite if it cannot be counted. checkpoint: all
    networks, queues and prototypes of the method, and the optimizer's state, as a checkpoint holds them. weights: what is kept
    of each run, the networks that are evaluated.
    """

    step: float
    checkpoint: int
    weights: int


def needs(study: StudyDefinition) -> dict[str, Needs]:
    """What each row needs, by the first of its trials, that of the search last. Nothing is downloaded or allocated."""
    trials = study.grid_trials()
    rows: dict[str, TrialSpec] = {}
    for trial in trials:
        rows.setdefault(trial.row, trial)
    if study.search is not None:
        drawn = study.search.first[0] if study.search.first else ends(study.space)[0]
        trial = study.search_trial(len(trials), drawn)
        rows.setdefault(trial.row, trial)
    found = {}
    for row, trial in rows.items():
        weights, checkpoint = _file_sizes(trial)
        found[row] = Needs(least_memory(trial, study.resources.sizes(trial.settings["data"])[0]), checkpoint, weights)
    return found


def _file_sizes(trial: TrialSpec) -> tuple[int, int]:
    """Bytes of the best weights of one run, and of one checkpoint: the method's state and the optimizer's."""
    with torch.device("meta"):
        method = _untrained(trial, num_classes(trial.settings["data"]))
    weights, state = (
        sum(tensor.numel() * tensor.element_size() for tensor in each.state_dict().values())
        for each in (method.predictor(), method)
    )
    # Not all its settings: the ends of a search's space need not make sense together.
    train = TrainConfig(**{name: trial.settings["train"][name] for name in ("optimizer", "encoder_lr_factor")})
    means = 2 if train.optimizer == "adamw" else 1  # of gradients, and of their squares
    trained = (parameter for group in parameter_groups(method, train) for parameter in group["params"])
    return weights, state + sum(4 * means * parameter.numel() for parameter in trained)


def _label_bytes(trial: TrialSpec) -> int:
    """Bytes of the pseudo-labels that one run keeps; 0 if its data set is not there yet.

    A file for each border, of at most a quarter of the training images' size: a mask takes a few percent of its photograph.
    """
    with torch.device("meta"):
        stages = _untrained(trial, ASSUMED_CLASSES).stages()
    described = _described(trial.settings["data"])
    if described is None:
        return 0
    files = sum(stage.batch == "union" for stage in stages[1:])
    return files * sum(file.bytes for file in described.subsets["train"].files) // 4


def least_memory(trial: TrialSpec, workers: int) -> float:
    """Bytes that a worker needs at least for a step of a trial; infinite if they cannot be counted. Allocates no memory.

    These are the method's state, the optimizer's, the worker's images, and the outputs of the student's convolutions on the
    labelled ones, which the way back needs; a frozen encoder has none. What else a step needs depends on the method, and is
    often as much again.
    """
    data, train = trial.settings["data"], trial.settings["train"]
    side, labelled, outputs = data["crop"], data["labelled_batch"] // workers, 0
    needs_unlabelled = METHODS[trial.settings["method"]["name"]].needs_unlabelled
    images = labelled + (data["unlabelled_batch"] // workers if needs_unlabelled else 0)

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal outputs
        outputs += output.numel()

    try:
        with torch.device("meta"), torch.no_grad():
            network = make_segmenter(dataclasses.replace(model_config(trial.settings), pretrained=False), ASSUMED_CLASSES)
            frozen = set(network.encoder.modules()) if train["encoder_lr_factor"] == 0 else set()
            for module in network.modules():
                if isinstance(module, nn.Conv2d) and module not in frozen:
                    module.register_forward_hook(count)
            network.eval()(torch.empty(labelled, 3, side, side))
        _, state = _file_sizes(trial)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return math.inf
    return float(state + images * 3 * side**2 * 4 + outputs * (2 if train["precision"] == "bf16" else 4))


def num_classes(data: Mapping[str, Any]) -> int:
    """The classes of a trial's data set, by its `data` settings or the description of the set; assumed if neither has them."""
    if (given := data["num_classes"]) is not None:
        return int(given)
    described = _described(data)
    return ASSUMED_CLASSES if described is None else described.info.num_classes


def _described(data: Mapping[str, Any]) -> SetDescription | None:
    try:
        return read_description(data["root"])
    except (OSError, ValueError):  # which the check of the study reports
        return None


def _untrained(trial: TrialSpec, num_classes: int) -> Method:
    """A trial's method to be measured: no pretrained weights are fetched, and its warnings are left to the check."""
    settings = {**trial.settings, "model": {**trial.settings["model"], "pretrained": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_method(settings, num_classes)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a study would train.

    seconds_a_step: by row, measured on `device`. peak_bytes: the most memory that a step of a row took, empty if the device is
    not a GPU. seconds: of all steps, with the number of trials side by side that the estimate was made for, without evaluation.
    """

    device: str
    seconds_a_step: dict[str, float]
    peak_bytes: dict[str, int]
    seconds: float


def estimate(study: StudyDefinition, side_by_side: int) -> Estimate:
    """Time a few steps of every row on random images of the study's size, one worker's share of the batch, on this machine.

    side_by_side: how many trials train together. It needs no data set. The first step of each row warms up and is not counted.
    Raises StepMemoryError if a step does not fit into this machine's memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and study.resources.gpus_per_worker else "cpu")
    torch.set_num_threads(study.resources.cpus_per_worker)
    trials = study.grid_trials()
    rows: dict[str, list[TrialSpec]] = {}
    for trial in trials:
        rows.setdefault(trial.row, []).append(trial)
    timed: dict[str, float] = {}
    peaks: dict[str, int] = {}

    def measure(row: str, trial: TrialSpec) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        timed[row] = _seconds_a_step(study, trial, device)
        if device.type == "cuda":
            peaks[row] = torch.cuda.max_memory_allocated()

    for row, specs in rows.items():
        measure(row, specs[0])
    total = sum(timed[trial.row] * trial.settings["train"]["iterations"] for trial in trials)
    if study.search is not None:
        drawn = study.search.first[0] if study.search.first else ends(study.space)[0]
        trial = study.search_trial(len(trials), drawn)
        measure(f"search: {trial.row}", trial)
        total += timed[f"search: {trial.row}"] * trial.settings["train"]["iterations"] * study.search.trials
    seconds = total * len(study.splits) / side_by_side
    return Estimate(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", timed, peaks, seconds)


class StepMemoryError(RuntimeError):
    """A step of a trial does not fit into the memory of this machine."""


def _seconds_a_step(study: StudyDefinition, trial: TrialSpec, device: torch.device) -> float:
    data = trial.settings["data"]
    classes, workers = num_classes(data), study.resources.sizes(data)[0]
    there = step_memory(study.resources)
    if (needed := least_memory(trial, workers)) > there.bytes:
        raise StepMemoryError(f"a step of {trial.row} takes {needed / 1e9:.3g} GB of memory or more, {there}")
    try:
        return _timed(study, trial, device, classes, workers)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("alloc|memory|overflow", str(error)):
            raise
        raise StepMemoryError(f"a step of {trial.row} does not fit into memory: {there}") from None


def _timed(study: StudyDefinition, trial: TrialSpec, device: torch.device, classes: int, workers: int) -> float:
    data = trial.settings["data"]
    return seconds_per_step(
        _untrained(trial, classes),
        TrainConfig(**trial.settings["train"]),
        num_classes=classes,
        crop=data["crop"],
        labelled_batch=data["labelled_batch"] // workers,
        unlabelled_batch=data["unlabelled_batch"] // workers,
        device=device,
    )
