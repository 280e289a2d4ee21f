"""Settings as frozen dataclasses: each knob states its bounds once, beside its default.

A part of css-ray is configured by a frozen, keyword-only dataclass that derives from `Config` and whose fields are made by
`knob`. Built in Python, a wrong value raises immediately; loaded from YAML, `css_ray.study.definition` reads the same bounds
and reports all problems of a file together. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
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
    before: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field with its meaning and its bounds. Choices are stated by the annotation: `Literal["a", "b"]`.

    A list as default is kept as a tuple, so that configurations stay hashable. Bounds on a tuple hold for each entry.
    before: for a setting that is new or whose default has changed, the value that does what earlier versions did; a study that
    began with one of them keeps it.
    """
    bounds = {name: value for name, value in (("gt", gt), ("ge", ge), ("lt", lt), ("le", le)) if value is not None}
    if isinstance(default, list):
        default = tuple(default)
    metadata = {"help": help, "bounds": bounds} | ({} if before is dataclasses.MISSING else {"before": before})
    return dataclasses.field(default=default, metadata=metadata)


_WORDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def bounds_text(bounds: dict[str, float]) -> str:
    """Bounds as a reader writes them: `> 0 and <= 1`."""
    return " and ".join(f"{_WORDS[name]} {value:g}" for name, value in bounds.items())


def within(value: float, bounds: dict[str, float]) -> bool:
    """True if `value` is finite as a float, and satisfies every bound."""
    return abs(value) <= sys.float_info.max and all(
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


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with settings.

    Attributes:
        path: The field's name, or its path in a study file: `lr`, `train.lr`, `grid.method[0].name`. Empty for a whole file.
        sentence: What is wrong with it and what to do, without a subject: `must be > 0, got -1`.
        joint: What separates the two in a message about a study.
    """

    path: str
    sentence: str
    joint: str = ": "

    def __str__(self) -> str:
        return f"{self.path}{self.joint}{self.sentence}" if self.path else self.sentence


class ConfigError(ValueError):
    """Settings that are wrong.

    Attributes:
        problems: Everything that is wrong with them; each path is the name of a field.
    """

    def __init__(self, config: str, problems: Sequence[Problem]) -> None:
        super().__init__(config, problems)  # what an exception is unpickled from
        self.config, self.problems = config, tuple(problems)

    def __str__(self) -> str:
        return f"{self.config}: " + "; ".join(f"{problem.path} {problem.sentence}" for problem in self.problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings. Subclass as `@dataclass(frozen=True, kw_only=True)`.

    Raises:
        ConfigError: If fields are out of their bounds or choices; it names each with the value and the bound.
    """

    def __post_init__(self) -> None:
        problems = list(self.problems())
        if problems:
            raise ConfigError(type(self).__qualname__, problems)

    def problems(self) -> typing.Iterator[Problem]:
        """Everything that is wrong; a subclass adds rules between its fields and calls `super().problems()` first."""
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            bounds = field.metadata.get("bounds", {})
            numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for number in numbers:
                numeric = isinstance(number, int | float) and not isinstance(number, bool)
                if bounds and numeric and not within(number, bounds):
                    yield Problem(field.name, f"must be {bounds_text(bounds)}, got {value!r}")
                    break
            allowed = choices(hints[field.name])
            if allowed and value not in allowed:
                yield Problem(field.name, f"must be one of {', '.join(map(str, allowed))}, got {value!r}")

    def range_problems(self, *names: str) -> typing.Iterator[Problem]:
        """Which of these fields are not two numbers, the smaller first."""
        for name in names:
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                yield Problem(name, f"must be two numbers, the smaller first, got {value!r}")
