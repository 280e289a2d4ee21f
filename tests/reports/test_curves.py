"""Learning curves as a data frame and as files: the journal's own numbers, in rows counted by hand."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pandas
import pytest

from css_ray import Study
from tests.cli.made_up import call, refused
from tests.journals import FORMULA, Telling, begun, mixed

NAMES = [FORMULA, "<script>alert(1)</script>", "a & b_c", "-x"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def two_runs() -> Telling:
    """Two splits, evaluated at steps 10 and 20; the first also logged its loss, at 5 and at 10, and is still running."""
    telling = begun()
    telling.start()
    telling.trial(0)
    telling.run(0, 1, 30.0, 40.0)
    telling.run(0, 0, 31.0, 41.0, end="running")
    for step, loss in ((5, 2.5), (10, 2.25)):
        telling.tell("run_logged", 0, 0, step=step, metrics={"train/loss": loss, "train/lr": 0.1})
    return telling


def test_one_row_a_step_of_a_run() -> None:
    two_runs()
    frame = Study.open("small").curves()
    assert list(frame.columns[:5]) == ["study", "trial", "row", "split", "step"]
    assert frame[["split", "step"]].values.tolist() == [[0, 5], [0, 10], [0, 20], [1, 10], [1, 20]]
    assert set(frame["study"]) == {"small"} and set(frame["row"]) == {"Sup."}
    # What was logged and what was evaluated at one step is one row.
    assert frame.loc[1, ["val/miou", "train/loss", "train/lr"]].tolist() == [31.0, 2.25, 0.1]
    assert math.isnan(frame.loc[0, "val/miou"]) and math.isnan(frame.loc[3, "train/loss"])


def test_the_points_are_those_of_the_journal() -> None:
    telling = mixed(Path("runs/small/journal.jsonl"))
    told = {
        (event.trial, event.split, event.step): event.metrics["val/miou"]  # type: ignore[attr-defined]
        for event in telling.events
        if event.kind == "run_evaluated"
    }
    frame = Study.open("small").curves()
    found = {tuple(row[:3]): row[3] for row in frame[["trial", "split", "step", "val/miou"]].values.tolist()}
    assert found == told and len(told) > 30


def test_files_hold_the_frame() -> None:
    two_runs()
    frame = Study.open("small").curves()
    assert call("study", "curves", "small", "--format", "parquet", "--out", "curves.parquet").exit_code == 0
    pandas.testing.assert_frame_equal(pandas.read_parquet("curves.parquet"), frame)
    printed = call("study", "curves", "small")
    assert printed.exit_code == 0
    pandas.testing.assert_frame_equal(pandas.read_csv(io.StringIO(printed.output)), frame, check_dtype=False)
    assert "name a file" in refused("study", "curves", "small", "--format", "parquet")


def test_a_study_in_which_nothing_was_measured() -> None:
    telling = begun()
    telling.start()
    frame = Study.open("small").curves()
    assert frame.empty and list(frame.columns) == ["study", "trial", "row", "split", "step"]
    telling.trial(0)
    telling.run(0, 0, end="failed", reason="CUDA out of memory")
    result = call("study", "curves", "small")
    assert result.exit_code == 1 and "no run of small has measured anything yet" in result.output
    assert "no study other in runs" in refused("study", "curves", "other")


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_computes_no_name(name: str) -> None:
    """As a row's name, and as a class's, which is in the header."""
    grid = {"method": [{"name": "supervised", "row": name}]}
    telling = begun(grid=grid, search=None)
    telling.start()
    telling.tell("trial_started", 0, row=name, source="grid", params={}, config={"train.iterations": 100})
    telling.run(0, 0, 30.0, end="running")
    telling.tell("run_logged", 0, 0, step=10, metrics={name: 1.5})
    (line,) = csv.DictReader(io.StringIO(call("study", "curves", "small").output))
    safe = f"'{name}" if name[0] in "=-" else name
    assert line["row"] == safe and line[safe] == "1.5"
