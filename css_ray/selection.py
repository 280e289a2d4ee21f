"""Which trained model a text means: a run, a trial or the best of a study; a folder or a file of weights; a model in MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.fs
import torch

from css_ray.messages import DEFAULT_STORAGE, did_you_mean, os_error_text, quoted, study_command
from css_ray.prediction.model import Origin, TrainedModel
from css_ray.secrets import shown
from css_ray.standing import RunStanding, Standing, TrialStanding
from css_ray.storage import below, is_url, locate, parted, receive
from css_ray.study.begun import begun_definition
from css_ray.study.definition import StudyDefinition
from css_ray.study.journal import Follower, in_order, studies_in, study_folder
from css_ray.study.order import Order
from css_ray.study.upkeep import models_of
from css_ray.training.best import BEST_FILES

CONFIRMED = "-confirm"
"""What the name of a study's confirmation ends with."""

FORMS = (
    "STUDY, STUDY:TRIAL, STUDY:TRIAL/SPLIT, a folder with best.pt and best.json, models:/NAME/VERSION, models:/NAME@ALIAS or "
    "runs:/RUN_ID/PATH"
)

_OF_STUDY = re.compile(r"(?P<study>[^:]+?)(?::(?P<trial>[0-9]{1,9})(?:/(?P<split>[0-9]{1,9}))?)?")
_IN_MLFLOW = re.compile(r"(models|runs):/")


class SelectionError(LookupError):
    """A text that means no model, with what there is instead."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The weights that are meant. places: one folder or URL per run, or one model of MLflow. name: what messages call them.

    storage: beside which MLflow is looked for. remarks: what a reader should know of the choice, in sentences.
    """

    name: str
    places: tuple[str, ...]
    origin: Origin | None = None
    remarks: tuple[str, ...] = ()
    splits: tuple[int, ...] = ()
    storage: str = DEFAULT_STORAGE


def load_model(
    model: str | os.PathLike[str],
    *,
    trial: int | None = None,
    storage: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> TrainedModel:
    """A trained model, to predict images with.

    Args:
        model: `STUDY:TRIAL/SPLIT` for the best weights of a run. `STUDY:TRIAL` for those of the trial's split that scored best
            on the validation images. `STUDY` for the best trial of its confirmation, or of the study if it has none. A folder
            with `best.pt` and `best.json`, or one of the two files. `models:/NAME/VERSION`, `models:/NAME@ALIAS` or
            `runs:/RUN_ID/PATH` for a model in MLflow.
        trial: With `STUDY`: all splits of that trial, which predict as one, by the mean of their logits.
        storage: Where studies are; by default `$CSS_RAY_STORAGE`, else `runs`.
        device: Where it computes.

    Raises:
        SelectionError: (a LookupError) There is no such model; with what there is.
        BestError: (a ValueError) Its files are damaged.
        ConnectionError: MLflow does not answer.
    """
    place = os.fspath(storage or os.environ.get("CSS_RAY_STORAGE") or DEFAULT_STORAGE)
    return load_selected(select(os.fspath(model), place, trial), device)


def load_selected(selected: Selected, device: torch.device | str = "cpu") -> TrainedModel:
    """The model of weights that were selected. Those at a URL are fetched first."""
    with fetched(selected) as folders:
        return TrainedModel(folders, name=selected.name, device=device, origin=selected.origin)


@contextmanager
def fetched(selected: Selected) -> Iterator[list[Path]]:
    """Folders of this machine with the weights, one per run; copies of what lies at URLs are removed after the block."""
    with ExitStack() as stack:
        yield [folder for place in selected.places for folder in _local(place, selected.storage, stack)]


def select(model: str, storage: str = DEFAULT_STORAGE, trial: int | None = None) -> Selected:
    """The weights that a text means, see `load_model`. Reads no weights.

    Raises as `load_model`, and JournalError if the journal of the study is damaged.
    """
    if _IN_MLFLOW.match(model):
        _refuse_trial(model, trial)
        return Selected(model, (model,), storage=storage)
    if is_url(model) or (os.path.exists(model) and not _only_names_a_study(model)):
        if (of_folder := _study_in(model)) is None:
            _refuse_trial(model, trial)
            return Selected(model, (_weights_folder(model),))
        storage, model = of_folder
    matched = _OF_STUDY.fullmatch(model)
    if matched is None or "/" in matched["study"]:
        raise SelectionError(f"{quoted(model)} is neither a study nor an existing folder; give {FORMS}")
    return _of_study(matched, storage, trial)


def _refuse_trial(model: str, trial: int | None) -> None:
    if trial is not None:
        raise SelectionError(f"--trial {trial}: is for a study; {quoted(model)} is one model already")


def _default_uri(storage: str) -> str:
    from css_ray.tracking import default_uri

    return default_uri(DEFAULT_STORAGE if is_url(storage) else storage)


def _study_in(place: str) -> tuple[str, str] | None:
    """The storage and the name of the study whose folder this is; None if it is none."""
    if is_url(place) or not (Path(place) / "journal.jsonl").is_file():
        return None
    above, name = parted(os.path.abspath(place))
    return above, name


def _weights_folder(place: str) -> str:
    """The folder of weights that is meant by itself, or by one of its files."""
    if is_url(place):
        return place
    path = Path(place)
    if path.is_dir():
        return place
    if path.name in BEST_FILES:
        return str(path.parent)
    raise SelectionError(
        f"{quoted(place)} is not {' or '.join(BEST_FILES)}; give the folder of a run's best weights, which has both, or {FORMS}"
    )


def _only_names_a_study(text: str) -> bool:
    """Whether a folder happens to have the name of a study that is meant: it has none of the files of a model."""
    here = any((Path(text) / name).exists() for name in (*BEST_FILES, "journal.jsonl"))
    return os.sep not in text and Path(text).is_dir() and not here


def _local(place: str, storage: str, stack: ExitStack) -> list[Path]:
    if not is_url(place) and not _IN_MLFLOW.match(place):
        return [Path(place)]
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="css-ray-model-")))
    if _IN_MLFLOW.match(place):
        from css_ray.tracking import fetch_model

        return fetch_model(os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(storage), place, folder)
    filesystem, path = locate(place)
    try:
        for name in BEST_FILES:
            if filesystem.get_file_info(f"{path}/{name}").type != pyarrow.fs.FileType.File:
                raise SelectionError(f"{shown(place)} has no {name}; give the folder of a run's best weights")
        receive(filesystem, path, folder)
    except FileNotFoundError:
        raise SelectionError(f"{shown(place)} does not exist; give the folder of a run's best weights") from None
    return [folder]


