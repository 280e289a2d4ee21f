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

ROUNDING = 1e-9  # differences below it are of the last bits of a float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A trial is to be pruned.

    Attributes:
        pruner: The name of the pruner that decided it.
        reason: Why, in words.
    """

    pruner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningContext:
    """What a pruner sees of a study when a run has been evaluated or has finished. It holds comparable trials only.

    Attributes:
        trial: The trial of that run.
        split: The split of that run.
        splits: The splits of the study, in the order in which every trial trains on them.
        iterations: The steps of a run.
        curves: By trial and split, the evaluations so far.
        values: By trial and split, what the objective takes from each finished run.
        scores: The objective of each trial that finished all splits, higher is better.
        pruned: The trials that a verdict has ended.
        leaders: If many trials have finished, at least the LEADERS best of them by their mean; None for all.
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
        """The curves of the other runs on the same split, by trial."""
        return {
            trial: curves[self.split] for trial, curves in self.curves.items() if trial != self.trial and self.split in curves
        }

    @property
    def incumbent(self) -> int | None:
        """The best trial that has finished; the first of equal ones."""
        return max(self.scores, key=lambda trial: (self.scores[trial], -trial), default=None)

    @property
    def place(self) -> str:
        """The step and the split that the run has reached, in words."""
        return f"at step {max(self.curve)} of {self.iterations} on split {self.split}"


class Pruner(ABC):
    """A rule. A new one costs one class and one line in PRUNERS.

    Attributes:
        name: Its key in PRUNERS and in a study.
        Config: Its settings.
    """

    name: ClassVar[str]
    Config: ClassVar[type[config.Config]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def judge(self, context: PruningContext) -> Verdict | None:
        """Judge `context.trial`.

        Args:
            context: What is known of the study.

        Returns:
            The verdict, or None if the trial continues.
        """

    def verdict(self, reason: str) -> Verdict:
        return Verdict(self.name, reason)


def levels(grace: float, factor: int, iterations: int) -> list[int]:
    """The steps at grace, grace * factor, grace * factor², ... of a run, before its last one."""
    shares = (grace * factor**rung for rung in itertools.count())
    return [step_of(share, iterations) for share in itertools.takewhile(lambda share: share < 1 - ROUNDING, shares)]


def step_of(share: float, iterations: int) -> int:
    return math.ceil(share * iterations - ROUNDING * iterations)


def arrived(curve: Curve, levels: Sequence[int]) -> bool:
    """Whether the latest evaluation is the first one at or after one of `levels`."""
    latest, *before = sorted(curve, reverse=True)
    return any((before[0] if before else 0) < level <= latest for level in levels)
