"""What a search draws from: one distribution per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Distribution:
    """How one setting is drawn. kind: uniform, loguniform, int or choice; bounds: [low, high], or the choices."""

    kind: Literal["uniform", "loguniform", "int", "choice"]
    values: tuple[Any, ...]


def ends(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """Two points of a space: every setting at its first value, and every one at its last."""
    return [{path: distribution.values[end] for path, distribution in space.items()} for end in (0, -1)]


def points_of(distribution: Distribution) -> Sequence[Any]:
    """The values of a distribution that has finitely many; none for a range of real numbers."""
    if distribution.kind == "choice":
        return distribution.values
    if distribution.kind == "int":
        return range(distribution.values[0], distribution.values[1] + 1)
    return ()


def contains(distribution: Distribution, value: Any) -> bool:
    """True if `value` could be drawn from `distribution`."""
    if distribution.kind == "choice":
        return value in distribution.values
    low, high = distribution.values
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
