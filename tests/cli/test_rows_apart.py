"""Trials of one row are told apart, classes keep the order of the data set, and captions fit the terminal."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from css_ray import Study
from css_ray.reports.render import to_text
from css_ray.reports.table import make_table
from css_ray.study.definition import parse
from css_ray.study.labels import labels
from css_ray_cli.study.show import text_width
from css_ray_cli.view import View, Watcher
from tests.cli.made_up import SEARCH, SPEC, Journal, call


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def scored(kept: float, **iou: float) -> dict[str, float]:
    """Pseudo-labels of one source; the classes in this order."""
    values = {f"pseudo/iou/mix/{name}": value for name, value in iou.items()}
    return {"pseudo/miou/mix": sum(iou.values()) / len(iou), "pseudo/kept/mix": kept, **values}


def pseudo_labels(*arguments: str) -> list[list[str]]:
    result = call("study", "pseudo-labels", "small", "--format", "md", *arguments)
    assert result.exit_code == 0, result.output
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in result.output.splitlines() if line.startswith("|")
    ]


def test_trials_of_a_search_have_a_line_each_with_what_was_drawn() -> None:
    journal = Journal(grid=None, search=SEARCH, splits=[0])
    journal.whole(0, {0: 40.0}, {"method.temperature": 0.25}, metrics=scored(80.0, tree=30.0, sky=90.0))
    journal.whole(1, {0: 50.0}, {"method.temperature": 0.75}, metrics=scored(70.0, sky=80.0, road=60.0))
    header, _, first, second = pseudo_labels()
    assert (
        header[:3] == ["trial", "row", "τ"]
        and first[:3] == ["0", "CSS (mix)", "0.25"]
        and second[:3] == ["1", "CSS (mix)", "0.75"]
    )
    # `sky, road, tree` is the order of the data set; trial 0 scored the tree first.
    assert header[3:] == ["source", "mIoU", "kept", "sky", "road", "tree"]
    assert first[6:] == ["90.00", "–", "30.00"] and second[6:] == ["80.00", "60.00", "–"]
    line = call("study", "pseudo-labels", "small", "--format", "csv").output.splitlines()[1]
    assert line.startswith("0,CSS (mix),0.25,mix,60.0,")


def test_rows_that_differ_need_no_more_columns() -> None:
    journal = Journal(splits=[0])
    journal.whole(0, {0: 40.0}, metrics=scored(80.0, tree=30.0))
    journal.whole(1, {0: 50.0}, metrics=scored(70.0, sky=80.0))
    header, _, first, _ = pseudo_labels()
    assert header == ["row", "source", "mIoU", "kept", "sky", "tree"] and first[0] == "Sup."


GRID = {"data.labelled": [12, 24], "method": SPEC["grid"]["method"]}


def test_labels_name_what_differs_and_nothing_else() -> None:
    def of(**sections: Any) -> list[str]:
        return list(labels(parse({**SPEC, **sections}).grid_trials()).values())

    assert of() == ["Sup.", "CSS (mix)"]
    assert of(grid=GRID) == ["Sup., labelled=12", "CSS (mix), labelled=12", "Sup., labelled=24", "CSS (mix), labelled=24"]
    # What is not varied by one of them has no value there.
    method = SPEC["grid"]["method"][0]
    listed = [{"method": method}, {"method": method, "train.lr": 0.1, "data.dataset": "digits"}]
    assert of(grid=None, trials=listed) == ["Sup.", "Sup., lr=0.1, dataset=digits"]
    assert of(grid={"method": [{"name": "supervised"}], "train.lr": [0.1]}) == ["supervised"]


def shown(view: Any) -> str:
    output = io.StringIO()
    Console(file=output, width=80, height=50).print(view)
    return output.getvalue()


def test_status_shows_which_row_of_a_grid_with_columns_is_which() -> None:
    journal = Journal(grid=GRID, splits=[0])
    for trial in range(4):
        journal.whole(trial, {0: 40.0 + trial})
    standing = Study.open("small").standing
    text = " ".join(shown(View(standing)).split())
    for label in ("Sup., labelled=12", "CSS (mix), labelled=12", "Sup., labelled=24"):
        assert label in text, text
    assert "best 43.00 (trial 3, CSS (mix), labelled=24)" in text
    assert "best 43.00 (trial 3, CSS (mix), labelled=24)" in call("study", "list").output


def test_the_lines_of_a_run_without_a_terminal_name_it_too() -> None:
    from css_ray.standing import Standing
    from css_ray.study.journal import Follower

    journal = Journal(grid=GRID, splits=[0])
    journal.whole(2, {0: 40.0})
    console = Console(file=io.StringIO(), width=80)
    watcher = Watcher(Standing(parse, journal.definition), console)
    for event in Follower(str(journal.path.parent)).new():
        watcher.event(event)
    assert "trial 2 (Sup., labelled=24) finished: 40.00 (n=1 of 1)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_caption_is_as_wide_as_it_may_be() -> None:
    journal = Journal(splits=[0])
    journal.whole(0, {0: 40.0})
    study = Study.open("small")
    for width in (40, 72, 200):
        caption = study.table("text", width=width).split("\n\n")[0]
        lines = caption.splitlines()
        assert max(map(len, lines)) <= width
        # No line could have taken the first word of the next.
        assert all(len(line) + 1 + len(after.split()[0]) > width for line, after in itertools.pairwise(lines))
    assert to_text(make_table(study.standing.records)) == to_text(make_table(study.standing.records), 100)
    assert study.table("md", width=40) == study.table("md")


def test_the_width_is_that_of_the_terminal_and_100_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_width() == 100  # pytest's output is no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "63")
    assert text_width() == 63 and text_width("table.txt") == 100
