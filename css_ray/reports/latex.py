"""Tables in LaTeX as a paper takes them: booktabs, a short caption above, a label, and all that explains the numbers below."""

from __future__ import annotations

import re
from collections.abc import Sequence

from css_ray.reports.escapes import latex
from css_ray.reports.table import MISSING, Entry, Grid

_SCORE = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?(?: ± (\d+\.\d+))?")  # a number, or one with its standard deviation

# In pt: a column of a two-column article, and a character at \footnotesize, bold type and the sign ± considered.
_COLUMN, _CHARACTER = 229.0, 4.6
_INDEX = 0.75  # of a character's width


def to_document(grid: Grid, siunitx: bool = False) -> str:
    r"""A `table` environment, or `table*` if it is too wide for one column of a two-column article.

    Its first line, a comment, is the packages that it needs. siunitx: align the columns of numbers at their decimal points.
    """
    asides: list[str] = []
    cells = [[_marked(entry, len(grid.notes), asides) for entry in row] for row in grid.rows]
    numeric = [siunitx and _is_numeric([row[place] for row in grid.rows]) for place in range(len(grid.header))]
    columns = [
        _number_column([row[place] for row in cells]) if numeric[place] else "c" if place else "l"
        for place in range(len(grid.header))
    ]
    body = [[_cell(entry, marks, aligned) for (entry, marks), aligned in zip(row, numeric, strict=True)] for row in cells]
    header = [f"{{{latex(text)}}}" if aligned else latex(text) for text, aligned in zip(grid.header, numeric, strict=True)]
    gaps = len(grid.header) - 1
    width = _width(grid) + 2 * sum(numeric)  # siunitx rounds the room that it leaves up
    environment = "table*" if width + 4 * gaps > _COLUMN else "table"
    separation = 2 if _COLUMN - 8 * gaps < width <= _COLUMN - 4 * gaps else 4
    notes = [latex(grid.caption)]
    if any(entry.bold for row in grid.rows for entry in row):
        notes[0] += " Bold: the best."
    notes += [f"$^{{{number}}}$ {latex(note)}" for number, note in enumerate((*grid.notes, *asides), start=1)]
    text = "\n".join(
        [
            rf"% \usepackage{{booktabs{',siunitx' if any(numeric) else ''}}}",
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\caption{{{latex(grid.title)}}}",
            rf"\label{{tab:{_label(grid.label)}}}",
            r"\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{separation}pt}}",
            rf"\begin{{tabular}}{{@{{}}{''.join(columns)}@{{}}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip\raggedright\scriptsize",
            "\n\n".join(notes),
            rf"\end{{{environment}}}",
        ]
    )
    foreign = "" if text.isascii() else "% has letters beyond ASCII: if pdflatex lacks one of them, compile with lualatex\n"
    return f"{foreign}{text}\n"


def _label(name: str) -> str:
    """A name in which no letter means anything to TeX."""
    return re.sub(r"[^A-Za-z0-9.:-]+", "-", name).strip("-") or "study"


def _marked(entry: Entry, before: int, asides: list[str]) -> tuple[Entry, tuple[int, ...]]:
    """An entry and the numbers of its notes; what is beside the score in many cells is one note, added to `asides`."""
    if not entry.aside:
        return entry, entry.notes
    if entry.aside not in asides:
        asides.append(entry.aside)
    return entry, (*entry.notes, before + 1 + asides.index(entry.aside))


def _text(entry: Entry) -> str:
    return entry.narrow or entry.text


def _cell(entry: Entry, marks: Sequence[int], aligned: bool) -> str:
    """The standard deviation as an index, as it is usual in this field: four scores fit a column of a two-column article."""
    score = _SCORE.fullmatch(_text(entry))
    if score is None:
        text = latex(_text(entry))
        text = (rf"\textbf{{{text}}}" if entry.bold else text) + _mark(marks)
        return f"{{{text}}}" if aligned else text
    number, post = _parts(entry, marks)
    if aligned:
        return (r"\bfseries " if entry.bold else "") + number + (f"{{{post}}}" if post else "")
    return (rf"\textbf{{{latex(number)}}}" if entry.bold else latex(number)) + post


def _parts(entry: Entry, marks: Sequence[int]) -> tuple[str, str]:
    """A score as its mean, and all that follows it."""
    number, _, std = _text(entry).partition(" ± ")
    return number, (rf"$_{{\pm {std}}}$" if std else "") + _mark(marks)


def _mark(marks: Sequence[int]) -> str:
    return f"$^{{{','.join(map(str, marks))}}}$" if marks else ""


def _is_numeric(entries: Sequence[Entry]) -> bool:
    """Whether a column has numbers alone, and at least one."""
    texts = [_text(entry) for entry in entries if _text(entry) != MISSING]
    return bool(texts) and all(map(_SCORE.fullmatch, texts))


def _number_column(cells: Sequence[tuple[Entry, tuple[int, ...]]]) -> str:
    """siunitx's column for these numbers, with room for what follows them."""
    scores = [(score, _parts(*cell)[1]) for cell in cells if (score := _SCORE.fullmatch(_text(cell[0]))) is not None]
    sign = "+" if any(score[1] for score, _ in scores) else ""
    digits, decimals = (max(len(score[group] or "") for score, _ in scores) for group in (2, 3))
    post = max((post for _, post in scores), key=len)
    room = f", table-space-text-post={{{post}}}" if post else ""
    return f"S[detect-weight, table-format={sign}{digits}.{decimals}, table-align-text-post=false{room}]"


def _width(grid: Grid) -> float:
    """About how wide a table is without the gaps between its columns, in pt."""

    def width(entry: Entry) -> float:
        number, _, std = _text(entry).partition(" ± ")
        marks = len(entry.notes) + bool(entry.aside)
        return len(number) + _INDEX * ((len(std) + 1 if std else 0) + marks)

    columns = zip(*([*map(len, grid.header)], *([*map(width, row)] for row in grid.rows)), strict=True)
    return _CHARACTER * float(sum(map(max, columns)))
