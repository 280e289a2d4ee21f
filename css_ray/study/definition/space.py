"""What a search draws from: one distribution per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a search draws one setting.

    Attributes:
        kind: What it draws: a real number, a real number by its logarithm, a whole number, or one of several values.
        values: The choices of a `choice`; `(low, high)` of the other kinds, both included.
    """

    kind: Literal["uniform", "loguniform", "int", "choice"]
    values: tuple[Any, ...]


def ends(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """Two points of a space.

    Args:
        space: A distribution per setting.

    Returns:
        The point where every setting has its first value, and the one where every setting has its last.
    """
    return [{path: distribution.values[end] for path, distribution in space.items()} for end in (0, -1)]


def points_of(distribution: Distribution) -> Sequence[Any]:
    """The values of a distribution.

    Args:
        distribution: How one setting is drawn.

    Returns:
        All its values if they are finitely many; nothing for a range of real numbers.
    """
    if distribution.kind == "choice":
        return distribution.values
    if distribution.kind == "int":
        return range(distribution.values[0], distribution.values[1] + 1)
    return ()


def contains(distribution: Distribution, value: Any) -> bool:
    """Whether a value can be drawn.

    Args:
        distribution: How one setting is drawn.
        value: A value of that setting.

    Returns:
        True if `value` is one of the choices, or a number from low to high.
    """
    if distribution.kind == "choice":
        return value in distribution.values
    low, high = distribution.values
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
