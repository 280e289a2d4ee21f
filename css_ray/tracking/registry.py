"""Trained models in MLflow's registry."""

from __future__ import annotations

from pathlib import Path

from css_ray.secrets import shown
from css_ray.tracking.client import answering, connect

DESCRIPTION = "best.json"
"""What the folder of a network's weights has, in a model that was registered."""


def fetch_model(uri: str, model: str, folder: Path) -> list[Path]:
    """Copy a model of MLflow, `models:/...` or `runs:/...`, into a folder; the folders of its networks' weights.

    Raises LookupError if MLflow has no such model, or css-ray did not make it; ConnectionError if it does not answer.
    """
    connect(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    with answering(uri):
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder), tracking_uri=uri)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                raise LookupError(f"MLflow at {shown(uri)} has no model {model}: {error.message}") from None
            raise
    found = sorted(path.parent for path in folder.rglob(DESCRIPTION))
    if not found:
        raise LookupError(f"{model} was not registered by css-ray: it has no {DESCRIPTION}; give another model")
    return found
