"""A study file is checked as a whole: every problem at once, each with its path, value, bound and remedy."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyError, extend, parse, read

ROOT = Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))

MINIMAL: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "data/digits", "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 10, "lr": 0.1},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS"}]},
}

SEARCH: dict[str, Any] = {
    "method": {"name": "css", "row": "CSS"},
    "trials": 3,
    "space": {"method.temperature": {"loguniform": [0.05, 1.0]}, "method.hard_threshold": {"uniform": [0.5, 1.0]}},
}


def minimal(**changes: Any) -> dict[str, Any]:
    """MINIMAL with dotted changes, such as train__lr=0.2 for train.lr; None removes."""
    spec = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = spec
        for section in sections:
            target = target.setdefault(section, {})
        if value is None:
            del target[key]
        else:
            target[key] = value
    return spec


def problems(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        parse(minimal(**changes))
    return caught.value.problems


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_ships_loads_and_expands(path: Path) -> None:
    study = read(path)
    trials = study.grid_trials()
    if study.search:
        trials += [study.search_trial(len(trials), point) for point in study.search.first]
    assert trials
    assert len({trial.index for trial in study.grid_trials()}) == len(study.grid_trials())
    for trial in trials:
        assert set(trial.settings) == {"data", "views", "model", "train", "method"}


def test_table1_is_the_papers_protocol() -> None:
    study = read(ROOT / "studies" / "table1.yaml")
    assert study.num_trials == 6 * 4
    # Section 4.1 of the paper.
    assert (study.train.lr, study.train.weight_decay, study.train.iterations, study.train.poly_power) == (
        0.0064,
        0.0005,
        40_000,
        0.9,
    )
    assert (study.data.crop, study.data.labelled_batch, study.model.encoder) == (512, 16, "resnet101.tv_in1k")
    assert len(study.splits) == 3
    assert {trial.row for trial in study.grid_trials()} == {"Sup.", "MT", "CutMix", "Baseline", "CSS(crs.)", "CSS(mix)"}


def test_search_covers_the_six_hyper_parameters() -> None:
    for name in ("search", "quickstart"):
        space = read(ROOT / "studies" / f"{name}.yaml").space
        assert {path.removeprefix("method.") for path in space} == {
            "prototype_decay", "temperature", "unsup_threshold", "valid_threshold", "hard_threshold", "contrast_weight"
        }  # fmt: skip


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


def test_all_problems_come_at_once() -> None:
    found = problems(train__itertions=5, train__lr=-1, data__labelled=0, splits=[0, 0], modle={})
    text = "\n".join(found)
    assert len(found) == 5, text
    assert "train.itertions is unknown (did you mean iterations?)" in found
    assert "train.lr: must be > 0, got -1" in found
    assert "data.labelled: must be >= 1, got 0" in found
    assert "splits[1]: split 0 stands twice; each split is trained once" in found
    assert "modle is unknown (did you mean model?)" in found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train__lr": "fast"}, "train.lr: must be a number, got 'fast'"),
        ({"train__iterations": 2.5}, "train.iterations: must be a whole number, got 2.5"),
        ({"train__iterations": True}, "train.iterations: must be a whole number, got True"),
        ({"train__lr": float("nan")}, "train.lr: must be a finite number, got nan"),
        ({"data__root": None}, "data.root: missing"),
        ({"data": "digits"}, "data: must be a section (a mapping), got 'digits'"),
        ({"splits": []}, "splits: a list of split indices such as [0, 1, 2], got []"),
        ({"splits": [-1]}, "splits[0]: must be a whole number >= 0, got -1"),
        ({"model__output_stride": 7}, "model.output_stride: must be one of 4, 8, 16, got 7"),
        ({"objective": {"at": "peak"}}, "objective.at: must be one of 'last', 'best', got 'peak'"),
        ({"grid": {"method": [{"name": "css", "unsup_threshold": 1.5}]}}, "grid.method[0].unsup_threshold: must be <= 1, got 1.5"),
        ({"grid": {"method": [{"name": "csss"}]}}, "grid.method[0].name: csss is unknown (did you mean css?)"),
        ({"grid": {"method": [{"name": "css"}, {"name": "css"}]}}, "grid.method: two entries have the row 'css'; give each a `row` of its own"),
        ({"grid": {"method": [{"name": "css"}], "train.lrr": [1]}}, "grid.train.lrr[0]: train has no setting lrr (did you mean lr?)"),
        ({"grid": {"method": [{"name": "css"}], "train.lr": []}}, "grid.train.lr: must be a list with at least one entry, got []"),
        ({"grid": {"train.lr": [0.1]}}, "method: missing: name a method here, or list methods under grid.method"),
        ({"grid": None}, "grid: a study needs a grid (the product of lists), trials (one by one) or a search (trials drawn)"),
        ({"resources": {"workers": 3}}, "data.labelled_batch: 4 does not divide over 3 workers; use 6"),
        ({"study": "My Study"}, "study: a name of a-z, 0-9, '.', '_', '-', at most 63 characters, starting with a letter or digit; got 'My Study'"),
        ({"search": {**SEARCH, "space": {}}}, "search.space: is empty; map a setting to how it is drawn, such as method.temperature: {loguniform: [0.05, 1.0]}"),
        ({"search": {**SEARCH, "space": {"method.temperature": {"uniform": [1.0, 0.5]}}}},
         "search.space.method.temperature: uniform takes [low, high] with low < high, got [1.0, 0.5]"),
        ({"search": {**SEARCH, "space": {"method.hard_threshold": {"uniform": [0.5, 1.2]}}}},
         "search.space.method.hard_threshold: must be <= 1, got 1.2"),
        ({"search": {**SEARCH, "space": {"method.temprature": {"uniform": [0.5, 1.0]}}}},
         "search.space.method.temprature: method css has no setting temprature (did you mean temperature?)"),
        ({"search": {**SEARCH, "first": [{"method.temperature": 5.0, "method.hard_threshold": 0.8}]}},
         "search.first[0].method.temperature: 5.0 lies outside search.space.method.temperature"),
        ({"search": {**SEARCH, "first": [{"method.temperature": 0.5}]}},
         "search.first[0]: method.hard_threshold is missing; a first trial gives every setting of the space"),
        ({"table": {"columns": "data.labelled"}}, "table.columns: data.labelled does not vary in the grid"),
        ({"grid": {"method": [{"name": "css"}], "train.lr": [1e-5]}}, "grid: TrainConfig: min_lr must be <= lr (1e-05), got 0.0001"),
        ({"grid": {"method": [{"name": "css"}], "data.labelled_batch": [3]}, "resources": {"workers": 2}},
         "grid: data.labelled_batch: 3 does not divide over 2 workers; use 4"),
        ({"search": {**SEARCH, "space": {"train.lr": {"loguniform": [1e-5, 0.1]}}}}, "grid: TrainConfig: min_lr must be <= lr"),
        ({"search": {**SEARCH, "trials": 1, "first": [{"method.temperature": 0.5, "method.hard_threshold": 0.8}] * 2}},
         "search.first: has 2 points, but search.trials is 1; raise trials"),
        ({"train__min_lr": 0.5}, "train.min_lr: must be <= lr (0.1), got 0.5"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], sentence: str) -> None:
    found = problems(**changes)
    assert any(problem.startswith(sentence) for problem in found), found


def test_yaml_traps(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    # YAML 1.1 reads 1e-4 as text; a person means a number.
    path.write_text(yaml.safe_dump(minimal()) + "seed: 1\n")
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 1e-1\n  min_lr: 1e-4"))
    study = read(path)
    assert (study.train.lr, study.train.min_lr) == (0.1, 0.0001)
    path.write_text(path.read_text() + "seed: 2\n")
    with pytest.raises(StudyError, match="the key 'seed' stands twice"):
        read(path)


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


def test_a_missing_file_offers_its_neighbour() -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*quickstart\.yaml"):
        read(ROOT / "studies" / "quickstrat.yaml")


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


def test_unknown_presets_are_named() -> None:
    (problem,) = problems(grid__method=[{"name": "css", "preset": "publish"}])
    assert problem == "grid.method[0].preset: 'publish' is unknown (did you mean published?)"
    (problem,) = problems(grid__method=[{"name": "cutmix", "preset": "paper"}])
    assert "grid.method[0].preset" in problem and "known: default" in problem
    (problem,) = problems(grid={"method": [{"name": "css"}], "method.preset": ["default", "exact"]})
    assert "method css has no preset 'exact'" in problem
    # A gate may be null, but nothing else than what it knows.
    (problem,) = problems(grid__method=[{"name": "css", "hard_gate": "sim"}])
    assert problem.startswith("grid.method[0].hard_gate: must be one of")


def test_a_mapping_may_take_over_another() -> None:
    from css_ray.study.definition.file import StudyLoader

    text = "a: &a {name: css, row: A}\nb: {<<: *a, row: B}\n"
    assert yaml.load(text, Loader=StudyLoader) == {"a": {"name": "css", "row": "A"}, "b": {"name": "css", "row": "B"}}


LIST = "splits/{labelled}/{split}/labeled.txt"


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


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{count}/labeled.txt", "has no value for {count}"),
        ("{}/labeled.txt", "has no value for {}"),
        ("{split.real}/{seed}", "has no value for {split.real}, {seed}"),
        ("{split", "expected '}' before end of string"),
        ("{split:s}", "Unknown format code 's' for object of type 'int'"),
    ],
)
def test_a_template_with_other_fields_is_refused(template: str, complaint: str) -> None:
    sentence = f"{complaint}; the fields of a path are {{labelled}} and {{split}}, got {template!r}"
    assert problems(data__labelled_list=template) == (f"data.labelled_list: {sentence}",)
    # Alike where it varies.
    grid = {**MINIMAL["grid"], "data.labelled_list": [LIST, template]}
    assert problems(grid=grid) == (f"grid.data.labelled_list[1]: {sentence}",)


def test_an_unlabelled_list_needs_a_labelled_one() -> None:
    (problem,) = problems(data__unlabelled_list="rest.txt")
    assert problem.startswith("data.unlabelled_list: needs data.labelled_list beside it")
    (problem,) = problems(
        data__labelled_list=LIST, data__unlabelled_list="rest.txt", grid={**MINIMAL["grid"], "data.labelled_list": [LIST, None]}
    )
    assert problem.startswith("grid: data.unlabelled_list: needs data.labelled_list beside it")
    (problem,) = problems(data__nested_splits="no")
    assert problem == "data.nested_splits: must be true or false, got 'no'"


SEARCHED = {"grid": None, "search": SEARCH}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"objective__aggregate": "median"},
            "objective.aggregate: must be one of 'mean', 'mean_minus_std', 'mean_and_std', got 'median'",
        ),
        ({"objective__std_weight": -1}, "objective.std_weight: must be >= 0, got -1"),
        (
            {"objective__aggregate": "mean_minus_std", "splits": [0]},
            "objective.aggregate: mean_minus_std needs at least 2 splits, got 1; add splits or use mean",
        ),
        (
            {"search__sampler": "grid"},
            "search.space.method.temperature: the grid sampler needs {choice: [...]} or {int: [low, high]}; list the values",
        ),
        (
            {"search__sampler": "grid", "search__space": {"method.num_queries": {"int": [1, 2]}}},
            "search.trials: the grid has 2 points, got 3 trials; use 2",
        ),
        (
            {"search__sampler": "cmaes", "search__space": {"method.negatives": {"choice": ["shared", "per_anchor"]}}},
            "search.sampler: cmaes draws numbers, and the space has a choice; use tpe, or drop the choice",
        ),
        (
            {"objective__aggregate": "mean_and_std", "search__pruners": [{"name": "paired"}]},
            "search.pruners: a trial cannot be pruned for one of two objectives; use mean, or drop the pruners",
        ),
        (
            {
                "search__pruners": [{"name": "optuna", "pruner": "MedianPruner"}],
                "search__space": {"train.iterations": {"int": [5, 9]}},
            },
            "search.pruners: Optuna's pruners need runs of one length, and the space varies train.iterations",
        ),
        ({"search__pruners": [{"name": "asher"}]}, "search.pruners[0].name: 'asher' is unknown (did you mean asha?)"),
        ({"search__pruners": [{"name": "asha", "grace": 2}]}, "search.pruners[0].grace: must be < 1, got 2"),
        ({"budget__hours": 0}, "budget.hours: must be > 0, got 0"),
        (
            {"budget__gpu_hours": 2},
            "budget.gpu_hours: no worker has a GPU, so that it is never spent; bound cpu_hours or hours instead",
        ),
    ],
)
def test_searches_budgets_and_objectives_that_make_no_sense(changes: dict[str, Any], problem: str) -> None:
    assert problem in problems(**copy.deepcopy(SEARCHED), **changes)


def test_the_score_of_a_trial() -> None:
    objective = parse(minimal(objective__aggregate="mean_minus_std", objective__std_weight=2)).objective
    assert objective.score(60.0, 1.5) == 57.0 and objective.score(60.0, None) is None
    assert parse(minimal()).objective.score(60.0, 1.5) == 60.0


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


def test_what_an_extension_may_not_touch_is_said_at_once() -> None:
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
    assert caught.value.problems == (
        "train: decides what was trained already; start another study for other values, or train the best again with `css-ray study confirm --set`",
        "splits: must begin with those of the study, [0, 1], got [1, 0]",
        "objective.at: is how the trials were scored; `css-ray study table --at` shows the other",
        "search.trials: must be >= 3, got 2",
        "search.space: its settings must stay, method.num_queries came or went; their ranges may change",
    )
    with pytest.raises(StudyError, match="search: cannot come or go"):
        extend(study, ["search=null", "grid={method: [{name: supervised}]}"])


@pytest.mark.parametrize(
    ("workers", "batches", "sizes"),
    [(2, (4, 6), [2]), (4, (4, 6), []), ([1, 8], (16, 16), [1, 2, 4, 8]), ([2, 8], (4, 6), [2]), ([5, 7], (16, 16), [])],
)
def test_which_numbers_of_workers_share_the_batches(workers: Any, batches: tuple[int, int], sizes: list[int]) -> None:
    from css_ray.study.definition import Resources

    data = dict(zip(("labelled_batch", "unlabelled_batch"), batches, strict=True))
    assert Resources(workers=workers).sizes(data) == sizes
