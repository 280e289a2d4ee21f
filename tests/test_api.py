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
from css_ray.events import StudyExtended
from css_ray.study.definition import StudyError
from css_ray.study.job import RunSpec
from css_ray.study.journal import Journal, StudyLockedError, StudyMissingError
from tests.journals import SPEC, FakeRunner, Telling, mixed
from tests.rayless import Listening, Rayless
from tests.webhooks import webhook_server


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


def test_what_is_wrong_with_file_and_data_is_said_together(file: Path, tmp_path: Path) -> None:
    wrong = {"train.itertions": 3, "data.dataset": "folder", "data.root": str(tmp_path / "nowhere")}
    with pytest.raises(StudyError) as raised:
        Study.load(file, set=wrong)
    assert [problem.path for problem in raised.value.problems] == ["train.itertions", "data"]
    assert "nowhere" in str(raised.value.problems[1])


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
    audience = Listening()
    study.resume(set={"search.trials": 20}, audience=audience)
    first, second = runner.calls
    assert (first["storage"], first["address"], first["resume"]) == ("there", "auto", False)
    assert (second["storage"], second["address"], second["resume"]) == ("there", None, True)
    assert first["definition"].num_trials == 8 and second["definition"].num_trials == 21
    assert len(audience.warnings) == 1 and "7 events" in audience.warnings[0]
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
    audience = Listening()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Study.load(file).run(audience=audience).status == "failed"
    assert audience.warnings == ["the tables were not logged to MLflow (no server); later: css-ray study sync small"]


