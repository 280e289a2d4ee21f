"""What pruning saves on a recorded table of trainings, and whom it prunes wrongly: `python -m benchmarks.recorded.replay`.

Nothing is trained: a study is replayed over `recorded.jsonl` (see `record`), whose configurations have their val mIoU at each
evaluation on each split. Sampler and pruners are the real ones, and see what a study's driver shows them, in its order. A
setting that TPE suggests becomes the nearest configuration that was not tried yet. Verdicts act immediately; in a study a
worker may learn of one a log line later.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import Row, UnavailableError
from css_ray.study.definition import Distribution, Search
from css_ray.study.pruning import PRUNERS, Pruner, PruningContext
from css_ray.study.sampling import Result, Sampling

WITHIN = 0.2
"""A search has arrived when it has trained a configuration whose mean is at most this much below the table's best, in mIoU."""

SEEDS, HALVES = 20, 60
ORDERS, STUDY_TRIALS = 600, 40

Named = Sequence[Mapping[str, Any]]
"""Pruners as a study names them: `{name: paired, false_prune_rate: 0.05}`."""

COMBINATIONS: Mapping[str, Named] = {
    "none": [],
    "paired": [{"name": "paired"}],
    "forecast": [{"name": "forecast"}],
    "bold forecast": [{"name": "forecast", "false_prune_rate": 0.2}],
    "median + paired": [{"name": "median"}, {"name": "paired"}],
    "asha + paired": [{"name": "asha"}, {"name": "paired"}],
    "hyperband + paired": [{"name": "hyperband"}, {"name": "paired"}],
    "late asha + paired": [{"name": "asha", "grace": 0.7, "reduction_factor": 2}, {"name": "paired", "false_prune_rate": 0.1}],
}
BOLD, SAFE = "asha + paired", "forecast"
"""The combinations of the benchmark's rows: what saves most, and what keeps to its rate whatever the order of the trials."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings and, by split, the val mIoU in percent by step; a curve that ends early became NaN."""

    params: Mapping[str, Any]
    curves: Mapping[int, Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Recorded configurations. iterations: steps of a run; every: steps between its evaluations; space: where the settings come
    from, all of them numbers."""

    configurations: Sequence[Configuration]
    splits: Sequence[int]
    iterations: int
    every: int
    space: Mapping[str, Distribution]

    def mean(self, position: int) -> float:
        """The mean of a configuration's last evaluations over the splits; -inf if one of its runs became NaN."""
        curves = self.configurations[position].curves
        return statistics.fmean(curves[split].get(self.iterations, -math.inf) for split in self.splits)

    def best_of(self, positions: Collection[int]) -> int:
        """The position with the highest mean."""
        return max(positions, key=self.mean)

    def wanted(self) -> frozenset[int]:
        """The positions of the configurations within WITHIN of the best."""
        means = [self.mean(position) for position in range(len(self.configurations))]
        return frozenset(position for position, mean in enumerate(means) if mean >= max(means) - WITHIN)

    def place(self, params: Mapping[str, Any]) -> list[float]:
        """Settings as coordinates in [0, 1], in the scale in which they are drawn."""
        coordinates = []
        for path, distribution in self.space.items():
            low, high, value = (*distribution.values, params[path])
            if distribution.kind == "loguniform":
                low, high, value = math.log(low), math.log(high), math.log(value)
            coordinates.append((value - low) / (high - low))
        return coordinates


def recorded() -> Table:
    """The table that is shipped. Raises UnavailableError before two of its configurations are recorded."""
    from benchmarks.recorded import TABLE
    from benchmarks.recorded.record import EVALUATE_EVERY, ITERATIONS, SPLITS, table_study

    return read(TABLE, table_study().space, SPLITS, ITERATIONS, EVALUATE_EVERY)


def read(path: Path, space: Mapping[str, Distribution], splits: Sequence[int], iterations: int, every: int) -> Table:
    """The table in `path`. Raises UnavailableError unless two of its configurations were trained to the end."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    configurations = [
        Configuration(
            line["params"],
            {
                split: {every * place: value for place, value in enumerate(line["miou"][str(split)], start=1)}
                for split in splits
            },
        )
        for line in lines
    ]
    table = Table(configurations=configurations, splits=splits, iterations=iterations, every=every, space=space)
    if sum(math.isfinite(table.mean(position)) for position in range(len(configurations))) < 2:
        raise UnavailableError(
            f"{path.name} has fewer than two trained configurations; python -m benchmarks.recorded.record adds some"
        )
    return table


# ------------------------------------------------------------------------------------------------------------------- the study

Draw = Callable[[Sequence[int], Sequence[Result]], int]
"""(positions tried, how the first of them ended) -> the position to try next."""


def by_tpe(table: Table, seed: int, lag: int = 1) -> Draw:
    """TPE's next suggestion, taken to the nearest configuration that was not tried; lag: as in `Sampling.suggest`."""
    search = Search(method={}, trials=len(table.configurations), space={}, sampler="tpe", seed=seed)
    sampling = Sampling(search, table.space)
    places = [table.place(configuration.params) for configuration in table.configurations]

    def draw(tried: Sequence[int], results: Sequence[Result]) -> int:
        drawn = [table.configurations[position].params for position in tried]
        suggested = table.place(sampling.suggest(drawn, results, lag))
        left = set(range(len(places))) - set(tried)
        return min(left, key=lambda position: (math.dist(places[position], suggested), position))

    return draw


def at_random(table: Table, seed: int) -> Draw:
    """All configurations in a random order, the same whatever becomes of them."""
    order = random.Random(seed).sample(range(len(table.configurations)), len(table.configurations))
    return lambda tried, results: order[len(tried)]


@dataclass(slots=True)
class Replay:
    """A study so far. tried: the configuration of each trial; pruned: the trials that a verdict ended; steps: trained by all
    trials together; arrived: whether a trial with a wanted configuration has finished."""

    tried: list[int] = field(default_factory=list)
    pruned: set[int] = field(default_factory=set)
    steps: int = 0
    arrived: bool = False

    def lost(self, table: Table) -> bool:
        """Whether the trial that would have won, the best of those tried, was pruned."""
        return self.tried.index(table.best_of(self.tried)) in self.pruned


def replay(
    table: Table,
    named: Named,
    draw: Draw,
    *,
    side_by_side: int = 1,
    trials: int | None = None,
    wanted: Collection[int] = (),
) -> Replay:
    """Run a study of `trials` trials (None: of the whole table), or until one has finished whose configuration is `wanted`.

    Trials that run side by side are evaluated in turn.
    """
    pruners = _pruners(named)
    study, trials = Replay(), min(trials or len(table.configurations), len(table.configurations))
    curves: dict[int, dict[int, dict[int, float]]] = {}
    values: dict[int, dict[int, float]] = {}
    scores: dict[int, float] = {}
    results: dict[int, Result] = {}
    running: dict[int, deque[tuple[int, int, float | None]]] = {}

    def judge(trial: int, split: int) -> None:
        seen = PruningContext(
            trial=trial, split=split, splits=table.splits, iterations=table.iterations, curves=curves, values=values,
            scores=scores, pruned=study.pruned,
        )  # fmt: skip
        # All are asked, as in a study: one of Optuna's keeps its own count of what it has seen.
        if any([pruner.judge(seen) is not None for pruner in pruners]):
            study.pruned.add(trial)

    while not study.arrived:
        # As the driver does: a suggestion waits for the results that it may depend on.
        while len(study.tried) < trials and len(running) < side_by_side:
            known = range(max(0, len(study.tried) - side_by_side + 1))
            if any(trial not in results for trial in known):
                break
            trial = len(study.tried)
            study.tried.append(draw(study.tried, [results[earlier] for earlier in known]))
            running[trial] = deque(_intervals(table, study.tried[trial]))
        if not running:
            break
        for trial, ahead in list(running.items()):
            split, step, value = ahead.popleft()
            study.steps += table.every
            if value is not None:
                curves.setdefault(trial, {}).setdefault(split, {})[step] = value
                judge(trial, split)
                if step == table.iterations and trial not in study.pruned:
                    values.setdefault(trial, {})[split] = value
                    judge(trial, split)
            if not ahead or trial in study.pruned:
                del running[trial]
                results[trial] = _result(table, values.get(trial, {}), curves.get(trial, {}), trial in study.pruned)
                if results[trial].status == "finished":
                    scores[trial] = results[trial].values[0]
                    study.arrived = study.arrived or study.tried[trial] in wanted
    return study


def _pruners(named: Named) -> list[Pruner]:
    kinds = ((PRUNERS[each["name"]], {key: value for key, value in each.items() if key != "name"}) for each in named)
    return [pruner(pruner.Config(**settings)) for pruner, settings in kinds]


def _intervals(table: Table, position: int) -> Iterator[tuple[int, int, float | None]]:
    """(split, step, val mIoU there) of each evaluation of a trial.

    A run that becomes NaN ends there with None, and the trial continues with the next split.
    """
    for split in table.splits:
        for step in range(table.every, table.iterations + 1, table.every):
            value = table.configurations[position].curves[split].get(step)
            yield split, step, value
            if value is None:
                break


def _result(table: Table, values: Mapping[int, float], curves: Mapping[int, Mapping[int, float]], pruned: bool) -> Result:
    """What the sampler learns of a trial, as `Driver.result_of` does."""
    if pruned:
        places = ((place, curves.get(split, {})) for place, split in enumerate(table.splits))
        counted_on = {place * table.iterations + step: value for place, curve in places for step, value in curve.items()}
        return Result("pruned", curve=counted_on)
    if len(values) < len(table.splits):
        return Result("infeasible")
    return Result("finished", (statistics.fmean(values.values()),))


# ------------------------------------------------------------------------------------------------------------- what is reported


@dataclass(frozen=True, slots=True)
class Searches:
    """TPE searches until they arrive. steps: of each, infinite where all configurations were tried in vain; lost: the share in
    which the best configuration tried was pruned."""

    steps: Sequence[float]
    lost: float

    @property
    def median(self) -> float:
        return statistics.median(self.steps)

    @property
    def missed(self) -> int:
        """How many never arrived."""
        return sum(map(math.isinf, self.steps))


def searches(table: Table, named: Named, side_by_side: int = 1, seeds: Collection[int] = range(SEEDS)) -> Searches:
    """A search per seed; the seeds are the sampler's."""
    wanted = table.wanted()
    found = [
        replay(table, named, by_tpe(table, seed, side_by_side), side_by_side=side_by_side, wanted=wanted) for seed in seeds
    ]
    steps = [study.steps if study.arrived else math.inf for study in found]
    return Searches(steps, statistics.fmean(study.lost(table) for study in found))


def halves(table: Table, named: Named, side_by_side: int = 1, seeds: Collection[int] = range(HALVES)) -> float:
    """The share of TPE searches that prune the best configuration tried, each over a random half of the table.

    The whole table has one best configuration, which a rule may happen to suit; halves have others.
    """
    lost = []
    for seed in seeds:
        drawn = random.Random(seed).sample(table.configurations, len(table.configurations) // 2)
        half = replace(table, configurations=drawn)
        study = replay(half, named, by_tpe(half, seed, side_by_side), side_by_side=side_by_side, wanted=half.wanted())
        lost.append(study.lost(half))
    return statistics.fmean(lost)


@dataclass(frozen=True, slots=True)
class Orders:
    """Studies of STUDY_TRIALS random configurations. lost: the share in which the best of them was pruned; trained: steps over
    those without pruning; regret: by how much the one that won is below the best, mean in mIoU."""

    lost: float
    trained: float
    regret: float


def orders(table: Table, named: Named, side_by_side: int = 1, seeds: Collection[int] = range(ORDERS)) -> Orders:
    """A study per seed. The same configurations in the same order, whatever prunes them."""
    lost, trained, regret = [], [], []
    for seed in seeds:
        study = replay(table, named, at_random(table, seed), side_by_side=side_by_side, trials=STUDY_TRIALS)
        whole = sum(table.every for position in study.tried for _ in _intervals(table, position))
        finished = [position for trial, position in enumerate(study.tried) if trial not in study.pruned]
        lost.append(study.lost(table))
        trained.append(study.steps / whole)
        regret.append(table.mean(table.best_of(study.tried)) - table.mean(table.best_of(finished)))
    return Orders(statistics.fmean(lost), statistics.fmean(trained), statistics.fmean(regret))


def rows() -> Iterator[Row]:
    """The benchmark's rows."""
    table = recorded()
    whole = searches(table, []).median
    for name, target in ((BOLD, 0.4), (SAFE, 0.65)):
        found = searches(table, COMBINATIONS[name])
        yield Row(f"steps of a TPE search to the best mean - {WITHIN} mIoU, {name}", found.median, whole, target, "")
        yield Row(f"winners pruned in those {SEEDS} searches, {name}, vs the bound", 100 * found.lost, 5, 1, "%")
    lost = orders(table, COMBINATIONS[SAFE]).lost
    yield Row(f"winners pruned, {ORDERS} studies in random order, {SAFE}, vs the bound", 100 * lost, 5, 1, "%")


def main() -> None:
    table = recorded()
    print(f"{len(table.configurations)} configurations, {len(table.wanted())} of them within {WITHIN} mIoU of the best")
    heads = (
        "pruners", "TPE: steps", "ratio", "missed", "winner pruned", "halves: winner pruned", "orders: winner pruned",
        "mIoU lost", "trained",
    )  # fmt: skip
    for side_by_side in (1, 8):
        print(f"\n{side_by_side} at a time\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        whole = searches(table, [], side_by_side).median
        for named in COMBINATIONS.values():
            found, ordered = searches(table, named, side_by_side), orders(table, named, side_by_side)
            cells = (
                " + ".join(map(words, named)) or "none",
                f"{found.median:,.0f}",
                f"{found.median / whole:.2f}",
                f"{found.missed} of {len(found.steps)}",
                f"{100 * found.lost:.0f} %",
                f"{100 * halves(table, named, side_by_side):.0f} %",
                f"{100 * ordered.lost:.1f} %",
                f"{ordered.regret:.3f}",
                f"{ordered.trained:.2f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def words(named: Mapping[str, Any]) -> str:
    """A pruner with the settings that differ from its defaults: `paired (false_prune_rate 0.1)`."""
    settings = ", ".join(f"{key} {value}" for key, value in named.items() if key != "name")
    return f"{named['name']} ({settings})" if settings else str(named["name"])


if __name__ == "__main__":
    main()
