"""Differences between rows on the same splits: which images are labelled moves a score far more than the method does.

Each split of a row is paired with the same split of the base row, so what both share cancels. With few splits no test of the
splits alone can be sure: of the 2^n equally likely sign patterns of n differences, two are as extreme as "all one way". The
interval of a difference is made from the splits and the validation images together, see `intervals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from css_ray.records import Record, mean_std, score_text
from css_ray.reports import intervals, statistics
from css_ray.reports.intervals import Certainty, Read
from css_ray.reports.table import (
    MISSING,
    OPTIMISTIC,
    At,
    Cell,
    Entry,
    Grid,
    Mode,
    Table,
    make_table,
    metric_in_words,
)

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
    """Rows of a table against one of them, or against those of another study.

    base: what they are compared with, in words. certainty: what the matrices of the validation images show, if they were read.
    """

    table: Table
    base: Any
    differences: tuple[Difference, ...]
    certainty: Certainty | None = None

    def grid(self) -> Grid:
        """One line per row and column: mean difference, its interval, wins, the difference on each split."""
        splits = sorted({split for difference in self.differences for split in difference.deltas})
        notes: list[str] = []
        marks = self._marks(notes)
        lines = []
        for difference in self.differences:
            n, place = len(difference.deltas), (difference.row, difference.column)
            by_split = (f"{difference.deltas[split]:+.2f}" if split in difference.deltas else MISSING for split in splits)
            texts = (
                str(difference.column),
                _signed(difference),
                *self._sure(place),
                f"{difference.wins}/{n}",
                f"n < {_FEWEST_SPLITS}" if difference.p is None else f"{difference.p:.3f}",
                *by_split,
            )
            lines.append((Entry(str(difference.row), notes=marks.get(place, ())), *map(Entry, texts)))
        header = [self.table.row_name, self.table.column_name or "metric", "Δ mean ± std"]
        if self._has_intervals:
            header += ["95 % interval", "p (Holm)", *(["P(rank 1)"] if self._has_ranks else [])]
        header += ["wins", "p", *(f"split {split}" for split in splits)]
        label = f"{self.table.study}-differences"
        return Grid(self.caption, tuple(header), tuple(lines), tuple(notes), self.title, label)

    @property
    def title(self) -> str:
        """A caption as papers have it."""
        metric = metric_in_words(self.table.metric)
        return f"{metric}: differences to {self.base} on the same splits, in percentage points."

    @property
    def _has_intervals(self) -> bool:
        return self.certainty is not None and bool(self.certainty.differences)

    @property
    def _has_ranks(self) -> bool:
        return self.certainty is not None and bool(self.certainty.first)

    def _sure(self, place: tuple[Any, Any]) -> list[str]:
        """The texts of a row's interval, Holm's p and P(rank 1), if the table has these columns."""
        if self.certainty is None or not self._has_intervals:
            return []
        found, first = self.certainty.differences.get(place), self.certainty.first.get(place)
        texts = [MISSING, MISSING]
        if found is not None:
            texts = [_interval_text(found), _p_text(self.certainty.adjusted[place])]
        return texts + ([MISSING if first is None else f"{first:.2f}"] if self._has_ranks else [])

    def _marks(self, notes: list[str]) -> dict[tuple[Any, Any], tuple[int, ...]]:
        """The numbers of the notes of each row and column; adds the notes: groups of rows, and reasons of missing intervals."""
        marks: dict[tuple[Any, Any], tuple[int, ...]] = {}
        if self.certainty is None or not self._has_intervals:
            return marks
        for column, groups in self.certainty.groups.items():
            place = "" if self.table.column_name is None else f"{column}: "
            for group in groups:
                notes.append(f"{place}not separable: {', '.join(map(str, group))}")
                marks |= {(row, column): (*marks.get((row, column), ()), len(notes)) for row in group}
        for (row, column), reason in self.certainty.missing.items():
            notes.append(f"{row}, {column}: no interval, {reason}")
            marks[row, column] = (*marks.get((row, column), ()), len(notes))
        return marks

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
        text = " ".join([text, *self._sure_caption()])
        return f"{text} {OPTIMISTIC}" if any(difference.of_several for difference in self.differences) else text

    def _sure_caption(self) -> list[str]:
        if self.certainty is None:
            return []
        if not self._has_intervals:
            return [f"No intervals: {reason}." for reason in list(self.certainty.missing.values())[:1]]
        number = len(self.certainty.differences)
        found = [_interval_caption(self), f"p (Holm): of the same, corrected for {number} comparison{'s' * (number > 1)}."]
        if self._has_ranks:
            shares = [
                f"{self.certainty.first[self.base, column]:.2f}" + (f" ({column})" if self.table.column_name else "")
                for column in self.table.columns
                if (self.base, column) in self.certainty.first
            ]
            found.append(
                f"P(rank 1): probability of the highest mean on other splits and images; of {self.base} {', '.join(shares)}. "
                "Not separable: rows of which no two differ at 0.05, by Holm over all pairs."
            )
        return found

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
                **self._sure_line((difference.row, difference.column)),
                **{f"split_{split}": delta for split, delta in difference.deltas.items()},
            }
            for difference in self.differences
        ]

    def _sure_line(self, place: tuple[Any, Any]) -> dict[str, float | None]:
        if self.certainty is None or not self._has_intervals:
            return {}
        found = self.certainty.differences.get(place)
        return {
            "lower": None if found is None else found.lower,
            "upper": None if found is None else found.upper,
            "p_holm": self.certainty.adjusted.get(place),
            **({"p_rank_1": self.certainty.first.get(place)} if self._has_ranks else {}),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TableAgainst:
    """A table in which each column has one more beside it: the differences to a row, with their intervals."""

    table: Table
    comparison: Comparison

    def grid(self) -> Grid:
        """The table's, with the differences."""
        grid, base = self.table.grid(), self.comparison.base
        width = 1 if self.table.printed is None else 2
        found = {(difference.row, difference.column): difference for difference in self.comparison.differences}
        notes = list(grid.notes)
        missing = {} if self.comparison.certainty is None else self.comparison.certainty.missing
        header = [grid.header[0]]
        rows = [[line[0]] for line in grid.rows]
        for number, column in enumerate(self.table.columns):
            places = slice(1 + width * number, 1 + width * (number + 1))
            header += [*grid.header[places], f"Δ to {base}" if len(self.table.columns) == 1 else f"{column}, Δ to {base}"]
            for row, line, longer in zip(self.table.rows, grid.rows, rows, strict=True):
                marks: tuple[int, ...] = ()
                if (row, column) in missing and self.comparison.certainty and self.comparison.certainty.differences:
                    notes.append(f"{row}, {column}: no interval, {missing[row, column]}")
                    marks = (len(notes),)
                longer += [*line[places], Entry(self._text(found.get((row, column))), notes=marks)]
        title = f"{self.table.title.removesuffix('.')}, and the differences to {base} on the same splits."
        return Grid(self.caption, tuple(header), tuple(map(tuple, rows)), tuple(notes), title, f"{grid.label}-against")

    def _text(self, difference: Difference | None) -> str:
        if difference is None or difference.mean is None:
            return MISSING
        certainty = self.comparison.certainty
        sure = certainty and certainty.differences.get((difference.row, difference.column))
        return f"{difference.mean:+.2f}" + (f" ({_interval_text(sure)})" if sure else "")

    @property
    def caption(self) -> str:
        """The table's, and what the differences are."""
        text = f"{self.table.caption} Δ: mean difference to {self.comparison.base} on the same splits"
        certainty = self.comparison.certainty
        if certainty is None or not certainty.differences:
            reasons = list(certainty.missing.values())[:1] if certainty else []
            return f"{text}." + "".join(f" No intervals: {reason}." for reason in reasons)
        return (
            f"{text}, with its 95 % interval, not corrected for the number of comparisons. {_interval_caption(self.comparison)}"
        )

    def lines(self) -> list[dict[str, Any]]:
        """The table's, with the unrounded differences."""
        more = {(line[self.table.row_name], line.get(self.table.column_name or "")): line for line in self.comparison.lines()}
        lines = []
        for line in self.table.lines():
            found = more.get((line[self.table.row_name], line.get(self.table.column_name or "")), {})
            lines.append(line | {"base": self.comparison.base} | {name: found.get(name) for name in _DELTA_FIELDS})
        return lines


