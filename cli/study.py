"""`css-ray study`: plan, run, submit, resume, confirm, status, list, stop, logs, table, pseudo-labels, sync.

A thin layer over `css_ray.Study` and, where an `--address` is that of a cluster's dashboard, `css_ray.study.submission`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from css_ray.api import Study
    from css_ray.study import definition as schema
    from css_ray.study.submission import Cluster, Submitted

    from .view import Watcher

FORMATS = ("text", "md", "csv", "latex", "html")
EXIT_CODES = {"finished": 0, "budget": 0, "failed": 1, "interrupted": 130}
WATCH_SECONDS = 1.0  # between two looks at the journal of a study that another process drives


def _plain_storage(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A storage is printed, journaled and sent to nodes: it must hold no secret."""
    from css_ray.secrets import secret_in, shown

    if secret := secret_in(value):
        raise BadInput(
            f"--storage: {shown(value)} comes with {secret}; give it by the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or a role of the machine"
        )
    return value


storage_option = click.option(
    "--storage",
    default="runs",
    show_default=True,
    envvar="CSS_RAY_STORAGE",
    metavar="DIR",
    callback=_plain_storage,
    help="Where studies live: a folder, or a URI such as s3://bucket/studies.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of the study, such as train.iterations=100. method.KEY=VALUE reaches every method that has the "
    "setting KEY, in the grid, the listed trials and the search; not where the study varies that setting.",
)
format_option = click.option("--format", "format_", type=click.Choice(FORMATS), default="text", show_default=True)
at_option = click.option(
    "--at", type=click.Choice(["last", "best"]), help="Last step or best evaluation; as the study says if not given."
)
ddof_option = click.option(
    "--ddof", type=click.IntRange(0, 1), default=1, show_default=True, help="1: sample std; 0: population std."
)
address_option = click.option(
    "--address", metavar="ADDRESS", help="Join a Ray cluster (host:port, or auto on a node of it) instead of starting Ray here."
)
far_option = click.option(
    "--address", metavar="URL", help="The dashboard of a Ray cluster that the study was submitted to (http://host:8265)."
)
on_finish_option = click.option(
    "--on-finish",
    metavar="CMD",
    help="Run by the shell when the study has ended, however it did: CSS_RAY_STUDY, CSS_RAY_STATUS, CSS_RAY_STORAGE and "
    "CSS_RAY_BEST in its environment, a summary as JSON on its standard input.",
)
webhook_option = click.option(
    "--webhook",
    metavar="URL",
    envvar="CSS_RAY_WEBHOOK",
    help="POST the summary there, too. A URL that holds a secret is better given as CSS_RAY_WEBHOOK.",
)


@click.group()
def study() -> None:
    """Plan, run, resume and read studies."""


