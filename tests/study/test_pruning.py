"""Pruning rules against closed forms, simulation, and Optuna's own pruners where the definitions coincide."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.simulations import pruning
from css_ray.study.pruning import PRUNERS, Pruner, PruningContext
from css_ray.study.pruning.curves import bracket_of, rungs
from css_ray.study.pruning.paired import forecast, prospect

# Residuals -1, 0, 1 and 1, 0, -1 around trial and split: s² = 4 / 2 = 2 with 2 degrees of freedom.
BEST, SECOND = {0: 60.0, 1: 70.0, 2: 80.0}, {0: 62.0, 1: 70.0, 2: 78.0}


def pruner(name: str, **settings: Any) -> Pruner:
    return PRUNERS[name](PRUNERS[name].Config(**settings))


def table(generator: np.random.Generator, trials: int, splits: int) -> np.ndarray:
    """[trials, splits]: trial effects, split effects, residuals of std 1."""
    return (
        4 * generator.random((trials, 1))
        + 4.5 * generator.standard_normal(splits)
        + generator.standard_normal((trials, splits))
    )


def found(candidate: Any, incumbent: Any, finished: Any, **settings: Any) -> Any:
    rows = [dict(enumerate(row)) for row in finished]
    return prospect(dict(enumerate(candidate)), dict(enumerate(incumbent)), rows, range(len(incumbent)), **settings)


# -------------------------------------------------------------------------------------------------------------- across splits


def t_quantile_2(upper_tail: float) -> float:
    """Student's t with 2 degrees of freedom has a closed form."""
    return (1 - 2 * upper_tail) / math.sqrt(2 * upper_tail * (1 - upper_tail))


def test_a_prospect_by_hand() -> None:
    one = prospect({0: 56.0}, BEST, [BEST, SECOND], (0, 1, 2))
    assert one is not None and (one.done, one.total) == (1, 3)
    # Split 0 is 9 below the mean of the splits, so 56 there is 65 on all, 5 below the best trial's 70.
    assert one.behind == pytest.approx(4) and one.expected == pytest.approx(5)
    assert one.margin == pytest.approx(t_quantile_2(0.025) * math.sqrt(2 * (1 - 1 / 3) * (1 + 1 / 2)))
    assert not one.should_prune
    two = prospect({0: 56.0, 1: 66.0}, BEST, [BEST, SECOND], (0, 1, 2), false_prune_rate=0.2)
    assert two is not None and two.behind == pytest.approx(4) and two.expected == pytest.approx(4.5)
    assert two.margin == pytest.approx(t_quantile_2(0.1) * math.sqrt(2 * (1 / 2 - 1 / 3) * 1.5))
    assert two.should_prune


def test_the_margin_uses_the_prior_until_the_spread_is_known() -> None:
    alone = prospect({0: 0.0}, BEST, [BEST], (0, 1, 2))
    assert alone is not None and alone.margin == math.inf and not alone.should_prune
    assumed = prospect({0: 0.0}, BEST, [BEST], (0, 1, 2), prior_std=0.5)
    # t with 4 degrees of freedom at 0.975, from the tables; one trial tells of the splits.
    assert assumed is not None and assumed.margin == pytest.approx(2.7764451 * 0.5 * math.sqrt((1 - 1 / 3) * 2))
    both = prospect({0: 0.0}, BEST, [BEST, SECOND], (0, 1, 2), prior_std=0.5)
    variance = (4 * 0.25 + 2 * 2) / 6
    assert both is not None and both.margin == pytest.approx(2.4469119 * math.sqrt(variance * (1 - 1 / 3) * 1.5))


def test_there_is_no_prospect_without_something_to_tell() -> None:
    finished = [BEST, SECOND]
    assert prospect({}, BEST, finished, (0, 1, 2)) is None
    assert prospect({0: 1.0, 1: 1.0, 2: 1.0}, BEST, finished, (0, 1, 2)) is None
    assert prospect({0: 1.0}, {0: 60.0, 1: 70.0}, finished, (0, 1, 2)) is None
    # A trial that lacks a split tells nothing.
    assert prospect({0: 56.0}, BEST, [*finished, {0: 10.0, 1: 90.0}], (0, 1, 2)) == prospect(
        {0: 56.0}, BEST, finished, (0, 1, 2)
    )


