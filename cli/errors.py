"""How a command fails: one clear message and the exit code that says whose turn it is."""

from __future__ import annotations

import click


class BadInput(click.ClickException):
    """The user's input is wrong; nothing was started."""

    exit_code = 2