@study.command()
@click.argument("file", type=click.Path())
@set_option
@address_option
@click.option("--measure/--no-measure", default=True, show_default=True, help="Time a few steps of each row on this machine.")
def plan(file: str, overrides: tuple[str, ...], address: str | None, measure: bool) -> None:
    """Check a study FILE and print what it would do: trials, runs, steps, time. Starts nothing."""
    study_ = _load(file, overrides, local=address is None)
    with _bad_input():
        planned = study_.plan(address=address, measure=measure)
    for warning in planned.warnings:
        _warn(warning)
    click.echo(planned)
    if planned.estimate is not None:
        from .view import duration

        for row, seconds in planned.estimate.seconds_a_step.items():
            click.echo(f"  {row}: {1000 * seconds:.0f} ms a step")
        click.echo(
            f"about {duration(planned.estimate.seconds)} of training, measured on this machine's {planned.estimate.device}, "
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
@on_finish_option
@webhook_option
def run(
    file: str, overrides: tuple[str, ...], storage: str, address: str | None, on_finish: str | None, webhook: str | None
) -> None:
    """Run the study in FILE to its end."""
    if _is_far(address):
        raise BadInput(f"--address {address}: is a dashboard; send the study there by: css-ray study submit {file}")
    study_ = _load(file, overrides, storage, local=address is None)

    def go(watcher: Watcher) -> Any:
        return study_.run(address=address, observer=watcher, warn=_warn)

    _drive(study_, study_.definition, go, address, on_finish, webhook)


@study.command()
@click.argument("file", type=click.Path())
@set_option
@storage_option
@click.option("--address", metavar="URL", required=True, help="The dashboard of a Ray cluster: http://host:8265.")
@click.option("--follow", is_flag=True, help="Print what its driver prints, until it ends; Ctrl-C ends the printing alone.")
def submit(file: str, overrides: tuple[str, ...], storage: str, address: str, follow: bool) -> None:
    """Have a Ray cluster run the study in FILE: its driver runs there, this machine may go.

    The code of css-ray and the study file travel; data, storage and secrets must be in the cluster's reach.
    """
    definition = read_study(file, overrides)
    with _cluster_answers():
        cluster = _far(address)
        submitted = cluster.submit(definition, storage)
    _show_submitted(cluster, submitted, follow)


@study.command()
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
    if address is not None and _is_far(address):
        if on_finish or webhook:
            raise BadInput("--on-finish and --webhook: are for a study that this machine drives; drop them")
        with _cluster_answers():
            cluster = _far(address)
            submitted = cluster.submit(name, storage, overrides)
        _show_submitted(cluster, submitted, follow=False)
        return
    study_ = _open(name, storage)

    def go(watcher: Watcher) -> Any:
        return study_.resume(address, set=overrides, observer=watcher, warn=_warn)

    _drive(study_, None, go, address, on_finish, webhook)


@study.command()
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
        study_ = _open(name, storage).confirmation(top, fresh, set=overrides)
    except ValueError as error:
        raise BadInput(str(error)) from None

    def go(watcher: Watcher) -> Any:
        return study_.run(address=address, observer=watcher, warn=_warn)

    _drive(study_, study_.definition, go, address, on_finish, webhook)


@study.command()
@click.argument("name")
@storage_option
@far_option
@click.option("--watch", is_flag=True, help="Follow the study until it ends or Ctrl-C, also one that has not begun yet.")
def status(name: str, storage: str, address: str | None, watch: bool) -> None:
    """Show how far the study NAME is: a row a trial, a cell a split.

    With --watch the exit code says how it ended, as that of `run` does; Ctrl-C ends the watching, not the study. With
    --address the cluster that it was submitted to is asked.
    """
    if address is not None:
        if watch:
            raise BadInput(f"--watch: follow a study on a cluster by: css-ray study logs {name} --address {address} --follow")
        _far_status(name, storage, address)
        return
    from rich.console import Console

    from .view import MAX_ROWS, View

    console = Console()
    if watch:
        sys.exit(_watch(name, storage, console))
    console.print(View(_open(name, storage).progress, MAX_ROWS, troubles=MAX_ROWS))


@study.command("list")
@storage_option
@far_option
def list_(storage: str, address: str | None) -> None:
    """List the studies of a storage, or with --address those that were submitted to a cluster."""
    if address is not None:
        with _cluster_answers():
            there = _far(address).studies()
        if not there:
            click.echo(f"no study was submitted to the cluster at {address} since its head started")
        for each in there:
            begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started))
            click.echo(f"{each.name:32} {each.status.lower():12} {begun}  {each.storage}  {each.job}")
        return
    from css_ray.study.journal import studies_in

    names = studies_in(storage)
    if not names:
        click.echo(f"{storage} holds no study yet; start one with: css-ray study run studies/quickstart.yaml")
    for name in names:
        progress = _open(name, storage).progress
        best = progress.best
        value = "" if best is None else f"  best {best.mean:.2f} (trial {best.index}, {best.row})"
        click.echo(f"{name:32} {progress.status:12} trials {progress.trials_ended}/{progress.num_trials}{value}")


