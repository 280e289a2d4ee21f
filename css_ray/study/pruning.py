"""Which trials of a search are not worth their remaining steps: rules that are asked at each evaluation and after each split.

Inside a split, `median`, `asha` and `hyperband` compare runs at equal steps of the same split. Across splits, `paired` compares
a trial with the best one on the splits that both have; `forecast` is the same rule asked inside the splits, too:
docs/pruning.md derives both and shows what they guarantee. `optuna` asks any pruner of Optuna. A verdict depends on what it is
given and on nothing else, so that a resumed study judges alike.
"""

from __future__ import annotations

import difflib
import heapq
import inspect
import itertools
import math
import statistics
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from css_ray import config
from css_ray.config import knob

Curve = Mapping[int, float]
"""The evaluations of one run by step, in percent, higher is better."""

_ROUNDING = 1e-9  # what the last bits of a float may do


@dataclass(frozen=True, slots=True)
class Verdict:
    """A trial is to be pruned. pruner: who says so; reason: why, for people."""

    pruner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
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
    def judge(self, seen: Seen) -> Verdict | None:
        """The verdict on `seen.trial`, or None where it goes on."""

    def verdict(self, reason: str) -> Verdict:
        return Verdict(self.name, reason)


# -------------------------------------------------------------------------------------------------------------- across splits

_FEWEST, _MOST = 5, 20  # how many of the best finished trials tell how splits differ

LEADERS = 2 * _MOST
"""Of more finished trials, the others change no verdict of the paired rule: the better half of so many is all it looks at."""

_PRIOR_FREEDOM = 4  # degrees of freedom that a stated spread is worth


@dataclass(frozen=True, slots=True)
class Prospect:
    """Where a trial that finished `done` of `total` splits is heading, in percentage points of the objective's metric.

    behind: by how much it is below the incumbent on the splits that it has, on average; below 0 where it is ahead.
    expected: by how much it is expected to be below it on all splits. margin: how much below it may be expected to be by chance
    alone, if it would end level; infinite where nothing is known of the spread.
    """

    done: int
    total: int
    behind: float
    expected: float
    margin: float

    @property
    def hopeless(self) -> bool:
        """True if chance does not explain how far it is behind. Never while it is level with the incumbent, or ahead."""
        return self.behind > _ROUNDING and self.expected > self.margin + _ROUNDING


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

    candidate, incumbent, finished: values by split; finished: all trials that are done, the incumbent among them. Those without
    all `splits` are left out. Returns None before the first split and after the last, and without an incumbent on all splits.

    Model: value = trial + split + residual, residuals independent with one variance. The best half of the finished trials, m of
    them, tell how the splits differ and, by what that leaves unexplained, the residual variance s² with (m - 1)(n - 1) degrees
    of freedom. After k of n splits the error of the prediction has the variance s² (1/k - 1/n)(1 + 1/m), and the margin is its
    quantile of t at false_prune_rate / (n - 1), since a trial is looked at n - 1 times. `prior_std`, the residual standard
    deviation that is assumed at first, counts like 4 more degrees of freedom.
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
    """Degrees of freedom and variance of what trial and split leave unexplained in a complete table [trials][splits]."""
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
    """How sure a trial must be to lose before the paired rule prunes it."""

    false_prune_rate: float = knob(
        0.05, gt=0, le=0.5, help="bound on the share of trials pruned that would have reached the best one's mean"
    )
    prior_std: float | None = knob(
        None,
        gt=0,
        help="spread of scores that trial and split do not explain, in mIoU, assumed at first; none: measured alone",
    )


