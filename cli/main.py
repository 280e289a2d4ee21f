"""`css-ray`: the commands, each loaded when it is asked for, so that `--help` needs neither torch nor Ray."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

import css_ray
from css_ray.messages import clipped, did_you_mean, printable
from css_ray.secrets import without_secrets

from .errors import bad_input
from .output import echo

# At its very end Python looks through all objects for those that only point at each other: with torch, Ray and MLflow imported
# that takes longer than most commands do.
atexit.register(gc.freeze)

COMMANDS = {
    "study": ("study", "Plan, run, resume and read studies."),
    "train": ("train", "Train one run of a study, with or without Ray."),
    "predict": ("predict", "Write masks of images by a trained model."),
    "export": ("export", "Write a trained model to a file for other programs."),
    "register": ("register", "Put the winner of a study into MLflow's registry."),
    "data": ("data", "Prepare data sets and look at them."),
    "methods": ("methods", "List the methods and every setting."),
    "ui": ("ui", "Open the MLflow pages of your studies."),
    "cluster": ("cluster", "Check a Ray cluster: what is wrong and how to fix it."),
    "doctor": ("doctor", "Check this machine: what is wrong and how to fix it."),
}


class Commands(click.Group):
    """A group whose commands are modules of this folder, imported on use."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _errors_in_words():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _errors_in_words(), _warnings_in_words(), _log_in_words():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name][0]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@contextmanager
def _errors_in_words() -> Iterator[None]:
    """A message quotes what was given, and messages of libraries; both may hold a URL with a password, or control characters.

    An error of the operating system that no command foresaw names its file, and what to do, as well.
    """
    try:
        yield
    except click.ClickException as error:
        error.message = _plain(error.message)  # type: ignore[misc]
        raise
    except OSError as error:
        if error.errno == errno.EPIPE:  # who reads the output has seen enough
            raise
        refused = bad_input(error, "open")
        refused.message = _plain(refused.message)  # type: ignore[misc]
        raise refused from None


def _plain(message: str) -> str:
    return printable(without_secrets(clipped(message, _LONGEST)))


_LONGEST = 9_000  # characters of a message: a word that was given may have more


class _Words(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(without_secrets(super().format(record)))


@contextmanager
def _log_in_words() -> Iterator[None]:
    """What css-ray logs is printed as plain text, which quotes journals and messages of libraries."""
    handler, logger = logging.StreamHandler(), logging.getLogger("css_ray")
    handler.setFormatter(_Words())
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """Python's warnings for users are printed without their place in the code, and without secrets."""
    for_developers = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
    with warnings.catch_warnings():
        otherwise = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, for_developers):
                otherwise(message, category, filename, lineno, file, line)
            else:
                echo(f"warning: {without_secrets(message)}", err=True)

        warnings.showwarning = show
        yield


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(css_ray.__version__, prog_name="css-ray")
def main(**options: Any) -> None:
    """Semi-supervised segmentation studies over data splits, on this machine or a Ray cluster.

    \b
    Exit codes: 0 done or the budget is spent, 1 some runs failed, 2 bad input, 130 interrupted.
    """