# ---------------------------------------------------------------------------------------------------------- of a study


def _of_study(matched: re.Match[str], storage: str, trial: int | None) -> Selected:
    name, wanted = matched["study"], matched["trial"] and int(matched["trial"])
    split = matched["split"] and int(matched["split"])
    if trial is not None and (split is not None or wanted not in (None, trial)):
        raise SelectionError(
            f"--trial {trial}: asks for all splits of that trial, {quoted(matched[0])} for something else; give one of the two"
        )
    standing = read_standing(name, storage)
    if wanted is None and trial is None:
        chosen = best_of(standing, storage)
        return _single(chosen.standing, chosen.trial, storage, chosen.origin, chosen.remarks)
    index = wanted if trial is None else trial
    assert index is not None
    if index not in standing.trials:
        begun = f"trials 0 to {max(standing.trials)} have begun" if standing.trials else "no trial has begun"
        raise SelectionError(f"{name} has no trial {index}; {begun}")
    of = standing.trials[index]
    origin = origin_of(standing, of)
    if trial is not None:
        splits = [each for each, run in sorted(of.runs.items()) if run.status == "finished"]
        if not splits:
            raise SelectionError(f"trial {index} of {name} has no finished run (it is {of.status}){_others(standing)}")
        return _several(standing, of, splits, storage, origin)
    if split is None:
        return _single(standing, of, storage, origin, ())
    if split not in of.runs:
        raise SelectionError(f"trial {index} of {name} has no run on split {split}; it has {_listed(sorted(of.runs))}")
    run = of.runs[split]
    remarks = () if run.status == "finished" else (f"{name}:{index}/{split} is {run.status} at step {run.step}",)
    return replace(select_run(standing, index, split, storage), remarks=remarks)


def select_run(standing: Standing[StudyDefinition], trial: int, split: int, storage: str) -> Selected:
    """The best weights of a run of a study whose state has been read. Raises SelectionError if they are not there."""
    of = standing.trials[trial]
    place = _weights_of(study_folder(storage, standing.study), of, split)
    return Selected(f"{standing.study}:{trial}/{split}", (place,), origin_of(standing, of), (), (split,))


def _several(
    standing: Standing[StudyDefinition], of: TrialStanding, splits: Sequence[int], storage: str, origin: Origin
) -> Selected:
    folder = study_folder(storage, standing.study)
    places = tuple(_weights_of(folder, of, split) for split in splits)
    left_out = sorted(set(standing.definition.splits) - set(splits))
    remarks = (f"split {_listed(left_out)} of trial {of.index} did not finish and is left out",) if left_out else ()
    return Selected(f"{standing.study}:{of.index} ({len(places)} splits)", places, origin, remarks, tuple(splits))


