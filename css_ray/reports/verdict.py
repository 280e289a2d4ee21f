"""What a table shows, in one sentence per column, made from its numbers by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from css_ray.reports.compare import Comparison, Difference
from css_ray.reports.table import Cell, Table

RULE = (
    "Rule: of the rows that finished on all their splits, the one with the best mean, against the base (the runner-up, if it "
    "is the base itself) on the splits that both have. Two rows are separable if the p of their difference is below 0.05, by "
    "Holm's method over all pairs of rows."
)


def verdicts(table: Table, comparison: Comparison | None, unpaired: str = "") -> list[str]:
    """One sentence per column of the table.

    comparison: of the table's rows with a base, None without another row, or if they cannot be paired; unpaired: why not.
    """
    # A row's name may end with a full stop.
    return [f"{_verdict(table, column, comparison, unpaired).rstrip('.')}." for column in table.columns]


def ranked(table: Table, column: Any) -> list[Any]:
    """The rows that have a score on all their splits, best mean first; rows with equal means in the order of the table."""
    means = {row: cell.score.mean for row, cell in _cells(table, column).items() if cell.score.complete}
    sign = -1 if table.mode == "max" else 1
    return sorted(means, key=lambda row: sign * (means[row] or 0.0))


def _cells(table: Table, column: Any) -> dict[Any, Cell]:
    return {row: table.cells[row, column] for row in table.rows if (row, column) in table.cells}


def _verdict(table: Table, column: Any, comparison: Comparison | None, unpaired: str) -> str:
    where = "" if table.column_name is None else f"{table.column_name} {column}: "
    cells, order = _cells(table, column), ranked(table, column)
    extreme = "highest" if table.mode == "max" else "lowest"
    if not order:
        none = "no row" if where else "No row"
        begun = {row: cell for row, cell in cells.items() if cell.score.mean is not None}
        if not begun:
            return f"{where}{none} has a finished run yet"
        sign = 1 if table.mode == "max" else -1
        fullest = max(begun, key=lambda row: (begun[row].score.n, sign * (begun[row].score.mean or 0.0)))
        return (
            f"{where}{none} has finished on all its splits yet; the fullest is {fullest} with a mean {table.metric} of "
            f"{begun[fullest].score.text}"
        )
    best = order[0]
    score, equal = cells[best].score, [row for row in order[1:] if row in table.best(column)]
    several = f", the best of {cells[best].num_complete} trials" if cells[best].num_complete > 1 else ""
    text = f"{where}{best} has the {extreme} mean {table.metric}, {score.text} % over {_splits(score.n)}{several}"
    if equal:
        text += f" (equal to two decimals: {', '.join(map(str, equal))})"
    if len(cells) == 1:
        return f"{text}; it is the only row, so nothing is compared"
    if comparison is None:
        return f"{text}; it cannot be compared with the other rows: {unpaired}"
    if len(order) == 1:
        return f"{text}; no other row has finished on all its splits"
    return text + _against(table, column, comparison, order)


def _against(table: Table, column: Any, comparison: Comparison, order: Sequence[Any]) -> str:
    """How far the best row is from the base, or from the runner-up if it is the base, and from which rows it is separable."""
    best, base = order[0], comparison.base
    found = {each.row: each for each in comparison.differences if each.column == column}
    if best == base:
        other, name, sign = order[1], f"the runner-up {order[1]}", -1
        difference = found.get(other)
    else:
        other, name, sign = base, str(base), 1
        difference = found.get(best)
    if difference is None or difference.mean is None:
        return f"; it has no split in common with {name}"
    place = (difference.row, column)
    delta, certainty = sign * difference.mean, comparison.certainty
    text = f", {abs(delta):.2f} points {'above' if delta >= 0 else 'below'} {name}"
    if certainty is None or place not in certainty.differences:
        reason = "" if certainty is None else certainty.missing.get(place, "")
        return f"{text} ({_wins(table, difference, sign)}); there is no interval{f', since {reason}' if reason else ''}"
    sure = certainty.differences[place]
    lower, upper = sorted((sign * sure.lower, sign * sure.upper))
    text += f" (95 % interval {lower:+.2f} to {upper:+.2f}"
    text += ", over the validation images of this split alone)" if len(difference.deltas) == 1 else ")"
    alike = {row for group in certainty.groups.get(column, ()) if best in group for row in group} & set(order) - {best}
    unknown = [row for row in order[1:] if (row, column) in certainty.missing]
    apart = [row for row in order[1:] if row not in alike and row not in unknown]
    parts = []
    if alike:
        parts.append(f"not separable from {_listed([row for row in order if row in alike])}")
    if apart:
        parts.append(f"separable from {_listed(apart)}")
    if unknown:
        parts.append(f"without an interval to {_listed(unknown)}")
    return f"{text}; it is {', '.join(parts)}"


def _wins(table: Table, difference: Difference, sign: int) -> str:
    better = sum(sign * delta > 0 if table.mode == "max" else sign * delta < 0 for delta in difference.deltas.values())
    return f"better on {better} of {_splits(len(difference.deltas))}"


def _splits(count: int) -> str:
    return f"{count} split{'s' * (count != 1)}"


def _listed(rows: Sequence[Any]) -> str:
    names = [*map(str, rows)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