@pytest.mark.parametrize(("splits", "trials"), [(3, 2), (3, 10), (5, 6)])
def test_wrong_verdicts_stay_within_the_rate(splits: int, trials: int) -> None:
    generator, repeats, wrong, worse = np.random.default_rng(0), 2000, 0, 0
    for _ in range(repeats):
        drawn = table(generator, trials + 1, splits)
        finished, candidate = drawn[:-1], drawn[-1]
        incumbent = finished[finished.mean(axis=1).argmax()]
        level = candidate + incumbent.mean() - candidate.mean()
        verdicts = [found(level[:done], incumbent, finished, false_prune_rate=0.1).should_prune for done in range(1, splits)]
        wrong += any(verdicts)
        worse += found(level[:1] - 8, incumbent, finished, false_prune_rate=0.1).should_prune
    # Three standard errors above the rate; and it is used, not kept far from.
    assert 0.04 < wrong / repeats < 0.1 + 3 * math.sqrt(0.1 * 0.9 / repeats)
    assert worse / repeats > (0.6 if trials == 2 else 0.95)


def test_a_worse_trial_is_never_safer() -> None:
    drawn = table(np.random.default_rng(1), 6, 3)
    verdicts = [found(drawn[0][:1] - by, drawn[0], drawn).should_prune for by in np.linspace(-5, 20, 100)]
    assert verdicts == sorted(verdicts) and not verdicts[0] and verdicts[-1]


def test_what_all_trials_share_changes_nothing() -> None:
    generator = np.random.default_rng(2)
    for _ in range(20):
        drawn = table(generator, 8, 4)
        candidate, finished = drawn[0][:2] - 3, drawn[1:]
        before = found(candidate, finished[0], finished)
        shift = 50 * generator.standard_normal(4)
        shifted = found(candidate + shift[:2], finished[0] + shift, finished + shift)
        shuffled = found(candidate, finished[0], finished[generator.permutation(7)])
        doubled = found(2 * candidate, 2 * finished[0], 2 * finished)
        for name in ("behind", "expected", "margin"):
            assert getattr(shifted, name) == pytest.approx(getattr(before, name))
            assert getattr(shuffled, name) == pytest.approx(getattr(before, name))
            assert getattr(doubled, name) == pytest.approx(2 * getattr(before, name))


def test_a_trial_ahead_on_every_split_goes_on() -> None:
    generator = np.random.default_rng(3)
    for _ in range(300):
        finished = table(generator, 4, 3)
        incumbent = finished[finished.mean(axis=1).argmax()]
        ahead = incumbent[:2] + generator.random(2) * 0.1
        assert not found(ahead, incumbent, finished, false_prune_rate=0.5).should_prune
    # However bad the prediction: the best trial was poor on split 0, and made up for it.
    odd = [{0: 50.0, 1: 90.0, 2: 90.0}, {0: 70.0, 1: 70.0, 2: 70.0}, {0: 71.0, 1: 71.0, 2: 71.0}, {0: 69.5, 1: 69.0, 2: 69.0}]
    one = prospect({0: 50.0}, odd[0], odd, (0, 1, 2), false_prune_rate=0.5)
    assert one is not None and one.expected > one.margin and not one.should_prune


def test_only_the_better_trials_tell_the_spread() -> None:
    good = np.array([[60, 70, 80], [61, 70, 79], [60, 71, 79], [59, 70, 79], [60, 69, 78]], dtype=float)
    collapsed = np.array([[9, 2, 30], [1, 20, 4], [3, 3, 40], [0, 0, 0], [5, 50, 5]], dtype=float)
    assert found([50.0], good[0], [*good, *collapsed]) == found([50.0], good[0], good)


def seen(trial: int = 2, split: int = 0, **changes: Any) -> PruningContext:
    defaults: dict[str, Any] = {"trial": trial, "split": split, "splits": (0, 1, 2), "iterations": 100}
    return PruningContext(**{**defaults, **changes})


def test_the_paired_rule_says_why() -> None:
    values, scores = {0: BEST, 1: SECOND, 2: {0: 50.0}}, {0: 70.0, 1: 70.0}
    verdict = pruner("paired").judge(seen(values=values, scores=scores))
    assert verdict is not None and verdict.pruner == "paired"
    assert verdict.reason == (
        "after 1 of 3 splits it is 10.00 below the best trial (0) on the same splits, and expected 11.00 below on all; "
        "up to 6.08 is within chance (5 %)"
    )
    assert pruner("paired", false_prune_rate=0.001).judge(seen(values=values, scores=scores)) is None
    # In the middle of split 1 nothing is known that was not judged after split 0.
    assert pruner("paired").judge(seen(split=1, values=values, scores=scores)) is None
    assert pruner("paired").judge(seen(values=values)) is None
    assert pruner("paired").judge(seen(values={0: BEST, 2: {0: 50.0}}, scores={0: 70.0})) is None
    assert pruner("paired", prior_std=1.0).judge(seen(values={0: BEST, 2: {0: 50.0}}, scores={0: 70.0})) is not None
    # The best trial is the best by the objective, here one that favours a small spread over splits.
    verdict = pruner("paired").judge(seen(values=values, scores={0: 60.0, 1: 62.0}))
    assert verdict is not None and "the best trial (1)" in verdict.reason


