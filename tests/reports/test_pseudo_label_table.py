"""Table 4 from records, by numbers added up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from css_ray.records import Record
from css_ray.reports.pseudo_labels import pseudo_label_table
from css_ray.reports.render import to_csv, to_markdown, to_text


def record(trial: int, split: int, metrics: dict[str, float], status: str = "finished") -> Record:
    return Record(
        study="s", trial=trial, split=split, row=f"row {trial}", source="grid", params={}, status=status, last=metrics, best={}  # type: ignore[arg-type]
    )  # fmt: skip


def scores(logits: float, mix: float, chair: float) -> dict[str, float]:
    return {
        "val/miou": 50.0,
        "pseudo/miou/logits": logits,
        "pseudo/kept/logits": 80.0,
        "pseudo/iou/logits/sky": 90.0,
        "pseudo/iou/logits/chair": chair,
        "pseudo/miou/mix": mix,
        "pseudo/kept/mix": 60.0,
        "pseudo/iou/mix/sky": 95.0,
        "pseudo/kept/representations": 0.0,
    }


RECORDS = [
    record(0, 0, {"val/miou": 40.0}),  # supervised: makes none
    record(1, 0, scores(60.0, 70.0, 4.0)),
    record(1, 1, scores(64.0, 74.0, 8.0)),
    record(1, 2, {}, status="failed"),
]


def test_means_over_splits_by_source_and_class() -> None:
    table = pseudo_label_table(RECORDS, splits=3)
    grid = table.grid()
    assert grid.header == ("row", "source", "mIoU", "kept", "sky", "chair")
    texts = [tuple(entry.text for entry in row) for row in grid.rows]
    assert texts == [
        ("row 1", "logits", "62.00 ± 2.83 (n=2 of 3)", "80.00", "90.00", "6.00"),
        ("row 1", "mix", "72.00 ± 2.83 (n=2 of 3)", "60.00", "95.00", "–"),
        ("row 1", "representations", "–", "0.00", "–", "–"),  # a threshold out of reach keeps nothing
    ]
    assert table.lines()[0]["std"] == pytest.approx(8**0.5)
    assert "row 1,mix,72" in to_csv(table).replace("1,row 1", "row 1")
    assert "72.00 ± 2.83" in to_markdown(table) and "72.00 ± 2.83" in to_text(table)


def test_classes_of_which_nothing_is_kept_are_counted() -> None:
    records = [
        replace(each, last={**each.last, "pseudo/unkept_classes/mix": 1.0 + split}) for split, each in enumerate(RECORDS[1:3])
    ]
    table = pseudo_label_table(records, splits=2)
    assert table.grid().header == ("row", "source", "mIoU", "kept", "unkept", "sky", "chair")
    assert [[entry.text for entry in row][4] for row in table.grid().rows] == ["–", "1.5", "–"]
    assert table.caption.endswith("Classes of which it keeps no pixel (unkept) count with an IoU of 0.")
    assert [line["unkept_classes"] for line in table.lines()] == [None, 1.5, None]


def test_a_study_without_pseudo_labels_says_what_would_make_some() -> None:
    with pytest.raises(ValueError, match=r"train\.diagnose_images"):
        pseudo_label_table(RECORDS[:1], splits=3)


def test_the_caption_says_what_the_numbers_are() -> None:
    assert pseudo_label_table(RECORDS, splits=3).caption == (
        "s: IoU of the pseudo-labels in percent at the last step, on the pixels of unlabelled images that have ground truth and "
        "that their source keeps; mean ± standard deviation (ddof=1) over 3 splits."
    )
    alone = pseudo_label_table([replace(RECORDS[1], best=RECORDS[1].last, last={})], splits=1, at="best", ddof=0)
    assert "at the best evaluation" in alone.caption and alone.caption.endswith("(ddof=0) over 1 split.")
    assert [quality.miou for quality in alone.qualities] == [{0: 60.0}, {0: 70.0}, {}]
