"""The charts of a report: each a drawing without a script, with a text in its place for who cannot see it.

With `search_charts`, which has those of a search, the only home of Altair and vl-convert, whose import takes longer than all of
a command's start: nothing imports these files at start-up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from numpy.typing import NDArray

from css_ray.messages import printable

COLOURS = ("#0072B2", "#D55E00", "#00795A", "#AA4499", "#333333", "#8F6400", "#3485B5", "#882255")
"""Of rows, which also differ in shape and dashes: most are Okabe and Ito's, darker if their contrast with white is below 3."""

_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
MOST_LINES = 12
"""Rows in one chart; the table has all."""

WIDTH = 380
"""Of a plot, in pixels: with its axis it is read on a telephone without being shrunk by much."""

_LONGEST = 32  # characters of a row's name in a legend
_MOST_POINTS = 150  # of one learning curve
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
_PALE, _DARK = "#eef3f9", "#08306b"  # the ends of a scale for shares
_DARK_FROM = 0.65  # of that scale, from where white text has the higher contrast

Values = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart. name: of its files; title: what is shown; alt: its numbers in words; note: what a reader must know of it."""

    name: str
    title: str
    alt: str
    spec: dict[str, Any]
    note: str = ""

    def svg(self) -> str:
        """The drawing; ids in it begin with the figure's name, so that several may be in one page."""
        drawn = vl_convert.vegalite_to_svg(self.spec, vl_version=_VEGA_LITE)
        drawn = re.sub(r'(?<=\bid=")([^"]+)"', rf'{self.name}-\1"', drawn)
        return re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}-\1)", drawn)

    def pdf(self) -> bytes:
        """The drawing for a paper."""
        drawn: bytes = vl_convert.vegalite_to_pdf(self.spec, vl_version=_VEGA_LITE)
        return drawn


def make_figure(name: str, title: str, text: str, chart: Any, note: str = "") -> Figure:
    """The figure of an Altair chart, in the style of all; text: what it shows in words."""
    chart = chart.configure(
        aria=False,
        font="sans-serif",
        background="white",
        axis=alt.AxisConfig(
            labelFontSize=13,
            titleFontSize=13,
            labelColor="#222",
            titleColor="#222",
            gridColor="#e4e4e4",
            titleFontWeight="normal",
        ),
        legend=alt.LegendConfig(
            labelFontSize=13, titleFontSize=13, labelColor="#222", titleColor="#222", labelLimit=360, titleFontWeight="normal"
        ),
        view=alt.ViewConfig(stroke=None),
    )
    # A name of a file and an id: letters of any script, digits, hyphens.
    safe = re.sub(r"[^\w]+", "-", name).strip("-").lower()
    return Figure(safe, printable(title), printable(text), chart.to_dict(), note)


def shorten(row: Any) -> str:
    """A text as charts show it: one line of at most 32 characters."""
    text = printable(str(row)).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 13]}…{text[-12:]}"  # names often differ at their ends


def distinct(texts: Sequence[Any]) -> list[str]:
    """Texts as charts show them, numbered if they would be the same."""
    names: list[str] = []
    for text in texts:
        name, number = shorten(text), 2
        while name in names:
            name, number = f"{shorten(text)} ({number})", number + 1
        names.append(name)
    return names


