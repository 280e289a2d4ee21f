"""The charts of a report: each a drawing without a script, with a text in its place for who cannot see it.

The only home of Altair and vl-convert, whose import takes longer than all of a command's start: nothing imports this file at
start-up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from numpy.typing import NDArray

from css_ray.messages import printable
from css_ray.reports.table import param_text

COLOURS = ("#0072B2", "#D55E00", "#00795A", "#AA4499", "#333333", "#8F6400", "#3485B5", "#882255")
"""Of rows, which also differ in shape and dashes: most are Okabe and Ito's, darker if their contrast with white is below 3."""

_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
MOST_LINES = 12
"""Rows in one chart; the table has all."""

_WIDTH = 380  # of the plot, in pixels: with its axis it is read on a telephone without being shrunk by much
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


def _figure(name: str, title: str, text: str, chart: Any, note: str = "") -> Figure:
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


def _shown(row: Any) -> str:
    text = printable(str(row)).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 13]}…{text[-12:]}"  # names often differ at their ends


def _distinct(texts: Sequence[Any]) -> list[str]:
    """Texts as charts show them, numbered if they would be the same."""
    names: list[str] = []
    for text in texts:
        name, number = _shown(text), 2
        while name in names:
            name, number = f"{_shown(text)} ({number})", number + 1
        names.append(name)
    return names


