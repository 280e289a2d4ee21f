"""Pruning across splits: a trial against the best one on the splits that both have; docs/pruning.md derives both rules."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from css_ray import config
from css_ray.config import knob
from css_ray.study.pruning.base import ROUNDING, Pruner, PruningContext, Verdict, arrived, levels

_FEWEST, _MOST = 5, 20  # the number of best finished trials that are used to estimate how splits differ

LEADERS = 2 * _MOST
"""The number of best finished trials that can change a verdict of the paired rule, which uses the better half of them."""

_PRIOR_FREEDOM = 4  # degrees of freedom that a stated spread is worth


@dataclass(frozen=True, slots=True)
class Prospect:
    """Where a trial that has finished some splits is expected to end, in percentage points of the objective's metric.

    Attributes:
        done: The number of splits that it has finished.
        total: The number of splits of the study.
        behind: How far it is below the incumbent on the splits that it has, on average; negative if it is ahead.
        expected: How far it is expected to be below the incumbent on all splits.
        margin: How far below it may be expected to be by chance alone, if it would end level; infinite if nothing is known of
            the spread.
    """

    done: int
    total: int
    behind: float
    expected: float
    margin: float

    @property
    def should_prune(self) -> bool:
        """True if chance does not explain how far it is behind. Never while it is level with the incumbent, or ahead."""
        return self.behind > ROUNDING and self.expected > self.margin + ROUNDING


def prospect(
    candidate: Mapping[int, float],
    incumbent: Mapping[int, float],
    finished: Sequence[Mapping[int, float]],
    splits: Sequence[int],
    *,
    false_prune_rate: float = 0.05,
    prior_std: float | None = None,
) -> Prospect | None:
    """Predict from a candidate's first splits how far its mean over all splits will be below the incumbent's.

    Model: value = trial + split + residual, residuals independent with one variance. From the best half of the finished trials,
    m of them, follow how the splits differ and, by what that leaves unexplained, the residual variance s² with (m - 1)(n - 1)
    degrees of freedom. After k of n splits the error of the prediction has the variance s² (1/k - 1/n)(1 + 1/m), and the margin
    is its quantile of t at false_prune_rate / (n - 1), since a trial is looked at n - 1 times.

    Args:
        candidate: The candidate's values, by split.
        incumbent: The incumbent's values, by split.
        finished: The values of all trials that have finished, the incumbent among them; those that lack a split are left out.
        splits: The splits of the study.
        false_prune_rate: Bound on the share of trials pruned that would have ended level with the incumbent.
        prior_std: The residual standard deviation that is assumed at first; it counts like 4 more degrees of freedom.

    Returns:
        The prediction; None before the first split, after the last one, and if the incumbent lacks a split.
    """
    total, known = len(splits), [split for split in splits if split in candidate]
    done = len(known)
    if not 0 < done < total or any(split not in incumbent for split in splits):
        return None
    rows = [[values[split] for split in splits] for values in finished if all(split in values for split in splits)]
    # A choice by the mean does not touch the residuals, which are independent of it: the spread stays unbiased.
    best = heapq.nlargest(min(_MOST, max(_FEWEST, len(rows) // 2)), rows, key=sum)
    level = {split: statistics.fmean(column) for split, column in zip(splits, zip(*best, strict=True), strict=True)}
    freedom, variance = _residual_variance(best)
    if prior_std is not None:
        variance = (freedom * variance + _PRIOR_FREEDOM * prior_std**2) / (freedom + _PRIOR_FREEDOM)
        freedom += _PRIOR_FREEDOM
    margin = math.inf
    if freedom:
        error = math.sqrt(variance * (1 / done - 1 / total) * (1 + 1 / len(best)))
        margin = _t_quantile(false_prune_rate / (total - 1), freedom) * error
    so_far = statistics.fmean(candidate[split] for split in known)
    still_to_come = statistics.fmean(level.values()) - statistics.fmean(level[split] for split in known)
    return Prospect(
        done=done,
        total=total,
        behind=statistics.fmean(incumbent[split] for split in known) - so_far,
        expected=statistics.fmean(incumbent[split] for split in splits) - (so_far + still_to_come),
        margin=margin,
    )


def _residual_variance(rows: Sequence[Sequence[float]]) -> tuple[int, float]:
    """Degrees of freedom and variance of what trial and split do not explain in a complete table [trials][splits]."""
    freedom = (len(rows) - 1) * (len(rows[0]) - 1)
    if not freedom:
        return 0, 0.0
    columns = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    overall = statistics.fmean(columns)
    squares = 0.0
    for row in rows:
        shift = statistics.fmean(row) - overall
        squares += sum((value - column - shift) ** 2 for value, column in zip(row, columns, strict=True))
    return freedom, squares / freedom


@cache
def _t_quantile(upper_tail: float, freedom: int) -> float:
    """The value that Student's t exceeds with the probability `upper_tail`."""
    from scipy.special import stdtrit  # a third of a second, which no other command pays

    return -float(stdtrit(freedom, upper_tail))


