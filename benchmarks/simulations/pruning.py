"""The paired rule by simulation: how often it prunes wrongly, and what it saves.

`python -m benchmarks.simulations.pruning` prints the tables of docs/pruning.md and writes its figure.

A simulated score is trial + split + residual, in mIoU. A trial's effect is its distance to the best of the trials that have
finished, or in a search to the best there can be; residuals are normal, or t with 3 degrees of freedom, scaled to the same
standard deviation. Each repetition draws everything again, from fixed seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks import ROOT
from css_ray.study.pruning.paired import prospect

FIGURE = ROOT / "docs" / "pruning.svg"
SPLIT_STD = 4.5  # the paper's at 92 labelled images
RESIDUAL_STDS = (0.35, 1.0, 2.0)
SPLITS = (3, 5, 10)
EFFECTS = (0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -8.0)
GOOD_EFFECTS = (0.0, 1.0)
FINISHED = 10
SIDE_BY_SIDE = 4

Scores = NDArray[np.float64]
"""[n]: a trial's score on each split."""

Rule = Callable[[Scores, Scores, Scores], bool]
"""(the candidate's first scores [k], the incumbent's [n], all that finished [m, n]) -> prune?"""


def paired(candidate: Scores, incumbent: Scores, finished: Scores) -> bool:
    """Our rule at its default."""
    found = prospect(
        dict(enumerate(candidate)),
        dict(enumerate(incumbent)),
        [dict(enumerate(row)) for row in finished],
        range(len(incumbent)),
    )
    return found is not None and found.should_prune


def wilcoxon(p_threshold: float) -> Rule:
    """Optuna's WilcoxonPruner, written out, since asking Optuna is slow; a test compares the two."""

    def rule(candidate: Scores, incumbent: Scores, finished: Scores) -> bool:
        done = len(candidate)
        if done < 2 or incumbent.mean() <= candidate.mean():
            return False
        differences = candidate - incumbent[:done]
        ranks = np.argsort(np.argsort(np.abs(differences))) + 1
        return bool(_signed_rank_tail(done)[int(ranks[differences > 0].sum())] < p_threshold)

    return rule