def _by_row(rows: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
    """Names of rows in a legend, all different, and what distinguishes them: colour, shape and dashes.

    A chart of points has a legend by `color` and `shape`, one of lines by `line` and `dash`; `plain dash` adds none.
    """
    names = _distinct(rows)
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


def _data(values: Values) -> alt.Data:
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
    base = alt.Chart(_data(values), width=_WIDTH, height=260).encode(
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
    return _figure(name, f"{metric} on each split", f"Line chart of {metric} in percent on each split. {words}.", chart, note)


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
    base = alt.Chart(_data(values), width=_WIDTH, height=260).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=5, format="~s", grid=False, labelFlush=False)),
    )
    y = alt.Y("score:Q", title=f"{metric} in percent", scale=alt.Scale(zero=False, nice=True))
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=18, filled=True)).encode(
        y=y, color=by_row["line"], strokeDash=by_row["dash"]
    )
    chart: Any = lines
    if any("low" in value for value in values):
        bands = base.properties(data=_data([value for value in values if "low" in value])).mark_area(opacity=0.15)
        bands = bands.encode(y=alt.Y("low:Q", title=f"{metric} in percent"), y2="high:Q", color=by_row["line"])
        chart = bands + lines
    words = "; ".join(
        f"{row}: from {curve.mean[0]:.2f} at step {curve.steps[0]} to {curve.mean[-1]:.2f}"
        + ("" if curve.std[-1] is None else f" ± {curve.std[-1]:.2f}")
        + f" at step {curve.steps[-1]}, {curve.runs} run{'s' * (curve.runs != 1)}"
        for row, curve in found.items()
    )
    return _figure(
        name, f"{metric} while training", f"Learning curves, mean and standard deviation over splits. {words}.", chart, note
    )


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial of a search: what it drew, how it ended, and the mean over the splits that it finished, None without one."""

    trial: int
    status: str
    mean: float | None
    params: Mapping[str, Any]


_ENDINGS = {
    "finished": ("#0072B2", "circle"),
    "partial": ("#AA4499", "diamond"),
    "pruned": ("#D55E00", "cross"),
    "failed": ("#333333", "square"),
    "running": ("#00795A", "triangle-up"),
}


def history(name: str, metric: str, tried: Sequence[Tried]) -> Figure:
    """The mean of each trial of a search in the order in which they began, and the best one that finished so far."""
    shown = [each for each in tried if each.mean is not None]
    values = [{"trial": each.trial, "mean": each.mean, "ended": each.status} for each in shown]
    best, so_far = [], -math.inf
    for each in shown:
        if each.status == "finished" and each.mean is not None:
            so_far = max(so_far, each.mean)
        if math.isfinite(so_far):
            best.append({"trial": each.trial, "mean": so_far})
    kinds = [status for status in _ENDINGS if any(each.status == status for each in shown)]
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90) if len(kinds) > 1 else None
    ends = alt.Scale(domain=[shown[0].trial - 0.5, shown[-1].trial + 0.5], nice=False)
    x = alt.X("trial:Q", title="trial", axis=alt.Axis(format="d", tickMinStep=1, grid=False, labelFlush=False), scale=ends)
    y = alt.Y("mean:Q", title=f"mean {metric} in percent", scale=alt.Scale(zero=False, nice=True))
    points = alt.Chart(_data(values), width=_WIDTH, height=240).mark_point(size=60, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("ended:N", scale=alt.Scale(domain=kinds, range=[_ENDINGS[kind][0] for kind in kinds]), legend=legend),
        shape=alt.Shape("ended:N", scale=alt.Scale(domain=kinds, range=[_ENDINGS[kind][1] for kind in kinds]), legend=legend),
    )  # fmt: skip
    line = (
        alt.Chart(_data(best))
        .mark_line(interpolate="step-after", color="#555", strokeWidth=1.5)
        .encode(x="trial:Q", y="mean:Q")
    )
    counted = ", ".join(
        f"{sum(each.status == kind for each in tried)} {kind}" for kind in _ENDINGS if any(t.status == kind for t in tried)
    )
    text = f"Scatter plot of {len(shown)} trials ({counted})."
    if math.isfinite(so_far):
        first = next(each for each in shown if each.status == "finished" and each.mean == so_far)
        text += f" The best mean, {so_far:.2f}, is that of trial {first.trial}."
    without = len(tried) - len(shown)
    note = (
        "The line is the best mean of a finished trial so far; of a pruned trial the mean is over the splits that it finished."
    )
    if without:
        note += f" {without} trial{'s' * (without != 1)} without a finished split {'is' if without == 1 else 'are'} not shown."
    return _figure(name, "The search, trial by trial", text, line + points if best else points, note)


def parallel(
    name: str,
    metric: str,
    tried: Sequence[Tried],
    params: Sequence[str],
    labels: Mapping[str, str],
    logarithmic: Container[str] = (),
) -> Figure | None:
    """A line per finished trial across one axis per setting and one for its mean; None below two trials or without a setting.

    logarithmic: the settings that are drawn by their logarithm, as their axes are.
    """
    shown = sorted(
        (each for each in tried if each.status == "finished" and each.mean is not None), key=lambda each: each.mean or 0.0
    )
    shown = shown[-_MOST_POINTS:]
    params = [param for param in params if len({repr(each.params.get(param)) for each in shown}) > 1]
    if len(shown) < 2 or not params:
        return None
    axes, values, ends = [], [], []
    for param in (*params, ""):
        axis = f"mean {metric}" if not param else labels.get(param, param.rpartition(".")[2])
        axis = axis if axis not in axes else param
        axes.append(axis)
        raw = [each.mean if not param else each.params.get(param) for each in shown]
        heights, low, high = _heights(raw, param in logarithmic)
        ends += [{"axis": axis, "height": -0.07, "text": low}, {"axis": axis, "height": 1.07, "text": high}]
        values += [
            {"axis": axis, "height": height, "trial": each.trial, "mean": each.mean}
            for each, height in zip(shown, heights, strict=True)
        ]
    best = shown[-1]
    means = [each.mean or 0.0 for each in shown]
    angle = -35 if max(map(len, axes)) > 9 and len(axes) > 3 else 0
    x = alt.X(
        "axis:O",
        sort=axes,
        title=None,
        axis=alt.Axis(labelAngle=angle, grid=True, labelLimit=200),
        scale=alt.Scale(padding=0.4),
    )
    y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.1, 1.1], nice=False))
    colour = alt.Color(
        "mean:Q",
        title=f"mean {metric}",
        scale=alt.Scale(range=["#8fa3b8", "#0b3c6f"], interpolate="rgb", domain=[means[0], means[-1]]),
        legend=None,
    )
    lines = alt.Chart(_data(values), width=_WIDTH + 40, height=240).encode(x=x, y=y)
    best_line = alt.Chart(_data([value for value in values if value["trial"] == best.trial])).encode(x=x, y=y)
    dots = alt.OverlayMarkDef(color=COLOURS[1], filled=True, size=40)
    bold = best_line.mark_line(strokeWidth=3, color=COLOURS[1], point=dots)
    lines = lines.mark_line(strokeWidth=1.5, opacity=0.8).encode(color=colour, detail="trial:N")
    text = alt.Chart(_data(ends)).mark_text(fontSize=12, color="#222").encode(x=x, y=y, text="text:N")
    words = ", ".join(f"{labels.get(param, param)} {param_text(best.params.get(param))}" for param in params)
    return _figure(
        name,
        "Settings and means of the search",
        f"Parallel coordinates of {len(shown)} finished trials. The best is trial {best.trial}, {means[-1]:.2f}: {words}.",
        lines + bold + text,
        "The darker a line, the higher its mean; the best trial is orange.",
    )


def _heights(raw: Sequence[Any], logarithmic: bool) -> tuple[list[float], str, str]:
    """Where values are on an axis from 0 to 1, and the texts of its ends."""
    if kinds := _kinds(raw):
        places = {kind: place / max(1, len(kinds) - 1) for place, kind in enumerate(kinds)}
        return [places[str(value)] for value in raw], _shown(kinds[0])[:14], _shown(kinds[-1])[:14]
    low, high = min(raw), max(raw)
    move = math.log if logarithmic and low > 0 else float
    span = move(high) - move(low) or 1.0
    return [(move(value) - move(low)) / span for value in raw], param_text(low), param_text(high)


def _kinds(raw: Sequence[Any]) -> list[str]:
    """The values of a setting as texts, numbers first and by size; empty if all are numbers, which have an axis."""
    found = {str(value): value for value in raw}
    numbers = [text for text, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(found):
        return []
    return [*sorted(numbers, key=lambda text: float(found[text])), *sorted(found.keys() - set(numbers))]


_MOST_DOTS = 2000  # of all slices of a search together
_GAP = 14  # between two slices, in pixels


def slices(
    name: str,
    metric: str,
    tried: Sequence[Tried],
    params: Sequence[str],
    labels: Mapping[str, str],
    logarithmic: Container[str] = (),
) -> Figure | None:
    """A small chart per setting of a search with a dot per trial that has a mean; None if no setting has two values.

    logarithmic: the settings that have a logarithmic axis, as their ranges are.
    """
    scored = [each for each in tried if each.mean is not None]
    searched = [param for param in params if any(param in each.params for each in scored)]
    params = [param for param in searched if len({repr(each.params.get(param)) for each in scored}) > 1]
    if not params:
        return None
    finished = [each for each in scored if each.status == "finished"]
    best = max(finished, key=lambda each: each.mean or 0.0, default=None)  # the first of equal ones, as in the history
    stride = math.ceil(len(scored) * len(params) / _MOST_DOTS)
    shown = [each for place, each in enumerate(scored) if place % stride == 0 or each is best]

    columns = min(3, len(params))
    size = {"width": (_WIDTH - _GAP * (columns - 1)) // columns, "height": {1: 240, 2: 170}.get(columns, 120)}
    means = [each.mean or 0.0 for each in shown]
    room = 0.05 * (max(means) - min(means)) or 1.0
    ends = alt.Scale(domain=[min(means) - room, max(means) + room], nice=False, zero=False)
    panels: list[Any] = []
    titles: list[str] = []
    for place, param in enumerate(params):
        title = labels.get(param, param.rpartition(".")[2])
        titles.append(title if title not in titles else param)
        x, values = _slice([each.params.get(param) for each in shown], titles[-1], param in logarithmic, size["width"])
        left = place % columns == 0
        axis = alt.Axis(tickCount=4, labels=left, ticks=left, domain=left, titleLimit=size["height"] + 20)
        y = alt.Y("mean:Q", title=f"mean {metric}" if left else None, scale=ends, axis=axis)
        panels.append(_dots(shown, values, best).properties(**size).encode(x=x, y=y))
    chart = alt.concat(*panels, columns=columns, spacing=_GAP)
    counted = ", ".join(f"{number} {kind}" for kind in _ENDINGS if (number := sum(each.status == kind for each in scored)))
    words = ", ".join(_range(labels.get(param, param), [each.params.get(param) for each in scored]) for param in params)
    text = f"Dots of the mean of {len(scored)} trials ({counted}) by each setting: {words}."
    notes = []
    if best is not None:
        found = ", ".join(f"{labels.get(param, param)} {param_text(best.params.get(param))}" for param in params)
        text += f" The best mean, {best.mean:.2f}, is that of trial {best.trial}: {found}."
        notes.append("The best finished trial has a ring.")
    if len(finished) < len(scored):
        notes.append("Trials that are not finished are hollow; their mean is over the splits that they finished.")
    if stride > 1:
        notes.append(f"Shown are {len(shown):,} of {len(scored):,} trials, evenly spaced in their order, and the best.")
    if alike := [labels.get(param, param) for param in searched if param not in params]:
        notes.append(f"All trials have the same value of {', '.join(alike)}.")
    return _figure(name, f"Mean {metric} in percent by setting", text, chart, " ".join(notes))


def _slice(raw: Sequence[Any], title: str, logarithmic: bool, width: int) -> tuple[alt.X, list[Any]]:
    """The axis of a setting, and where its values are on it."""
    style: dict[str, Any] = {"grid": False, "titleLimit": width + _GAP}
    if kinds := _kinds(raw):
        names = dict(zip(kinds, _distinct(kinds), strict=True))
        order = [*names.values()]
        angle = -45 if max(map(len, order)) * len(order) > width // 9 else 0
        axis = alt.Axis(labelAngle=angle, labelLimit=70, **style)
        x = alt.X("x:O", title=title, sort=order, scale=alt.Scale(domain=order, padding=0.5), axis=axis)
        return x, [names[str(value)] for value in raw]
    low, high = min(raw), max(raw)
    style |= {"labelOverlap": "greedy", "labelSeparation": 6, "labelFlush": False, "format": "~g"}
    if logarithmic and low > 0:
        factor = (high / low) ** 0.06
        ends = low / factor, high * factor
        scale = alt.Scale(type="log", domain=ends, nice=False)
        style["values"] = _log_ticks(*ends)
    else:
        room = 0.06 * (high - low) or 1.0
        scale = alt.Scale(domain=[low - room, high + room], nice=False, zero=False)
        whole = all(isinstance(value, int) for value in raw)
        style |= {"values": sorted({*raw})} if whole and high - low < 4 else {"tickCount": 3}
        if whole:
            style |= {"tickMinStep": 1, "labelExpr": f"format(datum.value, '{'~s' if high >= 10_000 else 'd'}')"}
    return alt.X("x:Q", title=title, scale=scale, axis=alt.Axis(**style)), [*raw]


def _log_ticks(low: float, high: float) -> list[float]:
    """Two or three of the powers of ten from low to high; if they are fewer, also of their double and fivefold, or the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        found = [float(f"{digit}e{power}") for power in powers for digit in digits if low <= float(f"{digit}e{power}") <= high]
        if len(found) > 1:
            return found[:: math.ceil(len(found) / 3)]
    return [low, high]


