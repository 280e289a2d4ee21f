"""MODEL: how the commands that use a trained model find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from css_ray.messages import os_error_text

from .errors import BadInput
from .output import echo
from .study.options import bad_input

if TYPE_CHECKING:
    from css_ray.prediction import TrainedModel
    from css_ray.selection import Selected

trial_option = click.option(
    "--trial", type=click.IntRange(0), help="With STUDY: an ensemble of all splits of this trial, by the mean of their logits."
)


def selected_model(model: str, storage: str, trial: int | None) -> Selected:
    """The weights that are meant; prints what there is to know of the choice."""
    from css_ray.selection import select

    with _model_problems(model):
        selected = select(model, storage, trial)
    for remark in selected.remarks:
        echo(remark)
    return selected


def load(model: str, storage: str, trial: int | None, device: str) -> TrainedModel:
    """The model that is meant; prints what there is to know of the choice."""
    from css_ray.selection import load_selected

    selected = selected_model(model, storage, trial)
    with _model_problems(model):
        return load_selected(selected, device)


@contextmanager
def _model_problems(model: str) -> Iterator[None]:
    """Report why the model is unknown, or why it cannot be read."""
    from css_ray.training.best import BestError

    try:
        with bad_input():
            yield
    except (LookupError, BestError, ConnectionError) as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(os_error_text(error, "read", error.filename or model)) from None
