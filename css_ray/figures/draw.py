"""Draws figures with Matplotlib: rows of panels of one image each, and how two values of pixels are related."""

from __future__ import annotations

import functools
import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from css_ray.figures.choice import Bins, Box
from css_ray.messages import printable
from css_ray.types import IGNORE_INDEX

Pixels = NDArray[np.uint8]
Colours = Sequence[tuple[int, int, int]]
Key = Sequence[tuple[str, tuple[int, int, int]]]
"""Names with their colours."""

WIDTH = 7.16
"""Of a figure in inches: the text of a page with two columns."""

UNLABELLED = (200, 200, 200)
"""The colour of pixels without a label."""

_LINE, _BAR, _POINT, _BOX = "#0072b2", "#d9d9d9", "#d55e00", "#ffd400"
_FONT = 7.0
_DPI = 200
_TITLE_CHARACTERS = 17  # of a line of a panel's title, per inch
_KEY_CHARACTERS, _KEY_NAME = 120, 40  # of a line of a key, and of a name in it
_TALLEST, _ROW = 3.0, 0.45  # inches that a panel has at most, and a row at least

Suffix = Literal["png", "pdf", "webp"]


_plain = functools.partial(matplotlib.rc_context, matplotlib.rcParamsDefault)
"""A context without the settings of the user's matplotlibrc, with which figures would differ."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One image: RGB [H, W, 3] uint8, or values [H, W] in 0..1, which get a colour scale. boxes: what is marked in it."""

    pixels: NDArray[Any]
    boxes: Sequence[Box] = ()

    @property
    def is_scale(self) -> bool:
        return self.pixels.ndim == 2


@dataclass(frozen=True, slots=True)
class Row:
    """The panels of one image, one per column, all of its size. name: what stands beside them."""

    name: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure. name: of its files; title, caption: in words; alt: what a reader who does not see it should know."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure = field(compare=False, repr=False)

    def encoded(self, suffix: Suffix) -> bytes:
        """The content of a file; equal figures make equal bytes."""
        stream = io.BytesIO()
        about: dict[str, Any] = {"CreationDate": None} if suffix == "pdf" else {}
        options: dict[str, Any] = {"pil_kwargs": {"quality": 85, "method": 6}} if suffix == "webp" else {"metadata": about}
        with warnings.catch_warnings(), _plain():
            warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font lacks: drawn as a box
            self.figure.savefig(stream, format=suffix, dpi=_DPI if suffix == "png" else 150, **options)
        return stream.getvalue()