def _dots(shown: Sequence[Tried], values: Sequence[Any], best: Tried | None) -> Any:
    """The trials of a slice, filled if they are finished, and a ring around the best; `values` are their places."""
    kinds = [status for status in _ENDINGS if any(each.status == status for each in shown)]
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90, symbolStrokeWidth=1.5) if len(kinds) > 1 else None
    colours = [_ENDINGS[kind][0] for kind in kinds]
    fills = [colour if kind == "finished" else "white" for kind, colour in zip(kinds, colours, strict=True)]
    shapes = [_ENDINGS[kind][1] for kind in kinds]
    drawn = [
        {"trial": each.trial, "x": value, "mean": each.mean, "ended": each.status}
        for each, value in zip(shown, values, strict=True)
    ]
    drawn.sort(key=lambda dot: bool(dot["ended"] == "finished"))  # finished trials are above the others
    dots = alt.Chart(_data(drawn)).mark_point(size=30, strokeWidth=1.2, opacity=1)
    dots = dots.encode(
        fill=alt.Fill("ended:N", scale=alt.Scale(domain=kinds, range=fills), legend=legend),
        stroke=alt.Stroke("ended:N", scale=alt.Scale(domain=kinds, range=colours), legend=legend),
        shape=alt.Shape("ended:N", scale=alt.Scale(domain=kinds, range=shapes), legend=legend),
    )
    if best is None:
        return dots
    ring = alt.Chart(_data([dot for dot in drawn if dot["trial"] == best.trial]))
    return dots + ring.mark_point(shape="circle", size=130, strokeWidth=2, stroke="#222", filled=False, opacity=1)


