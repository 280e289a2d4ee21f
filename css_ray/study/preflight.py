"""What a study needs, checked before anything starts: its data, its networks, and the devices of this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import torch

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.crops import crop_warning
from css_ray.data.lists import ListError
from css_ray.data.shards import DataSet
from css_ray.data.splits import Split
from css_ray.events import Event, RunStarted, TrialStarted
from css_ray.messages import os_error_text
from css_ray.methods import METHODS
from css_ray.models.encoders import make_encoder
from css_ray.secrets import shown
from css_ray.storage import free_bytes
from css_ray.study.capacity import ENLARGE, Capacity
from css_ray.study.cost import needed_bytes
from css_ray.study.definition import StudyDefinition, StudyError, TrialSpec, ends, fresh_splits
from css_ray.study.inputs import choose_split, list_files, split_key
from css_ray.study.run import method_config


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
    problems = []
    resources = study.resources
    wanted, present = resources.fewest * resources.gpus_per_worker, torch.cuda.device_count()
    if local and wanted > present:
        problems.append(
            f"resources.gpus_per_worker: a trial wants {wanted:g} GPU{'s' if wanted > 1 else ''}, this machine has {present}; "
            "use --set resources.gpus_per_worker=0 for the CPU, or --address to join a cluster"
        )
    elif capacity is not None and (shortage := capacity.shortage(resources)):
        problems.append(f"resources: {shortage}; {ENLARGE}")
    trials = study.grid_trials()
    if study.search is not None:
        trials += [study.search_trial(len(trials), point) for point in (*study.search.first, *ends(study.space))]
    problems += _models(trials) + _batches(study, trials)
    begun = _begun(study, events)
    datasets: dict[tuple[str, str], DataSet] = {}
    for name, root, num_classes in dict.fromkeys(
        (trial.settings["data"]["dataset"], trial.settings["data"]["root"], trial.settings["data"]["num_classes"])
        for trial in (*trials, *begun.values())
    ):
        try:
            dataset = datasets[name, root] = ensure_dataset(name, root, scratch)
        except (OSError, ValueError) as error:
            problems.append(f"data: {os_error_text(error) if isinstance(error, OSError) else error}")
            continue
        if num_classes is not None and num_classes != dataset.info.num_classes:
            problems.append(
                f"data.num_classes: {num_classes} here, but the shards in {shown(root)} have {dataset.info.num_classes}; "
                "drop the line, or prepare the data again"
            )
    splits, wrong = _splits(study, (*trials, *begun.values()), datasets)
    if study.search is not None and study.search.confirm:
        # To be found now, not when the search has ended.
        fresh = dataclasses.replace(study, splits=tuple(fresh_splits(study)))
        problems += [f"search.confirm: {problem}" for problem in _splits(fresh, trials, datasets)[1] if problem not in wrong]
    problems += wrong + _unlabelled(study, trials, splits) + _changed(begun, splits, events)
    if problems:
        raise StudyError(list(dict.fromkeys(problems)), study.name)
    small_disk = _small_disk(study, folder) if folder is not None and not events else []
    crops = {(data["dataset"], data["root"], data["crop"]) for data in (trial.settings["data"] for trial in trials)}
    large = [warning for *key, crop in sorted(crops) if (warning := crop_warning(datasets[key[0], key[1]], crop))]
    return _warnings(trials, datasets) + _same_images(study, trials, splits) + large + small_disk


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
) -> tuple[dict[Hashable, Split], list[str]]:
    """The splits of all trials by `split_key`, each made or read once, and the problems of the others."""
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
                problems += [f"data.labelled_list: {problem}" for problem in error.problems]
            except ValueError as error:
                problems.append(f"data.labelled: {error}")
    return splits, problems


def _unlabelled(study: StudyDefinition, trials: Sequence[TrialSpec], splits: Mapping[Hashable, Split]) -> list[str]:
    """A method that learns from unlabelled images needs some."""
    problems: dict[int, str] = {}
    for trial in trials:
        data = trial.settings["data"]
        made = [split for index in study.splits if (split := splits.get(split_key(data, index)))]
        if METHODS[trial.settings["method"]["name"]].needs_unlabelled and not all(split.unlabelled for split in made):
            count = data["labelled"]
            problems.setdefault(
                count, f"data.labelled: {count} labels all training images, but {trial.row} learns from unlabelled ones"
            )
    return list(problems.values())


def _changed(begun: Mapping[int, TrialSpec], splits: Mapping[Hashable, Split], events: Sequence[Event]) -> list[str]:
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
            problems.append(
                f"data.labelled_list: split {index}, from {files}, is no longer the one this study began with {hashes}; "
                f"restore the lists and the data set (splits/{before}.json in the study's folder has the ids), "
                "or start another study"
            )
        else:
            problems.append(
                f"data.root: split {index} with {event.num_labelled} labels is no longer the one this study began with "
                f"{hashes}; restore the data set in {shown(data['root'])}, or start another study"
            )
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


def _batches(study: StudyDefinition, trials: Sequence[TrialSpec]) -> list[str]:
    """Batch statistics need two images if they are not shared over GPUs."""
    resources = study.resources
    small = dict.fromkeys(
        (key, trial.settings["data"][key], workers)
        for trial in trials
        for workers in resources.sizes(trial.settings["data"])
        if workers == 1 or not resources.gpus_per_worker
        for key in ("labelled_batch", "unlabelled_batch")
        if trial.settings["data"][key] // workers < 2
    )
    return [
        f"data.{key}: {batch} over {workers} worker{'s' * (workers > 1)} is less than 2 images each, which BatchNorm needs"
        for key, batch, workers in small
    ]
