"""`--set KEY=VALUE`: every field can be overridden, and a method's settings wherever the study names the method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyDefinition, StudyError, extend, parse, read
from tests.study.definition.specs import SEARCH, minimal, printed


def test_overrides_reach_every_kind_of_field(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(minimal(search=SEARCH)))
    study = read(
        path,
        ["train.iterations=7", "splits=[4]", "grid.data.labelled=[8, 16]", "search.space.method.temperature={uniform: [0.1, 0.2]}",
         "resources.concurrent_trials=2"],
    )  # fmt: skip
    assert study.train.iterations == 7
    assert study.splits == (4,)
    assert study.grid["data.labelled"] == (8, 16)
    assert study.space["method.temperature"].values == (0.1, 0.2)
    assert study.resources.concurrent_trials == 2
    with pytest.raises(StudyError, match=r"train.itertions is unknown \(did you mean iterations\?\)"):
        read(path, ["train.itertions=7"])
    with pytest.raises(StudyError, match="takes KEY=VALUE"):
        read(path, ["train.iterations"])


# ------------------------------------------------------------------------------------------------------- method.KEY=VALUE

SUPERVISED, CUTMIX = {"name": "supervised", "row": "Sup."}, {"name": "cutmix", "row": "CutMix", "teacher_decay": 0.9}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study that names methods in every place: at its top, in the grid, in trials and in a search."""
    search = {**copy.deepcopy(SEARCH), "first": [{"method.temperature": 0.5, "method.hard_threshold": 0.8}]}
    changes = {
        "method": {"name": "mean_teacher", "row": "MT"},
        "grid": {"method": [SUPERVISED, CUTMIX, {"name": "css", "row": "CSS"}]},
        "trials": [{"train.lr": 0.2}, {"train.lr": 0.3, "method": {"name": "css", "row": "CSS 2"}, "method.temperature": 0.4}],
        "search": search,
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(minimal(**changes)))
    return path


def values(study: StudyDefinition, key: str) -> dict[str, Any]:
    """A setting of the method by row; the row of the search is called `search`."""
    found = {trial.row: trial.settings["method"].get(key) for trial in study.grid_trials()}
    assert study.search is not None
    (first,) = study.search.first
    return {**found, "search": study.search_trial(9, first).settings["method"].get(key)}


def refused(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        read(path, overrides)
    return printed(caught.value)


def test_a_methods_setting_reaches_every_method_that_has_it(path: Path) -> None:
    assert values(read(path, ["method.teacher_decay=0.5"]), "teacher_decay") == {
        "Sup.": None, "CutMix": 0.5, "CSS": 0.5, "MT": 0.5, "CSS 2": 0.5, "search": 0.5
    }  # fmt: skip
    # One that a single method has leaves the others as they are.
    found = values(read(path, ["method.num_queries=7"]), "num_queries")
    assert found == {"Sup.": None, "CutMix": None, "MT": None, "CSS": 7, "CSS 2": 7, "search": 7}


def test_a_methods_setting_stays_where_the_study_varies_it(path: Path) -> None:
    # The search draws the temperature, and a trial sets its own.
    found = values(read(path, ["method.temperature=0.1"]), "temperature")
    assert found == {"Sup.": None, "CutMix": None, "MT": None, "CSS": 0.1, "CSS 2": 0.4, "search": 0.5}


def test_a_setting_that_varies_wherever_it_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(minimal(grid__method=[SUPERVISED], search=SEARCH)))
    decides = "which decides its value; override that, or drop it"
    assert refused(path, "method.temperature=0.2") == (
        f"--set method.temperature: is varied by search.space.method.temperature, {decides}",
    )
    path.write_text(yaml.safe_dump(minimal(grid={"method": [CUTMIX], "method.teacher_decay": [0.9, 0.99]})))
    assert refused(path, "method.teacher_decay=0.5") == (
        f"--set method.teacher_decay: is varied by grid.method.teacher_decay, {decides}",
    )
    # What the message says to do works.
    assert len(read(path, ["grid.method.teacher_decay=[0.5]"]).grid_trials()) == 1


def test_a_setting_that_no_method_has_is_refused_beside_all_other_problems(path: Path) -> None:
    found = refused(path, "method.temprature=0.2", "train.lr=-1", "seed", "method.preset=papers")
    assert found == (
        "--set takes KEY=VALUE, such as train.iterations=100; got 'seed'",
        "--set method.temprature: no method of the study has the setting temprature (did you mean temperature?)",
        "--set method.preset: no method of the study has the preset 'papers' (did you mean paper?)",
        "train.lr: must be > 0, got -1",
    )


def test_a_wrong_value_is_listed_where_it_arrived(path: Path) -> None:
    assert refused(path, "method.num_queries=0") == (
        "grid.method[2].num_queries: must be >= 1, got 0",
        "trials[1].method.num_queries: must be >= 1, got 0",
        "search.method.num_queries: must be >= 1, got 0",
    )


def test_a_preset_reaches_the_methods_that_have_it(path: Path) -> None:
    found = values(read(path, ["method.preset=paper"]), "preset")
    assert found == {
        "Sup.": "default",
        "CutMix": "default",
        "MT": "default",
        "CSS": "paper",
        "CSS 2": "paper",
        "search": "paper",
    }
    # An explicit setting overrides the preset, in whatever order they are given.
    study = read(path, ["method.contrast_schedule=ramp_down", "method.preset=paper"])
    assert values(study, "contrast_schedule")["CSS"] == "ramp_down"


def test_several_methods_cannot_share_a_name_or_a_row(path: Path) -> None:
    for key in ("name", "row"):
        (found,) = refused(path, f"method.{key}=css")
        assert found.startswith(
            f"--set method.{key}: the study lists 6 methods, which cannot share one {key}; override the list"
        )


def test_the_name_of_the_only_method_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(minimal(grid={"train.lr": [0.1, 0.2]}, method={"name": "cutmix", "teacher_decay": 0.5})))
    study = read(path, ["method.temperature=0.3", "method.name=css"])  # the setting is one of the new method
    assert [trial.settings["method"]["temperature"] for trial in study.grid_trials()] == [0.3, 0.3]
    assert {trial.settings["method"]["name"] for trial in study.grid_trials()} == {"css"}
    # A study without a method gets one.
    path.write_text(yaml.safe_dump(minimal(grid={"train.lr": [0.1]})))
    (trial,) = read(path, ["method.name=css", "method.temperature=0.3"]).grid_trials()
    assert (trial.settings["method"]["name"], trial.settings["method"]["temperature"]) == ("css", 0.3)


def test_methods_that_share_an_alias_in_yaml_are_overridden_each_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    spec = minimal(grid__method=None)
    del spec["grid"]
    path.write_text(
        yaml.safe_dump(spec) + "grid:\n  method: [&css {name: css, row: CSS}]\n"
        "search:\n  method: *css\n  trials: 1\n  space: {method.temperature: {uniform: [0.1, 1.0]}}\n"
    )
    study = read(path, ["method.temperature=0.2"])
    assert study.grid_trials()[0].settings["method"]["temperature"] == 0.2
    assert study.search is not None and "temperature" not in study.search.method


def test_a_study_that_has_begun_keeps_its_methods(path: Path) -> None:
    study = parse(read(path).resolved())
    with pytest.raises(StudyError) as caught:
        extend(study, ["method.teacher_decay=0.5"])
    assert [problem.path for problem in caught.value.problems] == ["method", "grid", "trials", "search.method"]
