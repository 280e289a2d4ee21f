"""`css-ray export`: a trained model as a file for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from css_ray.messages import os_error_text, quoted
from css_ray.secrets import shown

from .errors import BadInput
from .model import load, trial_option
from .output import echo
from .study.options import storage_option, warn

if TYPE_CHECKING:
    from css_ray.prediction.export import Format


@click.command()
@click.argument("model")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["onnx", "torchscript", "torch-export"]),
    default="onnx",
    show_default=True,
    help="onnx needs the extra: pip install 'css-ray[export]'.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="The file; by default named after the model.")
@trial_option
@storage_option
def export(model: str, format_: Format, out: str | None, trial: int | None, storage: str) -> None:
    """Write MODEL to a file that other programs run: uint8 RGB images of any size in, class maps out.

    \b
    css-ray export quickstart --format onnx --out model.onnx
    css-ray export quickstart:4/0 --format torch-export --out model.pt2

    The file is tried against torch before it is kept. A model card beside it has the method, the data, the hash of the split,
    mean and std over splits, and the licence of the weights. MODEL is as for css-ray predict.
    """
    from css_ray.prediction.export import ExportError, default_file
    from css_ray.prediction.export import export as write
    from css_ray.storage import is_url

    if out is not None and is_url(out):
        raise BadInput(f"--out: {shown(out)} is a URL; give a file of this machine")
    trained = load(model, storage, trial, "cpu")
    try:
        exported = write(trained, format_, out or default_file(trained, format_))
    except ExportError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', out)}") from None
    for remark in exported.remarks:
        warn(remark)
    echo(f"wrote {quoted(exported.file)} and its card {quoted(exported.card)}; against torch, {exported.difference}")
