"""Studies whose splits come from files: what their runs see, what is refused before anything starts, what is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.shards import DataSet
from css_ray.data.splits import make_split
from css_ray.events import Event, RunStarted, TrialStarted
from css_ray.study import preflight
from css_ray.study.definition import StudyDefinition, StudyError, parse
from css_ray.study.driver import Driver
from css_ray.study.inputs import prepare
from css_ray.study.job import RunSpec
from css_ray.study.run import run_spec

SPEC: dict[str, Any] = {
    "study": "listed",
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 10, "lr": 0.1},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "cutmix", "row": "CutMix"}]},
}
DATA = {"dataset": "digits", "labelled": 3, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4}
LISTED = {
    0: (["train-0005", "train-0300", "train-0077"], ["train-0001", "train-0000"]),
    1: (["train-0005", "train-0006", "train-0007"], ["train-0399"]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("data") / "digits")
    ensure_dataset("digits", root)
    return root


@pytest.fixture(scope="module")
def dataset(root: str) -> DataSet:
    return ensure_dataset("digits", root)


@pytest.fixture(autouse=True)
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lists of LISTED in `3/SPLIT/` of the current folder."""
    monkeypatch.chdir(tmp_path)
    for split, parts in LISTED.items():
        folder = tmp_path / "3" / str(split)
        folder.mkdir(parents=True)
        for name, ids in zip(("labeled", "unlabeled"), parts, strict=True):
            (folder / f"{name}.txt").write_text("\n".join(f"images/{id}.png masks/{id}.png" for id in ids))
    return tmp_path / "3"


def study(root: str, *, unlabelled: bool = True, **changes: Any) -> StudyDefinition:
    data = {**DATA, "root": root, "labelled_list": "{labelled}/{split}/labeled.txt"}
    if unlabelled:
        data["unlabelled_list"] = "{labelled}/{split}/unlabeled.txt"
    return parse({**SPEC, "data": data | changes.pop("data", {})} | changes)


def refused(wrong: StudyDefinition, events: list[Event] | None = None) -> list[str]:
    with pytest.raises(StudyError) as caught:
        preflight.check(wrong, local=True, events=events or ())
    return list(map(str, caught.value.problems))


def test_a_run_sees_just_the_listed_images(root: str, dataset: DataSet) -> None:
    given, only = study(root), study(root, unlabelled=False)
    for split, (labelled, unlabelled) in LISTED.items():
        for trial in given.grid_trials():
            made = prepare(run_spec(given, trial, split)).split
            assert (made.index, made.labelled, made.unlabelled) == (split, tuple(sorted(labelled)), tuple(sorted(unlabelled)))
        rest = prepare(run_spec(only, only.grid_trials()[0], split)).split
        assert rest.labelled == tuple(sorted(labelled))
        assert rest.unlabelled == tuple(id for id in dataset.train.ids if id not in labelled)


def test_a_worker_needs_no_list_file(root: str, lists: Path) -> None:
    given = study(root)
    driver = prepare(run_spec(given, given.grid_trials()[0], 1))
    (lists / "1" / "labeled.txt").unlink()
    travelled = RunSpec.from_json(json.loads(json.dumps(driver.spec.to_json())))
    assert travelled.lists == driver.spec.lists
    assert prepare(travelled).split == driver.split


def test_nested_or_not_is_a_setting(root: str, dataset: DataSet) -> None:
    no_lists = {"labelled_list": None, "unlabelled_list": None}
    for nested in (True, False):
        given = study(root, data={**no_lists, "nested_splits": nested})
        made = prepare(run_spec(given, given.grid_trials()[0], 1)).split
        assert made == make_split(dataset, 3, 1, nested=nested)
    assert make_split(dataset, 3, 1) != make_split(dataset, 3, 1, nested=False)


def test_preflight_finds_the_problems_of_all_lists_at_once(root: str, lists: Path) -> None:
    assert preflight.check(study(root), local=True) == []
    (lists / "0" / "labeled.txt").write_text("train-0005\nval-0000\n")
    (lists / "1" / "unlabeled.txt").write_text("")
    wrong = study(root, grid={**SPEC["grid"], "data.labelled": [3, 4]})
    found = refused(wrong)
    assert [problem.partition("data.labelled_list: ")[2].partition("; ")[0] for problem in found] == [
        "3/0/labeled.txt: val-0000 (line 2): is an image of val, on which nothing may train",
        "3/0/labeled.txt: has 2 ids, must have 3",
        "3/1/unlabeled.txt: names no image (0 bytes)",
        *(f"4/{split}/{name}.txt: there is no such file" for split in (0, 1) for name in ("labeled", "unlabeled")),
    ]


