"""Differences between rows on the same splits: which images are labelled moves a score far more than the method does.

Each split of a row is paired with the same split of the base row, so what both share cancels. With few splits no test can be
sure: of the 2^n equally likely sign patterns of n differences, two are as extreme as "all one way".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from css_ray.records import Record, mean_std, score_text
from css_ray.reports.table import MISSING, OPTIMISTIC, At, Cell, Entry, Grid, Mode, Table, make_table

_FEWEST_SPLITS = 6  # 2 / 2^n is below 0.05 from here on


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One row against the base row in one column.

    deltas: row minus base on each split that both have, in percentage points; wins: on how many the row is better;
    p: two-sided exact sign-flip test of "no difference", None below six splits, where it cannot reach 0.05; of_several: one of
    the two is the best of several trials.
    """

    row: Any
    column: Any
    deltas: dict[int, float]
    mean: float | None
    std: float | None
    wins: int
    p: float | None
    of_several: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rows of a table against one of them, or against those of another study. base: what they are compared with, in words."""

    table: Table
    base: Any
    differences: tuple[Difference, ...]

    def grid(self) -> Grid:
        """One line per row and column: mean difference, wins, the difference on each split."""
        splits = sorted({split for difference in self.differences for split in difference.deltas})
        lines = []
        for difference in self.differences:
            n = len(difference.deltas)
            by_split = (f"{difference.deltas[split]:+.2f}" if split in difference.deltas else MISSING for split in splits)
            lines.append(
                tuple(
                    Entry(text)
                    for text in (
                        str(difference.row),
                        str(difference.column),
                        _signed(difference),
                        f"{difference.wins}/{n}",
                        f"n < {_FEWEST_SPLITS}" if difference.p is None else f"{difference.p:.3f}",
                        *by_split,
                    )
                )
            )
        header = (self.table.row_name, self.table.column_name or "metric", "Δ mean ± std", "wins", "p")
        return Grid(self.caption, (*header, *(f"split {split}" for split in splits)), tuple(lines), ())

    @property
    def caption(self) -> str:
        """What the differences are, and what cannot be concluded from them."""
        table = self.table
        step = "at the last step" if table.at == "last" else "at the best evaluation"
        text = (
            f"{table.study}: {table.metric} minus that of {self.base} on the same split, {step}, in percentage points; "
            f"mean ± standard deviation (ddof={table.ddof}). p: two-sided exact sign-flip test, not corrected for the number "
            f"of comparisons; below n={_FEWEST_SPLITS} splits no such test can reach 0.05."
        )
        return f"{text} {OPTIMISTIC}" if any(difference.of_several for difference in self.differences) else text

    def lines(self) -> list[dict[str, Any]]:
        """One line per row and column, unrounded."""
        return [
            {
                "study": self.table.study,
                self.table.row_name: difference.row,
                **({} if self.table.column_name is None else {self.table.column_name: difference.column}),
                "base": self.base,
                "metric": self.table.metric,
                "at": self.table.at,
                "ddof": self.table.ddof,
                "mean_delta": difference.mean,
                "std_delta": difference.std,
                "n": len(difference.deltas),
                "wins": difference.wins,
                "p": difference.p,
                **{f"split_{split}": delta for split, delta in difference.deltas.items()},
            }
            for difference in self.differences
        ]


def compare(
    records: Iterable[Record],
    base: Any = None,
    *,
    only: Sequence[Any] = (),
    columns: str | None = None,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
) -> Comparison:
    """Compare rows of a study with one of them, split by split; the other settings are those of `make_table`.

    Args:
        records: Of the study.
        base: The row to compare with; the first if not given.
        only: The rows to compare; all others if empty.

    Raises:
        ValueError: There is no such row, no other row, or a split of two rows has different images.
    """
    table = make_table(
        records, columns=columns, metric=metric, at=at, ddof=ddof, splits=splits, mode=mode, std_weight=std_weight
    )
    base = table.rows[0] if base is None else base
    _check_rows(table, (base, *only))
    rows = [row for row in table.rows if row != base and (not only or row in only)]
    if not rows:
        raise ValueError(f"there is no other row to compare with {base!r}")
    pairs = {
        (row, column): (table.cells[row, column], table.cells[base, column])
        for row, column in table.cells
        if row in rows and (base, column) in table.cells
    }
    return _comparison(table, base, pairs)


def compare_studies(
    records: Iterable[Record],
    others: Iterable[Record],
    *,
    against: Any = None,
    only: Sequence[Any] = (),
    columns: str | None = None,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | None = None,
    other_splits: int | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
) -> Comparison:
    """Compare rows of a study with those of another one, split by split; the other settings are those of `make_table`.

    Args:
        records: Of the study.
        others: Of the study to compare with.
        against: The row of the other study to compare with; of each row the one of the same name if not given.
        only: The rows of the study to compare; all if empty.
        splits, other_splits: How many splits each trial of the two studies should have.

    Raises:
        ValueError: There are no such rows, no split that both studies have finished, or one with different images.
    """
    settings: dict[str, Any] = {"columns": columns, "metric": metric, "at": at, "ddof": ddof}
    settings |= {"mode": mode, "std_weight": std_weight}
    table, theirs = make_table(records, splits=splits, **settings), make_table(others, splits=other_splits, **settings)
    _check_rows(table, only)
    _check_rows(theirs, () if against is None else (against,))
    pairs = {}
    for (row, column), cell in table.cells.items():
        other = theirs.cells.get((row if against is None else against, column))
        if other is not None and (not only or row in only):
            pairs[row, column] = cell, other
    if not pairs:
        ours, those = (", ".join(map(str, each.rows)) for each in (table, theirs))
        raise ValueError(
            f"{table.study} (rows: {ours}) and {theirs.study} (rows: {those}) have nothing of the same row and column to "
            "compare; name a row of each, with --row and --against on the command line"
        )
    compared = _comparison(table, theirs.study if against is None else f"{against} of {theirs.study}", pairs)
    if not any(difference.deltas for difference in compared.differences):
        raise ValueError(f"{table.study} and {theirs.study} have no split that both have finished")
    return compared


def _check_rows(table: Table, rows: Iterable[Any]) -> None:
    for row in rows:
        if row not in table.rows:
            known = ", ".join(map(str, table.rows))
            raise ValueError(f"{table.study} has no row {row!r} to compare with; choose one of {known}")


def _comparison(table: Table, base: Any, pairs: Mapping[tuple[Any, Any], tuple[Cell, Cell]]) -> Comparison:
    differences = []
    for (row, column), (cell, against) in pairs.items():
        ours, theirs = cell.score, against.score
        shared = [split for split in ours.values if split in theirs.values]
        if other := [split for split in shared if ours.hashes[split] != theirs.hashes[split]]:
            hashes = f"{ours.hashes[other[0]][:12]} and {theirs.hashes[other[0]][:12]}"
            raise ValueError(
                f"{row} and {base} have different images on split{'s' * (len(other) > 1)} {', '.join(map(str, other))} "
                f"({hashes}), so their scores cannot be paired; compare what was trained with the same data set, data.labelled "
                "and lists"
            )
        deltas = {split: ours.values[split] - theirs.values[split] for split in shared}
        mean, std = mean_std(list(deltas.values()), table.ddof)
        differences.append(
            Difference(
                row=row,
                column=column,
                deltas=deltas,
                mean=mean,
                std=std,
                wins=sum(delta > 0 if table.mode == "max" else delta < 0 for delta in deltas.values()),
                p=sign_flip_p(list(deltas.values())) if len(deltas) >= _FEWEST_SPLITS else None,
                of_several=max(cell.num_trials, against.num_trials) > 1,
            )
        )
    return Comparison(table=table, base=base, differences=tuple(differences))


def sign_flip_p(deltas: list[float]) -> float:
    """Two-sided p of the exact sign-flip test: the share of all 2^n sign patterns whose |sum| is at least the observed one."""
    observed = abs(sum(deltas))
    sums = [
        abs(sum(sign * delta for sign, delta in zip(signs, deltas, strict=True)))
        for signs in product((1, -1), repeat=len(deltas))
    ]
    # A tolerance, since the same sum in another order may differ in the last bit.
    return sum(total >= observed * (1 - 1e-12) for total in sums) / len(sums)


def _signed(difference: Difference) -> str:
    if difference.mean is None:
        return MISSING
    return ("+" if difference.mean >= 0 else "") + score_text(difference.mean, difference.std)
