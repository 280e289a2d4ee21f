"""`css-ray study compare`: differences by hand, of rows and of studies, and pairs that are refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from css_ray import Study
from tests.cli.made_up import SEARCH, SPEC, Journal, call, refused


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def lines(*arguments: str) -> list[dict[str, str]]:
    result = call("study", "compare", *arguments, "--format", "csv")
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout.strip())))


def test_rows_of_one_study() -> None:
    """The splits differ by twenty points, the method by one: on the same split that is plain."""
    journal = Journal()
    journal.whole(0, {0: 40.0, 1: 60.0}, best=61.0)
    journal.whole(1, {0: 41.5, 1: 60.5}, best=62.0)
    result = call("study", "compare", "small")
    assert result.exit_code == 0, result.output
    # 1.5 and 0.5: mean 1, sample std 0.7071, population std 0.5.
    assert "CSS (mix)  val/miou  +1.00 ± 0.71  2/2   n < 6  +1.50    +0.50" in result.output
    assert "small: val/miou minus that of Sup. on the same split, at the last step" in result.output
    assert "+1.00 ± 0.50" in call("study", "compare", "small", "--ddof", "0").output
    assert (
        "| CSS (mix) | val/miou | +1.00 ± 0.00 | 2/2 |"
        in call("study", "compare", "small", "--at", "best", "--format", "md").output
    )
    (line,) = lines("small", "--against", "CSS (mix)")
    assert (line["row"], line["base"], line["mean_delta"], line["wins"]) == ("Sup.", "CSS (mix)", "-1.0", "0")
    out = call("study", "compare", "small", "--format", "latex", "--out", "gain.tex")
    assert out.exit_code == 0 and r"+1.00$_{\pm 0.71}$" in Path("gain.tex").read_text()


def test_each_column_has_its_own_pairs() -> None:
    grid = {"data.labelled": [12, 24], **SPEC["grid"]}
    journal = Journal(grid=grid, table={"columns": "data.labelled"})
    for trial, (labelled, score) in enumerate([(12, 40.0), (12, 41.0), (24, 50.0), (24, 53.0)]):
        journal.begin(trial)
        journal.run(trial, 0, score, split_hash=f"{labelled} images")
    found = lines("small")
    assert [(line["data.labelled"], line["mean_delta"], line["n"]) for line in found] == [
        ("12", "1.0", "1"),
        ("24", "3.0", "1"),
    ]


def test_two_studies_on_the_splits_that_both_have() -> None:
    Journal(study="ours", splits=[0, 1]).whole(1, {0: 50.0, 1: 70.0})
    theirs = Journal(study="theirs", splits=[1, 2])
    theirs.whole(0, {1: 60.0, 2: 10.0})
    theirs.whole(1, {1: 68.0, 2: 10.0})
    (line,) = lines("ours", "theirs")
    assert (line["row"], line["base"], line["mean_delta"], line["n"]) == ("CSS (mix)", "theirs", "2.0", "1")
    assert line["split_1"] == "2.0" and "split_0" not in line
    (line,) = lines("ours", "theirs", "--row", "CSS (mix)", "--against", "Sup.")
    assert (line["base"], line["mean_delta"]) == ("Sup. of theirs", "10.0")


def test_other_images_are_refused() -> None:
    Journal(study="ours").whole(0, {0: 50.0, 1: 70.0})
    theirs = Journal(study="theirs")
    theirs.begin(0)
    theirs.run(0, 0, 48.0, split_hash="others of split 0")
    theirs.run(0, 1, 68.0)
    theirs.end(0, {0: 48.0, 1: 68.0})
    said = refused("study", "compare", "ours", "theirs")
    assert (
        "Sup. and theirs have different images on split 0 (images of sp and others of sp)" in said and "data.labelled" in said
    )
    # The same within a study, of which one row has more labels than the other.
    method = {"name": "supervised", "row": "Sup."}
    journal = Journal(
        study="more", grid=None, trials=[{"method": method}, {"method": {**method, "row": "more"}, "data.labelled": 24}]
    )
    journal.whole(0, {0: 40.0})
    journal.whole(1, {0: 44.0}, split_hash="24 images")
    assert "more and Sup. have different images on split 0" in refused("study", "compare", "more")


def test_what_cannot_be_compared_is_said() -> None:
    journal = Journal(study="ours", splits=[0, 1])
    journal.whole(0, {0: 50.0, 1: 70.0})
    assert "there is no other row to compare with 'Sup.'" in refused("study", "compare", "ours")
    assert "ours has no row 'CPS' to compare with; choose one of Sup." in refused(
        "study", "compare", "ours", "--against", "CPS"
    )
    assert "no study other in runs" in refused("study", "compare", "ours", "other")
    Journal(study="late", splits=[3, 4]).whole(0, {3: 50.0})
    assert "ours and late have no split that both have finished" in refused("study", "compare", "ours", "late")
    Journal(study="mix").whole(1, {0: 50.0})
    said = refused("study", "compare", "ours", "mix")
    assert "ours (rows: Sup.) and mix (rows: CSS (mix))" in said and "--row and --against" in said
    Journal(study="new")
    assert "run the study first" in refused("study", "compare", "new")


def test_the_best_of_several_trials_is_said_to_be_one() -> None:
    journal = Journal(grid={"method": SPEC["grid"]["method"][:1]}, search=SEARCH)
    journal.whole(0, {0: 40.0, 1: 60.0})
    journal.whole(1, {0: 41.0, 1: 61.0}, {"method.temperature": 0.2})
    assert "optimistic" not in Study.open("small").compare()
    journal.whole(2, {0: 44.0, 1: 66.0}, {"method.temperature": 0.4})
    text = Study.open("small").compare()
    assert "| CSS (mix) | val/miou | +5.00 ± 1.41 | 2/2 |" in text and "an optimistic estimate" in text
