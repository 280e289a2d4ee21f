"""`css-ray study plan | run | resume | confirm`: what makes a study happen on this machine or a cluster that it has joined."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import click

from css_ray.audience import Audience

from ..errors import BadInput
from .options import (
    EXIT_CODES,
    address_option,
    bad_input,
    load_study,
    on_finish_option,
    open_study,
    set_option,
    storage_option,
    warn,
    webhook_option,
)
from .remote import cluster_answers, cluster_at, is_dashboard, show_submitted
from .show import table_text

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.events import Event
    from css_ray.study.driver import Outcome

    from ..view import Watcher


@click.command()
@click.argument("file", type=click.Path())
@set_option
@address_option
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time a few steps of each row on this machine.")
def plan(file: str, overrides: tuple[str, ...], address: str | None, measure: bool) -> None:
    """Check a study FILE and print what it would do: trials, runs, steps, time. Starts nothing."""
    study_ = load_study(file, overrides, local=address is None)
    with bad_input():
        planned = study_.plan(address=address, measure=measure)
    for warning in planned.warnings:
        warn(warning)
    click.echo(planned)
    if planned.estimate is not None:
        from ..view import duration

        for row, seconds in planned.estimate.seconds_a_step.items():
            click.echo(f"  {row}: {1000 * seconds:.0f} ms a step")
        click.echo(
            f"about {duration(planned.estimate.seconds)} of training, measured on this machine's {planned.estimate.device}, "
            "without evaluation and start-up"
        )
    click.echo(_cluster(address))
    given = "".join(f" --set {shlex.quote(override)}" for override in overrides) + (f" --address {address}" if address else "")
    click.echo(f"\nnext: css-ray study run {file}{given}")


@click.command()
@click.argument("file", type=click.Path())
@set_option
@storage_option
@address_option
@on_finish_option
@webhook_option
def run(
    file: str, overrides: tuple[str, ...], storage: str, address: str | None, on_finish: str | None, webhook: str | None
) -> None:
    """Run the study in FILE to its end."""
    if is_dashboard(address):
        raise BadInput(f"--address {address}: is a dashboard; send the study there by: css-ray study submit {file}")
    study_ = load_study(file, overrides, storage, local=address is None)

    conduct(study_, address, on_finish, webhook)


@click.command()
@click.argument("name")
@set_option
@storage_option
@address_option
@on_finish_option
@webhook_option
def resume(
    name: str, overrides: tuple[str, ...], storage: str, address: str | None, on_finish: str | None, webhook: str | None
) -> None:
    """Go on with the study NAME from its journal and checkpoints.

    With --set it gets more to do, such as search.trials=40, splits=[0,1,2,3] or budget.hours=8, or other resources. Where
    --address is a cluster's dashboard (http://host:8265), it goes on there, and this machine may go.
    """
    if address is not None and is_dashboard(address):
        if on_finish or webhook:
            raise BadInput("--on-finish and --webhook: are for a study that this machine drives; drop them")
        with cluster_answers():
            cluster = cluster_at(address)
            submitted = cluster.submit(name, storage, overrides)
        show_submitted(cluster, submitted, follow=False)
        return
    study_ = open_study(name, storage)

    conduct(study_, address, on_finish, webhook, resume=overrides)


@click.command()
@click.argument("name")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many of the best trials.")
@click.option("--splits", metavar="N,N,...", help="Splits that the search did not see; by default as many, after its own.")
@set_option
@storage_option
@address_option
@on_finish_option
@webhook_option
def confirm(
    name: str,
    top: int,
    splits: str | None,
    overrides: tuple[str, ...],
    storage: str,
    address: str | None,
    on_finish: str | None,
    webhook: str | None,
) -> None:
    """Train the best trials of the search NAME again, on fresh splits, as the study NAME-confirm.

    The best of many trials looks better than it is, since chance helps to choose it; the mean on fresh splits does not.
    With --set they are trained otherwise, such as longer: --set train.iterations=40000 --set study=NAME-longer.
    """
    try:
        fresh = None if splits is None else [int(part) for part in splits.split(",")]
    except ValueError:
        raise BadInput(f"--splits: whole numbers with commas between them, such as 3,4,5; got {splits!r}") from None
    try:
        study_ = open_study(name, storage).confirmation(top, fresh, set=overrides)
    except ValueError as error:
        raise BadInput(str(error)) from None

    conduct(study_, address, on_finish, webhook)


def _cluster(address: str | None) -> str:
    if address is None:
        import os

        import torch

        return f"this machine: {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs (no --address: Ray starts here)"
    from css_ray.execution.nodes import joined, size

    try:
        with joined(address):
            nodes, cpus, gpus = size()
    except ConnectionError as error:
        raise BadInput(str(error)) from None
    return f"the cluster at {address}: {nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs"


class Terminal(Audience):
    """Shows a study that runs: what happens as it happens, its tables when it has ended."""

    def __init__(self, where: str) -> None:
        from rich.console import Console

        self.where = where
        self.console = Console()
        self._live = ExitStack()
        self._watcher: Watcher | None = None
        self._studies = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.close()

    def study_begins(self, study: Study) -> None:
        from css_ray.standing import Standing
        from css_ray.study.definition import parse

        from ..view import Watcher

        if self._studies:
            splits = ", ".join(map(str, study.definition.splits))
            click.echo(f"\n{study.name}: the best of the search again, on splits that it never saw ({splits})\n")
        self._studies += 1
        # Of its own: the watcher is told what happens, `study` reads it.
        begun = study.status != "new"
        standing = open_study(study.name, study.storage).standing if begun else Standing(parse, study.definition)
        self._watcher = Watcher(standing, self.console)
        self._live.enter_context(self._watcher.live())

    def event(self, event: Event) -> None:
        assert self._watcher is not None
        self._watcher.event(event)

    def study_ended(self, study: Study, outcome: Outcome) -> None:
        self._live.close()
        again = f"css-ray study resume {study.name}{self.where}"
        if outcome.status == "interrupted":
            click.echo(f"\ninterrupted; every run continues from its last evaluation with:\n  {again}", err=True)
        else:
            report(study, self.where)
        if outcome.status == "budget":
            click.echo(f"\nthe budget is spent; with a larger one it continues:\n  {again} --set budget.KEY=VALUE")

    def warn(self, text: str) -> None:
        warn(text)


def conduct(
    study_: Study,
    address: str | None,
    on_finish: str | None,
    webhook: str | None,
    resume: Sequence[str] | None = None,
) -> NoReturn:
    """Run the study, or resume it with overrides, watched, and exit with the code that says how it ended."""
    where = "" if study_.storage == "runs" else f" --storage {shlex.quote(study_.storage)}"
    more = (f" --address {shlex.quote(address)}" if address else "") + (
        f" --on-finish {shlex.quote(on_finish)}" if on_finish else ""
    )
    again = f"css-ray study resume {study_.name}{where}{more}"
    hooks: dict[str, Any] = {"on_finish": on_finish, "webhook": webhook}
    try:
        with bad_input(), Terminal(where + more) as terminal:
            if resume is None:
                outcome = study_.run(address=address, audience=terminal, **hooks)
            else:
                outcome = study_.resume(address, set=resume, audience=terminal, **hooks)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; if the study was started, it continues with:\n  {again}", err=True)
        sys.exit(130)
    except ValueError as error:
        raise BadInput(str(error)) from None
    except (OSError, RuntimeError) as error:
        from css_ray.study.driver import StudyExistsError

        if isinstance(error, StudyExistsError) or study_.status == "new":
            raise BadInput(str(error)) from None
        raise click.ClickException(f"{error}\ncontinue with: {again}") from None
    if study_.status == "new":
        click.echo("\ninterrupted before anything was started", err=True)
        sys.exit(130)
    sys.exit(EXIT_CODES[(outcome.confirmation or outcome).status])


def report(study_: Study, where: str) -> None:
    from css_ray.reports.paper import SYMBOLS

    from ..view import mean_std_text

    standing = study_.standing
    if not any(trial.runs for trial in standing.trials.values()):
        raise click.ClickException("no run was started; `css-ray study status` says what happened to the trials")
    click.echo()
    if standing.definition.search is not None:
        click.echo(table_text(study_, "text", kind="trials"))
    click.echo(table_text(study_, "text"), nl=False)
    best = standing.best_drawn
    if best is not None:
        click.echo(f"\nbest configuration of the search: trial {best.index}, {mean_std_text(best.mean, best.std)}")
        for key in standing.definition.space:
            value = best.params.get(key)
            if value is not None:
                symbol = f"  ({SYMBOLS[key]})" if key in SYMBOLS else ""
                click.echo(f"  {key}: {value:.4g}{symbol}" if isinstance(value, float) else f"  {key}: {value}{symbol}")
    if standing.definition.objective.aggregate == "mean_and_std":
        click.echo("\ntrials that no other beats in both mean and std:")
        for trial in standing.front:
            click.echo(f"  trial {trial.index} ({trial.row}): {mean_std_text(trial.mean, trial.std)}")
    click.echo("\nnext:")
    commands = {
        f"css-ray ui{where}": "the curves and tables in MLflow",
        f"css-ray study table {study_.name}{where} --format md": "the table for your paper (csv, latex, html too)",
        f"css-ray study resume {study_.name}{where}": "after an interruption, go on where it stopped",
    }
    if standing.best_drawn is not None:
        commands[f"css-ray study confirm {study_.name}{where}"] = "train the best again, on splits that the search never saw"
    for command, text in commands.items():
        click.echo(f"  {command:{max(map(len, commands))}}   {text}")