@cache
def _signed_rank_tail(count: int) -> list[float]:
    """P(sum of the ranks of positive differences <= w) for each w, all signs equally likely."""
    sums = [sum(chosen) for chosen in itertools.product(*((0, rank) for rank in range(1, count + 1)))]
    return [sum(total <= bound for total in sums) / len(sums) for bound in range(count * (count + 1) // 2 + 1)]


RULES: Mapping[str, Rule] = {
    "paired": paired,
    "Wilcoxon, p < 0.1": wilcoxon(0.1),
    "Wilcoxon, p < 0.25": wilcoxon(0.25),
}


@dataclass(frozen=True, slots=True)
class World:
    """How scores are drawn. tails: of the residuals; bad_std: residual spread of a trial 10 mIoU below the best, as a multiple
    of that of the best, growing in between."""

    num_splits: int
    residual_std: float = 1.0
    tails: str = "normal"
    bad_std: float = 1.0

    def residuals(self, generator: np.random.Generator, effects: Scores) -> Scores:
        """[trials] -> [trials, n]."""
        shape = (len(effects), self.num_splits)
        drawn = generator.standard_normal(shape) if self.tails == "normal" else generator.standard_t(3, shape) / np.sqrt(3)
        spread = 1 + (self.bad_std - 1) * np.clip(-effects / 10, 0, 1)
        return self.residual_std * spread[:, None] * drawn

    def scores(self, generator: np.random.Generator, effects: Scores) -> Scores:
        """[trials] -> [trials, n]."""
        splits = 68 + SPLIT_STD * generator.standard_normal(self.num_splits)
        return effects[:, None] + splits + self.residuals(generator, effects)


def looks(rule: Rule, candidate: Scores, incumbent: Scores, finished: Scores) -> int:
    """Splits that the candidate is trained on: all, or fewer where it is pruned."""
    n = len(incumbent)
    return next((done for done in range(1, n) if rule(candidate[:done], incumbent, finished)), n)


@dataclass(frozen=True, slots=True)
class Power:
    """Shares of many candidates: pruned; pruned among those that would have reached the incumbent; split-trainings saved."""

    pruned: float
    wrongly: float
    saved: float


def power(rule: Rule, world: World, effect: float, repeats: int, *, level: bool = False, candidate_std: float = 1.0) -> Power:
    """A candidate `effect` better than the best of FINISHED trials. level: its scores are shifted so that its mean over all
    splits equals the incumbent's, the worst case of a wrong verdict. candidate_std: its residual spread over the others'."""
    generator = np.random.default_rng(20_231)
    trained, reached, wrong = [], 0, 0
    n = world.num_splits
    for _ in range(repeats):
        effects = -generator.exponential(4, FINISHED)
        table = world.scores(generator, np.append(effects, effects.max() + effect))
        finished, candidate = table[:-1], table[-1]
        if candidate_std != 1:
            others = finished.mean(axis=0)
            candidate = (
                others + (candidate - others).mean() + candidate_std * (candidate - others - (candidate - others).mean())
            )
        incumbent = finished[finished.mean(axis=1).argmax()]
        if level:
            candidate = candidate + incumbent.mean() - candidate.mean()
        trained.append(looks(rule, candidate, incumbent, finished))
        if level or candidate.mean() >= incumbent.mean():
            reached += 1
            wrong += trained[-1] < n
    pruned = np.mean([count < n for count in trained])
    return Power(float(pruned), wrong / max(1, reached), float(1 - np.mean(trained) / n))


@dataclass(frozen=True, slots=True)
class Search:
    """Means over many searches: the share in which the trial that would have won was pruned, split-trainings saved, and by how
    much the trial chosen is below the best, in mIoU, where all are measured by their means over the study's splits."""

    winner_pruned: float
    saved: float
    lost: float


def search(rule: Rule, world: World, trials: int, repeats: int) -> Search:
    """A random search, SIDE_BY_SIDE trials in parallel: a trial is judged by those that were done when it started.

    Effects are 0 for the best there can be; the others lie exponentially below, 4 mIoU on average.
    """
    generator = np.random.default_rng(20_232)
    missed, trained, lost = 0, [], []
    for _ in range(repeats):
        table = world.scores(generator, -generator.exponential(4, trials))
        means = table.mean(axis=1)
        done: list[int] = []
        for trial in range(trials):
            known = [other for other in done if other <= trial - SIDE_BY_SIDE]
            splits = world.num_splits
            if known:
                best = max(known, key=lambda other: means[other])
                splits = looks(rule, table[trial], table[best], table[known])
            trained.append(splits)
            if splits == world.num_splits:
                done.append(trial)
        winner = int(means.argmax())
        missed += winner not in done
        lost.append(means[winner] - max(means[other] for other in done))
    return Search(missed / repeats, float(1 - np.mean(trained) / world.num_splits), float(np.mean(lost)))


# ------------------------------------------------------------------------------------------------------------------ the page


def margin_table() -> Iterator[Sequence[str]]:
    """The margin of the rule where the residual std is 1."""
    cases = [(n, done) for n in (3, 5) for done in range(1, n)]
    yield ("finished trials", *(f"after {done} of {n}" for n, done in cases))
    for count in (2, 3, 5, 10, 20, 40):
        cells = []
        for n, done in cases:
            rows = _unit_rows(count, n)
            found = prospect(dict.fromkeys(range(done), 0.0), rows[0], rows, range(n))
            assert found is not None
            cells.append(f"{found.margin:.2f}")
        yield (str(count), *cells)


def _unit_rows(count: int, n: int) -> list[dict[int, float]]:
    """Scores of `count` trials on n splits, of which the best that the rule takes have the residual variance 1."""
    drawn = np.random.default_rng(0).standard_normal((count, n))
    drawn = drawn - drawn.mean(axis=1, keepdims=True)
    taken = drawn[: min(20, max(5, count // 2))]
    residuals = taken - taken.mean(axis=0)
    scale = np.sqrt((residuals**2).sum() / ((len(taken) - 1) * (n - 1)))
    return [dict(enumerate(row / scale - trial)) for trial, row in enumerate(drawn)]


def false_prune_table(repeats: int) -> Iterator[Sequence[str]]:
    yield ("splits", "residuals", "std", *RULES)
    for n, tails, std in itertools.product(SPLITS, ("normal", "t3"), RESIDUAL_STDS):
        world = World(n, std, tails)
        rates = (power(rule, world, 0.0, repeats, level=True).wrongly for rule in RULES.values())
        yield (str(n), tails, f"{std:g}", *(f"{100 * rate:.1f}" for rate in rates))


def power_table(powers: Mapping[tuple[str, int, float], Power]) -> Iterator[Sequence[str]]:
    yield ("splits", "worse by", *RULES)
    for n, effect in itertools.product(SPLITS, (-1.0, -2.0, -4.0, -8.0)):
        found = (powers[name, n, effect] for name in RULES)
        yield (str(n), f"{-effect:g}", *(f"{100 * each.pruned:.0f} / {100 * each.saved:.0f}" for each in found))


def good_table(powers: Mapping[tuple[str, int, float], Power]) -> Iterator[Sequence[str]]:
    yield ("splits", "better by", *RULES)
    for n, effect in itertools.product(SPLITS, GOOD_EFFECTS):
        found = (powers[name, n, effect] for name in RULES)
        yield (str(n), f"{effect:g}", *(f"{100 * each.pruned:.1f} / {100 * each.wrongly:.1f}" for each in found))


def search_table(repeats: int) -> Iterator[Sequence[str]]:
    yield ("splits", "residuals", "trials", *RULES)
    worlds = [
        *(("normal", World(n)) for n in SPLITS),
        ("normal, std 0.35", World(3, 0.35)),
        ("normal, std 2", World(3, 2.0)),
        ("t3", World(3, 1.0, "t3")),
        ("bad trials 3 x as wide", World(3, 1.0, "normal", 3.0)),
    ]
    for (words, world), trials in itertools.product(worlds, (20, 40)):
        found = (search(rule, world, trials, repeats) for rule in RULES.values())
        cells = (f"{100 * each.winner_pruned:.1f} / {100 * each.saved:.0f} / {each.lost:.3f}" for each in found)
        yield (str(world.num_splits), words, str(trials), *cells)


def limits_table(repeats: int) -> Iterator[Sequence[str]]:
    yield ("splits", "the candidate's residuals are", "paired")
    for n, width in itertools.product((3, 5), (1.0, 2.0, 3.0)):
        rate = power(paired, World(n), 0.0, repeats, level=True, candidate_std=width).wrongly
        yield (str(n), f"{width:g} x as wide as the others'", f"{100 * rate:.1f}")


def markdown(title: str, rows: Iterator[Sequence[str]]) -> None:
    print(f"\n{title}\n")
    header = next(rows)
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def draw(powers: Mapping[tuple[str, int, float], Power]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "css-ray", "font.size": 9, "font.sans-serif": ["DejaVu Sans", "Arial"]}
    )
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, len(SPLITS), figsize=(8, 4.6), sharex=True, sharey=True, layout="constrained")
    styles = dict(zip(RULES, (("#0b6e4f", "-"), ("#b33a3a", "--"), ("#c98a1b", ":")), strict=True))
    for axes, of in zip(rows, ("pruned", "saved"), strict=True):
        for axis, n in zip(axes, SPLITS, strict=True):
            for name, (colour, line) in styles.items():
                shares = [100 * getattr(powers[name, n, effect], of) for effect in EFFECTS]
                axis.plot([-effect for effect in EFFECTS], shares, line, color=colour, linewidth=1.8, label=name)
            axis.set(ylim=(-3, 103), yticks=(0, 25, 50, 75, 100), xticks=(0, 2, 4, 6, 8))
            axis.tick_params(length=0)
            axis.grid(axis="y", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            if of == "pruned":
                axis.set_title(f"{n} splits", fontsize=10)
    rows[0][0].set_ylabel("trials pruned, %")
    rows[1][0].set_ylabel("split-trainings saved, %")
    rows[0][0].legend(frameon=False, fontsize=8, loc="center right")
    figure.supxlabel("how much worse than the best finished trial, in mIoU (residual std 1)", fontsize=9)
    figure.savefig(FIGURE, metadata={"Date": None})
    lines = FIGURE.read_text(encoding="utf-8").splitlines()
    FIGURE.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def main(repeats: int = 4000) -> None:
    markdown("Margin of the paired rule, as a multiple of the residual std", margin_table())
    markdown("Wrongly pruned, % of trials that end exactly level with the best", false_prune_table(repeats))
    cases = itertools.product(RULES, SPLITS, {*EFFECTS, *GOOD_EFFECTS})
    powers = {(name, n, effect): power(RULES[name], World(n), effect, repeats // 2) for name, n, effect in cases}
    markdown("Pruned / split-trainings saved, %, residual std 1", power_table(powers))
    markdown("Pruned, % / wrongly, % of those that would reach the best, residual std 1", good_table(powers))
    markdown("Winner pruned, % / split-trainings saved, % / mIoU lost", search_table(repeats // 4))
    markdown("Wrongly pruned, % of trials that end level, if their residuals are wider", limits_table(repeats))
    draw(powers)


if __name__ == "__main__":
    main()
