"""`css-ray predict`: masks of images by a trained model."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from css_ray.messages import os_error_text, quoted
from css_ray.secrets import shown

from .device import chosen_device
from .errors import BadInput, bad_input
from .model import load, trial_option
from .output import echo
from .progress import images_progress
from .study.options import storage_option, warn

if TYPE_CHECKING:
    from css_ray.prediction import Done, TrainedModel


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if (match := re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value)) is None or 0 in (int(match[1]), int(match[2])):
        raise click.BadParameter(f"must be WIDTHxHEIGHT in pixels, such as 160x120, got {value!r}")
    return int(match[1]), int(match[2])


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="Folder of the masks; a run that was interrupted continues in it.")
@trial_option
@storage_option
@click.option("--overlay", is_flag=True, help="Write each image under the colours of its classes, too, in DIR/overlay.")
@click.option(
    "--confidence",
    is_flag=True,
    help="Write the probability of each pixel's class, too, in DIR/confidence: 16-bit grey, x 65535.",
)
@click.option("--subset", type=click.Choice(["val", "train"]), default="val", show_default=True, help="Of a prepared data set.")
@click.option("--device", help="cpu or cuda; by default cuda if there is one.")
@click.option("--batch", type=click.IntRange(1), help="Images of one size per batch; by default as in the study's evaluation.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of a CPU; by default as in the study's evaluation.")
@click.option(
    "--resize",
    callback=_size,
    metavar="WxH",
    help="Give images this size first, as the data set was prepared; masks get the size of their image.",
)
@click.option("--max-pixels", type=click.IntRange(min=1), help="Pixels that an image may have; by default 178,956,970.")
def predict(
    model: str,
    images: tuple[str, ...],
    out: str,
    trial: int | None,
    storage: str,
    overlay: bool,
    confidence: bool,
    subset: str,
    device: str | None,
    batch: int | None,
    threads: int | None,
    resize: tuple[int, int] | None,
    max_pixels: int | None,
) -> None:
    """Write masks of IMAGES, as MODEL predicts them, to a folder: PNGs of class indices with a palette.

    MODEL is STUDY (the best trial, of the confirmation if there is one), STUDY:TRIAL, STUDY:TRIAL/SPLIT, a folder with best.pt
    and best.json, or a model in MLflow, such as models:/NAME@champion. IMAGES are folders, files, globs, a .txt file with one
    path per line, or a prepared data set, of which the scores are printed as well.

    \b
    css-ray predict quickstart data/digits --out masks
    css-ray predict quickstart:4/0 photos --out masks --overlay
    css-ray predict quickstart --trial 4 'photos/*.jpg' --out masks

    Windows, averages, batches and threads are those of the study's evaluation, so its masks are the ones that it counted. The
    same command continues after an interruption. It exits with 1 if an image could not be read; the others are done.
    """
    from css_ray.data.images import MAX_PIXELS
    from css_ray.prediction import predict_folder
    from css_ray.prediction.folder import PredictionError
    from css_ray.prediction.pictures import find_pictures
    from css_ray.storage import is_url

    if is_url(out):
        raise BadInput(f"--out: {shown(out)} is a URL; give a folder of this machine")
    where = chosen_device(device)
    try:
        found = find_pictures(images, out=Path(out), subset="train" if subset == "train" else "val")
    except (OSError, ValueError) as error:
        raise bad_input(error) from None
    trained = load(model, storage, trial, where)
    try:
        with images_progress("predicting") as progress:
            done = predict_folder(
                trained,
                found,
                out,
                overlay=overlay,
                confidence=confidence,
                batch=batch,
                threads=threads,
                resize=resize,
                max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
                progress=progress,
            )
    except PredictionError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', error.filename or out)}") from None
    except KeyboardInterrupt:
        echo("\ninterrupted; the same command continues where it stopped", err=True)
        sys.exit(130)
    except (RuntimeError, MemoryError) as error:
        from css_ray.training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise click.ClickException(
            f"there is not enough memory for a batch on {where}; give --batch 1, or --device cpu; the same command continues"
        ) from None
    _show(done, trained, out)


def _show(done: Done, model: TrainedModel, out: str) -> None:
    kept = f", {done.kept} were there already" if done.kept else ""
    echo(f"{done.written} image{'s' * (done.written != 1)} predicted by {model.name}{kept}: {quoted(out)}")
    if done.evaluation is not None:
        echo(f"val/miou {done.evaluation.miou:.2f} %, pixel accuracy {done.evaluation.pixel_accuracy:.2f} %")
    if done.other_sizes and model.best.image_size is not None:
        width, height = model.best.image_size
        warn(
            f"{done.other_sizes} images are not {width}x{height}, as all that {model.name} was evaluated on; if its data set "
            f"was prepared with --resize, give --resize {width}x{height} here, too"
        )
    if done.failed:
        for place, why in sorted(done.failed.items()):
            echo(f"{place}: {why}", err=True)
        count = f"{len(done.failed)} image{'s' * (len(done.failed) != 1)} could not be read"
        raise click.ClickException(f"{count}, see above")
