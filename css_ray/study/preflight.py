"""What a study needs, checked before anything starts: its data, its networks, and the devices of this machine."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.crops import crop_warning
from css_ray.data.lists import ListError
from css_ray.data.shards import DataSet
from css_ray.data.splits import Split
from css_ray.events import Event, RunStarted, TrialStarted
from css_ray.messages import os_error_text
from css_ray.methods import METHODS
from css_ray.models.encoders import WeightsError, make_encoder
from css_ray.secrets import shown
from css_ray.storage import free_bytes
from css_ray.study.capacity import ENLARGE, SMALLER, Capacity, step_memory
from css_ray.study.cost import least_memory, needed_bytes
from css_ray.study.definition import Problem, Resources, StudyDefinition, StudyError, TrialSpec, fresh_splits, read
from css_ray.study.definition.problems import intact
from css_ray.study.inputs import choose_split, list_files, split_key
from css_ray.study.run import method_config


def read_and_check(path: Path | str, overrides: Sequence[str] = (), *, local: bool) -> StudyDefinition:
    """Read a study file as `definition.read` does; if it is wrong, list what `check` finds in the rest of it as well.

    local: as for `check`, which is still to be called with a study that is right.
    """
    try:
        return read(path, overrides)
    except StudyError as error:
        if error.rest is None:
            raise
        with tempfile.TemporaryDirectory() as scratch:
            found = _look(error.rest, local=local, scratch=scratch, known=error.problems)
        raise StudyError([*error.problems, *found.problems], error.source) from None


def check(
    study: StudyDefinition,
    *,
    local: bool,
    capacity: Capacity | None = None,
    folder: str | None = None,
    events: Sequence[Event] = (),
    scratch: str | None = None,
) -> list[str]:
    """Raise StudyError with every problem that would stop a trial later; return what is valid, but probably a mistake.

    local: the study runs on this machine, so that its GPUs are counted here; a cluster's are counted once it is joined.
    capacity: what this machine has, if its cores are to be counted as well. folder: where the study will be kept, if its disk
    is to be checked. events: of a study that resumes; its splits must still be those that it began with. scratch: a folder for
    a built-in data set that is not there yet, if it is not to be made in its own folder.
    """
    found = _look(study, local=local, capacity=capacity, events=events, scratch=scratch)
    if found.problems:
        raise StudyError(found.problems, study.name)
    small_disk = _small_disk(study, folder) if folder is not None and not events else []
    warnings = _warnings(found.trials, found.datasets) + _same_images(study, found.trials, found.splits)
    return warnings + _large_crops(found.trials, found.datasets) + small_disk


@dataclass(frozen=True, slots=True)
class _Found:
    """What a study meets in the world, and what is wrong with it."""

    problems: list[Problem]
    trials: list[TrialSpec]
    datasets: dict[tuple[str, str], DataSet]
    splits: dict[Hashable, Split]


def _look(
    study: StudyDefinition,
    *,
    local: bool,
    capacity: Capacity | None = None,
    events: Sequence[Event] = (),
    scratch: str | None = None,
    known: Sequence[Problem] = (),
) -> _Found:
    """Look at devices, networks, data sets and splits. known: what is wrong with the file, and so is not looked at here."""
    problems: list[Problem] = []
    resources = study.resources
    wanted, present = resources.fewest * resources.gpus_per_worker, torch.cuda.device_count()
    if local and wanted > present and intact(known, "resources"):
        problems.append(
            Problem(
                "resources.gpus_per_worker",
                f"a trial wants {wanted:g} GPU{'s' if wanted > 1 else ''}, this machine has {present}; "
                "use --set resources.gpus_per_worker=0 for the CPU, or --address to join a cluster",
            )
        )
    elif capacity is not None and (shortage := capacity.shortage(resources)) and intact(known, "resources"):
        problems.append(Problem("resources", f"{shortage}; {ENLARGE}"))
    trials = [trial for _, trial, _ in study.known_trials()]
    if intact(known, "model"):
        wrong_models = _models(trials)
        problems += wrong_models
        if local and wanted <= present and not wrong_models and intact(known, "data.crop", "data.labelled_batch", "resources"):
            problems += _memory(trials, resources)
    if not intact(known, "data.dataset", "data.root"):
        return _Found(problems, trials, {}, {})
    begun = _begun(study, events)
    datasets: dict[tuple[str, str], DataSet] = {}
    for name, root, num_classes in dict.fromkeys(
        (trial.settings["data"]["dataset"], trial.settings["data"]["root"], trial.settings["data"]["num_classes"])
        for trial in (*trials, *begun.values())
    ):
        try:
            dataset = datasets[name, root] = ensure_dataset(name, root, scratch)
        except (OSError, ValueError) as error:
            problems.append(Problem("data", os_error_text(error) if isinstance(error, OSError) else str(error)))
            continue
        if num_classes is not None and num_classes != dataset.info.num_classes:
            problems.append(
                Problem(
                    "data.num_classes",
                    f"{num_classes} here, but the shards in {shown(root)} have {dataset.info.num_classes}; "
                    "drop the line, or prepare the data again",
                )
            )
    if not intact(known, *SPLIT_SETTINGS):
        return _Found(problems, trials, datasets, {})
    splits, wrong = _splits(study, (*trials, *begun.values()), datasets)
    if study.search is not None and study.search.confirm:
        # To be found now, not when the search has ended.
        fresh = dataclasses.replace(study, splits=tuple(fresh_splits(study)))
        confirming = _splits(fresh, trials, datasets)[1]
        problems += [Problem("search.confirm", str(problem)) for problem in confirming if problem not in wrong]
    problems += wrong
    if intact(known, "method"):
        problems += _unlabelled(study, trials, splits)
    return _Found(problems + _changed(begun, splits, events), trials, datasets, splits)


SPLIT_SETTINGS = ("splits", "data.labelled", "data.nested_splits", "data.labelled_list", "data.unlabelled_list")
"""What the choice of labelled images depends on, beside the data set."""


def _large_crops(trials: Sequence[TrialSpec], datasets: Mapping[tuple[str, str], DataSet]) -> list[str]:
    """Crops that are larger than every image of their data set."""
    crops = {(data["dataset"], data["root"], data["crop"]) for data in (trial.settings["data"] for trial in trials)}
    return [warning for name, root, crop in sorted(crops) if (warning := crop_warning(datasets[name, root], crop))]


def _small_disk(study: StudyDefinition, folder: str) -> list[str]:
    """A disk that is probably too small for the study, which would pause when it is full."""
    needed, free = needed_bytes(study), free_bytes(folder)
    if free is None or free >= needed + study.keep.min_free_gb * 1e9:
        return []
    return [
        f"keep: the weights and checkpoints of this study take up to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
        "where it is kept; lower keep.top, make room, or give another --storage (it pauses when the disk is full)"
    ]


def _begun(study: StudyDefinition, events: Sequence[Event]) -> dict[int, TrialSpec]:
    """The trials that a study which resumes has begun, by index."""
    return {event.trial: study.trial_begun(event) for event in events if isinstance(event, TrialStarted)}


def _splits(
    study: StudyDefinition, trials: Sequence[TrialSpec], datasets: Mapping[tuple[str, str], DataSet]
) -> tuple[dict[Hashable, Split], list[Problem]]:
    """The splits of all trials by `split_key`, each made or read once, and what is wrong with the others."""
    splits: dict[Hashable, Split] = {}
    problems = []
    seen: set[Hashable] = set()
    for trial in trials:
        data = trial.settings["data"]
        dataset = datasets.get((data["dataset"], data["root"]))
        for index in study.splits:
            key = split_key(data, index)
            if dataset is None or key in seen:
                continue
            seen.add(key)
            try:
                splits[key] = choose_split(dataset, data, index)
            except ListError as error:
                problems += [Problem("data.labelled_list", problem) for problem in error.problems]
            except ValueError as error:
                problems.append(Problem("data.labelled", str(error)))
    return splits, problems


def _unlabelled(study: StudyDefinition, trials: Sequence[TrialSpec], splits: Mapping[Hashable, Split]) -> list[Problem]:
    """A method that learns from unlabelled images needs some."""
    problems: dict[int, Problem] = {}
    for trial in trials:
        data = trial.settings["data"]
        made = [split for index in study.splits if (split := splits.get(split_key(data, index)))]
        if METHODS[trial.settings["method"]["name"]].needs_unlabelled and not all(split.unlabelled for split in made):
            count = data["labelled"]
            sentence = f"{count} labels all training images, but {trial.row} learns from unlabelled ones; label fewer"
            problems.setdefault(count, Problem("data.labelled", sentence))
    return list(problems.values())


def _changed(begun: Mapping[int, TrialSpec], splits: Mapping[Hashable, Split], events: Sequence[Event]) -> list[Problem]:
    """A study that resumes trains on the images that it began with."""
    problems = []
    for event in events:
        if not isinstance(event, RunStarted) or event.trial not in begun:
            continue
        data, index = begun[event.trial].settings["data"], event.split
        made, before = splits.get(split_key(data, index)), event.split_hash
        if made is None or made.hash == before:
            continue
        hashes = f"({made.hash[:12]}, was {before[:12]})"
        if files := " and ".join(list_files(data, index)):
            sentence = (
                f"split {index}, from {files}, is no longer the one this study began with {hashes}; "
                f"restore the lists and the data set (splits/{before}.json in the study's folder has the ids), "
                "or start another study"
            )
            problems.append(Problem("data.labelled_list", sentence))
        else:
            sentence = (
                f"split {index} with {event.num_labelled} labels is no longer the one this study began with "
                f"{hashes}; restore the data set in {shown(data['root'])}, or start another study"
            )
            problems.append(Problem("data.root", sentence))
    return problems


def _same_images(study: StudyDefinition, trials: Sequence[TrialSpec], splits: Mapping[Hashable, Split]) -> list[str]:
    """Identical splits measure nothing of the choice of the images."""
    warnings = []
    for trial in trials:
        data = trial.settings["data"]
        by_hash: dict[str, list[int]] = {}
        for index in study.splits:
            by_hash.setdefault(splits[split_key(data, index)].hash, []).append(index)
        warnings += [
            f"splits {', '.join(map(str, same))} with {data['labelled']} labels have the same images: only their seeds differ"
            for same in by_hash.values()
            if len(same) > 1
        ]
    return list(dict.fromkeys(warnings))


def _warnings(trials: Sequence[TrialSpec], datasets: Mapping[tuple[str, str], DataSet]) -> list[str]:
    """What the methods warn of, each sentence once, with the rows it holds for."""
    rows: dict[str, list[str]] = {}
    for trial in trials:
        data, method = trial.settings["data"], METHODS[trial.settings["method"]["name"]]
        num_classes = datasets[data["dataset"], data["root"]].info.num_classes
        for warning in method.warnings(method_config(trial.settings), num_classes):
            rows.setdefault(warning, []).append(trial.row)
    return [f"{', '.join(dict.fromkeys(where))}: {warning}" for warning, where in rows.items()]


def _memory(trials: Sequence[TrialSpec], resources: Resources) -> list[Problem]:
    """Settings with which not even one step can fit into the memory of this machine."""
    there = step_memory(resources)
    largest: dict[str, TrialSpec] = {}
    for trial in trials:
        key = repr((trial.settings["model"], trial.settings["method"]["name"], trial.settings["train"]["precision"]))
        if key not in largest or _pixels(trial) > _pixels(largest[key]):
            largest[key] = trial
    problems = []
    for trial in largest.values():
        if (needed := least_memory(trial, resources.fewest)) > there.bytes:
            sentence = f"a step of {trial.row} takes {needed / 1e9:.3g} GB of memory or more, {there}; {SMALLER}"
            problems.append(Problem("data.crop", sentence))
    return problems


def _pixels(trial: TrialSpec) -> int:
    data = trial.settings["data"]
    return int((data["labelled_batch"] + data["unlabelled_batch"]) * data["crop"] ** 2)


def _models(trials: Sequence[TrialSpec]) -> list[Problem]:
    """What is wrong with the networks; nothing is downloaded."""
    problems = []
    settings = [trial.settings["model"] for trial in trials]
    for encoder, stride, pretrained in dict.fromkeys(
        (each["encoder"], each["output_stride"], each["pretrained"]) for each in settings
    ):
        try:
            if isinstance(pretrained, str):
                make_encoder(encoder, stride, pretrained)
            else:
                with torch.device("meta"):  # takes neither memory nor the time of drawing weights
                    make_encoder(encoder, stride, False)
        except WeightsError as error:
            problems.append(Problem("model.pretrained", str(error)))
        except (OSError, ValueError) as error:
            problems.append(Problem("model", str(error)))
    return problems