def test_a_list_of_another_count_is_refused(root: str, lists: Path) -> None:
    wrong = study(root, data={"labelled": 5, "labelled_list": str(lists / "{split}/labeled.txt"), "unlabelled_list": None})
    assert refused(wrong) == [
        f"data.labelled_list: {lists}/{split}/labeled.txt: has 3 ids, must have 5; change the count or the list"
        for split in (0, 1)
    ]


def test_splits_of_the_same_images_are_a_warning(root: str) -> None:
    same = study(root, data={"labelled_list": "{labelled}/0/labeled.txt"}, unlabelled=False)
    assert preflight.check(same, local=True) == ["splits 0, 1 with 3 labels have the same images: only their seeds differ"]


def started(given: StudyDefinition, trials: list[int]) -> list[Event]:
    """What a journal says of runs that have begun."""
    events: list[Event] = []
    for trial in (given.grid_trials()[index] for index in trials):
        events.append(TrialStarted(time=1.0, trial=trial.index, row=trial.row, source="grid", params=trial.params, config={}))
        for split in given.splits:
            about = prepare(run_spec(given, trial, split)).started()
            events.append(RunStarted(time=1.0, trial=trial.index, split=split, **about))
    return events


def test_a_study_that_goes_on_notices_another_list(root: str, lists: Path) -> None:
    given = study(root)
    events = started(given, [0, 1])
    assert preflight.check(given, local=True, events=events) == []
    before = prepare(run_spec(given, given.grid_trials()[0], 1)).split.hash
    (lists / "1" / "unlabeled.txt").write_text("train-0398")
    now = prepare(run_spec(given, given.grid_trials()[0], 1)).split.hash
    assert refused(given, events) == [
        "data.labelled_list: split 1, from 3/1/labeled.txt and 3/1/unlabeled.txt, is no longer the one this study began with "
        f"({now[:12]}, was {before[:12]}); restore the lists and the data set (splits/{before}.json in the study's folder has the "
        "ids), or start another study"
    ]


def test_a_study_that_goes_on_notices_another_data_set(root: str) -> None:
    no_lists = {"labelled_list": None, "unlabelled_list": None}
    given = study(root, data=no_lists)
    events = started(given, [0])
    assert preflight.check(given, local=True, events=events) == []
    assert isinstance(events[1], RunStarted)
    events[1] = replace(events[1], split_hash="0" * 64)
    (problem,) = refused(given, events)
    assert problem.startswith("data.root: split 0 with 3 labels is no longer the one this study began with (")
    assert f"was 000000000000); restore the data set in {root}, or start another study" in problem


def test_trials_with_lists_of_their_own_go_on(root: str) -> None:
    # Both have 3 labels on split 0, and not the same ones.
    columns = ["{labelled}/0/labeled.txt", "{labelled}/1/labeled.txt"]
    grid = {"method": SPEC["grid"]["method"][:1], "data.labelled_list": columns}
    given = study(root, unlabelled=False, splits=[0], grid=grid)
    events = started(given, [0, 1])
    first, second = (event for event in events if isinstance(event, RunStarted))
    assert first.split_hash != second.split_hash
    assert preflight.check(given, local=True, events=events) == []


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_ids_of_a_study_are_written_down(root: str, lists: Path, tmp_path: Path, dataset: DataSet, scheme: str) -> None:
    given = study(root)
    driver = Driver(given, f"{scheme}{tmp_path}/runs")
    runs = [driver.runs_of(trial) for trial in given.grid_trials()]
    assert [[run.split for run in each] for each in runs] == [[0, 1], [0, 1]]
    files = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs" / "listed" / "splits").iterdir()}
    splits = {prepare(run).split for each in runs for run in each}
    assert files.keys() == {split.hash for split in splits}
    for split in splits:
        assert files[split.hash] == {
            "dataset": "digits",
            "content": dataset.info.content,
            "index": split.index,
            "labelled": list(split.labelled),
            "unlabelled": list(split.unlabelled),
        }
        assert list(split.labelled) == sorted(LISTED[split.index][0])

    # A study has the lists that it began with, whatever becomes of the files.
    (lists / "0" / "labeled.txt").unlink()
    assert [driver.runs_of(trial) for trial in given.grid_trials()] == runs
    with pytest.raises(RuntimeError, match=r"split 0 of trial 0: .*\n.*labeled.txt: there is no such file"):
        Driver(given, f"{scheme}{tmp_path}/runs").runs_of(given.grid_trials()[0])
