"""A study file is checked as a whole: every problem in one message, each once, with its path, value, bound and remedy."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from css_ray.study.definition import Problem, StudyError, parse
from tests.study.definition.specs import LIST, MINIMAL, SEARCH, minimal, printed, problems

SEARCHED = {"grid": None, "search": SEARCH}


def test_all_problems_come_in_one_message() -> None:
    found = problems(train__itertions=5, train__lr=-1, data__labelled=0, splits=[0, 0], modle={})
    text = "\n".join(found)
    assert len(found) == 5, text
    assert "train.itertions is unknown (did you mean iterations?)" in found
    assert "train.lr: must be > 0, got -1" in found
    assert "data.labelled: must be >= 1, got 0" in found
    assert "splits[1]: split 0 is listed twice; each split is trained once" in found
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
        ({"splits": []}, "splits: must be a list of split indices such as [0, 1, 2], got []"),
        ({"splits": [-1]}, "splits[0]: must be a whole number >= 0, got -1"),
        ({"model__output_stride": 7}, "model.output_stride: must be one of 2, 4, 8, 16, got 7"),
        ({"objective": {"at": "peak"}}, "objective.at: must be one of 'last', 'best', got 'peak'"),
        ({"grid": {"method": [{"name": "css", "unsup_threshold": 1.5}]}}, "grid.method[0].unsup_threshold: must be <= 1, got 1.5"),
        ({"grid": {"method": [{"name": "csss"}]}}, "grid.method[0].name: csss is unknown (did you mean css?)"),
        ({"grid": {"method": [{"name": "css"}, {"name": "css"}]}}, "grid.method: two entries have the row 'css'; give each a `row` of its own"),
        ({"grid": {"method": [{"name": "css"}], "train.lrr": [1]}}, "grid.train.lrr: train has no setting lrr (did you mean lr?)"),
        ({"grid": {"method": [{"name": "css"}], "train.lr": []}}, "grid.train.lr: must be a list with at least one entry, got []"),
        ({"grid": {"train.lr": [0.1]}}, "method: missing: name a method here, or list methods under grid.method"),
        ({"grid": None}, "grid: a study needs a grid (the product of lists), trials (one by one) or a search (trials drawn)"),
        ({"resources": {"workers": 3}, "data__labelled_batch": 4, "data__unlabelled_batch": 6, "grid": {"method": [{"name": "supervised"}]}},
         "data.labelled_batch: 4 does not divide over 3 workers; use 6"),
        ({"study": "My Study"}, "study: must be a name of a-z, 0-9, '.', '_', '-', at most 63 characters, that starts with a letter or digit; got 'My Study'"),
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
        ({"grid": {"method": [{"name": "css"}], "train.lr": [1e-5]}}, "train.min_lr: must be <= lr (1e-05), got 0.0001 (in the grid)"),
        ({"grid": {"method": [{"name": "css"}], "data.labelled_batch": [3]}, "resources": {"workers": 2}},
         "data.labelled_batch: 3 does not divide over 2 workers; use 4 (in the grid)"),
        ({"search": {**SEARCH, "space": {"train.lr": {"loguniform": [1e-5, 0.1]}}}}, "train.min_lr: must be <= lr (1e-05), got 0.0001 (in search.space)"),
        ({"search": {**SEARCH, "trials": 1, "first": [{"method.temperature": 0.5, "method.hard_threshold": 0.8}] * 2}},
         "search.first: has 2 points, but search.trials is 1; raise trials"),
        ({"train__min_lr": 0.5}, "train.min_lr: must be <= lr (0.1), got 0.5"),
        ({"train__encoder_lr_factor": -1}, "train.encoder_lr_factor: must be >= 0, got -1"),
        ({"model__encoder": "test_vit", "data__crop": 40}, "data.crop: must be a multiple of 16, the patch of the encoder test_vit, got 40; use 32 or 48"),
        ({"model__encoder": "vit_small_patch14_dinov2.lvd142m", "data__crop": 512},
         "data.crop: must be a multiple of 14, the patch of the encoder vit_small_patch14_dinov2.lvd142m, got 512; use 504 or 518"),
        ({"model__encoder": "test_vit", "data__crop": 8}, "data.crop: must be a multiple of 16, the patch of the encoder test_vit, got 8; use 16"),
        ({"grid": {"method": [{"name": "css"}], "model.encoder": ["tiny", "test_vit"]}, "data__crop": 40},
         "data.crop: must be a multiple of 16, the patch of the encoder test_vit, got 40; use 32 or 48 (in the grid)"),
        ({"grid": {"method": [{"name": "css"}], "data.crop": [32, 50]}, "model__encoder": "test_vit", "data__crop": 48},
         "data.crop: must be a multiple of 16, the patch of the encoder test_vit, got 50; use 48 or 64 (in the grid)"),
        ({"model__decoder": "dpt"}, "model.decoder: dpt needs a plain ViT, which the encoder tiny is not; use deeplabv3plus or auto"),
        ({"grid": {"method": [{"name": "css"}], "model.encoder": ["tiny", "test_vit"]}, "model__decoder": "deeplabv3plus", "data__crop": 48},
         "model.decoder: deeplabv3plus needs features at stride 4, and the ViT test_vit has none; use dpt or auto (in the grid)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], sentence: str) -> None:
    (found,) = problems(**changes)
    assert found.startswith(sentence)


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
    assert problem.startswith("data.unlabelled_list: needs data.labelled_list beside it") and problem.endswith("(in the grid)")
    (problem,) = problems(data__nested_splits="no")
    assert problem == "data.nested_splits: must be true or false, got 'no'"


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
            {"search__sampler": "grid", "search__space": {"method.temperature": {"uniform": [0.1, 1.0]}}},
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
    assert problems(**copy.deepcopy(SEARCHED), **changes) == (problem,)


# ------------------------------------------------------------------------------------------------ no problem that is none


def test_a_fault_in_the_search_alone_is_the_only_problem() -> None:
    found = problems(grid=None, search={**SEARCH, "trials": 0})
    assert found == ("search.trials: must be >= 1, got 0",)


def test_a_fault_in_the_grid_or_the_trials_is_the_only_problem() -> None:
    assert problems(grid={"method": []}) == ("grid.method: must be a list with at least one entry, got []",)
    assert problems(grid=None, trials="all") == ("trials: must be a list of mappings, such as [{train.lr: 0.1}]; got 'all'",)
    # The axis is misspelt, so the columns may well be right.
    grid = {"data.labeled": [8, 16], "method": [{"name": "css"}]}
    found = problems(grid=grid, table={"columns": "data.labelled"})
    assert found == ("grid.data.labeled: data has no setting labeled (did you mean labelled?)",)


@pytest.mark.parametrize("parts", [{"grid": {}}, {"trials": []}, {"grid": {}, "trials": []}])
def test_a_study_that_asks_for_nothing(parts: dict[str, Any]) -> None:
    spec = {key: value for key, value in MINIMAL.items() if key != "grid"}
    with pytest.raises(StudyError) as caught:
        parse({**spec, **parts})
    sentence = "a study needs a grid (the product of lists), trials (one by one) or a search (trials drawn)"
    assert printed(caught.value) == (f"grid: {sentence}",)


def test_a_misspelt_key_of_a_space_is_listed_once() -> None:
    # Not once for each end of its range, and not again for each first point.
    first = [{"method.temperature": 0.5, "method.hard_threshold": 0.8}]
    space = {"method.temprature": {"uniform": [0.5, 1.0]}, "method.hard_threshold": {"choice": [0.7, 0.8, 0.9]}}
    found = problems(search={**SEARCH, "space": space, "first": first})
    assert found == ("search.space.method.temprature: method css has no setting temprature (did you mean temperature?)",)


def test_a_fault_of_the_method_that_a_search_takes_over_is_listed_once() -> None:
    search = {key: value for key, value in SEARCH.items() if key != "method"}
    found = problems(grid=None, method={"name": "css", "teacher_decay": 2}, search=search)
    assert found == ("method.teacher_decay: must be < 1, got 2",)


def test_a_value_of_several_types_is_one_problem() -> None:
    assert problems(model__pretrained=5) == ("model.pretrained: must be true or false, or text, got 5",)
    assert problems(resources__workers="two") == ("resources.workers: must be a whole number, or a list, got 'two'",)
    assert problems(resources__workers=0) == ("resources.workers: must be >= 1, got 0",)
    assert problems(resources__workers=[2]) == ("resources.workers: must have at least 2 entries, got [2]",)
    assert problems(grid={"method": [{"name": "css"}], "model.pretrained": [5]}) == (
        "grid.model.pretrained[0]: must be true or false, or text, got 5",
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"n_startup_trials": -1}, "settings are refused by MedianPruner: Number of startup trials cannot be negative"),
        ({"startup_trials": 3}, "settings.startup_trials is unknown to MedianPruner (did you mean n_startup_trials?)"),
        (7, "settings: must be a mapping, got 7"),
    ],
)
def test_a_wrong_setting_of_a_pruner_of_optuna_has_its_path(settings: Any, problem: str) -> None:
    pruners = [{"name": "optuna", "pruner": "MedianPruner", "settings": settings}]
    (found,) = problems(grid=None, search={**SEARCH, "pruners": pruners})
    assert found.startswith(f"search.pruners[0].{problem}")


def test_a_wrong_wrapped_pruner_of_optuna_has_its_path() -> None:
    wrapped = {"pruner": "MedianPruner", "settings": {"n_startup_trial": 2}}
    patient = {"name": "optuna", "pruner": "PatientPruner", "settings": {"patience": 1, "wrapped_pruner": wrapped}}
    (found,) = problems(grid=None, search={**SEARCH, "pruners": [{"name": "paired"}, patient]})
    where = "search.pruners[1].settings.wrapped_pruner.settings"
    assert found == f"{where}.n_startup_trial is unknown to MedianPruner (did you mean n_startup_trials?)"


def test_the_tiny_encoder_has_no_weights_to_load() -> None:
    problem = "model.pretrained: must be false (the encoder tiny has no pretrained weights), got True"
    assert problems(model__pretrained=True) == problems(model__pretrained=None) == (problem,)
    grid = {"method": [{"name": "supervised"}], "model.encoder": ["resnet18", "tiny"]}
    assert problems(model={"encoder": "resnet18"}, grid=grid) == (f"{problem} (in the grid)",)


RICH: dict[str, Any] = minimal(
    description="everything that can be set",
    objective={"at": "best", "aggregate": "mean_minus_std", "std_weight": 0.5},
    data__num_classes=6,
    data__labelled_list=LIST,
    views={"scale": [0.5, 2.0], "flip": False, "blur_sigma": [0.1, 1.0]},
    model__aspp_rates=[1, 2, 4],
    train__evaluation="whole_image",
    seed=3,
    method={"name": "css", "row": "CSS", "teacher_decay": 0.9},
    grid={"data.labelled": [8, 16], "method": [{"name": "supervised"}, {"name": "css", "preset": "paper", "num_queries": 8}]},
    trials=[{"train.lr": 0.2, "method": {"name": "css", "preset": "published", "pseudo_labelling": "cross"}}],
    search={
        **SEARCH,
        "space": {"method.temperature": {"uniform": [0.1, 1.0]}, "method.num_queries": {"int": [4, 16]}, "train.lr": {"choice": [0.1, 0.2]}},
        "sampler": "tpe",
        "pruners": [{"name": "asha", "grace": 0.3}, {"name": "optuna", "pruner": "PercentilePruner", "settings": {"percentile": 25.0}}],
        "first": [{"method.temperature": 0.5, "method.num_queries": 8, "train.lr": 0.1}],
        "confirm": 1,
        "seed": 1,
    },
    resources={"workers": [1, 2], "gpus_per_worker": 0.5, "retries": 1},
    budget={"gpu_hours": 2.0},
    keep={"top": 3},
    table={"columns": "data.labelled", "compare_with": "paper/table1"},
    tracking={"uri": "http://127.0.0.1:5000"},
)  # fmt: skip
"""A study that uses every section; nothing is wrong with it."""


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, container and key of every value of a study."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        below = f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}" if path else str(key)
        yield below, node, key
        yield from leaves(value, below)


def related(one: str, other: str) -> bool:
    return any(a == b or a.startswith((f"{b}.", f"{b}[")) for a, b in ((one, other), (other, one)))


@pytest.mark.parametrize("junk", [[["?"]], {"name": ["?"]}], ids=repr)
def test_only_what_is_wrong_is_blamed(junk: Any) -> None:
    parse(RICH)
    paths = [path for path, _, _ in leaves(RICH)]
    for wrong in paths:
        spec = copy.deepcopy(RICH)
        container, key = next((container, key) for path, container, key in leaves(spec) if path == wrong)
        container[key] = copy.deepcopy(junk)
        with pytest.raises(StudyError) as caught:
            parse(spec)
        assert [str(problem) for problem in caught.value.problems if not related(problem.path, wrong)] == [], wrong
        assert len(set(printed(caught.value))) == len(caught.value.problems)
    assert len(paths) > 80


def test_whatever_a_file_holds_the_answer_is_a_study_or_its_problems() -> None:
    values: Iterator[Any] = itertools.cycle([{}, "", 0, None, "s3://user:word@host/bucket", 10**30, float("nan"), []])
    for wrong, _, _ in leaves(RICH):
        spec = copy.deepcopy(RICH)
        container, key = next((container, key) for path, container, key in leaves(spec) if path == wrong)
        container[key] = next(values)
        try:
            parse(spec)
        except StudyError as error:
            assert error.problems and "word@" not in str(error)


# ------------------------------------------------------------------------------------------------------------ the error itself


def test_a_problem_that_is_given_twice_is_listed_once() -> None:
    one, other = Problem("train.lr", "must be > 0, got -1"), Problem("seed", "must be a whole number, got 'x'")
    error = StudyError([one, other, one], "study.yaml")
    assert error.problems == (one, other)
    assert str(error) == f"2 problems in study.yaml:\n  {one}\n  {other}"
    assert str(StudyError([one])) == "1 problem in the study:\n  train.lr: must be > 0, got -1"


def test_the_error_survives_the_way_between_processes() -> None:
    with pytest.raises(StudyError) as caught:
        parse(minimal(train__lr=-1))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.problems == caught.value.problems


def test_an_encoder_that_is_wrong_or_a_crop_that_is_wrong_hides_that_they_do_not_fit() -> None:
    assert problems(model__encoder="test_vit", data__crop=0) == ("data.crop: must be >= 8, got 0",)
    assert problems(model__encoder=5, data__crop=41) == ("model.encoder: must be text, got 5",)
    # A name that this version of timm does not have: the study of a later one can still be read.
    assert parse(minimal(model__encoder="vit_of_the_future_patch14", data__crop=41)).data.crop == 41
