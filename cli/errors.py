"""How a command fails: one clear message, and an exit code that distinguishes wrong input from a failure."""

from __future__ import annotations

from pathlib import Path

import click

from css_ray.messages import os_error_text


class BadInput(click.ClickException):
    """The user's input is wrong; nothing was started."""

    exit_code = 2


def bad_input(error: OSError | ValueError, action: str = "read", path: str | Path | None = None) -> BadInput:
    """The message of an error that the user's input led to; action, path: see `os_error_text`."""
    return BadInput(os_error_text(error, action, path) if isinstance(error, OSError) else str(error))