@dataclass(frozen=True, kw_only=True)
class PairedConfig(config.Config):
    """How sure it must be that a trial loses before the paired rule prunes it."""

    false_prune_rate: float = knob(
        0.05, gt=0, le=0.5, help="bound on the share of trials pruned that would have reached the best one's mean"
    )
    prior_std: float | None = knob(
        None,
        gt=0,
        help="standard deviation of what trial and split do not explain, in mIoU, assumed at first; null: none is assumed",
    )


class Paired(Pruner):
    """Compares a trial with the best finished one on the splits that both have, after each split: see `prospect`.

    It compares means over splits, whatever the objective combines them to.
    """

    name = "paired"
    Config = PairedConfig
    config: PairedConfig

    def judge(self, context: PruningContext) -> Verdict | None:
        candidate = context.values.get(context.trial, {})
        if context.split not in candidate or (incumbent := context.incumbent) is None:
            return None
        leaders = context.scores if context.leaders is None else context.leaders
        found = prospect(
            candidate,
            context.values[incumbent],
            [context.values[trial] for trial in leaders],
            context.splits,
            false_prune_rate=self.config.false_prune_rate,
            prior_std=self.config.prior_std,
        )
        if found is None or not found.should_prune:
            return None
        return self.verdict(
            f"after {found.done} of {found.total} splits it is {found.behind:.2f} below the best trial ({incumbent}) on the "
            f"same splits, and expected {found.expected:.2f} below on all; up to {found.margin:.2f} is within chance "
            f"({100 * self.config.false_prune_rate:g} %)"
        )


Values = Mapping[int, float]
"""The values of a trial, by split."""