def _by_row(rows: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Names of rows in a legend, all different, and what distinguishes them: colour, shape and dashes.

    A chart of points has a legend by `color` and `shape`, one of lines by `line` and `dash`; `plain dash` adds none.
    """
    names = distinct(rows)
    columns = 1 if max(map(len, names)) > 22 else 2 if max(map(len, names)) > 11 else 3

    def scale(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=names, range=[values[place % len(values)] for place in range(len(names))])

    def legend(symbol: str) -> alt.Legend | None:
        if len(names) == 1:
            return None
        line, point = {"symbolType": "stroke", "symbolSize": 500}, {"symbolSize": 90, "symbolDash": [1, 0]}
        more: dict[str, Any] = line if symbol == "line" else point
        return alt.Legend(title=None, orient="bottom", columns=columns, symbolStrokeWidth=2, symbolOpacity=1, **more)

    return names, {
        "color": alt.Color("row:N", scale=scale(COLOURS), legend=legend("point")),
        "shape": alt.Shape("row:N", scale=scale(_SHAPES), legend=legend("point")),
        "line": alt.Color("row:N", scale=scale(COLOURS), legend=legend("line")),
        "dash": alt.StrokeDash("row:N", scale=scale(_DASHES), legend=legend("line")),
        "plain dash": alt.StrokeDash("row:N", scale=scale(_DASHES), legend=None),
    }


def data_of(values: Values) -> alt.Data:
    """Rows as Altair takes them."""
    return alt.Data(values=[dict(value) for value in values])  # type: ignore[no-untyped-call]


def _left_out(rows: Sequence[Any]) -> str:
    more = len(rows) - MOST_LINES
    return f"Shown are the {MOST_LINES} rows with the highest mean; the table has the other {more}, too." if more > 0 else ""


def slopes(name: str, metric: str, scores: Mapping[Any, Mapping[int, float]]) -> Figure:
    """A line per row over the splits: lines that never cross mean that one row is better on each split.

    scores: by row, best first, the score on each split in percent.
    """
    note = _left_out([*scores])
    scores = dict([*scores.items()][:MOST_LINES])
    names, by_row = _by_row([*scores])
    splits = sorted({split for values in scores.values() for split in values})
    values = [
        {"row": row, "split": str(split), "score": score}
        for row, found in zip(names, scores.values(), strict=True)
        for split, score in found.items()
    ]
    base = alt.Chart(data_of(values), width=WIDTH, height=260).encode(
        x=alt.X(
            "split:O",
            title="split",
            sort=[*map(str, splits)],
            axis=alt.Axis(labelAngle=0, grid=True),
            scale=alt.Scale(padding=0.3),
        ),
        y=alt.Y("score:Q", title=f"{metric} in percent", scale=alt.Scale(zero=False, nice=True)),
    )
    lines = base.mark_line(strokeWidth=2).encode(color=by_row["color"], strokeDash=by_row["plain dash"])
    points = base.mark_point(size=70, filled=True, opacity=1).encode(color=by_row["color"], shape=by_row["shape"])
    chart = lines + points
    words = "; ".join(
        f"{row}: " + ", ".join(f"split {split} {found[split]:.2f}" for split in splits if split in found)
        for row, found in scores.items()
    )
    return make_figure(
        name, f"{metric} on each split", f"Line chart of {metric} in percent on each split. {words}.", chart, note
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean of a row over its runs by step, in percent, and the standard deviation, None with one run."""

    steps: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float | None]
    runs: int


def curves(name: str, metric: str, found: Mapping[Any, Curve]) -> Figure:
    """Learning curves: a line per row, best first, with a band of one standard deviation over the splits."""
    note = _left_out([*found])
    found = dict([*found.items()][:MOST_LINES])
    names, by_row = _by_row([*found])
    values = []
    for row, curve in zip(names, found.values(), strict=True):
        stride = math.ceil(len(curve.steps) / _MOST_POINTS)
        for place in range((len(curve.steps) - 1) % stride, len(curve.steps), stride):  # the last one is among them
            mean, std = curve.mean[place], curve.std[place]
            band = {} if std is None else {"low": mean - std, "high": mean + std}
            values.append({"row": row, "step": curve.steps[place], "score": mean, **band})
    base = alt.Chart(data_of(values), width=WIDTH, height=260).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, format="~s", grid=False, labelFlush=False)),
    )
    y = alt.Y("score:Q", title=f"{metric} in percent", scale=alt.Scale(zero=False, nice=True))
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=18, filled=True)).encode(
        y=y, color=by_row["line"], strokeDash=by_row["dash"]
    )
    chart: Any = lines
    if any("low" in value for value in values):
        bands = base.properties(data=data_of([value for value in values if "low" in value])).mark_area(opacity=0.15)
        bands = bands.encode(y=alt.Y("low:Q", title=f"{metric} in percent"), y2="high:Q", color=by_row["line"])
        chart = bands + lines
    words = "; ".join(
        f"{row}: from {curve.mean[0]:.2f} at step {curve.steps[0]} to {curve.mean[-1]:.2f}"
        + ("" if curve.std[-1] is None else f" ± {curve.std[-1]:.2f}")
        + f" at step {curve.steps[-1]}, {curve.runs} run{'s' * (curve.runs != 1)}"
        for row, curve in found.items()
    )
    return make_figure(
        name, f"{metric} while training", f"Learning curves, mean and standard deviation over splits. {words}.", chart, note
    )


