"""What the commands of `css-ray study` share: options, how a study is found, and how problems and commands are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from css_ray.messages import DEFAULT_STORAGE, os_error_text

from ..address import any_address, dashboard_address
from ..errors import BadInput
from ..output import echo

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.study.definition import StudyDefinition


FORMATS = ("text", "md", "csv", "latex", "latex-siunitx", "html")
EXIT_CODES = {"finished": 0, "budget": 0, "failed": 1, "interrupted": 130}


def _usable_storage(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A storage is a folder, which need not exist yet, or a URL that pyarrow opens.

    It is printed, journaled and sent to nodes: it must hold no secret.
    """
    from css_ray.secrets import credentials_text

    if not value:
        raise BadInput("--storage: is empty; give a folder, or a URL such as s3://bucket/studies")
    if refused := credentials_text(value):
        raise BadInput(f"--storage: {refused}")
    from css_ray.storage import check_folder, is_url, locate

    try:
        if is_url(value):
            locate(value)
        else:
            check_folder(value)
    except (OSError, ValueError) as error:
        raise BadInput(f"--storage: {os_error_text(error, 'open', value) if isinstance(error, OSError) else error}") from None
    return value


def writable(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A file that cannot be written is refused before the work."""
    if value is not None:
        from css_ray.storage import check_writable_file

        try:
            check_writable_file(value)
        except OSError as error:
            raise BadInput(f"--out: {os_error_text(error, 'write', value)}") from None
    return value


storage_option = click.option(
    "--storage",
    default=DEFAULT_STORAGE,
    show_default=True,
    envvar="CSS_RAY_STORAGE",
    metavar="DIR",
    callback=_usable_storage,
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
    "--at", type=click.Choice(["last", "best"]), help="Last step or best evaluation; the study's own setting if not given."
)

ddof_option = click.option(
    "--ddof", type=click.IntRange(0, 1), default=1, show_default=True, help="1: sample std; 0: population std."
)

source_option = click.option(
    "--source",
    type=click.Choice(["journal", "mlflow"]),
    default="journal",
    show_default=True,
    help="Where the records are read.",
)

out_option = click.option(
    "--out", type=click.Path(dir_okay=False), callback=writable, help="Write to a file instead of the terminal."
)

address_option = click.option(
    "--address",
    metavar="ADDRESS",
    callback=any_address,
    help="Join a Ray cluster (host:port, or auto on a node of it) instead of starting Ray here.",
)

remote_option = click.option(
    "--address",
    metavar="URL",
    callback=dashboard_address,
    help="The dashboard of a Ray cluster that the study was submitted to (http://host:8265).",
)

on_finish_option = click.option(
    "--on-finish",
    metavar="CMD",
    help="A shell command to run when the study has ended, for whatever reason. Its environment has CSS_RAY_STUDY, "
    "CSS_RAY_STATUS, CSS_RAY_STORAGE and CSS_RAY_BEST; its standard input is a summary as JSON.",
)

webhook_option = click.option(
    "--webhook",
    metavar="URL",
    envvar="CSS_RAY_WEBHOOK",
    help="A URL to which the same summary is posted. Pass one that contains a secret as CSS_RAY_WEBHOOK instead.",
)


@contextmanager
def bad_input() -> Iterator[None]:
    """What the user can fix is reported as bad input, with exit code 2."""
    from css_ray.study.definition import StudyError
    from css_ray.study.journal import JournalError, StudyLockedError, StudyMissingError

    try:
        yield
    except (StudyError, StudyMissingError, StudyLockedError, JournalError) as error:
        raise BadInput(str(error)) from None


def read_study(file: str, overrides: Sequence[str], local: bool | None = None) -> StudyDefinition:
    """The study in `file`, or BadInput with every problem of the file.

    local: whether it is to run on this machine or on a cluster; problems of data, networks and GPUs are then listed as well.
    """
    from css_ray.study.definition import read

    try:
        with bad_input():
            if local is None:
                return read(file, overrides)
            from css_ray.study.preflight import read_and_check

            return read_and_check(file, overrides, local=local)
    except OSError as error:
        raise BadInput(os_error_text(error, "read", file)) from None


def load_study(file: str, overrides: Sequence[str], storage: str = DEFAULT_STORAGE, *, local: bool) -> Study:
    """The study in `file`, to be run on this machine if `local`, or BadInput with every problem."""
    from css_ray.api import Study

    return Study(read_study(file, overrides, local), storage)


def open_study(name: str, storage: str) -> Study:
    from css_ray.api import Study

    try:
        with bad_input():
            return Study.open(name, storage)
    except OSError as error:
        raise BadInput(os_error_text(error, "read", storage)) from None


def show_commands(commands: Mapping[str, str]) -> None:
    """Print commands to paste, each with what it does beside it."""
    width = max(map(len, commands))
    for line, text in commands.items():
        echo(f"  {line:{width}}   {text}")


def warn(text: str) -> None:
    echo(f"warning: {text}", err=True)
