"""`css-ray train`: one run of a study, in this process (for a debugger, a profiler, a bare GPU machine) or under Ray Train."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from css_ray.messages import os_error_text
from css_ray.secrets import shown

from .address import joining_address
from .device import chosen_device
from .errors import BadInput, bad_input
from .output import echo
from .study.options import open_study, read_study, set_option, storage_option, warn

if TYPE_CHECKING:
    from torch import Tensor

    from css_ray.events import RunFinished
    from css_ray.matrices import At, ImageMatrices
    from css_ray.study.definition import StudyDefinition
    from css_ray.study.inputs import Prepared
    from css_ray.study.job import RunSpec
    from css_ray.study.rerun import KnownRun
    from css_ray.training.best import BestDescription


@click.command()
@click.argument("study", metavar="FILE_OR_NAME")
@click.option(
    "--trial", default=0, show_default=True, help="Index of a trial: of FILE one of the grid, of NAME any that has begun."
)
@click.option("--split", type=int, help="Index of the split; the study's first if not given.")
@storage_option
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Folder for checkpoints and the best weights (best.pt, best.json); an interrupted run continues from it.",
)
@click.option("--device", help="cpu or cuda; by default cuda if there is one.")
@click.option("--ray", "with_ray", is_flag=True, help="Train on the study's workers under Ray Train; needs --out.")
@click.option(
    "--address", metavar="ADDRESS", callback=joining_address, help="With --ray: join a cluster instead of starting Ray here."
)
@set_option
def train(
    study: str,
    trial: int,
    split: int | None,
    storage: str,
    out: str | None,
    device: str | None,
    overrides: tuple[str, ...],
    with_ray: bool,
    address: str | None,
) -> None:
    """Train one run of a study: one trial on one split, in this process or with --ray.

    Of a study FILE, or again of the study NAME that has run: with the settings in its journal, to compare with the value that
    the journal recorded.
    """
    if with_ray and out is None:
        raise BadInput("--ray needs --out DIR, a folder for its checkpoints that all workers see")
    definition, known = _find(study, storage, overrides, trial, split)
    import torch

    from css_ray.matrices import write_matrices
    from css_ray.study.inputs import prepare
    from css_ray.study.run import execute, run_spec
    from css_ray.training.best import write_best
    from css_ray.training.checkpoint import DamagedError
    from css_ray.training.loop import NonFiniteLossError
    from css_ray.training.reporter import FolderReporter, PrintingReporter

    device = chosen_device(device)
    torch.set_num_threads(definition.resources.cpus_per_worker)
    try:
        prepared = prepare(run_spec(definition, known.trial, known.split))
    except (OSError, ValueError) as error:
        raise bad_input(error, "open") from None
    _check_comparable(known, prepared, with_ray)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # its generator is the one that a checkpoint keeps
    if out is not None:
        _claim(Path(out), prepared.spec)
    if with_ray:
        end = _train_with_ray(definition, prepared.spec, Path(str(out)), address)
        _show(known, end.last, end.best, end.best_step, end.seconds)
        return
    reporter = PrintingReporter(echo) if out is None else FolderReporter(Path(out), echo)
    checkpoint = reporter.checkpoint if isinstance(reporter, FolderReporter) else None
    echo(
        f"{definition.name} trial {trial} ({known.trial.row}) split {known.split} on {device}"
        + (", continuing from its checkpoint" if checkpoint else "")
    )

    def keep_labels(write: Callable[[], None], place: str) -> None:
        if isinstance(reporter, FolderReporter):
            reporter.keep(write, "the pseudo-labels")
        else:
            write()

    def keep_best(weights: dict[str, Tensor], best: BestDescription) -> None:
        if isinstance(reporter, FolderReporter):
            reporter.keep(partial(write_best, reporter.folder, weights, best), "the best weights")

    def keep_matrices(at: At, matrices: ImageMatrices) -> None:
        if isinstance(reporter, FolderReporter):
            write = partial(write_matrices, reporter.folder / "matrices", at, matrices)
            reporter.keep(write, "the matrices of an evaluation")

    try:
        fit = execute(
            prepared,
            reporter,
            device=device,
            checkpoint=checkpoint,
            keep_best=keep_best,
            keep_matrices=keep_matrices,
            labels=None if out is None else str(Path(out) / "labels"),
            with_room=keep_labels,
        )
    except NonFiniteLossError as error:
        raise click.ClickException(str(error)) from None
    except DamagedError as error:
        raise BadInput(str(error)) from None
    except KeyboardInterrupt:
        echo("\ninterrupted" + ("; the same command continues from the last evaluation" if out else ""), err=True)
        sys.exit(130)
    _show(known, fit.last, fit.best, fit.best_step, fit.seconds)


def _find(
    study: str, storage: str, overrides: Sequence[str], trial: int, split: int | None
) -> tuple[StudyDefinition, KnownRun]:
    """The run that is meant, of a study file or of a study that has begun."""
    from css_ray.api import is_study_file
    from css_ray.study.rerun import run_of_file, run_of_study

    try:
        if is_study_file(study):
            definition = read_study(study, overrides)
            return definition, run_of_file(definition, trial, split)
        if overrides:
            raise BadInput(
                f"--set: is for a study file; {study} has run, and is trained again with the settings in its journal"
            )
        standing = open_study(study, storage).standing
        return standing.definition, run_of_study(standing, trial, split)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _check_comparable(known: KnownRun, prepared: Prepared, with_ray: bool) -> None:
    """Refuse other images than those that the study recorded, and warn if the values will differ or there are none."""
    if known.missing:
        warn(f"the study has no value to compare with: {known.missing}")
    if known.record is None:
        return
    now, before = prepared.split.hash, known.record.split_hash
    if now != before:
        raise BadInput(
            f"--split {known.split}: its images are no longer those of the study ({now[:12]}, was {before[:12]}); restore the "
            f"data set in {shown(prepared.spec.settings['data']['root'])}, or the lists of its split"
        )
    if (known.record.workers or 1) > 1 and not with_ray:
        warn(
            f"the study trained this run with {known.record.workers} workers, here one process does; the values may differ; "
            "--ray --out DIR trains it on the study's workers"
        )


def _show(known: KnownRun, last: Mapping[str, float], best: Mapping[str, float], best_step: int, seconds: float) -> None:
    """Print the values of the run, and beside them those that the study recorded."""
    from css_ray.study.rerun import comparison

    echo(f"last {last['val/miou']:.2f} %, best {best['val/miou']:.2f} % at step {best_step}, {seconds:.0f} s")
    if known.finished is not None:
        echo("\n" + "\n".join(comparison(known.finished, last, best)))


def _claim(folder: Path, spec: RunSpec) -> None:
    """Make `folder` the one of this run; a checkpoint of another must not be taken for its own."""
    mark, text = folder / "run.json", json.dumps(spec.to_json(), indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if mark.exists() and mark.read_text() != text:
            raise BadInput(
                f"--out {folder} contains another run, or this one with other settings; choose another folder, or remove it"
            )
        mark.write_text(text)
    except OSError as error:
        raise BadInput(f"--out: {os_error_text(error, 'write', folder)}") from None


def _train_with_ray(study: StudyDefinition, spec: RunSpec, out: Path, address: str | None) -> RunFinished:
    """Train the same run on the study's workers."""
    from css_ray.events import RunFailed, RunFinished
    from css_ray.execution.runner import train_one

    try:
        end = train_one(study, spec, str(out.resolve()), address)
    except (ConnectionError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    if isinstance(end, RunFailed):
        raise click.ClickException(end.reason)
    assert isinstance(end, RunFinished)
    return end
