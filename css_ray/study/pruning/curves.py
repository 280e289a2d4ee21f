"""Pruning inside a split: rules that compare runs of one split at equal steps."""

from __future__ import annotations

import itertools
import math
import statistics
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from css_ray import config
from css_ray.config import knob
from css_ray.study.pruning.base import ROUNDING, Curve, Pruner, PruningContext, Verdict, arrived, levels, step_of


@dataclass(frozen=True, kw_only=True)
class CurveConfig(config.Config):
    """Settings of the rules that compare curves."""

    grace: float = knob(0.2, gt=0, lt=1, help="share of a run's steps before it is judged")
    splits: Literal["first", "all"] = knob(
        "first", help="splits on which runs are judged; with all, a trial must be among the best on every split"
    )

    def judged(self, context: PruningContext) -> bool:
        """Whether a run is judged on its split, and has steps left to save."""
        curve = context.curve
        return bool(curve) and max(curve) < context.iterations and (self.splits == "all" or context.split == context.splits[0])


@dataclass(frozen=True, kw_only=True)
class MedianConfig(CurveConfig):
    """Settings of the median rule."""

    startup: int = knob(5, ge=1, help="number of runs that must have finished a split before others are judged on it")


class Median(Pruner):
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), as Optuna has it.

    A run is pruned if its best evaluation so far is below the median of the finished runs of its split at the same step.
    """

    name = "median"
    Config = MedianConfig
    config: MedianConfig

    def judge(self, context: PruningContext) -> Verdict | None:
        if not self.config.judged(context) or max(context.curve) < step_of(self.config.grace, context.iterations):
            return None
        step, best = max(context.curve), max(context.curve.values())
        reached = [other[step] for other in context.others.values() if context.iterations in other and step in other]
        if len(reached) < self.config.startup or best >= (median := statistics.median(reached)):
            return None
        return self.verdict(
            f"{context.place} its best is {best:.2f}, below the median {median:.2f} of {len(reached)} finished runs"
        )


@dataclass(frozen=True, kw_only=True)
class HalvingConfig(CurveConfig):
    """Settings of successive halving; the first rung is at `grace`."""

    reduction_factor: int = knob(
        3, ge=2, help="1 in this many runs continues at a rung; the next rung is at this many times the steps"
    )
    startup: int = knob(3, ge=0, help="number of runs that must have reached a rung before others are judged at it")


class ASHA(Pruner):
    """Asynchronous successive halving (Li et al., MLSys 2020), the variant that stops runs and never pauses them.

    Rungs are at grace, grace η, grace η², ... of a run's steps (η = reduction_factor), each at the first evaluation there or
    later. A run continues if it is among the best 1/η of the runs of its split that have reached the rung so far, or the best.
    """

    name = "asha"
    Config = HalvingConfig
    config: HalvingConfig

    def judge(self, context: PruningContext) -> Verdict | None:
        return self._at_rung(context, context.others, 0)

    def _at_rung(self, context: PruningContext, others: Mapping[int, Curve], bracket: int) -> Verdict | None:
        factor = self.config.reduction_factor
        if not self.config.judged(context) or not arrived(context.curve, rungs(self.config, context.iterations, bracket)):
            return None
        step = max(context.curve)
        reached = [other[step] for other in others.values() if step in other]
        ahead = sum(value > context.curve[step] for value in reached)
        continuing = max(1, (len(reached) + 1) // factor)
        if len(reached) < self.config.startup or ahead < continuing:
            return None
        best = "only the best continues" if continuing == 1 else f"the best {continuing} continue"
        return self.verdict(
            f"{context.place} its {context.curve[step]:.2f} is number {ahead + 1} of {len(reached) + 1}; {best}"
        )


class Hyperband(ASHA):
    """Hyperband (Li et al., JMLR 2018) with asynchronous brackets: halving that starts at different rungs, so that a setting
    which starts slowly is not always lost.

    Bracket b lacks the first b rungs of ASHA. A hash of the trial's index assigns a trial to a bracket, and it is compared with
    the trials of its bracket alone.
    """

    name = "hyperband"

    def judge(self, context: PruningContext) -> Verdict | None:
        bracket = bracket_of(context.trial, self.config)
        others = {trial: curve for trial, curve in context.others.items() if bracket_of(trial, self.config) == bracket}
        verdict = self._at_rung(context, others, bracket)
        return verdict and self.verdict(f"{verdict.reason} (bracket {bracket})")


def rungs(settings: HalvingConfig, iterations: int, bracket: int = 0) -> list[int]:
    """The steps from which a run is compared, before its last one."""
    return levels(settings.grace * settings.reduction_factor**bracket, settings.reduction_factor, iterations)


def bracket_of(trial: int, settings: HalvingConfig) -> int:
    """The bracket of a trial, by a hash of its index; early brackets get more trials, as in the paper."""
    return _bracket_of(trial, settings.grace, settings.reduction_factor)


@cache
def _bracket_of(trial: int, grace: float, factor: int) -> int:
    brackets = math.floor(math.log(1 / grace, factor) + ROUNDING) + 1
    sizes = [math.ceil(brackets * factor ** (brackets - 1 - bracket) / (brackets - bracket)) for bracket in range(brackets)]
    drawn = zlib.crc32(f"css-ray_{trial}".encode()) % sum(sizes)
    return next(bracket for bracket, end in enumerate(itertools.accumulate(sizes)) if drawn < end)
