"""Study files: read from YAML, extended while they run, confirmed on fresh splits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from css_ray.study.definition import StudyError, confirmation, extend, parse, read
from tests.study.definition.specs import SEARCH, minimal, printed

ROOT = Path(__file__).parents[3]
SEARCHED = {"grid": None, "search": SEARCH}


def test_yaml_traps(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    # YAML 1.1 reads 1e-4 as text; a person means a number.
    path.write_text(yaml.safe_dump(minimal()) + "seed: 1\n")
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 1e-1\n  min_lr: 1e-4"))
    study = read(path)
    assert (study.train.lr, study.train.min_lr) == (0.1, 0.0001)
    path.write_text(path.read_text() + "seed: 2\n")
    with pytest.raises(
        StudyError, match=f"line {len(path.read_text().splitlines())}, column 1: the key 'seed' is listed twice"
    ):
        read(path)


def test_a_mapping_may_take_over_another() -> None:
    from css_ray.study.definition.yaml_file import StudyLoader

    text = "a: &a {name: css, row: A}\nb: {<<: *a, row: B}\n"
    assert yaml.load(text, Loader=StudyLoader) == {"a": {"name": "css", "row": "A"}, "b": {"name": "css", "row": "B"}}


def test_a_missing_file_offers_its_neighbour() -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*quickstart\.yaml"):
        read(ROOT / "studies" / "quickstrat.yaml")


def test_a_study_may_be_extended_where_nothing_trained_becomes_wrong() -> None:
    study = parse(minimal(**copy.deepcopy(SEARCHED)))
    overrides = [
        "search.trials=9",
        "splits=[0, 1, 5]",
        "budget.hours=2",
        "resources.workers=2",
        "search.space.method.temperature={uniform: [0.01, 2.0]}",
    ]
    extended = extend(study, overrides)
    assert (extended.num_trials, extended.splits, extended.budget.hours, extended.resources.workers) == (9, (0, 1, 5), 2, 2)
    assert extended.space["method.temperature"].values == (0.01, 2.0)
    assert extend(study, []).resolved() == study.resolved()
    assert study.num_trials == 3  # as it was


def test_what_an_extension_may_not_touch_is_listed_together() -> None:
    study = parse(minimal(**copy.deepcopy(SEARCHED)))
    with pytest.raises(StudyError) as caught:
        extend(
            study,
            [
                "train.iterations=20",
                "splits=[1, 0]",
                "search.trials=2",
                "objective.at=best",
                "search.space.method.num_queries={int: [1, 9]}",
            ],
        )
    assert printed(caught.value) == (
        "train: decides what has been trained already; start another study for other values, or train the best again with `css-ray study confirm --set`",
        "splits: must begin with those of the study, [0, 1], got [1, 0]",
        "objective.at: is how the trials were scored; `css-ray study table --at` shows the other",
        "search.trials: must be >= 3, got 2",
        "search.space: must keep its settings, and method.num_queries was added or removed; ranges may change",
    )
    with pytest.raises(StudyError, match="search: cannot be added to a study that has begun, or removed"):
        extend(study, ["search=null", "grid={method: [{name: supervised}]}"])


def test_listed_trials_of_a_study_that_has_begun_stay() -> None:
    study = parse(minimal(trials=[{"train.lr": 0.2, "method": {"name": "css"}}]))
    with pytest.raises(StudyError) as caught:
        extend(study, ["trials=[{train.lr: 0.3, method: {name: css}}]"])
    assert printed(caught.value) == ("trials: decides what has been trained already; start another study for other values",)


def test_wrong_overrides_of_a_study_that_has_begun_are_listed_with_what_they_break() -> None:
    with pytest.raises(StudyError) as caught:
        extend(parse(minimal()), ["splits", "resources.workers=0"])
    assert printed(caught.value) == (
        "--set takes KEY=VALUE, such as train.iterations=100; got 'splits'",
        "resources.workers: must be >= 1, got 0",
    )


def test_a_confirmation_takes_settings_of_the_method_but_those_that_were_drawn() -> None:
    study = parse(minimal(**copy.deepcopy(SEARCHED)))
    tried = {4: {"method.temperature": 0.3, "method.hard_threshold": 0.6}}
    (trial,) = confirmation(study, tried, [7, 8], ["method.num_queries=5"]).grid_trials()
    assert (trial.settings["method"]["num_queries"], trial.settings["method"]["temperature"]) == (5, 0.3)
    with pytest.raises(StudyError, match=r"--set method.temperature: is varied by trials\[0\]"):
        confirmation(study, tried, [7, 8], ["method.temperature=0.1"])


def test_what_cannot_be_read_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot read .*folder.yaml: it is a folder, not a file; give the path of a file"):
        (tmp_path / "folder.yaml").mkdir()
        read(tmp_path / "folder.yaml")
    path = tmp_path / "study.yaml"
    path.write_bytes(b"study: \xff\xfe")
    with pytest.raises(StudyError, match="  is not a text file in UTF-8"):
        read(path)
    path.write_text("study: small\ndata: {root: x, : }\n  - y\n")
    with pytest.raises(StudyError, match=r"\n  line 2, column 17: expected the node content, but found ':'"):
        read(path)
    path.write_text("- a\n")
    with pytest.raises(StudyError, match="  a study is a mapping of sections"):
        read(path)
