"""`css-ray study plan | run | resume | confirm`: what makes a study happen on this machine or a cluster that it has joined."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import click

from css_ray.audience import Audience
from css_ray.messages import at_storage, command, file_argument, os_error_text, study_command

from ..errors import BadInput
from ..output import echo
from .options import (
    EXIT_CODES,
    address_option,
    bad_input,
    load_study,
    on_finish_option,
    open_study,
    set_option,
    show_commands,
    storage_option,
    warn,
    webhook_option,
)
from .remote import cluster_answers, cluster_at, is_dashboard, show_submitted
from .show import table_text, text_width

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
    """Check a study FILE and print what it would do: trials, runs, steps, time. Starts nothing, and writes no file."""
    study_ = load_study(file, overrides, local=address is None)
    try:
        with bad_input():
            planned = study_.plan(address=address, measure=measure)
    except ConnectionError as error:
        raise BadInput(str(error)) from None
    for warning in planned.warnings:
        warn(warning)
    echo(planned)
    if planned.estimate is not None:
        from ..view import duration

        peaks = planned.estimate.peak_bytes
        for row, seconds in planned.estimate.seconds_a_step.items():
            memory = f", {peaks[row] / 1e9:.3g} GB of memory at its peak" if row in peaks else ""
            echo(f"  {row}: {1000 * seconds:.0f} ms per step{memory}")
        echo(
            f"about {duration(planned.estimate.seconds)} of training, measured on this machine's {planned.estimate.device}, "
            "without evaluation and start-up"
        )
    there = planned.capacity
    nodes = "(no --address: Ray starts here)" if address is None else f"on {there.nodes} node{'s' * (there.nodes != 1)}"
    echo(f"{there.where}: {there} {nodes}")
    sets = [word for override in overrides for word in ("--set", override)]
    echo(f"\nnext: {command('study', 'run', file_argument(file), *sets, *(('--address', address) if address else ()))}")


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
        submit = command("study", "submit", file_argument(file), "--address", str(address))
        raise BadInput(f"--address {address}: is a dashboard; send the study there with: {submit}")
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
    """Continue the study NAME from its journal and checkpoints.

    With --set it gets more to do, such as search.trials=40, splits=[0,1,2,3] or budget.hours=8, or other resources. If
    --address is a cluster's dashboard (http://host:8265), it continues there, and you can disconnect this machine.
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
@click.option(
    "--splits", metavar="N,N,...", help="Splits that the search did not see; by default the same number, after its own."
)
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
    --set changes how they are trained, such as longer: --set train.iterations=40000 --set study=NAME-longer.
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


class Terminal(Audience):
    """Shows a study that runs: what happens as it happens, its tables when it has ended.

    more: words of the command that a resume needs as well, such as those of --address.
    """

    def __init__(self, more: Sequence[str]) -> None:
        from rich.console import Console

        self.more = more
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
            echo(f"\n{study.name}: the best of the search again, on splits that it never saw ({splits})\n")
        self._studies += 1
        # A standing of its own: the watcher folds each event as it happens, `study` reads the journal.
        begun = study.status != "new"
        standing = open_study(study.name, study.storage).standing if begun else Standing(parse, study.definition)
        self._watcher = Watcher(standing, self.console)
        self._live.enter_context(self._watcher.live())

    def event(self, event: Event) -> None:
        assert self._watcher is not None
        self._watcher.event(event)

    def study_ended(self, study: Study, outcome: Outcome) -> None:
        self._live.close()
        again = ("resume", study.name, study.storage, *self.more)
        if outcome.status == "interrupted":
            echo(f"\ninterrupted; every run continues from its last evaluation with:\n  {study_command(*again)}", err=True)
        else:
            report(study, self.more)
        if outcome.status == "budget":
            larger = study_command(*again, "--set", "budget.KEY=VALUE")
            echo(f"\nthe budget is spent; with a larger one it continues:\n  {larger}")

    def warn(self, text: str) -> None:
        warn(text)


def conduct(
    study_: Study,
    address: str | None,
    on_finish: str | None,
    webhook: str | None,
    resume: Sequence[str] | None = None,
) -> NoReturn:
    """Run the study, or resume it with overrides, watched, and exit with the code for how it ended."""
    # Not the webhook: its URL is often a secret.
    more = [*(("--address", address) if address else ()), *(("--on-finish", on_finish) if on_finish else ())]
    again = study_command("resume", study_.name, study_.storage, *more)
    hooks: dict[str, Any] = {"on_finish": on_finish, "webhook": webhook}
    try:
        with bad_input(), Terminal(more) as terminal:
            if resume is None:
                outcome = study_.run(address=address, audience=terminal, **hooks)
            else:
                outcome = study_.resume(address, set=resume, audience=terminal, **hooks)
    except KeyboardInterrupt:
        echo(f"\ninterrupted; if the study was started, it continues with:\n  {again}", err=True)
        sys.exit(130)
    except ValueError as error:
        raise BadInput(str(error)) from None
    except (OSError, RuntimeError) as error:
        from css_ray.study.driver import StudyExistsError

        reason = os_error_text(error, "write") if isinstance(error, OSError) else str(error)
        if isinstance(error, StudyExistsError) or study_.status == "new":
            raise BadInput(reason) from None
        raise click.ClickException(f"{reason}\ncontinue with: {again}") from None
    if study_.status == "new":
        echo("\ninterrupted before anything was started", err=True)
        sys.exit(130)
    sys.exit(EXIT_CODES[(outcome.confirmation or outcome).status])


def report(study_: Study, more: Sequence[str]) -> None:
    from css_ray.records import score_text
    from css_ray.reports.paper import SYMBOLS
    from css_ray.storage import is_url

    standing, name, storage = study_.standing, study_.name, study_.storage
    if not any(trial.runs for trial in standing.trials.values()):
        why = study_command("status", name, storage)
        raise click.ClickException(f"no run was started; what happened to the trials is shown by: {why}")
    echo()
    if standing.definition.search is not None:
        echo(table_text(study_, "text", kind="trials", width=text_width()))
    echo(table_text(study_, "text", width=text_width()), nl=False)
    best = standing.best_drawn
    if best is not None:
        echo(f"\nbest configuration of the search: trial {best.index}, {score_text(best.mean, best.std)}")
        for key in standing.definition.space:
            value = best.params.get(key)
            if value is not None:
                symbol = f"  ({SYMBOLS[key]})" if key in SYMBOLS else ""
                echo(f"  {key}: {value:.4g}{symbol}" if isinstance(value, float) else f"  {key}: {value}{symbol}")
    if standing.definition.objective.aggregate == "mean_and_std":
        echo("\ntrials that no other beats in both mean and std:")
        for trial in standing.front:
            echo(f"  trial {trial.index} ({trial.row}): {score_text(trial.mean, trial.std)}")
    commands = {
        # Of a study in an object store MLflow's file is in the default storage of this machine.
        command("ui", *(() if is_url(storage) else at_storage(storage))): "the curves and tables in MLflow",
        study_command("table", name, storage, "--format", "md"): "the table for your paper (csv, latex, html too)",
        study_command("resume", name, storage, *more): "after an interruption, continue where it stopped",
    }
    if standing.best_drawn is not None:
        again = "train the best again, on splits that the search never saw"
        commands[study_command("confirm", name, storage, *more)] = again
    echo("\nnext:")
    show_commands(commands)