@study.command()
@click.argument("name")
@click.option("--address", metavar="URL", required=True, help="The dashboard of the cluster that it was submitted to.")
def stop(name: str, address: str) -> None:
    """Stop the study NAME on the cluster that it was submitted to. Nothing that was trained is lost."""
    with _cluster_answers():
        cluster = _far(address)
        before = cluster.find(name)
        after = cluster.stop(name)
    if not before.active:
        click.echo(f"{name} was not at work: its job {before.job} is {before.status.lower()}")
        return
    if after.active:
        raise click.ClickException(f"the job {after.job} of {name} is still {after.status.lower()}; look at its logs")
    click.echo(f"{name} was stopped; it goes on by:")
    click.echo(f"  css-ray study resume {name} --storage {after.storage} --address {address}")


@study.command()
@click.argument("name")
@click.option("--address", metavar="URL", required=True, help="The dashboard of the cluster that it was submitted to.")
@click.option("--follow", is_flag=True, help="Until the driver ends; Ctrl-C ends the printing alone.")
def logs(name: str, address: str, follow: bool) -> None:
    """Print what the driver of the study NAME printed on the cluster that it was submitted to."""
    with _cluster_answers():
        cluster = _far(address)
        _print_logs(cluster, cluster.find(name), follow)


@study.command()
@click.option("--file", type=click.Path(), help="A study file, to begin with it.")
@click.option("--name", help="A study that has begun, instead of a file.")
@set_option
@storage_option
@click.option("--code", hidden=True, help="The version of the code that must run here.")
def drive(file: str | None, name: str | None, overrides: tuple[str, ...], storage: str, code: str | None) -> None:
    """On a node of a cluster: begin a study or go on with it, and start its driver anew when it dies.

    For what starts jobs on a cluster, such as `study submit` and the RayJob of cluster/kuberay.yaml.
    """
    from css_ray.study.code import code_version
    from css_ray.study.journal import study_folder
    from css_ray.study.submission import drive_commands, keep_driving

    if code not in (None, code_version()):
        raise BadInput(
            f"css-ray {code} was submitted, and this node runs {code_version()}: another installation goes before what was "
            "sent; remove it from the nodes, or from PYTHONPATH"
        )
    if (file is None) == (name is None):
        raise BadInput("--file, --name: give one of them")
    begun = name or read_study(str(file), overrides).name
    run_, resume_ = drive_commands(storage, file, begun, overrides)
    sys.exit(keep_driving(run_, resume_, study_folder(storage, begun)))


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
    kind = "trials" if trials else "results"
    _print_or_write(_table(_open(name, storage), format_, kind=kind, at=at, ddof=ddof, source=source), out)


@study.command("pseudo-labels")
@click.argument("name")
@storage_option
@format_option
@at_option
@ddof_option
@click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the terminal.")
def pseudo_labels(name: str, storage: str, format_: str, at: str | None, ddof: int, out: str | None) -> None:
    """Print or export how good the pseudo-labels of the study NAME are, by source and class (the paper's Table 4)."""
    _print_or_write(_table(_open(name, storage), format_, kind="pseudo_labels", at=at, ddof=ddof), out)


@study.command()
@click.argument("name")
@storage_option
def sync(name: str, storage: str) -> None:
    """Bring MLflow level with the journal of the study NAME."""
    study_ = _open(name, storage)
    from css_ray.secrets import shown, without_secrets

    uri = study_.tracking_uri
    try:
        with _bad_input():
            done = study_.sync()
    except click.ClickException:
        raise
    except ConnectionError as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:
        raise click.ClickException(f"MLflow at {shown(uri)} did not take the events: {without_secrets(error)}") from None
    click.echo(
        f"{done.events} events read, {done.runs_created} MLflow runs created, {done.points_sent} metric points sent "
        f"to {shown(uri)}"
    )


