"""What a pruner is: it sees a study through a `PruningContext` and returns a `Verdict`, or None."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, ClassVar

from css_ray import config

Curve = Mapping[int, float]
"""The evaluations of one run by step, in percent, higher is better."""

ROUNDING = 1e-9  # what the last bits of a float may do


@dataclass(frozen=True, slots=True)
class Verdict:
    """A trial is to be pruned. pruner: who says so; reason: why, for people."""

    pruner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningContext:
    """What a pruner sees of a study when one run was evaluated or has finished. Only trials that may be compared are in it.

    trial, split: that run. splits: those of the study, in the order in which every trial trains on them.
    iterations: the steps of a run. curves: by trial and split, the evaluations so far.
    values: by trial, what the objective takes from each finished run, by split. scores: by trial that finished on all splits,
    the objective, higher is better. pruned: the trials that a verdict has ended. leaders: of many that finished, at least the
    LEADERS best by their mean; None for all.
    """

    trial: int
    split: int
    splits: Sequence[int]
    iterations: int
    curves: Mapping[int, Mapping[int, Curve]] = field(default_factory=dict)
    values: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    pruned: AbstractSet[int] = frozenset()
    leaders: Sequence[int] | None = None

    @property
    def curve(self) -> Curve:
        """The curve of the run that is judged."""
        return self.curves.get(self.trial, {}).get(self.split, {})

    @property
    def others(self) -> dict[int, Curve]:
        """By trial, the curves of the other runs on the same split."""
        return {
            trial: curves[self.split] for trial, curves in self.curves.items() if trial != self.trial and self.split in curves
        }

    @property
    def incumbent(self) -> int | None:
        """The best trial that finished; of equal ones the first."""
        return max(self.scores, key=lambda trial: (self.scores[trial], -trial), default=None)

    @property
    def place(self) -> str:
        """Where the run stands, in words."""
        return f"at step {max(self.curve)} of {self.iterations} on split {self.split}"


class Pruner(ABC):
    """A rule. A subclass costs one class and one line in PRUNERS. name: its key there and in a study."""

    name: ClassVar[str]
    Config: ClassVar[type[config.Config]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def judge(self, context: PruningContext) -> Verdict | None:
        """The verdict on `context.trial`, or None where it goes on."""

    def verdict(self, reason: str) -> Verdict:
        return Verdict(self.name, reason)


# -------------------------------------------------------------------------------------------------------------- across splits

_FEWEST, _MOST = 5, 20  # how many of the best finished trials tell how splits differ


def levels(grace: float, factor: int, iterations: int) -> list[int]:
    """The steps at grace, grace factor, grace factor², ... of a run, before its last."""
    shares = (grace * factor**rung for rung in itertools.count())
    return [step_of(share, iterations) for share in itertools.takewhile(lambda share: share < 1 - ROUNDING, shares)]


def step_of(share: float, iterations: int) -> int:
    return math.ceil(share * iterations - ROUNDING * iterations)


def arrived(curve: Curve, levels: Sequence[int]) -> bool:
    """Whether the latest evaluation is the first at or after one of `levels`."""
    latest, *before = sorted(curve, reverse=True)
    return any((before[0] if before else 0) < level <= latest for level in levels)
