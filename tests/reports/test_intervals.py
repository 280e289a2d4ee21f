"""Intervals in comparisons and tables: from files of matrices, and what is reported if there are none."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from css_ray import Study
from css_ray.matrices import ImageMatrices, encoded, write_matrices
from css_ray.reports.statistics import difference, holm, left_out, resampled, score_of
from tests.cli.made_up import Journal, call, refused

NAMES = ("sky", "road", "tree")
IMAGES = 50
miou = score_of("val/miou", NAMES)
assert miou is not None

ROWS = {"Sup.": 0.70, "CSS (mix)": 0.78}
"""The share of pixels that each row gets right."""


def matrices(right: float, split: int, seed: int = 0) -> ImageMatrices:
    """Of the same masks for all rows and splits with equal seeds; some images lack a class."""
    random = np.random.default_rng(seed)
    labelled = random.integers(50, 400, (IMAGES, 3)) * (random.random((IMAGES, 3)) < 0.7)
    hits = np.random.default_rng((split, int(1000 * right))).binomial(labelled, right - 0.02 * split)
    dense = np.zeros((IMAGES, 3, 3), np.int64)
    for label in range(3):
        dense[:, label, label] = hits[:, label]
        dense[:, label, (label + 1) % 3] = labelled[:, label] - hits[:, label]
    where, cells = dense.reshape(IMAGES, 9).nonzero()
    ids = tuple(f"image {number}" for number in range(IMAGES))
    return ImageMatrices(ids, NAMES, where, cells, dense.reshape(IMAGES, 9)[where, cells])


def score(found: ImageMatrices) -> float:
    assert miou is not None
    return float(miou(found.class_pixels().sum(axis=1).astype(np.float64)))


def folder(trial: int, split: int, study: str = "small") -> Path:
    return Path("runs", study, "matrices", f"trial_{trial:04d}", f"split_{split}")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def study(name: str = "small", rows: dict[str, float] | None = None, splits: int = 2, **sections: Any) -> None:
    """A finished study whose runs kept their matrices at both evaluations."""
    journal = Journal(study=name, splits=list(range(splits)), **sections)
    for trial, right in enumerate((rows or ROWS).values()):
        scores = {}
        for split in range(splits):
            found = matrices(right, split)
            for at in ("last", "best"):
                write_matrices(folder(trial, split, name), at, found)
            scores[split] = score(found)
        journal.whole(trial, scores)


def lines(*arguments: str) -> list[dict[str, str]]:
    result = call("study", *arguments, "--format", "csv")
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout.strip())))


def test_the_interval_is_that_of_the_two_rows_matrices() -> None:
    study()
    (line,) = lines("compare", "small")
    pixels = [matrices(right, split).class_pixels().astype(np.float64) for right in ROWS.values() for split in (0, 1)]
    assert miou is not None
    draws, without = resampled(pixels, miou), left_out(pixels, miou)
    scores = np.array([score(matrices(right, split)) for right in ROWS.values() for split in (0, 1)])
    expected = difference(scores[2:] - scores[:2], draws[:, 2:] - draws[:, :2], without[:, 2:] - without[:, :2])
    found = [float(line[name]) for name in ("mean_delta", "lower", "upper", "p_holm")]
    assert found == pytest.approx([expected.mean, expected.lower, expected.upper, expected.p])
    assert 0.9 < float(line["p_rank_1"]) <= 1
    text = call("study", "compare", "small").output
    assert f"{expected.lower:+.2f} to {expected.upper:+.2f}" in text
    assert "2/2" in text and "n < 6" in text  # what was there before
    assert "P(rank 1): probability of the highest mean" in " ".join(text.split())


def test_a_table_against_a_row_has_a_column_of_differences() -> None:
    study()
    (compared,) = lines("compare", "small")
    base, line = lines("table", "small", "--against", "Sup.")
    assert (line["base"], base["lower"]) == ("Sup.", "")
    for name in ("mean_delta", "lower", "upper", "p_holm", "p_rank_1"):
        assert line[name] == compared[name]
    cell = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(float(line[name]) for name in ("mean_delta", "lower", "upper")))
    latex = call("study", "table", "small", "--against", "Sup.", "--format", "latex").output
    assert r"$\Delta$ to Sup." in latex and f"& {cell} \\\\" in latex and r"95 \% interval" in latex
    assert cell in Study.open("small").table("md", against="Sup.")
    assert "small has no row 'CPS' to compare with" in refused("study", "table", "small", "--against", "CPS")
    assert "leave out --trials" in refused("study", "table", "small", "--against", "Sup.", "--trials")


def test_rows_that_are_not_separable_are_grouped() -> None:
    method = {"name": "supervised"}
    rows = {"a": 0.70, "b": 0.701, "far": 0.95}
    study(rows=rows, splits=3, grid={"method": [method | {"row": row} for row in rows]})
    text = call("study", "compare", "small", "--format", "md").output
    assert "- [1] not separable: a, b\n" in text and "| b [1] |" in text and "| far |" in text
    found = {line["row"]: line for line in lines("compare", "small")}
    assert float(found["far"]["p_rank_1"]) > 0.99
    # The p of both comparisons are adjusted together: the lower one doubled, unless the other is lower still.
    (alone,) = lines("compare", "small", "--row", "far")
    assert float(found["far"]["p_holm"]) == pytest.approx(holm([float(alone["p_holm"]), 1.0])[0])


def test_two_studies_are_paired_by_image_too() -> None:
    study("ours")
    study("theirs", rows={"Sup.": 0.70, "CSS (mix)": 0.75})
    first, second = lines("compare", "ours", "theirs")
    assert float(first["lower"]) == float(first["upper"]) == 0 and float(first["p_holm"]) == 1
    assert float(second["mean_delta"]) > 0 and "p_rank_1" not in second


def test_a_study_of_an_earlier_version_is_compared_as_before() -> None:
    journal = Journal()
    journal.whole(0, {0: 40.0, 1: 60.0})
    journal.whole(1, {0: 41.5, 1: 60.5})
    result = call("study", "compare", "small", "--format", "md")
    assert "| CSS (mix) | val/miou | +1.00 ± 0.71 | 2/2 | n < 6 | +1.50 | +0.50 |" in result.output
    assert result.output.count("No intervals: trial 1 on split 0 has no confusion matrices") == 1
    against = call("study", "table", "small", "--against", "Sup.", "--format", "md").output
    assert "| +1.00 |" in against and against.count("No intervals: ") == 1


def missing(text: str) -> str:
    """The reason that a comparison gives for what it does not show."""
    return text.split("No intervals: ")[1].split("|")[0]


def test_a_damaged_file_is_named_and_the_rest_is_shown() -> None:
    study()
    path = folder(1, 1) / "last.npz"
    path.write_bytes(path.read_bytes()[:-40])
    result = call("study", "compare", "small", "--format", "md")
    assert result.exit_code == 0 and "2/2" in result.output
    assert "trial_0001/split_1/last.npz is damaged; remove it" in missing(result.output)
    assert "95 % interval" in call("study", "compare", "small", "--at", "best").output


def test_matrices_of_another_evaluation_or_of_other_images_are_not_used() -> None:
    study()
    write_matrices(folder(1, 0), "last", matrices(0.6, 0))
    text = missing(call("study", "compare", "small", "--format", "md").output)
    assert "trial 1 on split 0 are of another evaluation" in text
    Journal(study="other", splits=[0]).whole(0, {0: score(matrices(0.7, 0, seed=1))})
    write_matrices(folder(0, 0, "other"), "last", matrices(0.7, 0, seed=1))
    result = call("study", "compare", "small", "other", "--row", "Sup.", "--format", "md")
    assert "evaluated on other validation images" in missing(result.output)
    assert encoded(matrices(0.7, 0)) != encoded(matrices(0.7, 0, seed=1))


def test_one_row_without_matrices_has_a_note() -> None:
    method = {"name": "supervised"}
    rows = {"a": 0.70, "b": 0.75, "old": 0.9}
    study(rows=rows, grid={"method": [method | {"row": row} for row in rows]})
    (folder(2, 0) / "last.npz").unlink()
    b, old = lines("compare", "small")
    assert b["lower"] and not old["lower"] and not old["p_rank_1"] and old["mean_delta"]
    text = call("study", "compare", "small", "--format", "md").output
    assert "old, val/miou: no interval, trial 2 on split 0 has no confusion matrices" in text
    against = call("study", "table", "small", "--against", "a", "--format", "md").output
    assert "old, val/miou: no interval" in against