# ---------------------------------------------------------------------------------------------------------------------- parts


@contextmanager
def _bad_input() -> Iterator[None]:
    """What the user can mend is told as such, with exit code 2."""
    from css_ray.study.definition import StudyError
    from css_ray.study.journal import JournalError, StudyLockedError, StudyMissingError

    try:
        yield
    except (StudyError, StudyMissingError, StudyLockedError, JournalError) as error:
        raise BadInput(str(error)) from None


def read_study(file: str, overrides: Sequence[str], local: bool | None = None) -> schema.StudyDefinition:
    """The study in `file`, or BadInput with every problem of the file.

    local: whether it is to run on this machine or on a cluster; then the problems of its data, networks and GPUs are listed, too.
    """
    from css_ray.study.definition import read

    try:
        with _bad_input():
            if local is None:
                return read(file, overrides)
            from css_ray.study.preflight import read_and_check

            return read_and_check(file, overrides, local=local)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None


def _load(file: str, overrides: Sequence[str], storage: str = "runs", *, local: bool) -> Study:
    from css_ray.api import Study

    return Study(read_study(file, overrides, local), storage)


def _open(name: str, storage: str) -> Study:
    from css_ray.api import Study

    with _bad_input():
        return Study.open(name, storage)


@contextmanager
def _cluster_answers() -> Iterator[None]:
    """What goes wrong between this machine and a cluster is told in one line."""
    from css_ray.study.submission import ClusterError

    try:
        with _bad_input():
            yield
    except ClusterError as error:
        raise click.ClickException(str(error)) from None


def _is_far(address: str | None) -> bool:
    from css_ray.study.submission import is_jobs_address

    return is_jobs_address(address)


def _far(address: str) -> Cluster:
    from css_ray.study.submission import Cluster

    return Cluster(address)


def _show_submitted(cluster: Cluster, submitted: Submitted, follow: bool) -> None:
    at = f"{submitted.name} --address {cluster.address}"
    click.echo(f"{submitted.name} was submitted as the job {submitted.job}; this machine may go. From here:")
    commands = {
        f"css-ray study logs {at} --follow": "what its driver prints",
        f"css-ray study status {at}": "a row a trial, a cell a split",
        f"css-ray study stop {at}": "ends it; study resume goes on",
    }
    for command, text in commands.items():
        click.echo(f"  {command:{max(map(len, commands))}}   {text}")
    if follow:
        with _cluster_answers():
            _print_logs(cluster, submitted, follow)


def _print_logs(cluster: Cluster, submitted: Submitted, follow: bool) -> None:
    try:
        for piece in cluster.logs(submitted, follow=follow):
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo("\nthe study goes on; only the printing has ended", err=True)
        return
    if not follow:
        return
    ended = cluster.find(submitted.name, submitted.job)
    if ended.status == "FAILED":
        sys.exit(1)


def _far_status(name: str, storage: str, address: str) -> None:
    """How far a study on a cluster is: what `study status` prints there."""
    from css_ray.study.submission import ClusterError

    with _cluster_answers():
        cluster = _far(address)
        try:
            submitted = cluster.find(name)
        except ClusterError:
            # Of an earlier life of the cluster, perhaps: its storage knows.
            if storage == "runs":
                raise
        else:
            storage = submitted.storage
            click.echo(f"job {submitted.job}: {submitted.status.lower()}")
            if submitted.reason:
                click.echo(f"  {submitted.reason}")
        well, printed = cluster.call("study", "status", name, "--storage", storage)
    click.echo(printed, nl=False)
    if not well:
        sys.exit(1)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _cluster(address: str | None) -> str:
    if address is None:
        import os

        import torch

        return f"this machine: {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs (no --address: Ray starts here)"
    from css_ray.study.cluster import joined, size

    try:
        with joined(address):
            nodes, cpus, gpus = size()
    except ConnectionError as error:
        raise BadInput(str(error)) from None
    return f"the cluster at {address}: {nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs"