def test_a_report_that_cannot_be_made_is_a_warning_and_the_tables_are_logged(
    file: Path, runner: type[FakeRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    from css_ray import tracking

    def fail(study: Study) -> str:
        raise RuntimeError("no font")

    sent: dict[str, str] = {}
    monkeypatch.setattr(runner, "unsent", 0)
    monkeypatch.setattr(tracking, "log_tables", lambda uri, study_id, files: sent.update(files))
    monkeypatch.setattr(Study, "report", fail)
    audience = Listening()
    assert Study.load(file).run(audience=audience).status == "failed"
    assert audience.warnings == ["the report was not logged to MLflow (no font); later: css-ray study sync small"]
    assert "results.md" in sent and "report.html" not in sent


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


# ------------------------------------------------------------------------------- a search that is confirmed, and who is told


CONFIRMED: dict[str, Any] = {
    "splits": [0, 1],
    "train.evaluate_every": 50,
    "search.trials": 3,
    "search.first": [{"method.temperature": temperature} for temperature in (0.2, 0.4, 0.3)],
    "search.space": {"method.temperature": {"uniform": [0.1, 0.5]}},
    "search.confirm": 2,
}
"""The study of SPEC on two splits, with three trials of which the best two are confirmed: 2 (at 0.4), then 3 (at 0.3)."""


def score(spec: RunSpec) -> float:
    """Of the grid's row 10, of the rest 100 times the temperature; 2 more on every second split."""
    method = spec.settings["method"]
    return (10.0 if method["name"] == "supervised" else 100 * method["temperature"]) + 2.0 * (spec.split % 2)


def told() -> list[str]:
    return Path("told").read_text().splitlines() if Path("told").exists() else []


ON_FINISH = 'echo "$CSS_RAY_STUDY $CSS_RAY_STATUS $CSS_RAY_STORAGE $CSS_RAY_BEST" >> told'
SEARCHED, CONFIRMATION = "small finished runs 41.00 ± 1.41", "small-confirm finished runs 41.00 ± 1.41"


class Terse(Listening):
    """Notes besides who had been told by the command when a study ended."""

    def study_ended(self, study: Any, outcome: Any) -> None:
        super().study_ended(study, outcome)
        self.said.append(f"{len(told())} told")


def test_a_search_is_confirmed_and_both_studies_are_told_of(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rayless.install(monkeypatch, score)
    audience = Terse()
    with webhook_server(monkeypatch) as server:
        study = Study.load(file, set=CONFIRMED)
        outcome = study.run(audience=audience, on_finish=ON_FINISH, webhook=server.url)
    assert outcome.status == "finished" and outcome.study.name == "small" and len(outcome.records) == 8
    # Each study is watched to its end before anybody else is told, and the next one begins after that.
    assert audience.said == [
        "small begins", "small finished", "0 told", "small-confirm begins", "small-confirm finished", "1 told",
    ]  # fmt: skip
    assert told() == [SEARCHED, CONFIRMATION]
    posted = [json.loads(body) for _, _, body in server.requests]
    assert [(each["study"], each["status"], each["best_trial"], each["mean"]) for each in posted] == [
        ("small", "finished", 2, pytest.approx(41.0)),
        ("small-confirm", "finished", 0, pytest.approx(41.0)),
    ]
    confirmed = outcome.confirmation
    assert confirmed is not None and confirmed.confirmation is None and confirmed.status == "finished"
    assert (confirmed.study.name, confirmed.study.splits) == ("small-confirm", (2, 3))
    assert [trial.row for trial in confirmed.study.grid_trials()] == ["CSS (mix), trial 2", "CSS (mix), trial 3"]
    # Study for study, the audience was told what is in the journals.
    assert audience.heard == Journal("runs/small").events + Journal("runs/small-confirm").events


def test_a_confirmation_that_was_interrupted_is_continued_with_the_search(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rayless.install(monkeypatch, score)
    study = Study.load(file, set=CONFIRMED)
    # The search has 1 + 4 * (1 + 1 + 2 * 4) + 1 events; the tenth of the confirmation is in the middle of a run.
    first = study.run(audience=Listening(interrupt_at=42 + 10), on_finish=ON_FINISH)
    assert first.status == "finished" and first.confirmation is not None and first.confirmation.status == "interrupted"
    assert [line.split()[:2] for line in told()] == [["small", "finished"], ["small-confirm", "interrupted"]]
    audience = Listening()
    second = Study.load("runs/small").resume(audience=audience, on_finish=ON_FINISH)
    assert second.status == "finished" and second.confirmation is not None and second.confirmation.status == "finished"
    assert audience.said == ["small begins", "small finished", "small-confirm begins", "small-confirm finished"]
    assert told()[2:] == [SEARCHED, CONFIRMATION]
    assert {record.status for record in second.confirmation.records} == {"finished"} and len(second.confirmation.records) == 4


def test_a_confirmation_that_has_begun_keeps_its_trials(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a larger search finds later is not trained under the names of those that were confirmed."""
    Rayless.install(monkeypatch, lambda spec: 90.0 if spec.trial == 4 else score(spec))
    study = Study.load(file, set=CONFIRMED)
    study.run()
    before = Path("runs/small-confirm/journal.jsonl").read_bytes()
    outcome = study.resume(set={"search.trials": 4})
    assert study.best is not None and study.best.index == 4
    assert any(isinstance(event, StudyExtended) for event in Journal("runs/small").events)
    assert outcome.confirmation is not None and outcome.confirmation.status == "finished"
    assert Path("runs/small-confirm/journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("fault", ["a run", "an interrupt", "nothing that is whole"])
def test_a_search_that_did_not_finish_is_not_confirmed(fault: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = {"a run": (2, 0), "nothing that is whole": (1, 2, 3)}.get(fault, ())
    Rayless.install(monkeypatch, lambda spec: float("nan") if spec.trial in nan else score(spec))
    audience = Listening(interrupt_at=20 if fault == "an interrupt" else None)
    outcome = Study.load(file, set={**CONFIRMED, "resources.failed_share": 1}).run(audience=audience, on_finish=ON_FINISH)
    assert outcome.status == ("interrupted" if fault == "an interrupt" else "failed") and outcome.confirmation is None
    assert len(told()) == 1 and not Path("runs/small-confirm").exists()


def test_a_warning_of_a_study_points_at_who_ran_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Rayless.install(monkeypatch, score)
    with pytest.warns(UserWarning, match="the command of --on-finish exited with status 3") as warned:
        Study.load(file, set=CONFIRMED).run(on_finish="exit 3")
    assert [warning.filename for warning in warned] == [__file__] * 2  # of the search and of its confirmation


def test_a_study_that_breaks_down_is_told_as_failed_and_one_that_is_not_ours_is_not(
    file: Path, runner: type[FakeRunner]
) -> None:
    study = Study.load(file)
    runner.error = OSError(28, "the disk is full")
    with pytest.raises(OSError, match="the disk is full"):
        study.run(on_finish=ON_FINISH)
    assert [line.split()[:2] for line in told()] == [["small", "failed"]]
    runner.error = StudyLockedError("another driver is at work on it")
    with pytest.raises(StudyLockedError):
        study.resume(on_finish=ON_FINISH)
    with pytest.raises(ValueError, match="not an http:// or https:// URL"):
        study.resume(webhook="htp://host/s3cret")
    assert len(told()) == 1 and len(runner.calls) == 2


def test_what_the_audience_raises_at_the_end_keeps_nobody_from_being_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Listening):
        def study_ended(self, study: Any, outcome: Any) -> None:
            raise OSError("the terminal is gone")

    Rayless.install(monkeypatch, score)
    with pytest.raises(OSError, match="the terminal is gone"):
        Study.load(file, set=CONFIRMED).run(audience=Broken(), on_finish=ON_FINISH)
    assert told() == [SEARCHED]