def forecast(
    candidate: tuple[Values, float],
    incumbent: tuple[Values, Values],
    finished: Sequence[tuple[Values, Values]],
    splits: Sequence[int],
    split: int,
    *,
    false_prune_rate: float,
) -> Prospect | None:
    """Predict as `prospect` does, in the middle of a split: at a step of `split`, after the splits that a candidate finished.

    A trial's score so far is the mean of its values and the evaluation; what is still to come, its mean over all splits less
    that. From the best half of the finished trials, m of them, follow how much it is and, by how they differ, its variance s²:
    that is averaged over all orders in which the n splits could have been trained, as if all were alike in it, and has
    (m - 1)(n - 1) degrees of freedom (m - 1 with one split). The margin is the quantile of t at false_prune_rate, times
    s √(1 + 1/m).

    Args:
        candidate: The candidate's values, by split, and its evaluation at this step.
        incumbent: The incumbent's values and its evaluations at the same step, both by split.
        finished: The same of all trials that have finished; those that lack a value or an evaluation are left out.
        splits: The splits of the study.
        split: The split that the candidate is training on.
        false_prune_rate: Bound on the share of wrong verdicts of this look alone.

    Returns:
        The prediction; None with fewer than two finished trials to learn from, or if the incumbent has no evaluation at this
        step.
    """
    total, known = len(splits), [each for each in splits if each in candidate[0] and each != split]
    rows = [run for run in finished if _complete(run, splits)]
    if len(rows) < 2 or not _complete(incumbent, splits):
        return None
    best = heapq.nlargest(min(_MOST, max(_FEWEST, len(rows) // 2)), rows, key=lambda run: _mean(run[0], splits))
    still_to_come = statistics.fmean(_mean(run[0], splits) - _so_far(run, known, split) for run in best)
    so_far = statistics.fmean([*(candidate[0][each] for each in known), candidate[1]])
    freedom = (len(best) - 1) * max(1, total - 1)
    error = math.sqrt(_variance_to_come(best, splits, len(known)) * (1 + 1 / len(best)))
    return Prospect(
        done=len(known),
        total=total,
        behind=_so_far(incumbent, known, split) - so_far,
        expected=_mean(incumbent[0], splits) - (so_far + still_to_come),
        margin=_t_quantile(false_prune_rate, freedom) * error,
    )


def _complete(run: tuple[Values, Values], splits: Sequence[int]) -> bool:
    return all(split in known for known in run for split in splits)


def _so_far(run: tuple[Values, Values], known: Sequence[int], split: int) -> float:
    return statistics.fmean([*(run[0][each] for each in known), run[1][split]])


def _mean(values: Values, splits: Sequence[int]) -> float:
    return statistics.fmean(values[split] for split in splits)


def _variance_to_come(runs: Sequence[tuple[Values, Values]], splits: Sequence[int], done: int) -> float:
    """The variance over trials of what is still to come in the middle of a split, after `done` others.

    It is the average over the n! / (n - done - 1)! choices of those splits, in closed form: with r_j = value - mean of the
    values and q_j = evaluation - mean of the values, all less their averages over the trials, what is to come is the sum of
    `done` of the r and the q of another split, times -1 / (done + 1); and the r of a trial add up to 0.
    """
    total = len(splits)
    columns = [[statistics.fmean(run[place][split] for run in runs) for split in splits] for place in (0, 1)]
    squares = 0.0
    for run in runs:
        ends, here = (
            [run[place][split] - column for split, column in zip(splits, columns[place], strict=True)] for place in (0, 1)
        )
        level = statistics.fmean(ends)
        r, q = [end - level for end in ends], [value - level for value in here]
        squares += statistics.fmean(value * value for value in q)
        if done:
            both = statistics.fmean(map(math.prod, zip(r, q, strict=True)))
            squares += done / (total - 1) * ((total - done) * statistics.fmean(value * value for value in r) - 2 * both)
    return squares / (len(runs) - 1) / (done + 1) ** 2


@dataclass(frozen=True, kw_only=True)
class ForecastConfig(config.Config):
    """How sure it must be that a trial loses before the forecast prunes it, and when it is looked at."""

    false_prune_rate: float = knob(
        0.05, gt=0, le=0.5, help="bound on the share of trials pruned that would have reached the best one's mean"
    )
    grace: float = knob(
        0.25, gt=0, lt=1, help="share of a split's steps at which a trial is first looked at; again at 2, 4, ... times that"
    )


class Forecast(Pruner):
    """Compares the mean that a trial is expected to reach with that of the best finished one, inside each split and after it.

    After a split it is the paired rule (`prospect`), inside one the same prediction from the curves (`forecast`). A trial is
    looked at at the first evaluation after grace, 2 grace, 4 grace, ... of each split, and after each split but the last; each
    look may err in an equal part of the rate. If `paired` is named beside it, the rates of both add up.
    """

    name = "forecast"
    Config = ForecastConfig
    config: ForecastConfig

    def judge(self, context: PruningContext) -> Verdict | None:
        if (incumbent := context.incumbent) is None or not context.curve:
            return None
        steps, total = levels(self.config.grace, 2, context.iterations), len(context.splits)
        rate = self.config.false_prune_rate / (len(steps) * total + total - 1)
        leaders = list(context.scores if context.leaders is None else context.leaders)
        values, step = context.values.get(context.trial, {}), max(context.curve)
        found: Prospect | None = None
        if context.split in values:
            where, rows = f"after {len(values)} of {total} splits", [context.values[each] for each in leaders]
            # `prospect` shares a rate between its own looks.
            found = prospect(values, context.values[incumbent], rows, context.splits, false_prune_rate=rate * (total - 1))
        elif step < context.iterations and arrived(context.curve, steps):

            def at_step(trial: int) -> tuple[Values, Values]:
                curves = context.curves.get(trial, {})
                return context.values[trial], {split: curve[step] for split, curve in curves.items() if step in curve}

            where, candidate, runs = context.place, (values, context.curve[step]), [at_step(each) for each in leaders]
            found = forecast(candidate, at_step(incumbent), runs, context.splits, context.split, false_prune_rate=rate)
        if found is None or not found.should_prune:
            return None
        return self.verdict(
            f"{where} it is {found.behind:.2f} below the best trial ({incumbent}) so far, and expected {found.expected:.2f} "
            f"below at the end; up to {found.margin:.2f} is within chance ({100 * self.config.false_prune_rate:g} %)"
        )