def _drive(
    study_: Study,
    definition: schema.StudyDefinition | None,
    go: Callable[[Watcher], Any],
    address: str | None,
    on_finish: str | None,
    webhook: str | None,
) -> None:
    """Run or resume the study by `go`, watched, and exit with the code that says how it ended.

    definition: of a study that begins; None for one that goes on.
    """
    from rich.console import Console

    from css_ray.study.progress import Progress

    from .view import Watcher

    if webhook is not None:
        from css_ray.study.hooks import check_webhook

        try:
            check_webhook(webhook)
        except ValueError as error:
            raise BadInput(str(error)) from None
    where = "" if study_.storage == "runs" else f" --storage {study_.storage}"
    again = (
        f"css-ray study resume {study_.name}{where}"
        + (f" --address {address}" if address else "")
        + (f" --on-finish {shlex.quote(on_finish)}" if on_finish else "")
    )
    # Of its own: the watcher is told what happens, `study_` reads it.
    progress = Progress(definition) if definition is not None else _open(study_.name, study_.storage).progress
    watcher = Watcher(progress, Console())
    try:
        with _bad_input(), watcher.live():
            outcome = go(watcher)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; if the study was started, it goes on with:\n  {again}", err=True)
        sys.exit(130)
    except (OSError, RuntimeError) as error:
        from css_ray.study.runner import StudyExistsError

        if isinstance(error, StudyExistsError) or study_.status == "new":
            raise BadInput(str(error)) from None
        _tell(study_, "failed", on_finish, webhook)
        raise click.ClickException(f"{error}\ngo on with: {again}") from None
    if study_.status == "new":
        click.echo("\ninterrupted before anything was started", err=True)
        sys.exit(130)
    try:
        if outcome.status == "interrupted":
            click.echo(f"\ninterrupted; every run goes on from its last evaluation with:\n  {again}", err=True)
        else:
            _report(study_, where)
        if outcome.status == "budget":
            click.echo(f"\nthe budget is spent; with a larger one it goes on:\n  {again} --set budget.KEY=VALUE")
    finally:
        _tell(study_, outcome.status, on_finish, webhook)
    search = study_.definition.search
    if outcome.status == "finished" and search is not None and search.confirm:
        _confirm(study_, search.confirm, address, on_finish, webhook)
    sys.exit(EXIT_CODES[outcome.status])


def _confirm(study_: Study, top: int, address: str | None, on_finish: str | None, webhook: str | None) -> None:
    """Go on with the confirmation of a search that has finished, from wherever that is."""
    ranked = sum(trial.source == "search" for trial in study_.progress.best_trials(top + len(study_.definition.grid_trials())))
    if not ranked:
        return
    confirming = study_.confirmation(min(top, ranked))
    splits = ", ".join(map(str, confirming.definition.splits))
    click.echo(f"\n{confirming.name}: the best of the search again, on splits that it never saw ({splits})\n")
    begun = confirming.status != "new"

    def go(watcher: Watcher) -> Any:
        drive = confirming.resume if begun else confirming.run
        return drive(address=address, observer=watcher, warn=_warn)

    _drive(confirming, None if begun else confirming.definition, go, address, on_finish, webhook)


def _tell(study_: Study, status: str, on_finish: str | None, webhook: str | None) -> None:
    """Tell the user's command and webhook how the study ended. What goes wrong there is a warning."""
    if on_finish is None and webhook is None:
        return
    from css_ray.study.hooks import HookError, post, run_command

    summary = study_.summary() | {"status": status}
    hooks: list[Callable[[], None]] = []
    if on_finish is not None:
        hooks.append(lambda: run_command(on_finish, summary, study_.storage))
    if webhook is not None:
        hooks.append(lambda: post(webhook, summary))
    for hook in hooks:
        try:
            hook()
        except HookError as error:
            _warn(str(error))
        except KeyboardInterrupt:
            _warn("interrupted; not all were told that the study ended")
            return