class Paired(Pruner):
    """Compares a trial with the best finished one on the splits that both have, after each split: see `prospect`.

    It compares means over splits, whatever the objective makes of them.
    """

    name = "paired"
    Config = PairedConfig
    config: PairedConfig

    def judge(self, seen: Seen) -> Verdict | None:
        candidate = seen.values.get(seen.trial, {})
        if seen.split not in candidate or (incumbent := seen.incumbent) is None:
            return None
        leaders = seen.scores if seen.leaders is None else seen.leaders
        found = prospect(
            candidate,
            seen.values[incumbent],
            [seen.values[trial] for trial in leaders],
            seen.splits,
            false_prune_rate=self.config.false_prune_rate,
            prior_std=self.config.prior_std,
        )
        if found is None or not found.hopeless:
            return None
        return self.verdict(
            f"after {found.done} of {found.total} splits it is {found.behind:.2f} below the best trial ({incumbent}) on the "
            f"same splits, and expected {found.expected:.2f} below on all; up to {found.margin:.2f} is within chance "
            f"({100 * self.config.false_prune_rate:g} %)"
        )


# ------------------------------------------------------------------------------------------- across splits, and inside them

Values = Mapping[int, float]
"""What a trial has, by split."""


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

    candidate: its values, by split, and the evaluation at this step. incumbent, finished: the values and, by split, the
    evaluations at the same step; those of `finished` that lack one are left out. false_prune_rate: of this look alone.
    Returns None with fewer than two finished trials that tell, or where the incumbent has no evaluation at this step.

    A trial's score so far is the mean of its values and the evaluation; what is still to come, its mean over all splits less
    that. The best half of the finished trials, m of them, tell how much it is and, by how they differ, its variance s²: that is
    averaged over all orders in which the n splits could have been trained, as if all were alike in it, and has (m - 1)(n - 1)
    degrees of freedom (m - 1 with one split). The margin is the quantile of t at false_prune_rate, times s √(1 + 1/m).
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
    """How sure a trial must be to lose before the forecast prunes it, and where it is looked at."""

    false_prune_rate: float = knob(
        0.05, gt=0, le=0.5, help="bound on the share of trials pruned that would have reached the best one's mean"
    )
    grace: float = knob(
        0.25, gt=0, lt=1, help="share of a split's steps at which a trial is first looked at; again at 2, 4, ... times that"
    )


class Forecast(Pruner):
    """Compares the mean that a trial is heading for with that of the best finished one, inside each split and after it.

    After a split it is the paired rule (`prospect`), inside one the same prediction from the curves (`forecast`). A trial is
    looked at at grace, 2 grace, 4 grace, ... of each split, at the first evaluation from there on, and after each but the last
    split; each look may err in an equal part of the rate. Named beside `paired`, the rates of both add up.
    """

    name = "forecast"
    Config = ForecastConfig
    config: ForecastConfig

    def judge(self, seen: Seen) -> Verdict | None:
        if (incumbent := seen.incumbent) is None or not seen.curve:
            return None
        levels, total = _levels(self.config.grace, 2, seen.iterations), len(seen.splits)
        rate = self.config.false_prune_rate / (len(levels) * total + total - 1)
        leaders = list(seen.scores if seen.leaders is None else seen.leaders)
        values, step = seen.values.get(seen.trial, {}), max(seen.curve)
        found: Prospect | None = None
        if seen.split in values:
            where, rows = f"after {len(values)} of {total} splits", [seen.values[each] for each in leaders]
            # `prospect` shares a rate between its own looks.
            found = prospect(values, seen.values[incumbent], rows, seen.splits, false_prune_rate=rate * (total - 1))
        elif step < seen.iterations and _arrived(seen.curve, levels):

            def at_step(trial: int) -> tuple[Values, Values]:
                curves = seen.curves.get(trial, {})
                return seen.values[trial], {split: curve[step] for split, curve in curves.items() if step in curve}

            where, candidate, runs = seen.place, (values, seen.curve[step]), [at_step(each) for each in leaders]
            found = forecast(candidate, at_step(incumbent), runs, seen.splits, seen.split, false_prune_rate=rate)
        if found is None or not found.hopeless:
            return None
        return self.verdict(
            f"{where} it is {found.behind:.2f} below the best trial ({incumbent}) so far, and expected {found.expected:.2f} "
            f"below at the end; up to {found.margin:.2f} is within chance ({100 * self.config.false_prune_rate:g} %)"
        )


# ------------------------------------------------------------------------------------------------------------- inside a split