_DELTA_FIELDS = ("mean_delta", "std_delta", "lower", "upper", "p_holm", "p_rank_1")


def _interval_caption(comparison: Comparison) -> str:
    """What the intervals of a comparison are made from, and so what they hold for."""
    assert comparison.certainty is not None
    found = comparison.certainty.differences
    single = [len(each.deltas) == 1 for each in comparison.differences if (each.row, each.column) in found]
    over_splits = "Student's t from the variance over splits and that over resampled validation images"
    over_images = "percentiles over resampled validation images, which hold for this split alone"
    if all(single):
        return f"95 % interval: {over_images}."
    return f"95 % interval: {over_splits}" + (f"; with one split, {over_images}." if any(single) else ".")


def _interval_text(found: statistics.Difference) -> str:
    return f"{found.lower:+.2f} to {found.upper:+.2f}"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(
    records: Iterable[Record],
    base: Any = None,
    *,
    only: Sequence[Any] = (),
    columns: str | None = None,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | Mapping[str, int] | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
    read: Read | Mapping[str, Read] | None = None,
) -> Comparison:
    """Compare rows of a study with one of them, split by split; the other settings are those of `make_table`.

    Args:
        records: Of the study, or of several whose rows have different names.
        base: The row to compare with; the first if not given.
        only: The rows to compare; all others if empty.
        read: Reads the matrices of a run's validation images, by study if there are several; without it there are no intervals.

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
    compared = _comparison(table, base, pairs)
    return compared if read is None else replace(compared, certainty=intervals.of_rows(table, base, rows, read))


def table_against(table: Table, records: Iterable[Record], base: Any, **settings: Any) -> TableAgainst:
    """A table with the differences to its row `base`; records and settings are those of `compare` that it was made from.

    Raises ValueError as `compare` does.
    """
    return TableAgainst(table=table, comparison=compare(records, base, **settings))


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
    read: Read | None = None,
    read_other: Read | None = None,
) -> Comparison:
    """Compare rows of a study with those of another one, split by split; the other settings are those of `make_table`.

    Args:
        records: Of the study.
        others: Of the study to compare with.
        against: The row of the other study to compare with; of each row the one of the same name if not given.
        only: The rows of the study to compare; all if empty.
        splits, other_splits: How many splits each trial of the two studies should have.
        read, read_other: Read the matrices of a run of the two studies; without them there are no intervals.

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
    if read is None or read_other is None:
        return compared
    return replace(compared, certainty=intervals.of_pairs(table, pairs, read, read_other))


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
