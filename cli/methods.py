"""`css-ray methods`: what can be trained, and every setting with its bounds and default."""

from __future__ import annotations

import click

from .errors import BadInput


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or every setting of the method NAME."""
    import dataclasses
    import typing

    from css_ray.config import bounds_text
    from css_ray.methods import METHODS
    from css_ray.study.schema import did_you_mean

    if name is None:
        for key, method in METHODS.items():
            click.echo(f"{key:14} {_first_sentence(method)}")
        click.echo("\nevery setting of one: css-ray methods css")
        return
    if name not in METHODS:
        raise BadInput(f"no method {name!r}{did_you_mean(name, list(METHODS))}")
    config = METHODS[name].Config
    hints = typing.get_type_hints(config)
    click.echo(f"{name}: {_first_sentence(METHODS[name])}\n")
    for field in dataclasses.fields(config):
        choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is typing.Literal else ()
        bounds = " | ".join(map(str, choices)) or bounds_text(field.metadata["bounds"])
        click.echo(f"  {field.name} = {field.default}" + (f"   ({bounds})" if bounds else ""))
        click.echo(f"      {field.metadata['help']}")


def _first_sentence(method: type) -> str:
    return " ".join((method.__doc__ or "").strip().split("\n\n")[0].split())
