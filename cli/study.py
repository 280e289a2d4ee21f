"""`css-ray study`: plan, run, resume, status, list, table, pseudo-labels, sync."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import BadInput

if TYPE_CHECKING:
    from css_ray.study.journal import Journal
    from css_ray.study.progress import Progress
    from css_ray.study.schema import Study

FORMATS = {"text": "txt", "md": "md", "csv": "csv", "latex": "tex", "html": "html"}

storage_option = click.option(
    "--storage",
    default="runs",
    show_default=True,
    envvar="CSS_RAY_STORAGE",
    metavar="DIR",
    help="Where studies live: a folder, or a URI such as s3://bucket/studies.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the study, such as train.iterations=100.",
)
format_option = click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="text", show_default=True)
at_option = click.option(
    "--at", type=click.Choice(["last", "best"]), help="Last step or best evaluation; as the study says if not given."
)
ddof_option = click.option(
    "--ddof", type=click.IntRange(0, 1), default=1, show_default=True, help="1: sample std; 0: population std."
)
address_option = click.option(
    "--address", metavar="ADDRESS", help="Join a Ray cluster (host:port, or auto on a node of it) instead of starting Ray here."
)


@click.group()
def study() -> None:
    """Plan, run, resume and read studies."""


@study.command()
@click.argument("file", type=click.Path())
@set_option
@address_option
@click.option("--no-measure", is_flag=True, help="Do not time steps on this machine.")
def plan(file: str, overrides: tuple[str, ...], address: str | None, no_measure: bool) -> None:
    """Check a study FILE and print what it would do: trials, runs, steps, time. Starts nothing."""
    study_ = read_study(file, overrides)
    _preflight(study_, local=address is None)
    _print_plan(study_)
    if not no_measure:
        from css_ray.study.preflight import estimate

        from .view import duration

        timed = estimate(study_)
        for row, seconds in timed.seconds_a_step.items():
            click.echo(f"  {row}: {1000 * seconds:.0f} ms a step")
        click.echo(
            f"about {duration(timed.seconds)} of training, measured on this machine's {timed.device}, "
            "without evaluation and start-up"
        )
    click.echo(_cluster(address))
    given = "".join(f" --set {shlex.quote(override)}" for override in overrides) + (f" --address {address}" if address else "")
    click.echo(f"\nnext: css-ray study run {file}{given}")


@study.command()
@click.argument("file", type=click.Path())
@set_option
@storage_option
@address_option
def run(file: str, overrides: tuple[str, ...], storage: str, address: str | None) -> None:
    """Run the study in FILE to its end."""
    study_ = read_study(file, overrides)
    _preflight(study_, local=address is None)
    _drive(study_, storage, address, resume=False)


@study.command()
@click.argument("name")
@storage_option
@address_option
def resume(name: str, storage: str, address: str | None) -> None:
    """Go on with the study NAME from its journal and checkpoints."""
    study_, journal = _open(name, storage)
    _preflight(study_, local=address is None, events=journal.events)
    _drive(study_, storage, address, resume=True)


@study.command()
@click.argument("name")
@storage_option
def status(name: str, storage: str) -> None:
    """Show how far the study NAME is."""
    from rich.console import Console

    from .view import headline, progress_table

    progress = _progress(*_open(name, storage))
    console = Console()
    console.print(f"{name}: {progress.status}", highlight=False)
    console.print(progress_table(progress))
    console.print(headline(progress, time.time()), highlight=False)
    for trial in progress.trials.values():
        for split, run_ in trial.runs.items():
            if run_.status == "failed":
                console.print(
                    f"trial {trial.index} split {split} failed at step {run_.step}: {run_.reason}",
                    markup=False,
                    highlight=False,
                )


@study.command("list")
@storage_option
def list_(storage: str) -> None:
    """List the studies of a storage."""
    from css_ray.study.journal import studies_in

    names = studies_in(storage)
    if not names:
        click.echo(f"{storage} holds no study yet; start one with: css-ray study run studies/quickstart.yaml")
    for name in names:
        progress = _progress(*_open(name, storage))
        best = progress.best
        value = "" if best is None else f"  best {best.mean:.2f} (trial {best.index}, {best.row})"
        click.echo(f"{name:32} {progress.status:12} trials {progress.trials_ended}/{progress.num_trials}{value}")


@study.command()
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--trials", is_flag=True, help="One row a trial with its settings, instead of the study's table.")
@click.option(
    "--source",
    type=click.Choice(["journal", "mlflow"]),
    default="journal",
    show_default=True,
    help="Where the records are read.",
)
@click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the terminal.")
def table(name: str, storage: str, format_: str, at: str | None, ddof: int, trials: bool, source: str, out: str | None) -> None:
    """Print or export the mean ± std table of the study NAME."""
    study_, journal = _open(name, storage)
    records = _records(study_, journal, storage, source)
    _print_or_write(_draw(study_, records, "trials" if trials else "results", format_, at=at, ddof=ddof), out)


@study.command("pseudo-labels")
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the terminal.")
def pseudo_labels(name: str, storage: str, format_: str, at: str | None, ddof: int, out: str | None) -> None:
    """Print or export how good the pseudo-labels of the study NAME are, by source and class (the paper's Table 4)."""
    study_, journal = _open(name, storage)
    records = _records(study_, journal, storage, "journal")
    _print_or_write(_draw(study_, records, "pseudo_labels", format_, at=at, ddof=ddof), out)


@study.command()
@click.argument("name")
@storage_option
def sync(name: str, storage: str) -> None:
    """Bring MLflow level with the journal of the study NAME."""
    from css_ray.study.runner import tracking_uri
    from css_ray.tracking import sync as replay

    study_, journal = _open(name, storage)
    uri = tracking_uri(study_, storage)
    try:
        done = replay(journal.events, uri)
        click.echo(
            f"{done.events} events read, {done.runs_created} MLflow runs created, "
            f"{done.points_sent} metric points sent to {uri}"
        )
        _log_tables(study_, journal, storage)
    except Exception as error:
        raise click.ClickException(f"MLflow at {uri} did not take the events: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------- parts


def read_study(file: str, overrides: tuple[str, ...]) -> Study:
    """The study in `file`, or BadInput with every problem."""
    from css_ray.study.schema import StudyError, read

    try:
        return read(file, overrides)
    except (StudyError, FileNotFoundError) as error:
        raise BadInput(str(error)) from None


def _open(name: str, storage: str) -> tuple[Study, Journal]:
    from css_ray.study.journal import JournalError
    from css_ray.study.runner import StudyMissingError, open_study
    from css_ray.study.schema import StudyError

    try:
        return open_study(name, storage)
    except (StudyMissingError, StudyError, JournalError) as error:
        raise BadInput(str(error)) from None


def _preflight(study_: Study, *, local: bool, events: list[Any] | None = None) -> None:
    from css_ray.study.preflight import check
    from css_ray.study.schema import StudyError

    try:
        for warning in check(study_, local=local, events=events or ()):
            click.echo(f"warning: {warning}", err=True)
    except StudyError as error:
        raise BadInput(str(error)) from None


def _progress(study_: Study, journal: Journal) -> Any:
    from css_ray.study.progress import Progress

    progress = Progress(study_)
    for event in journal.events:
        progress.event(event)
    return progress


def _print_plan(study_: Study) -> None:
    grid = study_.grid_trials()
    runs = study_.num_trials * len(study_.splits)
    click.echo(f"{study_.name}: {study_.description}" if study_.description else study_.name)
    for trial in grid:
        varied = ", ".join(f"{key}={value}" for key, value in trial.params.items() if not key.startswith("method."))
        click.echo(f"  trial {trial.index}: {trial.row}" + (f" ({varied})" if varied else ""))
    if study_.search is not None:
        first, last = len(grid), study_.num_trials - 1
        click.echo(
            f"  trials {first}-{last}: {study_.search.method.get('row', study_.search.method['name'])}, "
            f"drawn by {study_.search.sampler} from"
        )
        for path, distribution in study_.space.items():
            click.echo(f"    {path}: {distribution.kind} {list(distribution.values)}")
    steps = (
        sum(trial.settings["train"]["iterations"] for trial in grid)
        + (study_.search.trials if study_.search else 0) * study_.train.iterations
    )
    resources = study_.resources
    click.echo(f"{study_.num_trials} trials x {len(study_.splits)} splits = {runs} runs, {steps * len(study_.splits)} steps")
    devices = f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.cpus_per_worker} CPU"
    click.echo(f"each trial: {resources.workers} worker(s) of {devices}; {resources.concurrent_trials} trials side by side")


def _cluster(address: str | None) -> str:
    if address is None:
        import os

        import torch

        return f"this machine: {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs (no --address: Ray starts here)"
    import logging

    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise BadInput(f"no Ray cluster answers at {address}: {error}") from None
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    ray.shutdown()
    return f"the cluster at {address}: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"


def _drive(study_: Study, storage: str, address: str | None, *, resume: bool) -> None:
    from rich.console import Console

    from css_ray.study.journal import JournalError, StudyLockedError
    from css_ray.study.progress import Progress
    from css_ray.study.runner import Runner, StudyExistsError

    from .view import Watcher

    console = Console()
    progress = _progress(*_open(study_.name, storage)) if resume else Progress(study_)
    watcher = Watcher(progress, console)
    try:
        runner = Runner(study_, storage, address=address, observer=watcher)
    except JournalError as error:
        raise BadInput(str(error)) from None
    again = (
        f"css-ray study resume {study_.name}"
        + ("" if storage == "runs" else f" --storage {storage}")
        + (f" --address {address}" if address else "")
    )
    try:
        with watcher.live():
            outcome = runner.run(resume=resume)
    except (StudyExistsError, StudyLockedError, JournalError) as error:
        raise BadInput(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; if the study was started, it goes on with:\n  {again}", err=True)
        sys.exit(130)
    except (OSError, RuntimeError) as error:
        raise (click.ClickException(f"{error}\ngo on with: {again}") if runner.started else BadInput(str(error))) from None
    if outcome.unsent:
        click.echo(f"MLflow has not taken {outcome.unsent} events; later: css-ray study sync {study_.name}", err=True)
    if outcome.status == "interrupted":
        if not runner.started:
            click.echo("\ninterrupted before anything was started", err=True)
        else:
            click.echo(f"\ninterrupted; every run goes on from its last evaluation with:\n  {again}", err=True)
        sys.exit(130)
    _report(study_, runner.journal, storage, progress)
    sys.exit(0 if outcome.status == "finished" else 1)


def _report(study_: Study, journal: Journal, storage: str, progress: Progress) -> None:
    from css_ray.reports.paper import SYMBOLS

    from .view import mean_std_text

    records = _records(study_, journal, storage, "journal")
    if not records:
        raise click.ClickException("no run was started; `css-ray study status` says what happened to the trials")
    click.echo()
    if study_.search is not None:
        click.echo(_draw(study_, records, "trials", "text"))
    click.echo(_draw(study_, records, "results", "text"), nl=False)
    best = progress.best_drawn
    if best is not None:
        click.echo(f"\nbest configuration of the search: trial {best.index}, {mean_std_text(best.mean, best.std)}")
        for key in study_.space:
            value = best.params.get(key)
            if value is not None:
                symbol = f"  ({SYMBOLS[key]})" if key in SYMBOLS else ""
                click.echo(f"  {key}: {value:.4g}{symbol}" if isinstance(value, float) else f"  {key}: {value}{symbol}")
    try:
        _log_tables(study_, journal, storage)
    except Exception as error:
        click.echo(f"the tables were not logged to MLflow ({error}); later: css-ray study sync {study_.name}", err=True)
    where = "" if storage == "runs" else f" --storage {storage}"
    click.echo("\nnext:")
    commands = {
        f"css-ray ui{where}": "the curves and tables in MLflow",
        f"css-ray study table {study_.name}{where} --format md": "the table for your paper (csv, latex, html too)",
        f"css-ray study resume {study_.name}{where}": "after an interruption, go on where it stopped",
    }
    for command, text in commands.items():
        click.echo(f"  {command:{max(map(len, commands))}}   {text}")


def _records(study_: Study, journal: Journal, storage: str, source: str) -> list[Any]:
    from css_ray.records import records_from_events

    if source == "journal":
        return records_from_events(journal.events)
    from css_ray.study.runner import tracking_uri
    from css_ray.tracking import read_records

    uri = tracking_uri(study_, storage)
    try:
        return read_records(uri, study_.name)
    except LookupError as error:
        raise click.ClickException(f"{error}; bring it level with: css-ray study sync {study_.name}") from None


def _print_or_write(text: str, out: str | None) -> None:
    if out is None:
        click.echo(text)
    else:
        Path(out).write_text(text + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")


def _draw(study_: Study, records: list[Any], kind: str, format_: str, *, at: str | None = None, ddof: int = 1) -> str:
    """The study's table ("results"), its trials ("trials") or their pseudo-labels ("pseudo_labels") in one of FORMATS."""
    from css_ray.reports import paper, render, table
    from css_ray.reports.pseudo_labels import pseudo_label_table

    draw = {
        "text": render.to_text,
        "md": render.to_markdown,
        "csv": render.to_csv,
        "latex": render.to_latex,
        "html": render.to_html,
    }[format_]
    objective = study_.objective
    settings: dict[str, Any] = {
        "metric": objective.metric,
        "at": at or objective.at,
        "ddof": ddof,
        "splits": len(study_.splits),
        "mode": objective.mode,
    }
    try:
        if kind == "pseudo_labels":
            settings = {key: settings[key] for key in ("at", "ddof", "splits")}
            return draw(pseudo_label_table(records, **settings))
        if kind == "trials":
            # The row says the method and its fixed settings; what else the study varies has a column each.
            varied = [path for path in (*study_.grid, *study_.space) if path != "method"]
            return draw(table.trial_table(records, params=varied, labels=paper.SYMBOLS, **settings))
        compared = study_.table.compare_with
        published = None if compared is None else paper.paper_table(compared.removeprefix("paper/"))
        return draw(table.make_table(records, columns=study_.table.columns, compare_with=published, **settings))
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def _log_tables(study_: Study, journal: Journal, storage: str) -> None:
    """Attach the tables to the study's run in MLflow, in every format."""
    from css_ray.records import records_from_events
    from css_ray.study.runner import tracking_uri
    from css_ray.tracking import log_tables

    records = records_from_events(journal.events)
    if not records:
        return
    scored = any(
        name.startswith("pseudo/") for record in records for name in (record.last if record.status == "finished" else ())
    )
    files = {
        f"{kind}.{FORMATS[format_]}": _draw(study_, records, kind, format_)
        for kind in ("results", "trials", *(["pseudo_labels"] if scored else []))
        for format_ in FORMATS
        if format_ != "text"
    }
    log_tables(tracking_uri(study_, storage), journal.events[0]["study_id"], files)