@dataclass(frozen=True, kw_only=True)
class CurveConfig(config.Config):
    """Settings of the rules that compare curves."""

    grace: float = knob(0.2, gt=0, lt=1, help="share of a run's steps in which it is not judged")
    splits: Literal["first", "all"] = knob(
        "first", help="where runs are judged; on all, a trial must be among the best on every split, not on the first alone"
    )

    def judged(self, seen: Seen) -> bool:
        """Whether a run is on a split where it is judged, and has steps left to save."""
        curve = seen.curve
        return bool(curve) and max(curve) < seen.iterations and (self.splits == "all" or seen.split == seen.splits[0])


@dataclass(frozen=True, kw_only=True)
class MedianConfig(CurveConfig):
    """Settings of the median rule."""

    startup: int = knob(5, ge=1, help="runs that must have finished a split before others are judged on it")


class Median(Pruner):
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017), as Optuna has it.

    A run is pruned if its best evaluation so far is below the median of the finished runs of its split at the same step.
    """

    name = "median"
    Config = MedianConfig
    config: MedianConfig

    def judge(self, seen: Seen) -> Verdict | None:
        if not self.config.judged(seen) or max(seen.curve) < _step_of(self.config.grace, seen.iterations):
            return None
        step, best = max(seen.curve), max(seen.curve.values())
        reached = [other[step] for other in seen.others.values() if seen.iterations in other and step in other]
        if len(reached) < self.config.startup or best >= (median := statistics.median(reached)):
            return None
        return self.verdict(
            f"{seen.place} its best is {best:.2f}, below the median {median:.2f} of {len(reached)} finished runs"
        )


@dataclass(frozen=True, kw_only=True)
class HalvingConfig(CurveConfig):
    """Settings of successive halving; `grace` is where the first rung is."""

    reduction_factor: int = knob(3, ge=2, help="one of so many runs goes on at a rung; the next rung is so many times further")
    startup: int = knob(3, ge=0, help="runs that must have reached a rung before others are judged at it")


class ASHA(Pruner):
    """Asynchronous successive halving (Li et al., MLSys 2020), the variant that stops runs and never pauses them.

    Rungs are at grace, grace η, grace η², ... of a run's steps (η = reduction_factor), each at the first evaluation from there
    on. A run goes on if it is among the best 1/η of the runs of its split that have reached the rung so far, or the best.
    """

    name = "asha"
    Config = HalvingConfig
    config: HalvingConfig

    def judge(self, seen: Seen) -> Verdict | None:
        return self._at_rung(seen, seen.others, 0)

    def _at_rung(self, seen: Seen, others: Mapping[int, Curve], bracket: int) -> Verdict | None:
        factor = self.config.reduction_factor
        if not self.config.judged(seen) or not _arrived(seen.curve, rungs(self.config, seen.iterations, bracket)):
            return None
        step = max(seen.curve)
        reached = [other[step] for other in others.values() if step in other]
        ahead = sum(value > seen.curve[step] for value in reached)
        go_on = max(1, (len(reached) + 1) // factor)
        if len(reached) < self.config.startup or ahead < go_on:
            return None
        best = "only the best goes on" if go_on == 1 else f"the best {go_on} go on"
        return self.verdict(f"{seen.place} its {seen.curve[step]:.2f} is number {ahead + 1} of {len(reached) + 1}; {best}")


class Hyperband(ASHA):
    """Hyperband (Li et al., JMLR 2018) with asynchronous brackets: halving that starts at different rungs, so that a setting
    which starts slowly is not always lost.

    Bracket b lacks the first b rungs of ASHA. A hash of the trial's index says in which one a trial is, and it is compared with
    the trials of its bracket alone.
    """

    name = "hyperband"

    def judge(self, seen: Seen) -> Verdict | None:
        bracket = bracket_of(seen.trial, self.config)
        others = {trial: curve for trial, curve in seen.others.items() if bracket_of(trial, self.config) == bracket}
        verdict = self._at_rung(seen, others, bracket)
        return verdict and self.verdict(f"{verdict.reason} (bracket {bracket})")


def rungs(settings: HalvingConfig, iterations: int, bracket: int = 0) -> list[int]:
    """The steps from which on a run is compared, before its last."""
    return _levels(settings.grace * settings.reduction_factor**bracket, settings.reduction_factor, iterations)


def _levels(grace: float, factor: int, iterations: int) -> list[int]:
    """The steps at grace, grace factor, grace factor², ... of a run, before its last."""
    shares = (grace * factor**rung for rung in itertools.count())
    return [_step_of(share, iterations) for share in itertools.takewhile(lambda share: share < 1 - _ROUNDING, shares)]


def bracket_of(trial: int, settings: HalvingConfig) -> int:
    """The bracket of a trial, by a hash of its index; early brackets get more trials, as in the paper."""
    return _bracket_of(trial, settings.grace, settings.reduction_factor)


@cache
def _bracket_of(trial: int, grace: float, factor: int) -> int:
    brackets = math.floor(math.log(1 / grace, factor) + _ROUNDING) + 1
    sizes = [math.ceil(brackets * factor ** (brackets - 1 - bracket) / (brackets - bracket)) for bracket in range(brackets)]
    drawn = zlib.crc32(f"css-ray_{trial}".encode()) % sum(sizes)
    return next(bracket for bracket, end in enumerate(itertools.accumulate(sizes)) if drawn < end)


def _step_of(share: float, iterations: int) -> int:
    return math.ceil(share * iterations - _ROUNDING * iterations)


def _arrived(curve: Curve, levels: Sequence[int]) -> bool:
    """Whether the latest evaluation is the first at or after one of `levels`."""
    latest, *before = sorted(curve, reverse=True)
    return any((before[0] if before else 0) < level <= latest for level in levels)


# --------------------------------------------------------------------------------------------------------------------- Optuna

OPTUNA_PRUNERS = (
    "HyperbandPruner", "MedianPruner", "PatientPruner", "PercentilePruner", "SuccessiveHalvingPruner", "ThresholdPruner",
    "WilcoxonPruner",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptunaConfig(config.Config):
    """A pruner of Optuna, by the name of its class."""

    pruner: str = knob(help=f"one of {', '.join(OPTUNA_PRUNERS)}")
    settings: dict[str, Any] | None = knob(
        None, help="its arguments; a wrapped_pruner is a mapping of `pruner` and `settings` again"
    )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from _optuna_problems(self.pruner, self.settings or {})


class Optuna(Pruner):
    """Asks a pruner of Optuna. It is shown each evaluation as an intermediate value, with steps counted on over the splits.

    Only WilcoxonPruner takes a step for one of several problems: it is shown the finished splits. What Optuna reads off the
    trials that have ended ("auto") is taken from the study instead, so that it does not depend on which ends first.
    Holds Optuna's study and shows it what is new, so that asking stays cheap; a fresh one says the same.
    """

    name = "optuna"
    Config = OptunaConfig
    config: OptunaConfig

    def __init__(self, config: OptunaConfig) -> None:
        super().__init__(config)
        self._study: Any = None
        self._shown: dict[int, set[int]] = {}  # the steps of a trial
        self._ended: set[int] = set()
        self._says: dict[int, bool] = {}

    def judge(self, seen: Seen) -> Verdict | None:
        if self._study is None:
            self._open(seen)
        # Optuna's trial numbers are ours, since its Hyperband goes by them.
        for trial in range(len(self._study.get_trials(deepcopy=False)), max((seen.trial, *seen.curves, *seen.values)) + 1):
            self._study.add_trial(_running_trial())
            self._shown[trial] = set()
        for trial in sorted(self._shown.keys() - self._ended):
            self._show(trial, self._reports(seen, trial))
            if trial != seen.trial and (trial in seen.scores or trial in seen.pruned):
                self._close(trial, seen)
        reports = self._reports(seen, seen.trial)
        last_of_all = len(seen.values.get(seen.trial, {})) == len(seen.splits) or (
            seen.split == seen.splits[-1] and seen.iterations in seen.curve
        )
        if not reports or last_of_all or not self._says.get(seen.trial):
            return None
        where = f"split {seen.split}, step {max(seen.curve, default=0)}"
        return self.verdict(f"Optuna's {self.config.pruner} prunes it at its step {max(reports)} ({where})")

    def _open(self, seen: Seen) -> None:
        import optuna

        settings, steps = dict(self.config.settings or {}), len(seen.splits) * seen.iterations
        if self.config.pruner == "SuccessiveHalvingPruner" and settings.get("min_resource", "auto") == "auto":
            settings["min_resource"] = max(1, steps // 100)
        if self.config.pruner == "HyperbandPruner" and settings.get("max_resource", "auto") == "auto":
            settings["max_resource"] = steps
        pruner = _optuna_pruner(self.config.pruner, settings)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(study_name="css-ray", direction="maximize", pruner=pruner)

    def _reports(self, seen: Seen, trial: int) -> dict[int, float]:
        """What Optuna is shown of a trial, by its step."""
        if self.config.pruner == "WilcoxonPruner":
            values = seen.values.get(trial, {})
            return {place: values[split] for place, split in enumerate(seen.splits) if split in values}
        curves = seen.curves.get(trial, {})
        return {
            place * seen.iterations + step: curves[split][step]
            for place, split in enumerate(seen.splits)
            for step in sorted(curves.get(split, {}))
        }

    def _show(self, trial: int, reports: Mapping[int, float]) -> None:
        shown, trial_of_optuna = self._shown[trial], self._trial(trial)
        for step, value in reports.items():
            if step not in shown:
                shown.add(step)
                trial_of_optuna.report(value, step)
                # Asked at each step, as Optuna expects: successive halving notes then which trials reached a rung.
                self._says[trial] = trial_of_optuna.should_prune()

    def _close(self, trial: int, seen: Seen) -> None:
        import optuna

        if trial in seen.scores:  # even if a verdict came, too late
            self._study.tell(trial, seen.scores[trial])
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        self._ended.add(trial)

    def _trial(self, number: int) -> Any:
        import optuna

        return optuna.trial.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)


def _running_trial() -> Any:
    import optuna

    return optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)


def _optuna_pruner(name: str, settings: Mapping[str, Any]) -> Any:
    import optuna

    wrapped = settings.get("wrapped_pruner")
    if wrapped is not None:
        settings = {**settings, "wrapped_pruner": _optuna_pruner(wrapped["pruner"], wrapped.get("settings", {}))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return getattr(optuna.pruners, name)(**settings)


def _optuna_problems(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a pruner's name and settings, one sentence each."""
    if name not in OPTUNA_PRUNERS:
        yield f"pruner {name!r} is none of Optuna's{_near(name, OPTUNA_PRUNERS)}"
        return
    import optuna

    parameters = dict(inspect.signature(getattr(optuna.pruners, name).__init__).parameters)
    del parameters["self"]
    if unknown := [key for key in settings if key not in parameters]:
        for key in unknown:
            yield f"settings: {name} has no {key}{_near(key, list(parameters))}"
        return
    if missing := [key for key, value in parameters.items() if value.default is value.empty and key not in settings]:
        yield f"settings: {name} needs {', '.join(missing)}"
        return
    wrapped = settings.get("wrapped_pruner")
    if wrapped is not None:
        if (
            not isinstance(wrapped, dict)
            or not isinstance(wrapped.get("pruner"), str)
            or wrapped.keys() - {"pruner", "settings"}
        ):
            yield f"settings: wrapped_pruner must be a mapping of pruner and settings, got {wrapped!r}"
            return
        problems = list(_optuna_problems(wrapped["pruner"], wrapped.get("settings", {})))
        yield from (f"settings: wrapped_pruner: {problem}" for problem in problems)
        if problems:
            return
    try:
        _optuna_pruner(name, settings)
    except (TypeError, ValueError) as error:
        yield f"settings: {name}: {error}"


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(known)})"


PRUNERS: dict[str, type[Pruner]] = {pruner.name: pruner for pruner in (Paired, Forecast, Median, ASHA, Hyperband, Optuna)}
