"""The charts of a search in a report: its trials in their order, and what their settings had to do with the scores."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from css_ray.reports.charts import COLOURS, WIDTH, Figure, data_of, distinct, make_figure, shorten
from css_ray.reports.table import param_text

_MOST_LINES = 150  # trials in parallel coordinates, a line each


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
    points = alt.Chart(data_of(values), width=WIDTH, height=240).mark_point(size=60, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("ended:N", scale=alt.Scale(domain=kinds, range=[_ENDINGS[kind][0] for kind in kinds]), legend=legend),
        shape=alt.Shape("ended:N", scale=alt.Scale(domain=kinds, range=[_ENDINGS[kind][1] for kind in kinds]), legend=legend),
    )  # fmt: skip
    line = (
        alt.Chart(data_of(best))
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
    return make_figure(name, "The search, trial by trial", text, line + points if best else points, note)


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
    shown = shown[-_MOST_LINES:]
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
    lines = alt.Chart(data_of(values), width=WIDTH + 40, height=240).encode(x=x, y=y)
    best_line = alt.Chart(data_of([value for value in values if value["trial"] == best.trial])).encode(x=x, y=y)
    dots = alt.OverlayMarkDef(color=COLOURS[1], filled=True, size=40)
    bold = best_line.mark_line(strokeWidth=3, color=COLOURS[1], point=dots)
    lines = lines.mark_line(strokeWidth=1.5, opacity=0.8).encode(color=colour, detail="trial:N")
    text = alt.Chart(data_of(ends)).mark_text(fontSize=12, color="#222").encode(x=x, y=y, text="text:N")
    words = ", ".join(f"{labels.get(param, param)} {param_text(best.params.get(param))}" for param in params)
    return make_figure(
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
        return [places[str(value)] for value in raw], shorten(kinds[0])[:14], shorten(kinds[-1])[:14]
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
    size = {"width": (WIDTH - _GAP * (columns - 1)) // columns, "height": {1: 240, 2: 170}.get(columns, 120)}
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
    return make_figure(name, f"Mean {metric} in percent by setting", text, chart, " ".join(notes))


def _slice(raw: Sequence[Any], title: str, logarithmic: bool, width: int) -> tuple[alt.X, list[Any]]:
    """The axis of a setting, and where its values are on it."""
    style: dict[str, Any] = {"grid": False, "titleLimit": width + _GAP}
    if kinds := _kinds(raw):
        names = dict(zip(kinds, distinct(kinds), strict=True))
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
    dots = alt.Chart(data_of(drawn)).mark_point(size=30, strokeWidth=1.2, opacity=1)
    dots = dots.encode(
        fill=alt.Fill("ended:N", scale=alt.Scale(domain=kinds, range=fills), legend=legend),
        stroke=alt.Stroke("ended:N", scale=alt.Scale(domain=kinds, range=colours), legend=legend),
        shape=alt.Shape("ended:N", scale=alt.Scale(domain=kinds, range=shapes), legend=legend),
    )
    if best is None:
        return dots
    ring = alt.Chart(data_of([dot for dot in drawn if dot["trial"] == best.trial]))
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
    base = alt.Chart(data_of(values), width=260, height=alt.Step(26)).encode(
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
    return make_figure(
        name, "Importance of the settings", f"Bar chart of the importance of each setting: {words}.", chart, note
    )
