"""The winner of a study, put into MLflow's registry."""

from __future__ import annotations

import hashlib
import os

from css_ray import __version__
from css_ray.messages import DEFAULT_STORAGE, study_command
from css_ray.prediction.card import model_card
from css_ray.prediction.model import TrainedModel
from css_ray.records import score_text
from css_ray.selection import CONFIRMED, Selected, fetched, read_standing, select
from css_ray.study.driver import tracking_uri
from css_ray.tracking import Registered, register_model

CHAMPION = "champion"


class RegistrationError(ValueError):
    """A model that is not to be registered as it is; with what to do."""


def register(
    model: str,
    *,
    trial: int | None = None,
    storage: str | os.PathLike[str] | None = None,
    name: str | None = None,
    alias: str = CHAMPION,
    unconfirmed: bool = False,
) -> Registered:
    """Put a model of a study into MLflow's registry, where `mlflow.pyfunc.load_model("models:/NAME@champion")` finds it.

    Args:
        model, trial, storage: As of `load_model`: `STUDY` is the winner of its confirmation, or the best trial of a study
            that searches nothing.
        name: Of the registered model; by default that of the study.
        alias: What the version is called from now on.
        unconfirmed: Take the best trial of a search that was not confirmed, too, whose score chance has flattered.

    Raises:
        RegistrationError: It is from a search and was not confirmed, or MLflow refuses a name.
        SelectionError, LookupError: The model is unknown or is not of a study, or MLflow does not know its run.
        ConnectionError: MLflow does not answer.
    """
    place = os.fspath(storage or os.environ.get("CSS_RAY_STORAGE") or DEFAULT_STORAGE)
    return register_selected(select(model, place, trial), place, name=name, alias=alias, unconfirmed=unconfirmed)


def register_selected(
    selected: Selected, storage: str, *, name: str | None = None, alias: str = CHAMPION, unconfirmed: bool = False
) -> Registered:
    """As `register`, of weights that were selected."""
    origin = selected.origin
    if origin is None:
        raise RegistrationError(f"{selected.name} is not of a study; give STUDY, STUDY:TRIAL or STUDY:TRIAL/SPLIT")
    if origin.searched and not unconfirmed:
        confirm = study_command("confirm", origin.study, storage)
        raise RegistrationError(
            f"trial {origin.trial} of {origin.study} won a search and was not confirmed: chance helped to choose it; confirm "
            f"it with: {confirm}; or give --unconfirmed"
        )
    uri = tracking_uri(read_standing(origin.study, storage).definition, storage)
    with fetched(selected) as folders:
        model = TrainedModel(folders, name=selected.name, origin=origin)
        best = model.best
        tags = {
            "css_ray.study": origin.study,
            "css_ray.trial": str(origin.trial),
            "css_ray.splits": ", ".join(map(str, selected.splits)),
            "css_ray.row": origin.row,
            "css_ray.method": best.method,
            "css_ray.score": score_text(origin.mean, origin.std, origin.n, origin.num_splits),
            "css_ray.metric": f"{origin.metric} at the {origin.at}",
            "css_ray.confirmed": str(origin.confirmed).lower(),
            "css_ray.dataset": best.dataset,
            "css_ray.content": best.content,
            "css_ray.split_hash": ", ".join(each.split_hash for each in model.bests),
            **{f"css_ray.best/{metric}": f"{value:.4f}" for metric, value in best.metrics.items() if metric.count("/") == 1},
        }
        try:
            return register_model(
                uri,
                name=name or origin.study.removesuffix(CONFIRMED),
                alias=alias,
                study=origin.study,
                trial=origin.trial,
                split=selected.splits[0] if len(selected.splits) == 1 else None,
                folders=folders,
                weights=_digest(model),
                card=model_card(model),
                tags=tags,
                requirement=f"css-ray=={__version__}",
            )
        except LookupError as error:
            sync = study_command("sync", origin.study, storage)
            raise LookupError(f"{error}; backfill it from the journal with: {sync}") from None
        except ValueError as error:
            raise RegistrationError(str(error)) from None


def _digest(model: TrainedModel) -> str:
    """One hash of all weights of a model."""
    return model.digests[0] if len(model.digests) == 1 else hashlib.sha256(" ".join(model.digests).encode()).hexdigest()
