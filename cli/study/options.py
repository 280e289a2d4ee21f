"""What the commands of `css-ray study` share: options, and how a study is found or its problems reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..errors import BadInput

if TYPE_CHECKING:
    from css_ray.api import Study
    from css_ray.study.definition import StudyDefinition


FORMATS = ("text", "md", "csv", "latex", "html")
EXIT_CODES = {"finished": 0, "budget": 0, "failed": 1, "interrupted": 130}


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

remote_option = click.option(
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


@contextmanager
def bad_input() -> Iterator[None]:
    """What the user can mend is told as such, with exit code 2."""
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
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None


def load_study(file: str, overrides: Sequence[str], storage: str = "runs", *, local: bool) -> Study:
    """The study in `file`, to be run on this machine if `local`, or BadInput with every problem."""
    from css_ray.api import Study

    return Study(read_study(file, overrides, local), storage)


def open_study(name: str, storage: str) -> Study:
    from css_ray.api import Study

    with bad_input():
        return Study.open(name, storage)


def warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)
