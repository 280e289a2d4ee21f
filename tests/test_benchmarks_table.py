"""The replayed study of benchmarks/recorded/replay.py, on tables so small that its steps can be counted by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import UnavailableError
from benchmarks.recorded import replay as replaying
from benchmarks.recorded.replay import Configuration, Draw, Table, at_random, by_tpe, halves, orders, read, replay, searches
from css_ray.study.definition import Distribution
from css_ray.study.sampling import Result

SPACE = {"weight": Distribution("loguniform", (0.01, 1.0)), "threshold": Distribution("uniform", (0.5, 0.9))}
PAIRED = [{"name": "paired"}]


def table(*finals: Sequence[float]) -> Table:
    """Configurations with these last values on splits 0, 1, ...; two evaluations a run, at steps 10 and 20, and half the value
    at the first. NaN: the run ends after its first evaluation."""
    configurations = [
        Configuration(
            {"weight": 0.01 * 100 ** (place / len(finals)), "threshold": 0.5},
            {split: {10: 5.0} if math.isnan(last) else {10: last / 2, 20: last} for split, last in enumerate(row)},
        )
        for place, row in enumerate(finals)
    ]
    return Table(configurations=configurations, splits=range(len(finals[0])), iterations=20, every=10, space=SPACE)


def in_order(*positions: int) -> Draw:
    return lambda tried, results: positions[len(tried)]


# The first two differ by 2 on each split, so that nothing is left unexplained and whoever is behind is hopeless at once.
FIRST, SECOND = (60.0, 70.0, 80.0), (58.0, 68.0, 78.0)
LATE_WINNER = (59.0, 80.0, 90.0)


def test_a_table_is_read_and_ranked(tmp_path: Path) -> None:
    path = tmp_path / "recorded.jsonl"
    lines = [
        {"configuration": 0, "params": {"weight": 0.1}, "miou": {"0": [30.0, 60.0], "1": [35.0, 70.0]}},
        {"configuration": 1, "params": {"weight": 0.2}, "miou": {"0": [30.0, 90.0], "1": [35.0]}},
        {"configuration": 2, "params": {"weight": 0.3}, "miou": {"0": [30.0, 62.0], "1": [35.0, 68.4]}},
        {"configuration": 3, "params": {"weight": 0.4}, "miou": {"0": [30.0, 62.0], "1": [35.0, 67.4]}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(path, SPACE, (0, 1), 20, 10)
    assert found.configurations[2].curves == {0: {10: 30.0, 20: 62.0}, 1: {10: 35.0, 20: 68.4}}
    # Means 65, NaN on a split, 65.2 and 64.7.
    assert [found.mean(position) for position in range(4)] == pytest.approx([65.0, -math.inf, 65.2, 64.7])
    assert found.wanted() == {0, 2} and found.best_of([0, 1, 3]) == 0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    with pytest.raises(UnavailableError, match=r"recorded\.jsonl has fewer than two"):
        read(path, SPACE, (0, 1), 20, 10)
    with pytest.raises(UnavailableError):
        read(tmp_path / "none", SPACE, (0, 1), 20, 10)


def test_settings_are_compared_in_the_scale_in_which_they_are_drawn() -> None:
    assert table(FIRST).place({"weight": 0.1, "threshold": 0.6}) == pytest.approx([0.5, 0.25])


def test_the_steps_without_pruning_are_those_of_all_runs() -> None:
    whole = replay(table(FIRST, SECOND), [], in_order(1, 0))
    assert (whole.tried, whole.steps, whole.pruned, whole.arrived) == ([1, 0], 2 * 3 * 20, set(), False)
    # It stops once the wanted one has finished, whoever is left.
    assert replay(table(FIRST, SECOND), [], in_order(1, 0), wanted={1}).steps == 3 * 20
    assert replay(table(FIRST, SECOND, LATE_WINNER), [], in_order(0, 1, 2), trials=2).tried == [0, 1]


def test_a_pruned_trial_costs_its_splits_so_far() -> None:
    third = replay(table(FIRST, SECOND, (50.0, 60.0, 70.0)), PAIRED, in_order(0, 1, 2))
    assert third.steps == 60 + 60 + 20 and third.pruned == {2} and not third.lost(table(FIRST, SECOND, (50.0, 60.0, 70.0)))
    # As long as nobody has finished, or one alone, there is nothing to prune by.
    assert replay(table(FIRST, SECOND), PAIRED, in_order(0, 1)).pruned == set()


def test_a_winner_that_was_pruned_is_lost_and_never_arrives() -> None:
    late = table(FIRST, SECOND, LATE_WINNER)
    study = replay(late, PAIRED, in_order(0, 1, 2), wanted=late.wanted())
    assert study.lost(late) and not study.arrived and study.steps == 140
    # In another order it is the one to beat.
    study = replay(late, PAIRED, in_order(2, 0, 1), wanted=late.wanted())
    assert study.arrived and not study.lost(late) and study.steps == 60


def test_a_rule_inside_a_split_ends_a_run_at_an_evaluation() -> None:
    named = [{"name": "median", "startup": 2}]
    study = replay(table(FIRST, SECOND, (50.0, 60.0, 70.0)), named, in_order(0, 1, 2))
    assert study.steps == 60 + 60 + 10 and study.pruned == {2}


def test_a_forecast_ends_a_run_that_cannot_win() -> None:
    # At step 10, 40 and 39 are to come for the first two. With 2 degrees of freedom and eight looks the margin is 7.7, so 15 is too
    # far behind (it would end at 54.5), and 28.5, which would end at 68, is not; after the split it is.
    study = replay(table(FIRST, SECOND, (30.0, 40.0, 50.0)), [{"name": "forecast"}], in_order(0, 1, 2))
    assert study.steps == 60 + 60 + 10 and study.pruned == {2}
    assert replay(table(FIRST, SECOND, (57.0, 67.5, 78.0)), [{"name": "forecast"}], in_order(0, 1, 2)).steps == 60 + 60 + 20


def test_a_run_that_becomes_nan_costs_the_interval_and_the_trial_goes_on() -> None:
    told: list[Sequence[Result]] = []

    def draw(tried: Sequence[int], results: Sequence[Result]) -> int:
        told.append(results)
        return len(tried)

    # The first run ends between steps 10 and 20: both intervals count.
    study = replay(table((math.nan, 70.0), (10.0, math.nan), (60.0, 70.0)), [], draw)
    assert study.steps == 3 * 2 * 20
    assert [result.status for result in told[2]] == ["infeasible", "infeasible"]
    early = table((60.0, 70.0))
    early.configurations[0].curves[0].clear()  # type: ignore[attr-defined]
    assert replay(early, [], in_order(0)).steps == 10 + 20


def test_the_sampler_is_told_what_a_study_tells_it() -> None:
    told: list[Sequence[Result]] = []

    def draw(tried: Sequence[int], results: Sequence[Result]) -> int:
        told.append(results)
        return len(tried)

    replay(table(FIRST, SECOND, (61.0, 60.0, 70.0), FIRST), PAIRED, draw)
    assert told[3] == [
        Result("finished", (70.0,)),
        Result("finished", (68.0,)),
        # Ahead on split 0, behind after split 1: its evaluations by step, counted on over the splits.
        Result("pruned", curve={10: 30.5, 20: 61.0, 30: 30.0, 40: 60.0}),
    ]


def test_side_by_side_a_suggestion_knows_what_the_runner_would_let_it_know() -> None:
    calls: list[tuple[int, int]] = []

    def draw(tried: Sequence[int], results: Sequence[Result]) -> int:
        calls.append((len(tried), len(results)))
        return len(tried)

    third_is_worst = table(FIRST, SECOND, (50.0, 60.0, 70.0), (49.0, 59.0, 69.0))
    assert replay(third_is_worst, [], draw, side_by_side=3).steps == 4 * 60
    assert calls == [(0, 0), (1, 0), (2, 0), (3, 1)]
    # Three trials in step all end before one is judged; the fourth is.
    study = replay(third_is_worst, PAIRED, in_order(0, 1, 2, 3), side_by_side=3)
    assert study.pruned == {3} and study.steps == 3 * 60 + 20


def test_tpe_tries_each_configuration_once_and_the_same_for_the_same_seed() -> None:
    many = table(*((50.0 + place,) for place in range(12)))
    first, again, other = (replay(many, [], by_tpe(many, seed)).tried for seed in (0, 0, 1))
    assert sorted(first) == list(range(12)) and first == again != other
    assert sorted(replay(many, [], by_tpe(many, 0, 4), side_by_side=4).tried) == list(range(12))


def test_tpe_takes_the_nearest_that_is_left() -> None:
    line = table(*((60.0,) for _ in range(5)))
    fresh = by_tpe(line, 3)
    chosen = fresh([], [])
    others = [position for position in range(5) if position != chosen]
    # With all others tried and running, the one left is taken, wherever the suggestion lies.
    assert by_tpe(line, 3)(others, []) == chosen


def test_tpe_finds_a_peak_sooner_than_chance() -> None:
    peak = table(*((80.0 - abs(place - 60) / 2,) for place in range(80)))
    found = searches(peak, [], seeds=range(5))
    # At most 0.2 below the peak is the peak alone; in a random order it comes after 40.5 trials of 20 steps on average.
    assert peak.wanted() == {60} and found.missed == 0 and found.lost == 0
    assert found.median < 0.75 * 40.5 * 20


def test_searches_that_never_arrive_count_as_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    late = table(FIRST, SECOND, LATE_WINNER)
    drawn = [in_order(0, 1, 2), in_order(2, 1, 0), in_order(1, 2, 0)]
    monkeypatch.setattr(replaying, "by_tpe", lambda table, seed, side_by_side: drawn[seed])
    found = searches(late, PAIRED, seeds=range(3))
    # In the last order only one has finished when the winner is judged.
    assert list(found.steps) == [math.inf, 60.0, 120.0]
    assert (found.median, found.missed) == (120.0, 1) and found.lost == pytest.approx(1 / 3)


def test_halves_have_other_winners(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[Configuration]] = []

    def ascending(half: Table, seed: int, lag: int) -> Draw:
        seen.append(half.configurations)
        return in_order(*sorted(range(len(half.configurations)), key=half.mean))

    monkeypatch.setattr(replaying, "by_tpe", ascending)
    # Two pairs that differ by the same on each split, and two winners that are behind on their first.
    six = table((48.0, 58.0, 68.0), (50.0, 60.0, 70.0), SECOND, FIRST, LATE_WINNER, (59.0, 80.0, 91.0))
    found = halves(six, PAIRED, seeds=range(40))
    assert halves(six, [], seeds=range(3)) == 0
    # A half loses its best if that is a late winner, behind FIRST on its first split, and the two others have finished; another
    # late winner among these would widen the margin.
    firsts = [sorted(each.curves[0][20] for each in half) for half in seen[:40]]
    assert all(len(half) == 3 for half in seen)
    assert found == pytest.approx(statistics.fmean(half.count(59.0) == 1 and 60.0 in half for half in firsts)) and found > 0


def test_orders_compare_with_the_same_trials_unpruned() -> None:
    late = table(FIRST, SECOND, LATE_WINNER)
    whole = orders(late, [], seeds=range(4))
    assert (whole.lost, whole.trained, whole.regret) == (0.0, 1.0, 0.0)
    # The winner (its mean is 229/3, the next 70) is lost where it comes last: then the other two have finished, and it is behind
    # on its first split.
    found = orders(late, PAIRED, seeds=range(60))
    last = [at_random(late, seed)([0, 0], []) == 2 for seed in range(60)]
    assert found.lost == pytest.approx(statistics.fmean(last)) and 0.15 < found.lost < 0.55
    assert found.regret == pytest.approx(found.lost * (229 / 3 - 70))


def test_the_rows_are_a_ratio_and_a_rate_against_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    small = table(FIRST, SECOND, (50.0, 60.0, 70.0), (49.0, 59.0, 69.0), (48.0, 58.0, 68.0))
    monkeypatch.setattr(replaying, "recorded", lambda: small)
    bold, bold_lost, safe, safe_lost, orders_lost = replaying.rows()
    assert (bold.target, safe.target) == (0.4, 0.65)
    assert bold.other == safe.other == statistics.median(searches(small, []).steps)
    for lost in (bold_lost, safe_lost, orders_lost):
        assert (lost.other, lost.target, lost.unit) == (5, 1, "%") and lost.ours == 0 and lost.holds
