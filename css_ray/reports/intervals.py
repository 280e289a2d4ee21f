"""How sure the differences of a table are: reads the confusion matrices of its cells' runs, for `statistics`.

A cell whose runs lack matrices, as those of earlier versions do, has no interval, but a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from css_ray.matrices import At, ImageMatrices, MatricesError
from css_ray.messages import os_error_text
from css_ray.reports import statistics
from css_ray.reports.table import Cell, Table

Read = Callable[[int, int, At], ImageMatrices | None]
"""Reads the matrices of a trial's run on a split; None if there are none. Raises MatricesError or OSError."""

Place = tuple[Any, Any]
"""A row and a column."""

_TOLERANCE = 1e-6  # percentage points between a journal's score and the one of the matrices, which differ in rounding alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Certainty:
    """What the matrices show of differences to a base.

    differences: by row and column, on the splits that both have; adjusted: their p, by Holm over all of them. first: P(rank 1)
    of each row in its column, the base among them, on the splits that all have. groups: by column, rows of which no two are
    separable. missing: why a row has no interval in a column.
    """

    differences: Mapping[Place, statistics.Difference]
    adjusted: Mapping[Place, float]
    first: Mapping[Place, float] = field(default_factory=dict)
    groups: Mapping[Any, Sequence[tuple[Any, ...]]] = field(default_factory=dict)
    missing: Mapping[Place, str] = field(default_factory=dict)


def of_rows(table: Table, base: Any, rows: Sequence[Any], read: Read | Mapping[str, Read]) -> Certainty:
    """Of rows of a table against one of them. read: by study if the table is of several."""
    differences: dict[Place, statistics.Difference] = {}
    first: dict[Place, float] = {}
    groups: dict[Any, Sequence[tuple[Any, ...]]] = {}
    missing: dict[Place, str] = {}
    for column in table.columns:
        cells = {row: table.cells[row, column] for row in (base, *rows) if (row, column) in table.cells}
        if base not in cells:
            continue
        reads = {row: read[cell.score.study] if isinstance(read, Mapping) else read for row, cell in cells.items()}
        drawn = _Drawn(table, {row: (cell, reads[row]) for row, cell in cells.items()})
        for row in cells:
            reason = drawn.missing.get(row) or drawn.missing.get(base)
            if row != base and reason:
                missing[row, column] = reason
            elif row != base and (found := drawn.difference(row, base)):
                differences[row, column] = found
        known = [row for row in cells if row not in drawn.missing]
        if len(known) > 1:
            first |= {(row, column): share for row, share in drawn.first_shares(known).items()}
            p_values = {pair: found.p if (found := drawn.difference(*pair)) else 1.0 for pair in combinations(known, 2)}
            groups[column] = statistics.groups(known, p_values)
    return Certainty(differences=differences, adjusted=_adjusted(differences), first=first, groups=groups, missing=missing)


def of_pairs(table: Table, pairs: Mapping[Place, tuple[Cell, Cell]], read: Read, read_other: Read) -> Certainty:
    """Of cells of a table against cells of another study's."""
    differences: dict[Place, statistics.Difference] = {}
    missing: dict[Place, str] = {}
    for place, (ours, theirs) in pairs.items():
        drawn = _Drawn(table, {"theirs": (theirs, read_other), "ours": (ours, read)})
        if drawn.missing:
            missing[place] = next(iter(drawn.missing.values()))
        elif found := drawn.difference("ours", "theirs"):
            differences[place] = found
    return Certainty(differences=differences, adjusted=_adjusted(differences), missing=missing)


def _adjusted(differences: Mapping[Place, statistics.Difference]) -> dict[Place, float]:
    return dict(zip(differences, statistics.holm([found.p for found in differences.values()]), strict=True))


class _Drawn:
    """Cells by name, and their scores on resampled images, the same ones for all. missing: why a cell has none."""

    def __init__(self, table: Table, cells: Mapping[Hashable, tuple[Cell, Read]]) -> None:
        self.missing: dict[Hashable, str] = {}
        self._sign = 1 if table.mode == "max" else -1
        self._scores = {name: dict(cell.score.values) for name, (cell, _) in cells.items()}
        pixels: dict[tuple[Hashable, int], statistics.Array] = {}
        score, images = None, None
        for name, (cell, read) in cells.items():
            found: dict[tuple[Hashable, int], statistics.Array] = {}
            for split, value in cell.score.values.items():
                of = "" if cell.score.study == table.study else f" of {cell.score.study}"
                place = f"trial {cell.score.trial}{of} on split {split}"
                try:
                    matrices = read(cell.score.trial, split, table.at)
                except (MatricesError, OSError) as error:
                    self.missing[name] = str(error) if isinstance(error, MatricesError) else os_error_text(error, "read")
                    break
                if matrices is None:
                    self.missing[name] = f"{place} has no confusion matrices of its images, which earlier versions did not keep"
                    break
                counts = matrices.class_pixels()
                score = statistics.score_of(table.metric, matrices.class_names)
                if score is None:
                    self.missing[name] = f"the confusion matrices do not give {table.metric}"
                    break
                with np.errstate(invalid="ignore"):
                    again = float(score(counts.sum(axis=1).astype(np.float64)))
                if not abs(again - value) <= _TOLERANCE:
                    self.missing[name] = (
                        f"the confusion matrices of {place} are of another evaluation ({again:.2f}, recorded: {value:.2f})"
                    )
                    break
                images = images or (matrices.ids, counts[1])  # equal masks have equal pixels of each class
                if matrices.ids != images[0] or not np.array_equal(counts[1], images[1]):
                    self.missing[name] = f"{place} was evaluated on other validation images"
                    break
                found[name, split] = counts.astype(np.float64)
            else:
                pixels |= found
        self._draws: dict[tuple[Hashable, int], statistics.Array] = {}
        self._without: dict[tuple[Hashable, int], statistics.Array] = {}
        if pixels and score is not None:
            draws = statistics.resampled(list(pixels.values()), score)
            without = statistics.left_out(list(pixels.values()), score)
            self._draws = dict(zip(pixels, draws.T, strict=True))
            self._without = dict(zip(pixels, without.T, strict=True))

    def _shared(self, names: Iterable[Hashable]) -> list[int]:
        """The splits that all have a score on."""
        names = list(names)
        return [split for split in self._scores[names[0]] if all(split in self._scores[name] for name in names)]

    def difference(self, name: Hashable, base: Hashable) -> statistics.Difference | None:
        """Of two cells that have matrices; None if they share no split."""
        if not (splits := self._shared((name, base))):
            return None
        deltas = np.array([self._scores[name][split] - self._scores[base][split] for split in splits])
        draws, without = (
            np.stack([values[name, split] - values[base, split] for split in splits], axis=1)
            for values in (self._draws, self._without)
        )
        return statistics.difference(deltas, draws, without)

    def first_shares(self, names: Sequence[Any]) -> dict[Any, float]:
        """P(rank 1) of cells that have matrices; empty if they share no split."""
        if not (splits := self._shared(names)):
            return {}
        scores = self._sign * np.array([[self._scores[name][split] for split in splits] for name in names])
        draws = np.stack([np.stack([self._draws[name, split] for split in splits], axis=1) for name in names], axis=1)
        return dict(zip(names, statistics.first_shares(scores, self._sign * draws).tolist(), strict=True))
