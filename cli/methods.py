"""`css-ray methods`: what can be trained, its presets, and every setting with its value in each, its bounds and its meaning."""

from __future__ import annotations

from typing import Any

import click

from .errors import BadInput
from .output import echo


@click.command()
@click.argument("name", required=False)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def methods(name: str | None, settings: tuple[str, ...]) -> None:
    """List the methods, or every setting of the method NAME in each of its presets.

    A preset may depend on other settings; give them as KEY=VALUE, as a study file has them.
    """
    from css_ray.methods import METHODS, MethodError

    if name is None:
        for key, method in METHODS.items():
            echo(f"{key:14} {_first_sentence(method)}")
            if len(method.presets) > 1:
                echo(f"{'':14} presets: {', '.join(method.presets)}")
            if package := METHODS.package_of(key):
                echo(f"{'':14} from {package}")
        for problem in METHODS.broken.values():
            echo(f"warning: {problem}", err=True)
        echo("\nevery setting of a method, preset by preset: css-ray methods NAME")
        return
    try:
        method = METHODS[name]
    except MethodError as error:
        raise BadInput(str(error)) from None
    configs = _configs(method, _parsed(settings))
    echo(f"{name}: {_first_sentence(method)}\n")
    _print_settings(method, configs)
    if len(method.presets) > 1:
        echo(
            f"\n* departs from default. In a study: {{name: {name}, preset: {method.presets[-1]}, ...}}; "
            "explicit settings override the preset."
        )


def _parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    from css_ray.study.definition.yaml_file import read_value

    for setting in settings:
        if "=" not in setting:
            raise BadInput(f"a setting is KEY=VALUE, as `css-ray methods NAME` lists them; got {setting!r}")
    parsed = {}
    for key, _, value in (setting.partition("=") for setting in settings):
        try:
            parsed[key] = read_value(value)
        except ValueError as error:
            raise BadInput(f"{key}: {error}") from None
    return parsed


def _configs(method: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The Config of each preset, checked as a study's would be."""
    from css_ray.study.definition import StudyError, check_settings

    try:
        return {preset: check_settings(method, preset, settings) for preset in method.presets}
    except StudyError as error:
        raise BadInput(str(error)) from None


def _print_settings(method: Any, configs: dict[str, Any]) -> None:
    import dataclasses
    import typing

    from css_ray.config import bounds_text, choices

    fields = dataclasses.fields(method.Config)
    hints = typing.get_type_hints(method.Config)
    shown = {preset: {field.name: _text(getattr(config, field.name)) for field in fields} for preset, config in configs.items()}
    default = shown["default"]
    for preset, values in shown.items():
        if preset != "default":
            shown[preset] = {key: value if value == default[key] else f"{value} *" for key, value in values.items()}
    columns = [max(map(len, (field.name for field in fields)))]
    columns += [max(len(preset), *map(len, values.values())) for preset, values in shown.items()]
    if len(shown) > 1:
        echo("  " + _line(["", *shown], columns))
    for field in fields:
        echo("  " + _line([field.name, *(values[field.name] for values in shown.values())], columns))
        allowed = choices(hints[field.name])
        bounds = " | ".join(map(_text, allowed)) or bounds_text(field.metadata["bounds"])
        echo(f"      {field.metadata['help']}" + (f" ({bounds})" if bounds else ""))


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _text(value: Any) -> str:
    """A value as a study file writes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _first_sentence(method: type) -> str:
    return " ".join((method.__doc__ or "").strip().split("\n\n")[0].split())