# ------------------------------------------------------------------------------------------- across splits, and inside them

# The evaluations of BEST and SECOND at a step: 40, 40, 30 and 40, 36, 34 are still to come.
BEST_THEN, SECOND_THEN = {0: 30.0, 1: 30.0, 2: 40.0}, {0: 30.0, 1: 34.0, 2: 36.0}
PAIR = [(BEST, BEST_THEN), (SECOND, SECOND_THEN)]


def test_a_forecast_by_hand() -> None:
    first = forecast(({}, 20.0), PAIR[0], PAIR, (0, 1, 2), 0, false_prune_rate=0.1)
    assert first is not None and (first.done, first.total, first.behind, first.expected) == (0, 3, 10.0, 10.0)
    # Variances of what is to come: 0, 8 and 8.
    assert first.margin == pytest.approx(t_quantile_2(0.1) * math.sqrt(16 / 3 * 1.5)) and first.should_prune
    later = forecast(({0: 56.0}, 20.0), PAIR[0], PAIR, (0, 1, 2), 1, false_prune_rate=0.1)
    # So far 45 and 48 of 70: 23.5 are to come; the candidate has 38.
    assert later is not None and (later.done, later.behind, later.expected) == (1, 7.0, 70 - 38 - 23.5)
    # One split and the next, over both of two trials: 45 and 48, 50 and 49, 50 and 50, 55 and 53, 55 and 54, 55 and 56.
    by_hand = statistics.fmean(difference**2 / 2 for difference in (3, -1, 0, -2, -1, 1))
    assert later.margin == pytest.approx(t_quantile_2(0.1) * math.sqrt(by_hand * 1.5))