def _watch(name: str, storage: str, console: Console) -> int:
    """Follow the study from its journal until it ends; returns the exit code that says how."""
    from css_ray.storage import is_url
    from css_ray.study.definition import parse
    from css_ray.study.journal import Follower, study_folder
    from css_ray.study.progress import Progress

    from .view import MAX_ROWS, View, Watcher

    follower = Follower(study_folder(storage, name))
    pause = WATCH_SECONDS * (10 if is_url(storage) else 1)  # an object store is listed anew each time
    watcher = None

    def look() -> list[Any]:
        time.sleep(pause)
        try:
            return follower.new()
        except OSError as error:
            _warn(f"the journal cannot be read now ({error}); trying again")
            return []

    try:
        with _bad_input():
            if not (events := follower.new()):
                click.echo(f"waiting for the study {name} to begin in {storage} (Ctrl-C ends this)")
            while not events:
                events = look()
            watcher = Watcher(Progress(parse(events[0]["spec"], f"the journal of {name}")), console)
            for event in events:
                watcher.progress.event(event)
            if not watcher.moving:
                watcher.summary()
            with watcher.live():
                while watcher.progress.status == "running":
                    for event in look():
                        watcher.event(event)
    except KeyboardInterrupt:
        click.echo("", err=True)
    if watcher is None:
        return 130
    if watcher.moving:
        console.print(View(watcher.progress, MAX_ROWS))
    return EXIT_CODES.get(watcher.progress.status, 130)


def _report(study_: Study, where: str) -> None:
    from css_ray.reports.paper import SYMBOLS

    from .view import mean_std_text

    progress = study_.progress
    if not any(trial.runs for trial in progress.trials.values()):
        raise click.ClickException("no run was started; `css-ray study status` says what happened to the trials")
    click.echo()
    if progress.study.search is not None:
        click.echo(_table(study_, "text", kind="trials"))
    click.echo(_table(study_, "text"), nl=False)
    best = progress.best_drawn
    if best is not None:
        click.echo(f"\nbest configuration of the search: trial {best.index}, {mean_std_text(best.mean, best.std)}")
        for key in progress.study.space:
            value = best.params.get(key)
            if value is not None:
                symbol = f"  ({SYMBOLS[key]})" if key in SYMBOLS else ""
                click.echo(f"  {key}: {value:.4g}{symbol}" if isinstance(value, float) else f"  {key}: {value}{symbol}")
    if progress.study.objective.aggregate == "mean_and_std":
        click.echo("\ntrials that no other beats in both mean and std:")
        for trial in progress.front:
            click.echo(f"  trial {trial.index} ({trial.row}): {mean_std_text(trial.mean, trial.std)}")
    click.echo("\nnext:")
    commands = {
        f"css-ray ui{where}": "the curves and tables in MLflow",
        f"css-ray study table {study_.name}{where} --format md": "the table for your paper (csv, latex, html too)",
        f"css-ray study resume {study_.name}{where}": "after an interruption, go on where it stopped",
    }
    if progress.best_drawn is not None:
        commands[f"css-ray study confirm {study_.name}{where}"] = "train the best again, on splits that the search never saw"
    for command, text in commands.items():
        click.echo(f"  {command:{max(map(len, commands))}}   {text}")


def _table(study_: Study, format_: str, **settings: Any) -> str:
    try:
        return study_.table(format_, **settings)  # type: ignore[arg-type]
    except LookupError as error:
        raise click.ClickException(f"{error}; bring it level with: css-ray study sync {study_.name}") from None
    except (ConnectionError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _print_or_write(text: str, out: str | None) -> None:
    if out is None:
        click.echo(text)
    else:
        Path(out).write_text(text + "\n", encoding="utf-8")
        click.echo(f"wrote {out}")