def _single(
    standing: Standing[StudyDefinition], of: TrialStanding, storage: str, origin: Origin, remarks: tuple[str, ...]
) -> Selected:
    """The split of a trial that scored best on the validation images, by its best evaluation."""
    finished = {split: run for split, run in of.runs.items() if run.status == "finished"}
    if not finished:
        raise SelectionError(f"trial {of.index} of {standing.study} has no finished run (it is {of.status}){_others(standing)}")
    split = max(sorted(finished), key=lambda each: _score(finished[each]))
    place = _weights_of(study_folder(storage, standing.study), of, split)
    said = f"split {split} of trial {of.index} ({of.row}) scored best, {_score(finished[split]):.2f} % val/miou"
    name = f"{standing.study}:{of.index}/{split}"
    return Selected(name, (place,), origin, (*remarks, said), (split,))


def _score(run: RunStanding) -> float:
    return run.best.get("val/miou", float("-inf"))


def _weights_of(folder: str, of: TrialStanding, split: int) -> str:
    """The folder of a run's best weights, which must be there."""
    place = below(models_of(folder, of.index), f"split_{split}")
    filesystem, path = locate(place)
    if filesystem.get_file_info(f"{path}/{BEST_FILES[0]}").type == pyarrow.fs.FileType.File:
        return place
    name = parted(folder)[1]
    kept = sorted(
        int(entry.base_name.removeprefix("trial_"))
        for entry in filesystem.get_file_info(pyarrow.fs.FileSelector(locate(below(folder, "models"))[1], allow_not_found=True))
        if entry.base_name.removeprefix("trial_").isdigit()
    )
    there = f"; trials that have weights: {_listed(kept)}" if kept else ""
    raise SelectionError(
        f"the weights of {name}:{of.index}/{split} are not in {shown(place)}: keep.top removed them, or the run was never "
        f"evaluated{there}"
    )


def _others(standing: Standing[StudyDefinition]) -> str:
    """Which runs have finished, as they can be given."""
    runs = [
        f"{standing.study}:{index}/{split}"
        for index, trial in sorted(standing.trials.items())
        for split, run in sorted(trial.runs.items())
        if run.status == "finished"
    ]
    return f"; finished runs: {', '.join(runs[:10])}{' ...' if len(runs) > 10 else ''}" if runs else "; no run has finished yet"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


# ------------------------------------------------------------------------------------------------------------- the best of one


@dataclass(frozen=True, slots=True)
class Chosen:
    """The trial that a study's name alone means, and the study that it is of, which may be the confirmation."""

    standing: Standing[StudyDefinition]
    trial: TrialStanding
    origin: Origin
    remarks: tuple[str, ...]


def best_of(standing: Standing[StudyDefinition], storage: str) -> Chosen:
    """The best trial of a study's confirmation; of the study itself, if that has none that finished.

    Raises SelectionError if no trial has finished on all its splits.
    """
    name = standing.study
    if f"{name}{CONFIRMED}" in studies_in(storage):
        confirming = read_standing(f"{name}{CONFIRMED}", storage)
        if confirming.best is not None:
            origin = origin_of(confirming, confirming.best)
            remark = f"trial {confirming.best.index} of {confirming.study} is the best on splits that the search never saw"
            return Chosen(confirming, confirming.best, origin, (remark,))
    if standing.best is None:
        raise SelectionError(
            f"{name} has no trial that finished on all its splits (it is {standing.status}){_others(standing)}; continue it "
            f"with: {study_command('resume', name, storage)}"
        )
    origin = origin_of(standing, standing.best)
    remarks: tuple[str, ...] = (f"trial {standing.best.index} is the best of {name}",)
    if origin.searched:
        confirm = study_command("confirm", name, storage)
        remarks = (f"{remarks[0]}, on the splits of its search, which flatters it; confirm it with: {confirm}",)
    return Chosen(standing, standing.best, origin, remarks)


def read_standing(name: str, storage: str) -> Standing[StudyDefinition]:
    """The state of a study that has begun. Raises SelectionError, with close names, if there is none of that name."""
    from css_ray.study.journal import StudyMissingError

    try:
        definition = begun_definition(name, storage)
        folder, order = study_folder(storage, name), Order()
        return Standing(order.parsed, definition).fold(in_order(Follower(folder).new(), order, folder))
    except StudyMissingError as error:
        known = studies_in(storage) if is_url(storage) or Path(storage).exists() else []
        near = did_you_mean(name, known)
        close = near if near.startswith(" (") else ""
        raise SelectionError(f"{error}{close}; a model is {FORMS}") from None
    except OSError as error:
        raise SelectionError(os_error_text(error, "read", storage)) from None


def origin_of(standing: Standing[StudyDefinition], of: TrialStanding) -> Origin:
    """What is known of a trial's scores."""
    objective = standing.definition.objective
    mean, std = of.partial
    finished = sum(run.status == "finished" for run in of.runs.values())
    confirmed = standing.study.endswith(CONFIRMED)
    return Origin(
        study=standing.study,
        trial=of.index,
        row=of.row,
        metric=objective.metric,
        at=objective.at,
        mean=mean,
        std=std,
        n=finished,
        num_splits=len(standing.definition.splits),
        confirmed=confirmed,
        searched=of.source == "search" and not confirmed,
    )