def coloured(labels: NDArray[np.integer], palette: Colours) -> Pixels:
    """Classes [H, W] -> RGB [H, W, 3]; pixels without a label are grey."""
    table = np.full((256, 3), UNLABELLED, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = UNLABELLED
    rgb: Pixels = table[labels]
    return rgb


def black_and_white(mask: NDArray[np.bool_]) -> Pixels:
    """A mask [H, W] -> RGB [H, W, 3]: white where it is true."""
    return np.repeat((mask.astype(np.uint8) * 255)[..., None], 3, axis=2)


@_plain()
def panels(columns: Sequence[str], rows: Sequence[Row], keys: Sequence[Key] = ()) -> Figure:
    """A figure of panels.

    Args:
        columns: Their titles.
        rows: With as many panels each.
        keys: Names of colours, drawn below the panels, one below the other.
    """
    beside = 0.2  # inches for the names of the rows
    gap = 0.04
    wide = (WIDTH - beside - gap * len(columns)) / len(columns)
    titles = [_lines(title, int(wide * _TITLE_CHARACTERS)) for title in columns]
    above = 0.07 + 0.12 * max(map(len, titles))
    shapes = [row.panels[0].pixels.shape for row in rows]
    tall = [min(wide * shape[0] / shape[1], _TALLEST) for shape in shapes]
    pitch = [max(each, _ROW) + gap for each in tall]
    scale = 0.32 if any(panel.is_scale for row in rows for panel in row.panels) else 0.0
    below = 0.05 + sum(_key_height(key) for key in keys)
    height = above + sum(pitch) + scale + below
    figure = _new_figure(height)
    top, image = above, None
    for row, shape, each, whole in zip(rows, shapes, tall, pitch, strict=True):
        broad = each * shape[1] / shape[0]
        for column, panel in enumerate(row.panels):
            left = beside + column * (wide + gap) + (wide - broad) / 2
            axes = figure.add_axes((left / WIDTH, 1 - (top + each) / height, broad / WIDTH, each / height))
            drawn = _image(axes, panel)
            image = drawn if panel.is_scale else image
            if row is rows[0]:
                axes.set_title("\n".join(titles[column]), fontsize=_FONT, pad=3, parse_math=False)
            if column == 0:
                characters = max(int(max(each, _ROW) * 22), 8)
                axes.set_ylabel(_short(row.name, characters), fontsize=_FONT - 1.5, labelpad=3, parse_math=False)
        top += whole
    if image is not None:
        bar = figure.add_axes((0.3, (below + 0.2) / height, 0.4, 0.07 / height))
        scale_bar = figure.colorbar(image, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
        scale_bar.ax.tick_params(labelsize=_FONT - 1, length=2, pad=1)
    place = below
    for key in keys:
        _draw_key(figure, key, place / height)
        place -= _key_height(key)
    return figure


@_plain()
def relation(
    window: tuple[float, float],
    confidences: NDArray[np.floating],
    cosines: NDArray[np.floating],
    bins: Bins,
) -> Figure:
    """Figure 4 of the paper: cosines over the confidences inside a small window, and their mean in each interval.

    Args:
        window: The interval of the confidence in (a).
        confidences, cosines: Of the pixels in (a).
        bins: Of all pixels, for (b).
    """
    height = 2.5
    figure = _new_figure(height)
    left, right = figure.add_axes((0.075, 0.17, 0.37, 0.72)), figure.add_axes((0.555, 0.17, 0.37, 0.72))
    left.plot(confidences, cosines, ".", markersize=2, color=_POINT, alpha=0.5, rasterized=True)
    left.set_xlim(*window)
    left.set_xlabel("confidence", fontsize=_FONT)
    left.set_ylabel("cosine similarity to the prototype", fontsize=_FONT)
    left.set_title(f"(a) confidence from {window[0]:.2f} to {window[1]:.2f}", fontsize=_FONT)

    shares = right.twinx()
    centres, wide = (bins.edges[:-1] + bins.edges[1:]) / 2, bins.edges[1] - bins.edges[0]
    shares.bar(centres, 100 * bins.share, width=0.92 * wide, color=_BAR, zorder=1)
    shares.set_ylabel("pixels in % (bars)", fontsize=_FONT)
    shares.set_yscale("log")
    shares.set_ylim(top=100)
    right.set_zorder(shares.get_zorder() + 1)
    right.patch.set_visible(False)
    filled = ~np.isnan(bins.mean)
    right.errorbar(
        centres[filled], bins.mean[filled], yerr=bins.std[filled], color=_LINE, marker="o", markersize=2.5, linewidth=1,
        elinewidth=0.7, capsize=1.5,
    )  # fmt: skip
    right.set_xlim(0, 1)
    right.set_xlabel("confidence", fontsize=_FONT)
    right.set_ylabel("mean cosine similarity ± std (line)", fontsize=_FONT)
    right.set_title("(b) all confidences", fontsize=_FONT)
    for axes in (left, right, shares):
        axes.tick_params(labelsize=_FONT - 1, length=2)
        axes.spines["top"].set_visible(False)
    left.spines["right"].set_visible(False)
    return figure


def _new_figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def _per_line(key: Key) -> int:
    """How many names of a key fit beside each other."""
    longest = max(min(len(name), _KEY_NAME) for name, _ in key)
    return max(1, min(len(key), _KEY_CHARACTERS // (longest + 6)))


def _key_height(key: Key) -> float:
    """In inches."""
    return 0.02 + 0.135 * -(-len(key) // _per_line(key)) if key else 0.0


def _draw_key(figure: Figure, key: Key, top: float) -> None:
    """top: as a share of the figure's height."""
    if not key:
        return
    patches = [
        Patch(
            facecolor=(colour[0] / 255, colour[1] / 255, colour[2] / 255),
            edgecolor="#8a8a8a",
            linewidth=0.4,
            label=_literal(name),
        )
        for name, colour in key
    ]
    drawn = figure.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, top), ncols=_per_line(key), fontsize=_FONT - 1, frameon=False,
        handlelength=1, handleheight=0.8, columnspacing=1, borderpad=0.1, borderaxespad=0, labelspacing=0.3,
    )  # fmt: skip
    for text in drawn.get_texts():
        text.set_parse_math(False)


def _image(axes: Any, panel: Panel) -> Any:
    tall, wide = panel.pixels.shape[:2]
    small = max(tall, wide) < 200  # single pixels are seen then, and should not be blurred
    how: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1} if panel.is_scale else {}
    drawn = axes.imshow(panel.pixels, interpolation="nearest" if small else "antialiased", aspect="auto", **how)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.3, color="#8a8a8a")
    for box in panel.boxes:
        place = (box.left - 0.5, box.top - 0.5)
        for colour, width in (("#000000", 1.8), (_BOX, 1.0)):
            axes.add_patch(Rectangle(place, box.width, box.height, fill=False, edgecolor=colour, linewidth=width))
    return drawn


def _lines(title: str, characters: int) -> list[str]:
    """A title in at most three lines."""
    lines = textwrap.wrap(printable(title), max(characters, 4)) or [""]
    return lines if len(lines) <= 3 else [*lines[:2], _short(" ".join(lines[2:]), max(characters, 4))]


def _short(text: str, characters: int) -> str:
    """The end of a text, which tells ids apart, if it is too long."""
    text = printable(text)
    return text if len(text) <= characters else f"…{text[1 - characters :]}"


def _literal(name: str) -> str:
    """A name in a key: Matplotlib leaves out those that begin with an underscore."""
    text = _short(name, _KEY_NAME)
    return f"\u200a{text}" if text.startswith("_") else text
