"""`css-ray register`: the winner of a study in MLflow's registry."""

from __future__ import annotations

import click

from css_ray.messages import at_storage, command
from css_ray.secrets import without_secrets

from .errors import BadInput
from .model import selected_model, trial_option
from .output import echo
from .study.options import storage_option


@click.command()
@click.argument("model", metavar="STUDY")
@trial_option
@storage_option
@click.option("--name", help="Of the registered model; by default that of the study.")
@click.option("--alias", default="champion", show_default=True, help="What this version is called from now on.")
@click.option("--unconfirmed", is_flag=True, help="Register the best trial of a search that was not confirmed.")
def register(model: str, trial: int | None, storage: str, name: str | None, alias: str, unconfirmed: bool) -> None:
    """Put the confirmed winner of STUDY into MLflow's registry, with its signature, card, scores and data, as NAME@champion.

    \b
    css-ray study confirm quickstart
    css-ray register quickstart
    css-ray predict models:/quickstart@champion data/digits --out masks

    STUDY:TRIAL or STUDY:TRIAL/SPLIT register what they name. The same weights are registered once; the alias is moved.
    """
    from css_ray.registration import RegistrationError, register_selected
    from css_ray.training.best import BestError

    selected = selected_model(model, storage, trial)
    try:
        registered = register_selected(selected, storage, name=name, alias=alias, unconfirmed=unconfirmed)
    except (RegistrationError, BestError, LookupError) as error:
        raise BadInput(str(error)) from None
    except ConnectionError as error:
        raise click.ClickException(without_secrets(error)) from None
    done = "registered" if registered.new else "was registered before"
    echo(f"{selected.name} {done} as models:/{registered.name}/{registered.version}, alias {alias}")
    uri = f"models:/{registered.name}@{alias}"
    echo(f"\nnext: {command('predict', uri, *at_storage(storage), 'IMAGES', '--out', 'DIR')}")