@pytest.mark.parametrize(("splits", "trials"), [(1, 4), (2, 3), (3, 5), (4, 12), (5, 30)])
def test_a_forecast_is_what_a_plain_loop_says(splits: int, trials: int) -> None:
    generator = np.random.default_rng(splits)
    ends = table(generator, trials, splits)
    then = 0.6 * ends + generator.standard_normal((trials, splits))
    runs = [(dict(enumerate(end)), dict(enumerate(value))) for end, value in zip(ends, then, strict=True)]
    # Some lack a split, or an evaluation: they tell nothing.
    unfit = [({0: 99.0}, runs[0][1]), (runs[0][0], {})] if splits > 1 else [(runs[0][0], {})]
    best = sorted(range(trials), key=lambda trial: -ends[trial].mean())[: min(20, max(5, trials // 2))]
    for done in range(splits):
        found = forecast(
            ({split: 70.0 for split in range(done)}, 50.0), runs[1], [*runs, *unfit], range(splits), done, false_prune_rate=0.01
        )
        to_come = []
        for order in itertools.permutations(range(splits)):
            ended, running = order[:done], order[done]
            so_far = (ends[:, ended].sum(axis=1) + then[:, running]) / (done + 1)
            to_come.append((ends.mean(axis=1) - so_far)[best])
            if order == tuple(range(splits)):
                mean, behind = to_come[-1].mean(), so_far[1] - (70 * done + 50) / (done + 1)
        freedom = (len(best) - 1) * max(1, splits - 1)
        variance = np.mean([each.var(ddof=1) for each in to_come])
        from scipy import stats

        assert found is not None and found.behind == pytest.approx(behind)
        assert found.expected == pytest.approx(ends[1].mean() - (70 * done + 50) / (done + 1) - mean)
        assert found.margin == pytest.approx(stats.t.isf(0.01, freedom) * math.sqrt(variance * (1 + 1 / len(best))))


@pytest.mark.parametrize("done", [0, 1, 2])
def test_at_the_end_of_a_split_a_forecast_is_the_prospect_after_it(done: int) -> None:
    ends = table(np.random.default_rng(4), 12, 4)
    rows = [dict(enumerate(row)) for row in ends]
    candidate = {split: 60.0 + split for split in range(done + 1)}
    before = {split: candidate[split] for split in range(done)}
    runs = [(row, row) for row in rows]
    one = forecast((before, candidate[done]), runs[0], runs, range(4), done, false_prune_rate=0.01)
    other = prospect(candidate, rows[0], rows, range(4), false_prune_rate=0.03)
    assert one is not None and other is not None
    for name in ("behind", "expected", "margin"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


def test_there_is_no_forecast_without_something_to_tell() -> None:
    settings: dict[str, Any] = {"splits": (0, 1, 2), "split": 0, "false_prune_rate": 0.1}
    assert forecast(({}, 0.0), PAIR[0], PAIR[:1], **settings) is None
    assert forecast(({}, 0.0), (BEST, {0: 30.0}), [*PAIR, PAIR[1]], **settings) is None


def test_the_forecast_looks_where_it_says_and_says_why() -> None:
    curves = {
        trial: {split: {25: value, 35: value, 100: 90.0} for split, value in run[1].items()} for trial, run in enumerate(PAIR)
    }
    values, scores = {0: BEST, 1: SECOND}, {0: 70.0, 1: 70.0}

    def verdict(curve: dict[int, float], split: int = 0, name: str = "forecast", **settings: Any) -> Any:
        ended = {earlier: 60.0 + 10 * earlier for earlier in range(split)}
        own = {**curves, 2: {split: curve}}
        rule = pruner(name, **{"false_prune_rate": 0.4, **settings})
        return rule.judge(seen(2, split, curves=own, values={**values, 2: ended}, scores=scores))

    # Eight looks: at 25 and 50 of each split, and after two of them.
    margin = t_quantile_2(0.4 / 8) * math.sqrt(16 / 3 * 1.5)
    assert verdict({25: 20.0}).reason == (
        "at step 25 of 100 on split 0 it is 10.00 below the best trial (0) so far, and expected 10.00 below at the end; up to "
        f"{margin:.2f} is within chance (40 %)"
    )
    assert verdict({25: 30.0 - margin + 0.01}) is None and verdict({25: 30.0 - margin - 0.01}) is not None
    assert verdict({25: 20.0}, false_prune_rate=0.05) is None
    assert verdict({25: 10.0}, split=1) is not None
    # Before the first look, between two, and where no other was evaluated; on the last step the split has an end to come.
    assert verdict({25: 20.0}, grace=0.3) is None
    assert verdict({25: 30.0, 35: 0.0}) is None and verdict({35: 0.0}, grace=0.3) is not None
    assert verdict({40: 0.0}) is None and verdict({100: 0.0}) is None
    assert verdict({25: 20.0}, name="paired") is None


def test_after_a_split_the_forecast_is_the_paired_rule_at_its_share_of_the_rate() -> None:
    for value in np.linspace(40, 60, 81):
        given = seen(curves={2: {0: {100: 1.0}}}, values={0: BEST, 1: SECOND, 2: {0: float(value)}}, scores={0: 70.0, 1: 70.0})
        one = pruner("forecast", false_prune_rate=0.2).judge(given)
        other = pruner("paired", false_prune_rate=0.2 * 2 / 8).judge(given)
        assert (one is None) == (other is None)
        assert one is None or one.reason.startswith("after 1 of 3 splits it is")


def simulated_forecasts(
    splits: int, finished: int, *, early: float = 1.0, tails: str = "normal", rate: float = 0.1, repeats: int = 600
) -> tuple[float, float]:
    """Shares of pruned among trials that would end level with the best of `finished`, and among those 8 below it.

    Evaluations at steps 25, 50 and 100 of 100: a level, of which the share `early` shows at the first two, a split's own curve,
    and a residual that walks (std 1 at the end).
    """
    generator = np.random.default_rng(5)
    rule = pruner("forecast", false_prune_rate=rate)
    shown, walk = np.array([early, early, 1.0]), np.sqrt([0.25, 0.25, 0.5])
    pruned = [0, 0]
    for _ in range(repeats):
        shape = (finished + 1, splits, 3)
        steps = generator.standard_normal(shape) if tails == "normal" else generator.standard_t(3, shape) / math.sqrt(3)
        levels = -generator.exponential(4, finished + 1)
        drawn = levels[:, None, None] * shown + generator.normal(60, 4.5, (splits, 3)) + (steps * walk).cumsum(axis=2)
        means = drawn[:, :, 2].mean(axis=1)
        best = int(means[:-1].argmax())
        for place, below in enumerate((0.0, 8.0)):
            drawn[-1] += (means[best] - below - drawn[-1, :, 2].mean()) * shown
            curves = {
                trial: {split: dict(zip((25, 50, 100), map(float, curve), strict=True)) for split, curve in enumerate(run)}
                for trial, run in enumerate(drawn)
            }
            values = {trial: {split: curve[100] for split, curve in run.items()} for trial, run in curves.items()}
            scores = {trial: statistics.fmean(values[trial].values()) for trial in range(finished)}
            pruned[place] += _is_pruned(rule, finished, curves, values, scores)
    return pruned[0] / repeats, pruned[1] / repeats


def _is_pruned(rule: Pruner, trial: int, curves: Any, values: Any, scores: Any) -> bool:
    own, ended = curves.pop(trial), values.pop(trial)
    for split, step in itertools.product(own, (25, 50, 100)):
        now = {
            **curves,
            trial: {each: own[each] for each in range(split)} | {split: {s: own[split][s] for s in own[split] if s <= step}},
        }
        done = {**values, trial: {each: ended[each] for each in range(split + (step == 100))}}
        if rule.judge(seen(trial, split, splits=tuple(own), curves=now, values=done, scores=scores)) is not None:
            return True
    return False


@pytest.mark.parametrize(("splits", "finished"), [(1, 6), (3, 3), (3, 10), (5, 10)])
def test_wrong_forecasts_stay_within_the_rate(splits: int, finished: int) -> None:
    wrong, right = simulated_forecasts(splits, finished)
    assert 0.01 < wrong < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 600)
    assert right > (0.5 if finished == 3 else 0.95)


# ------------------------------------------------------------------------------------------------------------- inside a split

STEPS = 17


def random_curves(count: int, seed: int) -> list[dict[int, float]]:
    generator = np.random.default_rng(seed)
    ends = 40 + 30 * generator.random(count)
    return [
        {step: float(end * (1 - 0.8**step) + 3 * generator.standard_normal()) for step in range(1, STEPS + 1)} for end in ends
    ]


def ours(rule: Pruner, curves: list[dict[int, float]]) -> list[int]:
    """The step after which each of the runs ends, one after the other."""
    told: dict[int, dict[int, dict[int, float]]] = {}
    for trial, curve in enumerate(curves):
        told[trial] = {0: {}}
        for step, value in curve.items():
            told[trial][0][step] = value
            if rule.judge(seen(trial, curves=told, iterations=STEPS, splits=(0,))) is not None:
                break
    return [max(told[trial][0]) for trial in told]


def optunas(rule: optuna.pruners.BasePruner, curves: list[dict[int, float]]) -> list[int]:
    study = optuna.create_study(direction="maximize", pruner=rule, study_name="css-ray")
    ends = []
    for curve in curves:
        trial = study.ask()
        for step, value in curve.items():
            trial.report(value, step)
            if step < STEPS and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[STEPS])
        ends.append(step)
    return ends


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [2, 3])
def test_halving_decides_as_optuna_does(seed: int, factor: int) -> None:
    curves = random_curves(60, seed)
    settings = {"grace": 2 / STEPS, "reduction_factor": factor, "startup": 0}
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=factor)
    assert ours(pruner("asha", **settings), curves) == optunas(halving, curves)
    hyperband = optuna.pruners.HyperbandPruner(min_resource=2, max_resource=STEPS, reduction_factor=factor)
    ends = ours(pruner("hyperband", **settings), curves)
    assert ends == optunas(hyperband, curves)
    assert len(set(ends)) > 2


