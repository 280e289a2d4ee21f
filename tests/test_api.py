"""`css_ray.Study`: loading, running with a made-up runner, and reading; real studies are in tests/study/test_runner.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray import Study
from css_ray.study.definition import StudyError
from css_ray.study.journal import Journal, StudyMissingError
from tests.journals import SPEC, FakeRunner, Telling, mixed


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    from css_ray.data.catalogue import ensure_dataset

    root = str(tmp_path_factory.mktemp("data") / "digits")
    ensure_dataset("digits", root)
    return root


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.fixture
def file(place: Path, digits: str) -> Path:
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": digits}}))
    return path


def begun(place: Path, **sections: Any) -> Telling:
    """The study of `mixed` in the storage `runs`."""
    return mixed(place / "runs" / "small" / "journal.jsonl", **sections)


def test_importing_the_package_loads_neither_torch_nor_ray_nor_pandas() -> None:
    program = (
        "import sys, css_ray\n"
        "assert not {'torch', 'ray', 'pandas', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
        "from css_ray import Study\n"
        "assert 'ray' not in sys.modules and 'mlflow' not in sys.modules and 'click' not in sys.modules\n"
        "print(Study.__name__, hasattr(css_ray, 'Nothing'), css_ray.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Study False 0.")


def test_a_file_with_what_is_set(file: Path) -> None:
    study = Study.load(file, set={"train.iterations": 7, "splits": [3, 4], "train.min_lr": 1e-05, "description": "a: b, 'c'"})
    assert (study.name, study.storage, study.status, study.best) == ("small", "runs", "new", None)
    definition = study.definition
    assert (definition.train.iterations, definition.splits, definition.train.min_lr) == (7, (3, 4), 1e-05)
    assert definition.description == "a: b, 'c'"
    assert Study.load(str(file), set=["train.iterations=8"], storage="other").definition.train.iterations == 8
    assert study.records().empty and list(study.trials().columns)[:3] == ["study", "trial", "row"]
    with pytest.raises(ValueError, match="no run"):
        study.table()
    with pytest.raises(StudyMissingError, match="holds none yet"):
        study.resume()
    assert not Path("runs").exists()


def test_what_is_wrong_is_said_when_it_is_loaded(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*study.yaml"):
        Study.load(file.parent / "stduy.yaml")
    with pytest.raises(StudyError, match=r"train.lr: must be > 0, got -1\n.*train.itertions is unknown") as raised:
        Study.load(file, set={"train.itertions": 5, "train.lr": -1})
    assert len(raised.value.problems) == 2
    with pytest.raises(ValueError, match="plain values"):
        Study.load(file, set={"train.lr": object()})
    with pytest.raises(ValueError, match="got the text"):
        Study.load(file, set="train.lr=1")


def test_a_study_that_was_begun_by_folder_and_by_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(place)
    os.rename("runs", "there")
    by_folder = Study.load("there/small")
    in_objects = Journal(f"file://{place}/objects/small")
    for event in mixed().events:
        in_objects.append(event)
    for study in (by_folder, Study.load("small", storage="there"), Study.load(f"file://{place}/objects/small")):
        assert study.name == "small" and study.best is not None and study.best.mean == 54.0
    assert by_folder.status == "running" and by_folder.folder == f"{place}/there/small"
    with pytest.raises(StudyMissingError, match="no study small in runs; it holds none yet"):
        Study.load("small")
    monkeypatch.setenv("CSS_RAY_STORAGE", "there")
    assert Study.load("small").status == "running"
    with pytest.raises(StudyMissingError, match="no study other in there; there are: small"):
        Study.load("other")
    with pytest.raises(ValueError, match="set is for a study file"):
        Study.load("small", set={"train.lr": 1})


def test_one_row_a_run(place: Path) -> None:
    begun(place)
    frame = Study.load("runs/small").records()
    assert len(frame) == 14 and list(frame.columns[:4]) == ["study", "trial", "split", "row"]
    # Trial 0 scored 40, 44 and 48 and trial 1 50, 52 and 60 on their splits.
    whole = frame[frame["status"] == "finished"].groupby("trial")["last/val/miou"].mean()
    assert whole[0] == 44.0 and whole[1] == 54.0
    pruned = frame[frame["status"] == "pruned"].iloc[0]
    assert (pruned["trial"], pruned["split"], pruned["step"]) == (2, 1, 20) and pruned["reason"].startswith("split 1, step 20")
    assert frame[frame["trial"] == 5]["method.temperature"].unique() == [0.5]
    assert set(frame[frame["trial"] == 0]["seconds"]) == {12.5} and frame["best/val/miou"].max() == 60.0


def test_one_row_a_trial(place: Path) -> None:
    begun(place)
    frame = Study.load("runs/small").trials().set_index("trial")
    assert list(frame["status"]) == ["finished", "finished", "pruned", "failed", "partial", "running"]
    assert (frame["mean"][1], frame["n"][1], frame["num_splits"][1]) == (54.0, 3, 3)
    # The sample standard deviation of 50, 52 and 60, as pandas has it from the runs.
    runs = Study.load("runs/small").records()
    assert frame["std"][1] == pytest.approx(runs[runs["trial"] == 1]["last/val/miou"].std())
    assert frame["reason"][3] == "RayActorError: the worker died" and frame["method.temperature"][4] == pytest.approx(0.4)


def test_status_best_and_table_follow_the_journal(place: Path) -> None:
    telling = begun(place)
    study = Study.load("runs/small")
    assert study.status == "running" and study.best is not None and study.best.index == 1
    telling.whole(6, 70.0, 71.0, 72.0)
    assert study.best.index == 6 and study.best.params == {"method.temperature": pytest.approx(0.6)}
    telling.tell("study_finished", status="failed", best_trial=6)
    assert study.status == "failed"
    assert "| CSS (mix) | **71.00 ± 1.00, best of 2 trials** [1] |" in study.table()
    # Best first; its settings have a column.
    assert study.table("csv", kind="trials").splitlines()[1].startswith("small,CSS (mix),0.6")
    assert "71.00 ± 0.82" in study.table("text", ddof=0)


def test_the_summary_survives_json_and_shows_no_password(place: Path) -> None:
    begun(place)
    study = Study.load("runs/small")
    summary = json.loads(json.dumps(study.summary()))
    assert summary["best"] == "54.00 ± 5.29" and (summary["best_trial"], summary["row"], summary["n"]) == (1, "CSS (mix)", 3)
    assert (summary["mean"], summary["std"]) == (54.0, pytest.approx(28**0.5))
    assert summary["trials"] == {"finished": 2, "partial": 1, "pruned": 1, "failed": 1}
    assert summary["table"] == study.table("md") and summary["status"] == "running"
    assert summary["text"].startswith("small: running, best 54.00 ± 5.29 (trial 1, CSS (mix)); ")
    # Each run's events are a second apart: as many seconds of a CPU as a run has events after its first.
    events = [json.loads(line) for line in Path("runs/small/journal.jsonl").read_text().splitlines()]
    told = sum(event["event"].startswith("run_") for event in events) - sum(event["event"] == "run_started" for event in events)
    assert summary["hours"] == {"CPU": pytest.approx(told / 3600, abs=1e-4)}
    study.storage = "s3://ann:s3cret@bucket/runs"
    assert "s3cret" not in json.dumps(study.summary()) and "s3cret" not in repr(study)


def test_a_plan_starts_nothing(file: Path) -> None:
    plan = Study.load(file).plan()
    assert (plan.num_trials, plan.num_runs, plan.num_steps) == (8, 24, 2400)
    assert [trial.row for trial in plan.trials] == ["Sup."] and plan.estimate is None
    assert "8 trials x 3 splits = 24 runs, 2400 steps" in str(plan) and "trials 1-7: CSS (mix), drawn by tpe" in str(plan)
    with pytest.raises(StudyError, match="labelled"):
        Study.load(file, set={"data.labelled": 5000}).plan()
    assert not Path("runs").exists()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    FakeRunner.install(monkeypatch)
    return FakeRunner


def test_run_then_resume(file: Path, runner: type[FakeRunner]) -> None:
    study = Study.load(file)
    with pytest.warns(UserWarning, match="MLflow has not taken 7 events; later: css-ray study sync small") as warned:
        outcome = study.run(storage="there", address="auto")
    assert warned[0].filename == __file__
    assert outcome.status == "failed" and study.best is not None and study.best.index == 1
    said: list[str] = []
    study.resume(set={"search.trials": 20}, warn=said.append)
    first, second = runner.calls
    assert (first["storage"], first["address"], first["resume"]) == ("there", "auto", False)
    assert (second["storage"], second["address"], second["resume"]) == ("there", None, True)
    assert first["definition"].num_trials == 8 and second["definition"].num_trials == 21
    assert len(said) == 1 and "7 events" in said[0]
    with pytest.raises(StudyError, match="train"):
        study.resume(set={"train.iterations": 1})


def test_nothing_starts_on_bad_input(file: Path, runner: type[FakeRunner]) -> None:
    with pytest.raises(StudyError, match="labelled"):
        Study.load(file, set={"data.labelled": 5000}).run()
    assert runner.calls == []


def test_tables_that_mlflow_does_not_take_are_a_warning(
    file: Path, runner: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    from css_ray import tracking

    def refuse(*arguments: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(runner, "unsent", 0)
    monkeypatch.setattr(tracking, "log_tables", refuse)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Study.load(file).run(warn=said.append).status == "failed"
    assert said == ["the tables were not logged to MLflow (no server); later: css-ray study sync small"]


def test_the_best_trials_of_a_search_are_confirmed_on_fresh_splits(place: Path) -> None:
    telling = begun(place)
    telling.whole(6, 51.0, 51.0, 51.0)
    study = Study.load("runs/small")
    confirmation = study.confirmation(top=2)
    assert (confirmation.name, confirmation.definition.splits, confirmation.storage) == ("small-confirm", (3, 4, 5), "runs")
    # Trial 1 (54.0) before trial 6 (51.0); trial 0 is of the grid.
    trials = confirmation.definition.grid_trials()
    assert [(trial.row, trial.params["method.temperature"]) for trial in trials] == [
        ("CSS (mix), trial 1", 0.1),
        ("CSS (mix), trial 6", pytest.approx(0.6)),
    ]
    with pytest.raises(ValueError, match="from 1 to 2, the trials of the search that finished, got 3"):
        study.confirmation(top=3)
    with pytest.raises(StudyError, match="the search has seen 1"):
        study.confirmation(top=1, splits=[1, 3])
    longer = study.confirmation(top=1, set={"train.iterations": 80, "study": "small-longer"})
    assert (longer.name, longer.definition.train.iterations) == ("small-longer", 80)
    with pytest.raises(ValueError, match="the search has seen 1"):
        study.confirmation(top=1, set={"splits": [1, 7]})
    with pytest.raises(ValueError, match="iteration"):
        study.confirmation(top=1, set={"train.iteration": 80})
