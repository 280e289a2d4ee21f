"""`css-ray train`: one run of a study, in this process (for a debugger, a profiler, a bare GPU machine) or under Ray Train."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import BadInput
from .study.options import read_study, set_option

if TYPE_CHECKING:
    from css_ray.study.definition import StudyDefinition
    from css_ray.study.job import RunSpec


@click.command()
@click.argument("file", type=click.Path())
@click.option("--trial", default=0, show_default=True, help="Index of a trial of the study's grid.")
@click.option("--split", type=int, help="Index of the split; the study's first if not given.")
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    help="Folder for checkpoints and the best weights (best.pt, best.json); an interrupted run goes on from it.",
)
@click.option("--device", help="cpu or cuda; cuda where there is one if not given.")
@click.option("--ray", "with_ray", is_flag=True, help="Train on the study's workers under Ray Train; needs --out.")
@click.option("--address", metavar="ADDRESS", help="With --ray: join a cluster instead of starting Ray here.")
@set_option
def train(
    file: str,
    trial: int,
    split: int | None,
    out: str | None,
    device: str | None,
    overrides: tuple[str, ...],
    with_ray: bool,
    address: str | None,
) -> None:
    """Train one run of the study in FILE: one trial on one split, in this process or with --ray."""
    study = read_study(file, overrides)
    import torch

    from css_ray.study.inputs import prepare
    from css_ray.study.run import execute, run_spec
    from css_ray.training.best import write_best
    from css_ray.training.loop import NonFiniteLossError
    from css_ray.training.reporter import FolderReporter, PrintingReporter

    trials = study.grid_trials()
    if study.search is not None:
        trials += [study.search_trial(len(trials) + index, point) for index, point in enumerate(study.search.first)]
    if not 0 <= trial < len(trials):
        raise BadInput(f"--trial {trial}: the study has trials 0 to {len(trials) - 1} that are known before it runs")
    split = study.splits[0] if split is None else split
    if with_ray and out is None:
        raise BadInput("--ray needs --out DIR, a folder for its checkpoints that all workers see")
    if split not in study.splits:
        raise BadInput(f"--split {split}: the study has the splits {', '.join(map(str, study.splits))}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device; use --device cpu")
    torch.set_num_threads(study.resources.cpus_per_worker)
    try:
        prepared = prepare(run_spec(study, trials[trial], split))
    except (OSError, ValueError) as error:
        raise BadInput(str(error)) from None
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # its generator is the one that a checkpoint keeps
    if out is not None:
        _claim(Path(out), prepared.spec)
    if with_ray:
        _train_with_ray(study, prepared.spec, Path(str(out)), address)
        return
    reporter = PrintingReporter(click.echo) if out is None else FolderReporter(Path(out), click.echo)
    checkpoint = reporter.checkpoint if isinstance(reporter, FolderReporter) else None
    click.echo(
        f"{study.name} trial {trial} ({trials[trial].row}) split {split} on {device}"
        + (", going on from its checkpoint" if checkpoint else "")
    )
    try:
        fit = execute(
            prepared,
            reporter,
            device=device,
            checkpoint=checkpoint,
            keep_best=(lambda weights, best: None) if out is None else partial(write_best, Path(out)),
        )
    except NonFiniteLossError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("\ninterrupted" + ("; the same command goes on from the last evaluation" if out else ""), err=True)
        sys.exit(130)
    click.echo(
        f"last {fit.last['val/miou']:.2f} %, best {fit.best['val/miou']:.2f} % at step {fit.best_step}, {fit.seconds:.0f} s"
    )


def _claim(folder: Path, spec: RunSpec) -> None:
    """Make `folder` the one of this run; a checkpoint of another must not be taken for its own."""
    folder.mkdir(parents=True, exist_ok=True)
    mark, text = folder / "run.json", json.dumps(spec.to_json(), indent=1)
    if mark.exists() and mark.read_text() != text:
        raise BadInput(f"--out {folder} holds another run, or this one with other settings; give another folder or remove it")
    mark.write_text(text)


def _train_with_ray(study: StudyDefinition, spec: RunSpec, out: Path, address: str | None) -> None:
    """The same run on the study's workers, and its last word."""
    from css_ray.events import RunFailed, RunFinished
    from css_ray.execution.runner import train_one

    try:
        end = train_one(study, spec, str(out.resolve()), address)
    except (ConnectionError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    if isinstance(end, RunFailed):
        raise click.ClickException(end.reason)
    assert isinstance(end, RunFinished)
    last, best = end.last["val/miou"], end.best["val/miou"]
    click.echo(f"last {last:.2f} %, best {best:.2f} % at step {end.best_step}, {end.seconds:.0f} s")