@pytest.mark.parametrize("seed", range(3))
def test_the_median_decides_as_optuna_does(seed: int) -> None:
    curves = random_curves(60, seed)
    ends = ours(pruner("median", grace=3 / STEPS, startup=4), curves)
    assert ends == optunas(optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3), curves)
    assert len(set(ends)) > 2


def test_rungs_lie_before_the_end() -> None:
    config: Any = PRUNERS["asha"].Config
    assert rungs(config(grace=0.2), 500) == [100, 300]
    assert rungs(config(grace=1 / 9), 900) == [100, 300]
    assert rungs(config(grace=0.1, reduction_factor=2), 101) == [11, 21, 41, 81]
    assert rungs(config(grace=1 / 9), 900, bracket=1) == [300]
    assert rungs(config(grace=1 / 9), 900, bracket=2) == []


def at_rung(mine: dict[int, float], *others: dict[int, float], split: int = 0, name: str = "asha", **settings: Any) -> Any:
    curves = {9: {split: mine}} | {trial: {split: curve} for trial, curve in enumerate(others)}
    return pruner(name, **{"startup": 1, **settings}).judge(seen(9, split, curves=curves))


def test_asha_compares_at_the_first_evaluation_on_a_rung() -> None:
    verdict = at_rung({25: 30.0}, {25: 40.0}, {25: 41.0, 50: 60.0}, {25: 20.0})
    assert verdict.reason == "at step 25 of 100 on split 0 its 30.00 is number 3 of 4; only the best continues"
    assert at_rung({25: 42.0}, {25: 40.0}, {25: 41.0}, {25: 20.0}) is None
    six = [{25: float(value)} for value in (50, 45, 40, 35, 20)]
    assert at_rung({25: 47.0}, *six) is None
    assert at_rung({25: 44.0}, *six).reason.endswith("is number 3 of 6; the best 2 continue")
    # The second rung is at 60 % of the steps; 50 is none, and only equal steps count.
    assert at_rung({25: 47.0, 50: 1.0}, *({**curve, 50: 50.0} for curve in six)) is None
    assert at_rung({25: 47.0, 50: 48.0, 75: 1.0}, {70: 50.0, 100: 50.0}, {80: 50.0}) is None
    assert at_rung({25: 47.0, 50: 48.0, 75: 1.0}, {75: 50.0}) is not None
    assert at_rung({25: 47.0, 50: 48.0, 75: 48.0, 90: 1.0}, {90: 50.0}) is None
    assert at_rung({25: 30.0}, {25: 40.0}, startup=2) is None
    # With equal values nobody is ahead.
    assert at_rung({25: 40.0}, {25: 40.0}, {25: 40.0}) is None


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_curves_are_compared_on_one_split_and_where_asked(name: str) -> None:
    curves = {trial: {0: {25: 60.0, 100: 70.0}, 1: {25: 20.0, 100: 30.0}} for trial in range(30)}
    of_all, of_first = (pruner(name, startup=1, splits=splits) for splits in ("all", "first"))
    config: Any = PRUNERS["hyperband"].Config()
    trial = next(trial for trial in range(30, 60) if bracket_of(trial, config) == 0)  # whose first rung is the first of all
    for split, value, pruned in ((0, 50.0, True), (1, 10.0, True), (1, 50.0, False)):
        given = seen(trial, split, curves={**curves, trial: {split: {25: value}}})
        assert (of_all.judge(given) is not None) == pruned
        assert (of_first.judge(given) is not None) == (pruned and split == 0)
    # A run that is done has nothing left to save.
    assert of_all.judge(seen(trial, curves={**curves, trial: {0: {25: 50.0, 100: 10.0}}})) is None


