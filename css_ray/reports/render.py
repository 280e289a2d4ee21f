"""Tables as text, Markdown, CSV, LaTeX and HTML, each with a caption that explains the numbers, and with its notes."""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from css_ray.messages import markdown
from css_ray.reports.escapes import one_line, spreadsheet
from css_ray.reports.latex import to_document
from css_ray.reports.table import Entry, Grid


class Drawable(Protocol):
    """What can be rendered: `Table`, `TrialTable`, `Comparison`."""

    def grid(self) -> Grid:
        """The rounded texts, for reading."""

    def lines(self) -> list[dict[str, Any]]:
        """The unrounded values, for other programs."""


TEXT_WIDTH = 100  # characters of a caption's line in plain text, if no terminal asks for another number


def to_text(table: Drawable, width: int = TEXT_WIDTH) -> str:
    """Plain text in columns; `*` marks what is bold elsewhere. width: characters of a caption's line."""
    grid = table.grid()
    body = [
        [one_line(entry.text) + ("*" if entry.bold else "") + "".join(f" [{note}]" for note in entry.notes) for entry in row]
        for row in grid.rows
    ]
    header = [one_line(text) for text in grid.header]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]

    def line(texts: list[str]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()

    rule = "  ".join("-" * width for width in widths)
    notes = [f"[{number}] {one_line(note)}" for number, note in enumerate(grid.notes, start=1)]
    if any(entry.bold for row in grid.rows for entry in row):
        notes.insert(0, "* best of its column")
    caption = textwrap.fill(one_line(grid.caption), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join([caption, "", line(header), rule, *map(line, body), *([""] if notes else []), *notes]) + "\n"


def to_markdown(table: Drawable) -> str:
    """A GitHub table, its caption above and its notes below."""
    grid = table.grid()

    def plain(text: str) -> str:
        return markdown(one_line(text))

    def cell(entry: Entry) -> str:
        text = f"**{plain(entry.text)}**" if entry.bold else plain(entry.text)
        return text + "".join(f" [{note}]" for note in entry.notes)

    lines = [plain(grid.caption), "", f"| {' | '.join(map(plain, grid.header))} |"]
    lines.append("|" + "---|" * len(grid.header))
    lines += [f"| {' | '.join(map(cell, row))} |" for row in grid.rows]
    if grid.notes:
        lines += ["", *(f"- [{number}] {plain(note)}" for number, note in enumerate(grid.notes, start=1))]
    return "\n".join(lines) + "\n"


def to_csv(table: Drawable) -> str:
    """The long form with a header line, unrounded; a field that a line lacks is empty. No text is a spreadsheet's formula."""
    lines = [{spreadsheet(name): spreadsheet(value) for name, value in line.items()} for line in table.lines()]
    fields = dict.fromkeys(name for line in lines for name in line)
    # The splits' values belong side by side, even if the first line lacks one.
    splits = sorted((name for name in fields if name.startswith(("split_", "run_"))), key=_split_order)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [name for name in fields if name not in splits] + splits, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _split_order(name: str) -> tuple[bool, int]:
    kind, _, number = name.partition("_")
    return kind == "run", int(number)


def to_latex(table: Drawable, siunitx: bool = False) -> str:
    """LaTeX for a paper; the packages that it needs are in its first line, a comment. siunitx: see `latex.to_document`."""
    return to_document(table.grid(), siunitx)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "caption{caption-side:top;text-align:left;padding-bottom:1em;max-width:60em}"
    "th,td{padding:.3em .9em;text-align:left;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}"
    "ol{font-size:90%;color:#555}"
)


def to_html(table: Drawable) -> str:
    """A whole page that loads nothing from elsewhere; a score shows the values of its splits under the pointer."""
    grid = table.grid()

    def plain(text: str) -> str:
        return html.escape(one_line(text))

    def cell(entry: Entry) -> str:
        text = f"<b>{plain(entry.text)}</b>" if entry.bold else plain(entry.text)
        marks = "".join(f"<sup>{note}</sup>" for note in entry.notes)
        title = f' title="{plain(entry.detail)}"' if entry.detail else ""
        return f"<td{title}>{text}{marks}</td>"

    head = "".join(f"<th>{plain(text)}</th>" for text in grid.header)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in grid.rows)
    notes = "".join(f"<li>{plain(note)}</li>" for note in grid.notes)
    notes = f"<ol>{notes}</ol>\n" if notes else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{plain(grid.caption.split(":")[0])}</title>'
        f"<style>{_STYLE}</style></head><body>\n<table><caption>{plain(grid.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n{notes}</body></html>\n"
    )


def draw(table: Drawable, format: str, width: int = TEXT_WIDTH) -> str:
    """A table in a format by its name: text, md, csv, latex, latex-siunitx or html. width: as of `to_text`."""
    renderers: dict[str, Callable[[Drawable], str]] = {
        "md": to_markdown,
        "csv": to_csv,
        "latex": to_latex,
        "latex-siunitx": partial(to_latex, siunitx=True),
        "html": to_html,
    }
    return to_text(table, width) if format == "text" else renderers[format](table)
