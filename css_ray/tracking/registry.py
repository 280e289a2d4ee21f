"""Trained models in MLflow's registry: put there with what is known of them, and fetched again."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from css_ray.secrets import shown
from css_ray.tracking.client import answering, connect, search_runs
from css_ray.tracking.forms import JOURNAL, KIND, MAX_TAG, SPLIT, TRIAL, cut

if TYPE_CHECKING:
    from mlflow import MlflowClient

DESCRIPTION = "best.json"
"""What the folder of a network's weights has, in a model that was registered."""

LOADER = "css_ray.prediction.pyfunc"
"""The module by which `mlflow.pyfunc.load_model` loads one."""

WEIGHTS = "css_ray.weights"
"""The tag with the hash of a version's weights: the same weights are one version."""

_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a model in the registry. new: whether it was made now; else the same weights were there."""

    name: str
    version: int
    new: bool


def register_model(
    uri: str,
    *,
    name: str,
    alias: str,
    study: str,
    trial: int,
    split: int | None,
    folders: Sequence[Path],
    weights: str,
    card: str,
    tags: Mapping[str, str],
    requirement: str,
) -> Registered:
    """Put a model into the registry as a version of `name`, belonging to the MLflow run of its trial or split, under an alias.

    The version has a signature (uint8 RGB [N, H, W, 3] in, uint8 [N, H, W] out), an example, the card as its description, and
    `tags`; its run has the metrics and the data set. Doing it again with the same weights only moves the alias.

    Args:
        split: None for an ensemble of the splits of a trial.
        folders: Of the weights, one per network.
        weights: Their hash.
        requirement: What must be installed to load it, such as `css-ray==1.0`.

    Raises:
        LookupError: MLflow does not know the run.
        ValueError: MLflow refuses the name or the alias.
        ConnectionError: MLflow does not answer.
    """
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    with answering(uri):
        run_id = _run_of(client, uri, study, trial, split)
        try:
            if not any(each.name == name for each in client.search_registered_models(f"name = '{_in_filter(name)}'")):
                client.create_registered_model(name, description=f"Trained by css-ray in the study {study}.")
            known = [each for each in client.search_model_versions(f"name = '{name}'") if each.tags.get(WEIGHTS) == weights]
            if known:
                version, new = int(known[0].version), False
            else:
                place = f"model-{weights[:12]}"
                _log_model(client, run_id, place, folders, requirement)
                text = {key: cut(value, MAX_TAG) for key, value in tags.items()} | {WEIGHTS: weights}
                made = client.create_model_version(
                    name, f"runs:/{run_id}/{place}", run_id, tags=text, description=cut(card, MAX_TAG)
                )
                version, new = int(made.version), True
            client.set_registered_model_alias(name, alias, str(version))
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise ValueError(f"MLflow refuses the model {name!r} or its alias {alias!r}: {error.message}") from None
            raise
    return Registered(name, version, new)


def _in_filter(name: str) -> str:
    """A name in a filter; with a quote it is none that MLflow has, and creating it is refused in MLflow's words."""
    return name.replace("'", "")


def _run_of(client: MlflowClient, uri: str, study: str, trial: int, split: int | None) -> str:
    """The id of the run of a trial, or of one of its splits, in the study's latest journal."""
    experiment = client.get_experiment_by_name(study)
    found = search_runs(client, [experiment.experiment_id]) if experiment else []
    journals = [run for run in found if run.data.tags.get(KIND) == "study"]
    if journals:
        journal = max(journals, key=lambda run: run.info.start_time).data.tags[JOURNAL]
        for run in found:
            tags = run.data.tags
            key = (tags.get(JOURNAL), tags.get(TRIAL), tags.get(SPLIT))
            if key == (journal, str(trial), None if split is None else str(split)):
                run_id: str = run.info.run_id
                return run_id
    raise LookupError(f"MLflow at {shown(uri)} has no run of trial {trial} of the study {study}")


def _log_model(client: MlflowClient, run_id: str, place: str, folders: Sequence[Path], requirement: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about type hints of its own classes
        import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    byte = np.dtype(np.uint8)
    signature = ModelSignature(Schema([TensorSpec(byte, (-1, -1, -1, 3))]), Schema([TensorSpec(byte, (-1, -1, -1))]))
    with tempfile.TemporaryDirectory(prefix="css-ray-model-") as scratch:
        data = Path(scratch) / "weights"
        for number, folder in enumerate(folders):
            shutil.copytree(folder, data / f"{number:04d}")
        model = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            path=str(model),
            loader_module=LOADER,
            data_path=str(data),
            signature=signature,
            input_example=np.zeros((1, 32, 32, 3), np.uint8),
            pip_requirements=[requirement],
        )
        client.log_artifacts(run_id, str(model), place)


def fetch_model(uri: str, model: str, folder: Path) -> list[Path]:
    """Copy a model of MLflow into a folder; the folders of its networks' weights.

    model: `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/RUN_ID/PATH`.
    Raises LookupError if MLflow has no such model, or css-ray did not register it; ConnectionError if it does not answer.
    """
    client = connect(uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with answering(uri):
        try:
            run_id, _, path = _source(client, model).removeprefix("runs:/").partition("/")
            download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder), tracking_uri=uri)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                raise LookupError(f"MLflow at {shown(uri)} has no model {model}: {error.message}") from None
            raise
        except OSError as error:  # a run whose artifacts lack the path, on a disk
            raise LookupError(f"MLflow at {shown(uri)} has no model {model}: {error}") from None
    found = sorted(path.parent for path in folder.rglob(DESCRIPTION))
    if not found:
        raise LookupError(f"{model} was not registered by css-ray: it has no {DESCRIPTION}; give another model")
    return found


def _source(client: MlflowClient, model: str) -> str:
    """The run and the path of a model, as `runs:/RUN_ID/PATH`. Raises LookupError if it is not one of css-ray."""
    # Not MLflow's own way from such a name to its files: that asks the registry of the process, not the one of `client`.
    source = model
    if matched := re.fullmatch(r"models:/([^/@]+)(?:/([0-9]+)|@([^/@]+))", model):
        name, number, alias = matched.groups()
        version = client.get_model_version_by_alias(name, alias) if number is None else client.get_model_version(name, number)
        source = str(version.source)
    if re.fullmatch(r"runs:/[^/]+/.+", source) is None:
        raise LookupError(
            f"{model} is not a model of css-ray; give models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN_ID/PATH"
        )
    return source