def test_the_median_waits_and_says_why() -> None:
    finished = [{25: value, 50: value + 5, 100: value + 10} for value in (40.0, 44.0, 48.0)]
    verdict = at_rung({25: 46.0, 50: 30.0}, *finished, {25: 99.0, 50: 99.0}, name="median", startup=3)
    # The fourth run has not finished and does not count; 46 was the best of the run.
    assert verdict.reason == "at step 50 of 100 on split 0 its best is 46.00, below the median 49.00 of 3 finished runs"
    assert at_rung({25: 46.0}, *finished, name="median", startup=3) is None
    assert at_rung({25: 30.0}, *finished, name="median", startup=4) is None
    assert at_rung({25: 30.0}, *finished, name="median", startup=3, grace=0.3) is None
    assert at_rung({25: 30.0}, *finished, name="median", startup=3, grace=0.25) is not None


def test_brackets_depend_on_the_trial_alone() -> None:
    config: Any = PRUNERS["hyperband"].Config(grace=1 / 9)  # type: ignore[call-arg]
    brackets = [bracket_of(trial, config) for trial in range(3000)]
    # Sizes ceil(3 * 9 / 3), ceil(3 * 3 / 2), ceil(3 * 1 / 1) of the paper's formula.
    assert [brackets.count(bracket) / 3000 for bracket in range(3)] == pytest.approx([9 / 17, 5 / 17, 3 / 17], abs=0.03)
    alone = next(trial for trial in range(100) if brackets[trial] == 1)
    same = [trial for trial in range(100) if brackets[trial] == 1 and trial != alone][:5]
    other = [trial for trial in range(100) if brackets[trial] == 0][:5]
    rule = pruner("hyperband", grace=1 / 9)
    for against, pruned in ((same, True), (other, False)):
        curves = {trial: {0: {40: 50.0}} for trial in against} | {alone: {0: {40: 40.0}}}
        verdict = rule.judge(seen(alone, curves=curves))
        assert (verdict is not None) == pruned
        assert verdict is None or "(bracket 1)" in verdict.reason


