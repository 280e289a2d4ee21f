"""The published numbers, checked against sums that the paper's own text gives."""

from __future__ import annotations

import pytest

from css_ray.reports.paper import TABLES
from css_ray.reports.printed import printed_table
from css_ray.reports.published import Published


def test_shape_of_every_table() -> None:
    counts = {name: (len(table.rows), len(table.columns)) for name, table in TABLES.items()}
    assert counts == {
        "table1": (6, 4),
        "table2": (8, 4),
        "table3": (6, 4),
        "table4": (3, 22),
        "table5": (4, 2),
        "table6": (6, 2),
        "table7": (6, 2),
    }
    # Two cells are empty in print.
    empty = [
        (name, row) for name, table in TABLES.items() for row, cells in table.rows.items() if len(cells) < len(table.columns)
    ]
    assert empty == [("table2", "ST++"), ("table3", "PSMT")]


def test_only_table_1_has_standard_deviations() -> None:
    for name, table in TABLES.items():
        assert all((score.std is not None) == (name == "table1") for row in table.rows.values() for score in row.values())


@pytest.mark.parametrize(("row", "printed"), [("lgt.", 78.87), ("mix", 82.17), ("rep.", 71.75)])
def test_classes_of_table_4_average_to_their_miou(row: str, printed: float) -> None:
    """An oracle for 63 numbers. The paper prints 71.57 for `rep.`, whose classes average 71.75."""
    cells = TABLES["table4"].rows[row]
    mean = sum(score.mean for column, score in cells.items() if column != "mIoU") / 21
    assert mean == pytest.approx(printed, abs=0.011)
    assert cells["mIoU"].mean == (71.57 if row == "rep." else printed)


@pytest.mark.parametrize(
    ("name", "row", "base", "gains"),
    [
        ("table5", "mix pseudo-labeling", "logit space", (1.30, 2.42)),
        ("table5", "cross pseudo-labeling", "logit space", (0.74, 1.66)),
        ("table6", "seg label, mix", "seg label, conf.", (0.69, 1.18)),
        ("table6", "mix label, mix", "seg label, conf.", (1.30, 2.42)),
        ("table7", "mix", "baseline", (1.22, 1.60)),
        ("table7", "cross", "baseline", (0.10, 0.55)),
        ("table7", "ind", "baseline", (0.69, 1.18)),
        ("table7", "mix + ind", "baseline", (1.30, 2.42)),
        ("table7", "cross + ind", "baseline", (0.74, 1.66)),
    ],
)
def test_printed_gains_of_the_ablations(name: str, row: str, base: str, gains: tuple[float, float]) -> None:
    rows = TABLES[name].rows
    assert [rows[row][labels].mean - rows[base][labels].mean for labels in (92, 183)] == pytest.approx(gains, abs=1e-9)


def test_find_forgives_the_spelling_of_a_row() -> None:
    table = printed_table("paper/table1")
    assert table.find("css(MIX)", "92") == table.find("CSS (mix)", 92) == Published(68.09, 4.89)
    assert table.find("CSS", 92) is None and table.find("MT", 93) is None
    assert table.source("Css (Mix)") is table.sources["CSS (mix)"] and table.source("CSS") is None
    with pytest.raises(ValueError, match="is called 'paper/table9'; choose one of paper/table1, "):
        printed_table("paper/table9")