def _range(label: str, raw: Sequence[Any]) -> str:
    """`label from 0.1 to 0.9`, or the values of a setting that has others than numbers."""
    if kinds := _kinds(raw):
        return f"{label} {' / '.join(kinds)}"
    return f"{label} from {param_text(min(raw))} to {param_text(max(raw))}"


def importances(name: str, shares: Mapping[str, float], labels: Mapping[str, str], note: str) -> Figure:
    """Bars of how much each setting of a search mattered; shares sum to 1."""
    order = sorted(shares, key=lambda path: -shares[path])
    values: list[dict[str, Any]] = [
        {"setting": labels.get(path, path), "share": 100 * shares[path], "text": f"{100 * shares[path]:.0f} %"}
        for path in order
    ]
    y = alt.Y("setting:N", sort=[value["setting"] for value in values], title=None, axis=alt.Axis(labelLimit=180))
    top = max(value["share"] for value in values)
    base = alt.Chart(_data(values), width=260, height=alt.Step(26)).encode(
        y=y,
        x=alt.X(
            "share:Q",
            title="share of the importance in percent",
            scale=alt.Scale(domain=[0, 1.15 * top or 1.0]),
            axis=alt.Axis(tickCount=5),
        ),
    )
    chart = base.mark_bar(color=COLOURS[0]) + base.mark_text(align="left", dx=4, fontSize=13, color="#222").encode(
        text="text:N"
    )
    words = ", ".join(f"{labels.get(path, path)} {100 * shares[path]:.0f} %" for path in order)
    return _figure(name, "Importance of the settings", f"Bar chart of the importance of each setting: {words}.", chart, note)


