"""A checked study: its trials, what a trial is made of, and the spec that the journal keeps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from css_ray.study.definition import parse
from tests.study.definition.specs import LIST, MINIMAL, SEARCH, minimal

ROOT = Path(__file__).parents[3]


def test_grid_is_the_product_in_the_order_of_the_file() -> None:
    study = parse(minimal(grid={"data.labelled": [8, 16], "method": MINIMAL["grid"]["method"]}))
    got = [(trial.settings["data"]["labelled"], trial.row) for trial in study.grid_trials()]
    assert got == list(itertools.product([8, 16], ["Sup.", "CSS"]))
    assert study.grid_trials()[3].params == {"data.labelled": 16, "method.name": "css"}


def test_a_drawn_setting_reaches_the_method_and_the_rest_keeps_its_default() -> None:
    study = parse(minimal(search=SEARCH))
    trial = study.search_trial(2, {"method.temperature": 0.25, "method.hard_threshold": 0.75})
    assert trial.settings["method"]["temperature"] == 0.25
    assert trial.settings["method"]["hard_threshold"] == 0.75
    assert trial.settings["method"]["unsup_threshold"] == 0.97
    assert trial.params == {"method.name": "css", "method.temperature": 0.25, "method.hard_threshold": 0.75}


def test_the_resolved_spec_is_the_same_study_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = parse(minimal(search=SEARCH))
    written = json.dumps(study.resolved())
    monkeypatch.chdir(tmp_path)
    again = parse(json.loads(written))
    assert again.data.root == str(ROOT / "data" / "digits")
    assert again.spec["train"]["momentum"] == 0.9  # a default that may change
    assert again.grid_trials()[1].params == study.grid_trials()[1].params
    same = ("views", "model", "train", "splits", "grid", "search", "space", "resources")
    assert all(getattr(again, name) == getattr(study, name) for name in same)


def test_a_trial_keeps_its_preset_and_settings_go_before_it() -> None:
    css = {"name": "css", "row": "CSS", "preset": "published", "pseudo_labelling": "cross", "negatives": "shared"}
    trial = parse(minimal(grid__method=[css])).grid_trials()[0]
    assert trial.params["method.preset"] == trial.settings["method"]["preset"] == "published"
    assert trial.settings["method"]["unsup_gate"] == "similarity"  # of the released cross_label script
    assert trial.settings["method"]["negatives"] == "shared"
    plain = parse(minimal()).grid_trials()[1]
    assert plain.settings["method"]["preset"] == "default" and "method.preset" not in plain.params


def test_presets_can_be_the_rows_or_columns_of_a_grid() -> None:
    presets = {"method": [{"name": "css"}], "method.preset": ["default", "paper", "published"]}
    trials = parse(minimal(grid=presets)).grid_trials()
    assert [trial.settings["method"]["contrast_schedule"] for trial in trials] == ["ramp_down", "constant", "published_epochs"]


def test_split_files_are_named_by_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = minimal(
        data__labelled_list=LIST, data__unlabelled_list="s3://bucket/{labelled}/{split:03d}.txt", data__nested_splits=False
    )
    monkeypatch.chdir(tmp_path)
    study = parse(spec)
    assert (study.data.labelled_list, study.data.nested_splits) == (LIST, False)
    # In the journal, and for a worker in another folder, local paths are absolute.
    data = study.resolved()["data"]
    assert data["labelled_list"] == str(tmp_path / LIST)
    assert data["unlabelled_list"] == "s3://bucket/{labelled}/{split:03d}.txt"
    plain = parse(minimal())
    assert (plain.data.nested_splits, plain.data.labelled_list, plain.data.unlabelled_list) == (True, None, None)


def test_the_score_of_a_trial() -> None:
    objective = parse(minimal(objective__aggregate="mean_minus_std", objective__std_weight=2)).objective
    assert objective.score(60.0, 1.5) == 57.0 and objective.score(60.0, None) is None
    assert parse(minimal()).objective.score(60.0, 1.5) == 60.0


@pytest.mark.parametrize(
    ("workers", "batches", "sizes"),
    [(2, (4, 6), [2]), (4, (4, 6), []), ([1, 8], (16, 16), [1, 2, 4, 8]), ([2, 8], (4, 6), [2]), ([5, 7], (16, 16), [])],
)
def test_which_numbers_of_workers_share_the_batches(workers: Any, batches: tuple[int, int], sizes: list[int]) -> None:
    from css_ray.study.definition import Resources

    data = dict(zip(("labelled_batch", "unlabelled_batch"), batches, strict=True))
    assert Resources(workers=workers).sizes(data) == sizes
