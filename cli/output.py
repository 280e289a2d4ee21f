"""How a command prints: text of somebody else, such as a journal's, cannot command the terminal."""

from __future__ import annotations

import click

from css_ray.messages import printable


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print `text`, see `printable`; every command prints by this, or by rich from `printable` text."""
    click.echo(printable(str(text)), err=err, nl=nl)