def by_class(
    name: str, title: str, scores: Mapping[Any, Mapping[str, tuple[float, float | None]]], class_names: Sequence[str]
) -> Figure:
    """A dot per class and row at its mean IoU in percent, with a bar of one standard deviation to both sides."""
    names, by_row = _by_row([*scores])
    classes = distinct(class_names)
    values = []
    for row, found in zip(names, scores.values(), strict=True):
        for class_name, shown in zip(class_names, classes, strict=True):
            if class_name in found:
                mean, std = found[class_name]
                bar = {} if std is None else {"low": max(0.0, mean - std), "high": min(100.0, mean + std)}
                values.append({"row": row, "class": shown, "iou": mean, **bar})
    step = max(18, 9 * len(names) + 4)
    x = alt.X("iou:Q", title="IoU in percent", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))
    y = alt.Y("class:N", sort=classes, title=None, axis=alt.Axis(grid=True, labelLimit=150, bandPosition=0))
    offset = alt.YOffset("row:N", sort=names, scale=alt.Scale(paddingOuter=0.5))
    base = alt.Chart(data_of(values), width=WIDTH - 70, height=alt.Step(step, **{"for": "position"})).encode(
        y=y, yOffset=offset
    )
    chart: Any = base.mark_point(size=45, filled=True, opacity=1).encode(x=x, color=by_row["color"], shape=by_row["shape"])
    if any("low" in value for value in values):
        bars = base.properties(data=data_of([value for value in values if "low" in value])).mark_rule(strokeWidth=1.5)
        bars = bars.encode(x=alt.X("low:Q", title="IoU in percent"), x2="high:Q", color=by_row["color"])
        chart = bars + chart
    words = "; ".join(
        f"{row}: " + ", ".join(f"{class_name} {found[class_name][0]:.2f}" for class_name in class_names if class_name in found)
        for row, found in scores.items()
    )
    return make_figure(name, title, f"Dots of the IoU of each class in percent. {words}.", chart)


MOST_CLASSES = 40
"""Classes of a confusion matrix that is drawn."""


def confusion(name: str, row: Any, counts: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """A confusion matrix [C, C] (row: label) as shares of each label's pixels, in percent; of the largest classes if C > 40."""
    words = "; ".join(confusions(counts, class_names, 5))
    note = ""
    if len(class_names) > MOST_CLASSES:
        largest = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:MOST_CLASSES])
        note = f"Shown are the {MOST_CLASSES} classes with the most labelled pixels, of {len(class_names)}."
    else:
        largest = np.arange(len(class_names))
    totals = counts.sum(axis=1)
    names = distinct([class_names[place] for place in largest])
    values = [
        {"label": names[i], "predicted": names[j], "share": share, "text": f"{100 * share:.0f}"}
        for i, label in enumerate(largest)
        for j, predicted in enumerate(largest)
        if totals[label] and (share := float(counts[label, predicted] / totals[label])) > 0
    ]
    size = 40 if len(names) <= 9 else max(11, 380 // len(names))
    labels: dict[str, Any] = {"labelLimit": 130, "labelFontSize": min(13, size)}
    scale = alt.Scale(domain=names)
    x = alt.X("predicted:N", sort=names, title="predicted", axis=alt.Axis(labelAngle=-90, **labels), scale=scale)
    y = alt.Y("label:N", sort=names, title="label", axis=alt.Axis(**labels), scale=scale)
    base = alt.Chart(data_of(values), width=size * len(names), height=size * len(names)).encode(x=x, y=y)
    shade = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=[_PALE, _DARK], interpolate="rgb"), legend=None)
    chart: Any = base.mark_rect().encode(color=shade)
    if size >= 26:
        ink = alt.condition(f"datum.share > {_DARK_FROM}", alt.value("#fff"), alt.value("#000"))
        chart = chart + base.mark_text(fontSize=12).encode(text="text:N", color=ink)
    text = f"Confusion matrix of {row}, as shares of each label's pixels. Most frequent errors: {words}."
    return make_figure(name, f"Confusion matrix of {row}", text, chart, note)


def confusions(counts: NDArray[np.int64], class_names: Sequence[str], number: int) -> list[str]:
    """The most frequent errors in words, by their share of the label's pixels."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), 0.0)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:number]
    pairs = [np.unravel_index(place, shares.shape) for place in order]
    return [f"{class_names[i]} as {class_names[j]} {100 * shares[i, j]:.1f} %" for i, j in pairs if shares[i, j] > 0]
