"""Differences between rows on the same splits: which images are labelled moves a score far more than the method does.

Each split of a row is paired with the same split of the base row, so what both share cancels. With few splits no test can be
sure: of the 2^n equally likely sign patterns of n differences, two are as extreme as "all one way".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from css_ray.records import Record, mean_std, score_text
from css_ray.reports.table import MISSING, At, Entry, Grid, Mode, Table, make_table

_FEWEST_SPLITS = 6  # 2 / 2^n is below 0.05 from here on


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One row against the base row in one column.

    deltas: row minus base on each split that both have, in percentage points; wins: on how many the row is better;
    p: two-sided exact sign-flip test of "no difference", None below six splits, where it cannot reach 0.05.
    """

    row: Any
    column: Any
    deltas: dict[int, float]
    mean: float | None
    std: float | None
    wins: int
    p: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Every row of a table against one of them."""

    table: Table
    base: Any
    differences: tuple[Difference, ...]

    def grid(self) -> Grid:
        """One line a row and column: mean difference, wins, the difference on each split."""
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
        return (
            f"{table.study}: {table.metric} minus that of {self.base} on the same split, at {table.at}, in percentage points; "
            f"mean ± standard deviation (ddof={table.ddof}). p: two-sided exact sign-flip test, not corrected for the number "
            f"of comparisons; below n={_FEWEST_SPLITS} splits no such test can reach 0.05."
        )

    def lines(self) -> list[dict[str, Any]]:
        """One line a row and column, unrounded."""
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
    base: Any,
    *,
    rows: str = "row",
    columns: str | None = None,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | None = None,
    mode: Mode = "max",
) -> Comparison:
    """Compare every row with the row `base`, split by split; settings as in `make_table`.

    Raises ValueError if there is no such row.
    """
    table = make_table(records, rows=rows, columns=columns, metric=metric, at=at, ddof=ddof, splits=splits, mode=mode)
    if base not in table.rows:
        raise ValueError(f"there is no row {base!r} to compare with; choose one of {', '.join(map(str, table.rows))}")
    differences = []
    for (row, column), cell in table.cells.items():
        against = table.cells.get((base, column))
        if row == base or against is None:
            continue
        shared = [split for split in cell.score.values if split in against.score.values]
        deltas = {split: cell.score.values[split] - against.score.values[split] for split in shared}
        mean, std = mean_std(list(deltas.values()), ddof)
        wins = sum(delta > 0 if mode == "max" else delta < 0 for delta in deltas.values())
        p = sign_flip_p(list(deltas.values())) if len(deltas) >= _FEWEST_SPLITS else None
        differences.append(Difference(row=row, column=column, deltas=deltas, mean=mean, std=std, wins=wins, p=p))
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
    n = len(difference.deltas)
    return ("+" if difference.mean >= 0 else "") + score_text(difference.mean, difference.std, n, n)
