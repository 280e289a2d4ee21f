"""Figures as files: what is drawn where, the same bytes each time, and text that stays text."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from css_ray.figures import draw
from css_ray.figures.choice import Box, binned
from css_ray.figures.draw import UNLABELLED, Drawing, Panel, Row, black_and_white, coloured, panels, relation

PALETTE = [(0, 0, 0), (250, 0, 0), (0, 0, 250)]


def drawing(keys: list[draw.Key] | None = None, name: str = "image", columns: tuple[str, str] = ("one", "two")) -> Drawing:
    labels = np.zeros((20, 40), np.uint8)
    labels[:, 20:] = 1
    rows = [
        Row(name, [Panel(coloured(labels, PALETTE)), Panel(coloured(np.full((20, 40), 2), PALETTE), [Box(10, 5, 8, 6)])]),
    ]
    return Drawing("some", "Some", "A caption.", "alt", panels(columns, rows, keys or []))


def pixels(of: Drawing) -> np.ndarray:
    with Image.open(io.BytesIO(of.encoded("png"))) as image:
        return np.asarray(image.convert("RGB"))


def test_classes_have_their_colours_and_the_rest_is_grey() -> None:
    found = coloured(np.array([[0, 1, 2], [255, 3, 254]]), PALETTE)
    assert found.tolist() == [[list(colour) for colour in PALETTE], [list(UNLABELLED)] * 3]
    assert black_and_white(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_each_panel_is_in_its_place() -> None:
    found = pixels(drawing())
    red, blue = (np.argwhere((found == colour).all(axis=2)) for colour in PALETTE[1:])
    black = np.argwhere((found == PALETTE[0]).all(axis=2))
    assert len(red) and len(blue)
    # The first panel is half black and half red, the second one blue; they stand side by side, equally high.
    assert red[:, 1].max() < blue[:, 1].min()
    assert abs(int(red[:, 0].min()) - int(blue[:, 0].min())) <= 2 and abs(int(red[:, 0].max()) - int(blue[:, 0].max())) <= 2
    wide, tall = np.ptp(blue[:, 1]) + 1, np.ptp(blue[:, 0]) + 1
    assert wide / tall == pytest.approx(2, abs=0.03)  # 40 x 20 pixels
    assert black[:, 1].min() < red[:, 1].min()


def test_a_box_is_where_its_pixels_are() -> None:
    found = pixels(drawing()).astype(int)
    blue = np.argwhere((found == PALETTE[2]).all(axis=2))
    yellow = np.argwhere(abs(found - [255, 212, 0]).sum(axis=2) < 30)
    top, left = blue.min(axis=0)
    scale = (np.ptp(blue[:, 1]) + 1) / 40
    edges = (yellow[:, 1].min() - left, yellow[:, 1].max() - left, yellow[:, 0].min() - top, yellow[:, 0].max() - top)
    assert [edge / scale for edge in edges] == pytest.approx([10, 18, 5, 11], abs=0.4)


def test_equal_figures_make_equal_bytes() -> None:
    for suffix in ("png", "pdf", "webp"):
        first, second = drawing().encoded(suffix), drawing().encoded(suffix)
        assert first == second and len(first) > 500


def test_text_is_text() -> None:
    """No name is taken for mathematics, and none may vanish or fail, whatever it holds."""
    for name in ("$x^2$", "_hidden", "\\frac{", "a\x1b[31mb", "<script>", "名前", "", "x" * 500):
        keys = [[(name, (1, 2, 3)), ("other", (4, 5, 6))]]
        assert drawing(keys, name, (name, name)).encoded("pdf")  # type: ignore[arg-type]


def test_a_key_names_every_colour() -> None:
    """Also the name with an underscore in front, which Matplotlib would leave out; many names take several lines."""
    keys = [[(f"_class {index}", (10 * index, 255 - 10 * index, 128)) for index in range(18)]]
    found = pixels(drawing(keys))  # type: ignore[arg-type]
    places = [np.argwhere((found == colour).all(axis=2)) for _, colour in keys[0]]
    assert all(len(place) > 20 for place in places)
    assert len({int(place[:, 0].mean()) for place in places}) > 1
    for place in places:  # inside the picture
        assert place.min() > 0 and (place.max(axis=0) < np.array(found.shape[:2]) - 1).all()


def test_values_have_a_scale() -> None:
    ramp = np.linspace(0, 1, 40)[None].repeat(20, 0)
    with_scale = panels(["values"], [Row("image", [Panel(ramp)])])
    assert len(with_scale.axes) == 2 and [text.get_text() for text in with_scale.axes[1].get_xticklabels()] == [
        "0.0",
        "0.5",
        "1.0",
    ]
    assert len(panels(["labels"], [Row("image", [Panel(coloured(np.zeros((4, 4), int), PALETTE))])]).axes) == 1


def test_the_relation_draws_each_pixel_and_each_mean() -> None:
    confidence = np.array([0.801, 0.805, 0.809])
    cosine = np.array([0.1, 0.9, 0.5])
    bins = binned(np.array([0.1, 0.1, 0.9]), np.array([0.2, 0.4, 0.8]), 4)
    axes: Any = relation((0.8, 0.81), confidence, cosine, bins).axes
    left, right, shares = axes
    (points,) = left.lines
    assert points.get_xdata().tolist() == confidence.tolist() and points.get_ydata().tolist() == cosine.tolist()
    assert left.get_xlim() == (0.8, 0.81)
    line = right.lines[0]
    assert line.get_xdata() == pytest.approx([0.125, 0.875]) and line.get_ydata() == pytest.approx([0.3, 0.8])
    heights = [bar.get_height() for bar in shares.patches]
    assert heights == pytest.approx([200 / 3, 0, 0, 100 / 3])


def test_the_users_own_settings_of_matplotlib_do_not_matter() -> None:
    before = drawing().encoded("png")
    with matplotlib.rc_context({"image.origin": "lower", "font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert drawing().encoded("png") == before


def test_extreme_shapes_make_a_figure_that_can_be_read() -> None:
    tall, flat = np.zeros((1000, 20), np.uint8), np.zeros((20, 1000), np.uint8)
    rows = [Row("tall", [Panel(coloured(tall, PALETTE))] * 2), Row("flat", [Panel(coloured(flat, PALETTE))] * 2)]
    figure = panels(["one", "two"], rows)
    assert figure.get_figheight() < 5
    first, other = figure.axes[0].get_position(), figure.axes[2].get_position()
    assert first.height * figure.get_figheight() == pytest.approx(3)
    assert first.width * figure.get_figwidth() == pytest.approx(3 / 50)
    assert other.width * 7.16 / (other.height * figure.get_figheight()) == pytest.approx(50)
    assert Drawing("some", "", "", "", figure).encoded("webp")