# --------------------------------------------------------------------------------------------------------------------- Optuna

EVALUATIONS = (4, 8, 12)


def study_of(seed: int, trials: int = 25) -> np.ndarray:
    """[trials, 3 splits, 3 evaluations]: random curves."""
    generator = np.random.default_rng(seed)
    level, noise = generator.random((trials, 1, 1)), generator.standard_normal((trials, 3, 3))
    curves: np.ndarray = 50 + 10 * level + np.array([0, 3, 5]) + 2 * noise
    return curves


def steps(trials: np.ndarray, rule: Pruner, fresh: bool = False) -> Iterator[tuple[int, int, int]]:
    """Runs the trials one after the other; yields (trial, split, step) of each verdict."""
    curves: dict[int, dict[int, dict[int, float]]] = {}
    values: dict[int, dict[int, float]] = {}
    scores: dict[int, float] = {}
    pruned: set[int] = set()

    def judge(trial: int, split: int) -> bool:
        asked = type(rule)(rule.config) if fresh else rule
        given = PruningContext(
            trial=trial,
            split=split,
            splits=(0, 1, 2),
            iterations=12,
            curves=curves,
            values=values,
            scores=scores,
            pruned=pruned,
        )
        first, again = asked.judge(given), asked.judge(given)
        assert first == again
        if first is not None:
            pruned.add(trial)
        return first is not None

    for trial, splits in enumerate(trials):
        curves[trial], values[trial] = {}, {}
        for split, curve in enumerate(splits):
            curves[trial][split] = {}
            for step, value in zip(EVALUATIONS, curve, strict=True):
                curves[trial][split][step] = float(value)
                if judge(trial, split):
                    yield trial, split, step
                    break
            if trial in pruned:
                break
            values[trial][split] = float(curve[-1])
            if judge(trial, split):
                yield trial, split, EVALUATIONS[-1]
                break
        else:
            scores[trial] = float(splits[:, -1].mean())


def asked_directly(trials: np.ndarray, rule: optuna.pruners.BasePruner) -> Iterator[tuple[int, int, int]]:
    """The same by Optuna alone, as its users do."""
    study = optuna.create_study(direction="maximize", pruner=rule, study_name="css-ray")
    by_split = isinstance(rule, optuna.pruners.WilcoxonPruner)
    for number, splits in enumerate(trials):
        trial = study.ask()
        reports = [
            (split, step, split if by_split else 12 * split + step, value)
            for split, curve in enumerate(splits)
            for step, value in zip(EVALUATIONS, curve, strict=True)
            if not by_split or step == 12
        ]
        for split, step, at, value in reports:
            trial.report(value, at)
            if (split, step) != (2, 12) and trial.should_prune():
                yield number, split, step
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, splits[:, -1].mean())


NAMED: list[tuple[str, dict[str, Any], Any]] = [
    ("MedianPruner", {"n_startup_trials": 3}, lambda: optuna.pruners.MedianPruner(n_startup_trials=3)),
    ("PercentilePruner", {"percentile": 40.0}, lambda: optuna.pruners.PercentilePruner(percentile=40.0)),
    ("SuccessiveHalvingPruner", {"min_resource": 4}, lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=4)),
    ("SuccessiveHalvingPruner", {}, lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1)),
    (
        "HyperbandPruner",
        {"min_resource": 4, "reduction_factor": 2},
        lambda: optuna.pruners.HyperbandPruner(min_resource=4, max_resource=36, reduction_factor=2),
    ),
    ("ThresholdPruner", {"lower": 51.0}, lambda: optuna.pruners.ThresholdPruner(lower=51.0)),
    ("WilcoxonPruner", {"p_threshold": 0.3}, lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.3)),
    (
        "PatientPruner",
        {"patience": 1, "wrapped_pruner": {"pruner": "MedianPruner", "settings": {"n_startup_trials": 2}}},
        lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=2), patience=1),
    ),
]


