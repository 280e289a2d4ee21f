"""Settings as frozen dataclasses: each knob states its bounds once, beside its default.

A part of css-ray is configured by a frozen, keyword-only dataclass that derives from `Config` and whose fields are made by
`knob`. Built in Python, a wrong value raises at once; loaded from YAML, `css_ray.study.definition` reads the same bounds and
reports all problems of a file together. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any


def knob(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """A dataclass field with its meaning and its bounds. Choices are stated by the annotation: `Literal["a", "b"]`.

    A list as default is kept as a tuple, so that configurations stay hashable. Bounds on a tuple hold for each entry.
    """
    bounds = {name: value for name, value in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if value is not None}
    if isinstance(default, list):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


_WORDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds_text(bounds: dict[str, float]) -> str:
    """Bounds as a reader writes them: `> 0 and <= 1`."""
    return " and ".join(f"{_WORDS[name]} {value:g}" for name, value in bounds.items())


def within(value: float, bounds: dict[str, float]) -> bool:
    """True if the finite `value` satisfies every bound."""
    return math.isfinite(value) and all(
        {"gt": value > limit, "ge": value >= limit, "lt": value < limit, "le": value <= limit}[name]
        for name, limit in bounds.items()
    )


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that an annotation of literals allows, `Literal["a", "b"] | None` included; empty for any other."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    literals = [member for member in members if typing.get_origin(member) is typing.Literal]
    if not literals or any(member is not type(None) for member in members if member not in literals):
        return ()
    values = tuple(value for member in literals for value in typing.get_args(member))
    return (*values, None) if type(None) in members else values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings. Subclass as `@dataclass(frozen=True, kw_only=True)`.

    Raises ValueError that names every field out of its bounds or choices, with the value and the bound.
    """

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise ValueError(f"{type(self).__qualname__}: " + "; ".join(problems))

    def problems(self) -> typing.Iterator[str]:
        """One sentence a problem; a subclass adds rules between its fields and calls `super().problems()` first."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            bounds = field.metadata.get("bounds", {})
            numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for number in numbers:
                numeric = isinstance(number, int | float) and not isinstance(number, bool)
                if bounds and numeric and not within(number, bounds):
                    yield f"{field.name} must be {bounds_text(bounds)}, got {value!r}"
                    break
            allowed = choices(hints[field.name])
            if allowed and value not in allowed:
                yield f"{field.name} must be one of {', '.join(map(str, allowed))}, got {value!r}"