def by_class(
    name: str, title: str, scores: Mapping[Any, Mapping[str, tuple[float, float | None]]], class_names: Sequence[str]
) -> Figure:
    """A dot per class and row at its mean IoU in percent, with a bar of one standard deviation to both sides."""
    names, by_row = _by_row([*scores])
    classes = _distinct(class_names)
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
    base = alt.Chart(_data(values), width=_WIDTH - 70, height=alt.Step(step, **{"for": "position"})).encode(y=y, yOffset=offset)
    chart: Any = base.mark_point(size=45, filled=True, opacity=1).encode(x=x, color=by_row["color"], shape=by_row["shape"])
    if any("low" in value for value in values):
        bars = base.properties(data=_data([value for value in values if "low" in value])).mark_rule(strokeWidth=1.5)
        bars = bars.encode(x=alt.X("low:Q", title="IoU in percent"), x2="high:Q", color=by_row["color"])
        chart = bars + chart
    words = "; ".join(
        f"{row}: " + ", ".join(f"{class_name} {found[class_name][0]:.2f}" for class_name in class_names if class_name in found)
        for row, found in scores.items()
    )
    return _figure(name, title, f"Dots of the IoU of each class in percent. {words}.", chart)


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
    names = _distinct([class_names[place] for place in largest])
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
    base = alt.Chart(_data(values), width=size * len(names), height=size * len(names)).encode(x=x, y=y)
    shade = alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], range=[_PALE, _DARK], interpolate="rgb"), legend=None)
    chart: Any = base.mark_rect().encode(color=shade)
    if size >= 26:
        ink = alt.condition(f"datum.share > {_DARK_FROM}", alt.value("#fff"), alt.value("#000"))
        chart = chart + base.mark_text(fontSize=12).encode(text="text:N", color=ink)
    text = f"Confusion matrix of {row}, as shares of each label's pixels. Most frequent errors: {words}."
    return _figure(name, f"Confusion matrix of {row}", text, chart, note)


def confusions(counts: NDArray[np.int64], class_names: Sequence[str], number: int) -> list[str]:
    """The most frequent errors in words, by their share of the label's pixels."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), 0.0)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(-shares, axis=None, kind="stable")[:number]
    pairs = [np.unravel_index(place, shares.shape) for place in order]
    return [f"{class_names[i]} as {class_names[j]} {100 * shares[i, j]:.1f} %" for i, j in pairs if shares[i, j] > 0]