@pytest.mark.parametrize(("name", "settings", "direct"), NAMED, ids=[f"{name}-{len(given)}" for name, given, _ in NAMED])
def test_any_pruner_of_optuna_by_name(name: str, settings: dict[str, Any], direct: Any) -> None:
    rule, trials = pruner("optuna", pruner=name, settings=settings), study_of(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts = list(steps(trials, rule))
        assert verdicts == list(asked_directly(trials, direct()))
        assert verdicts == list(steps(trials, rule, fresh=True))
    assert verdicts


def test_optuna_is_told_the_truth() -> None:
    rule: Any = pruner("optuna", pruner="ThresholdPruner", settings={"lower": 58.0, "n_warmup_steps": 13})
    curves = {0: {0: {4: 60.0, 12: 61.0}}, 1: {0: {4: 50.0, 12: 52.0}, 1: {4: 51.0}}, 3: {0: {4: 50.0}}}
    given: dict[str, Any] = {
        "iterations": 12,
        "splits": (0, 1),
        "curves": curves,
        "scores": {0: 61.0},
        "values": {0: {0: 61.0}},
    }
    verdict = rule.judge(seen(1, 1, **given))
    assert verdict.reason == "Optuna's ThresholdPruner prunes it at its step 16 (split 1, step 4)"
    assert rule.judge(seen(3, 0, **given, pruned={0, 1})) is None  # a verdict on trial 0 came when it had finished
    told = rule._study.trials
    assert [trial.state.name for trial in told] == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING"]
    assert told[0].value == 61.0 and told[1].intermediate_values == {4: 50.0, 12: 52.0, 16: 51.0}
    assert rule._study.best_trial.number == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pruner": "MedainPruner"}, "pruner must be a pruner of Optuna, got 'MedainPruner' (did you mean MedianPruner?)"),
        ({"pruner": "NopPruner", "settings": {}}, "pruner must be a pruner of Optuna, got 'NopPruner' (did you mean "),
        ({"pruner": "MedianPruner", "settings": {"startup_trials": 3}}, "settings.startup_trials is unknown to MedianPruner (did you mean n_startup_trials?)"),
        ({"pruner": "PercentilePruner"}, "settings.percentile is missing, and PercentilePruner needs it"),
        ({"pruner": "PercentilePruner", "settings": {"percentile": 120}}, "Percentile must be between 0 and 100 inclusive"),
        ({"pruner": "PatientPruner", "settings": {"patience": 1, "wrapped_pruner": "MedianPruner"}}, "must be a mapping of pruner and settings, got 'MedianPruner'"),
        ({"pruner": "PatientPruner", "settings": {"patience": 1, "wrapped_pruner": {"pruner": "Median"}}}, "settings.wrapped_pruner.pruner must be a pruner of Optuna, got 'Median' (did you mean MedianPruner?)"),
    ],
)  # fmt: skip
def test_a_pruner_that_optuna_lacks_is_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as error:
        PRUNERS["optuna"].Config(**settings)
    assert problem in str(error.value)


# ----------------------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("threshold", [0.1, 0.25])
def test_the_simulated_wilcoxon_is_optunas(threshold: float) -> None:
    generator, rule, verdicts = np.random.default_rng(4), pruning.wilcoxon(threshold), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = optuna.pruners.WilcoxonPruner(p_threshold=threshold)
        for _ in range(60):
            done = int(generator.integers(1, 9))
            incumbent, candidate = generator.standard_normal(9), generator.standard_normal(done) - 0.7
            study = optuna.create_study(direction="maximize", pruner=direct)
            best, asked = study.ask(), study.ask()
            for step, value in enumerate(incumbent):
                best.report(value, step)
            study.tell(best, incumbent.mean())
            for step, value in enumerate(candidate):
                asked.report(value, step)
            verdict = rule(candidate, incumbent, incumbent[None])
            assert verdict == asked.should_prune()
            verdicts.add(verdict)
    assert verdicts == {True, False}


def test_at_three_splits_the_paired_rule_acts_where_wilcoxon_cannot() -> None:
    trials = study_of(5)
    trials[10:] -= 30
    wilcoxon = {"pruner": "WilcoxonPruner"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(steps(trials, pruner("optuna", **wilcoxon))) == []
    assert [verdict for verdict in steps(trials, pruner("paired")) if verdict[0] >= 10] == [
        (trial, 0, 12) for trial in range(10, 25)
    ]


def test_a_winner_of_a_search_is_kept() -> None:
    world = pruning.World(3, 1.0, "t3")
    searched = pruning.search(pruning.paired, world, 20, 60)
    assert searched.winner_pruned <= 0.05 and searched.saved > 0.2
