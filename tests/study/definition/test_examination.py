"""One round is enough: rules between settings, and unknown encoders, are listed beside what is wrong in single settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyDefinition, StudyError, parse, read
from tests.study.definition.specs import MINIMAL, SEARCH, minimal, printed, problems

CSS = {"name": "css", "row": "CSS"}


def rest(**changes: Any) -> StudyDefinition:
    with pytest.raises(StudyError) as caught:
        parse(minimal(**changes))
    assert caught.value.rest is not None
    return caught.value.rest


def test_rules_between_settings_are_checked_beside_faults_in_others() -> None:
    found = problems(
        train__itertions=5,
        data__labelled=0,
        views__scale=[2.0, 0.5],
        resources__workers=3,
        grid={"method": [CSS], "data.unlabelled_batch": [6, 7], "model.pretrained": [False, True]},
    )
    assert found == (
        "data.labelled: must be >= 1, got 0",
        "views.scale: must be two numbers, the smaller first, got (2.0, 0.5)",
        "train.itertions is unknown (did you mean iterations?)",
        "data.labelled_batch: 4 does not divide over 3 workers; use 6",
        "data.unlabelled_batch: 4 does not divide over 3 workers; use 6",
        "model.pretrained: must be false (the encoder tiny has no pretrained weights), got True (in the grid)",
        "data.unlabelled_batch: 7 does not divide over 3 workers; use 9 (in the grid)",
    )


def test_a_rule_is_not_checked_on_a_setting_that_is_wrong_itself() -> None:
    # With the default, min_lr would be above lr; with the default of one worker, a batch of 1 too small.
    assert problems(train__lr="slow", grid={"method": [CSS], "train.min_lr": [0.09]}) == (
        "train.lr: must be a number, got 'slow'",
    )
    assert problems(resources__gpus_per_worker="all", data__labelled_batch=1) == (
        "resources.gpus_per_worker: must be a number, got 'all'",
    )
    assert problems(data__labelled_batch=0, resources__workers=3, data__unlabelled_batch=6) == (
        "data.labelled_batch: must be >= 1, got 0",
    )


def test_every_trial_that_breaks_a_rule_is_found_and_said_to_be_where_it_is() -> None:
    found = problems(
        grid={"method": [CSS], "train.lr": [0.2, 1e-5, 1e-6]},
        trials=[{"method": CSS, "train.min_lr": 0.3}],
        search={**SEARCH, "space": {"train.lr": {"loguniform": [1e-7, 0.1]}}, "first": [{"train.lr": 2e-5}]},
    )
    assert found == (
        "train.min_lr: must be <= lr (1e-05), got 0.0001 (in the grid)",
        "train.min_lr: must be <= lr (1e-06), got 0.0001 (in the grid)",
        "train.min_lr: must be <= lr (0.1), got 0.3 (in trials[0])",
        "train.min_lr: must be <= lr (2e-05), got 0.0001 (in search.first[0])",
        "train.min_lr: must be <= lr (1e-07), got 0.0001 (in search.space)",
    )


@pytest.mark.parametrize(
    ("batch", "resources", "sentence"),
    [
        (1, {}, "BatchNorm needs at least 2 images per worker, got 1 image; use 2"),
        (2, {"workers": 2}, "BatchNorm needs at least 2 images per worker, got 1 image per worker; use 4"),
        (2, {"workers": [1, 2]}, "BatchNorm needs at least 2 images per worker, got 1 image per worker; use 4"),
        (1, {"gpus_per_worker": 1}, "BatchNorm needs at least 2 images per worker, got 1 image; use 2"),
        # What fits the number of workers is large enough for BatchNorm, too.
        (1, {"workers": 3}, "1 does not divide over 3 workers; use 6"),
    ],
)
def test_batches_that_are_too_small_for_batch_norm(batch: int, resources: dict[str, Any], sentence: str) -> None:
    assert problems(data__labelled_batch=batch, data__unlabelled_batch=12, resources=resources) == (
        f"data.labelled_batch: {sentence}",
    )


def test_batch_statistics_are_shared_over_gpus() -> None:
    parse(minimal(data__labelled_batch=2, resources={"workers": 2, "gpus_per_worker": 1}))
    parse(minimal(data__labelled_batch=2, data__unlabelled_batch=2, resources={"workers": [1, 2], "gpus_per_worker": 1}))


# ------------------------------------------------------------------------------------------------------------------ the rest


def test_the_rest_of_a_study_is_what_is_right_in_it() -> None:
    study = rest(
        study="My Study",
        data__labelled=0,
        data__crop="large",
        train__lr=-1,
        train__iterations=7,
        model__decoder_channels=0,
        splits=[4, "five"],
        budget={"hours": -1},
        grid={"data.labelled": [8, "many"], "method": [{"name": "csss"}, {**CSS, "num_queries": 5, "temprature": 1}]},
        trials=[{"train.lr": 0.2, "method": {"name": "cutmix"}}, {"train.lr": "fast"}, {"method": {"name": "mean_techer"}}],
        search={**SEARCH, "trials": 0},
    )
    assert (study.data.dataset, study.data.root, study.train.iterations, study.splits) == ("digits", "data/digits", 7, (4,))
    assert study.search is None
    trials = study.grid_trials()
    assert [(trial.settings["data"]["labelled"], trial.settings["method"]["name"]) for trial in trials[:1]] == [(8, "css")]
    assert trials[0].settings["method"]["num_queries"] == 5
    assert trials[1].settings["train"]["lr"] == 0.2 and trials[1].settings["method"]["name"] == "cutmix"


def test_without_a_data_set_nothing_is_left() -> None:
    for missing in ({"data": None}, {"data__root": None}, {"data__dataset": 5}, {"data": "digits"}):
        with pytest.raises(StudyError) as caught:
            parse(minimal(**missing))
        assert caught.value.rest is None


def test_a_study_that_is_right_has_no_error_and_keeps_its_spec() -> None:
    spec = minimal()
    study = parse(spec)
    assert study.spec == spec == minimal()
    # Looking for the rest of a wrong one leaves the mapping alone.
    wrong = minimal(train__lr=-1, splits=[0, 0])
    with pytest.raises(StudyError):
        parse(wrong)
    assert wrong == minimal(train__lr=-1, splits=[0, 0])


# ------------------------------------------------------------------------------------------------------------------ encoders


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(minimal(**changes)))
    return path


def test_misspelt_encoders_are_listed_with_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(timm, "create_model", never)
    path = written(
        tmp_path,
        train__lr=-1,
        model={"encoder": "resnet11", "output_stride": 8, "decoder_channels": 0},
        grid={"method": [CSS], "model.encoder": ["resnet18", "resnet101.tv_in1k", "tinny"]},
        search={**SEARCH, "space": {"model.encoder": {"choice": ["resnet19", "tiny"]}}},
    )
    with pytest.raises(StudyError) as caught:
        read(path)
    found = printed(caught.value)
    assert [problem.partition(":")[0] for problem in found] == [
        "model.encoder",
        "model.decoder_channels",
        "train.lr",
        "grid.model.encoder[2]",
        "search.space.model.encoder",
    ]
    assert found[0].startswith("model.encoder: unknown encoder 'resnet11' (did you mean resnet1")
    assert found[3] == "grid.model.encoder[2]: unknown encoder 'tinny' (did you mean tiny?)"
    path = written(tmp_path, model={"encoder": "zzzzzzzzz", "output_stride": 8})
    with pytest.raises(StudyError, match=r"unknown encoder 'zzzzzzzzz'; known: tiny, and what timm.list_models\(\) lists"):
        read(path)


def test_a_journal_is_read_without_asking_timm() -> None:
    # An encoder of another version of timm must not make a table unreadable.
    spec = {**MINIMAL, "model": {"encoder": "resnet_of_the_future", "output_stride": 8}}
    assert parse(spec).model.encoder == "resnet_of_the_future"
