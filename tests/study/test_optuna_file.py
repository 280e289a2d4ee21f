"""A study as a file of Optuna's: what Optuna loads from it is what the journal holds."""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from css_ray.study.optuna_file import OptunaFile
from tests.cli.made_up import call
from tests.journals import PRUNED, SPEC, Telling, mixed

METHOD = SPEC["grid"]["method"][0]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    return tmp_path


JOURNAL = Path("runs/small/journal.jsonl")


def loaded(name: str = "small", path: str = "small.log") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(path)))


def plain(study: optuna.Study) -> list[dict[str, Any]]:
    """All that Optuna knows of the trials but when they ended, which a file that is kept up to date has from its own clock."""
    names = ("number", "state", "values", "params", "distributions", "user_attrs", "intermediate_values", "datetime_start")
    return [{name: getattr(trial, name) for name in names} for trial in study.trials]


def test_optuna_loads_what_the_journal_holds() -> None:
    telling = mixed(JOURNAL)
    result = call("study", "export", "small", "--format", "optuna", "--out", "small.log")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output == "wrote 6 trials to small.log; to see them: optuna-dashboard small.log\n"
    study = loaded()
    assert [trial.state for trial in study.trials] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING,
    ]  # fmt: skip
    assert study.best_value == 54.0 and study.best_params == {"method.temperature": 0.1}
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    first = study.trials[0]
    assert first.distributions == {"method.temperature": optuna.distributions.FloatDistribution(0.1, 1.0)}
    # Each split has 100 steps and is evaluated at 10, 20 and 30 with a quarter, a half and the whole of its score.
    scores = (50.0, 52.0, 60.0)
    assert first.intermediate_values == {
        100 * split + 10 * place: scores[split] / 2 ** (3 - place) for split in range(3) for place in (1, 2, 3)
    }
    assert first.user_attrs["by_split"] == {"0": 50.0, "1": 52.0, "2": 60.0} and first.user_attrs["row"] == "CSS (mix)"
    assert (first.user_attrs["trial"], first.user_attrs["status"], first.user_attrs["n"]) == (1, "finished", 3)
    assert study.trials[1].user_attrs["reason"] == PRUNED and study.trials[3].user_attrs["status"] == "partial"
    (end,) = [event.time for event in telling.events if event.kind == "trial_finished" and event.trial == 1]  # type: ignore[attr-defined]
    assert first.datetime_complete == datetime.fromtimestamp(end)
    grid = loaded("small-grid")
    assert [trial.params for trial in grid.trials] == [{"row": "Sup."}] and grid.best_value == 44.0


def test_optuna_finds_the_settings_that_all_trials_share() -> None:
    """Which it needs for importances; the trial of the grid, which has none of them, is not among the search's."""
    telling = Telling(JOURNAL)
    telling.start()
    telling.whole(0, 1.0, 2.0, 3.0)
    for trial in (1, 2, 3, 4):
        telling.whole(trial, 40.0 + trial, 41.0, 42.0)
    OptunaFile("runs/small", "small.log").update()
    assert list(optuna.importance.get_param_importances(loaded())) == ["method.temperature"]


def test_a_file_that_is_kept_up_to_date_equals_one_that_is_written_afterwards() -> None:
    """Event by event, as a study writes them, on one file that another program has open all the time."""
    events = mixed().events
    JOURNAL.parent.mkdir(parents=True)
    JOURNAL.write_text(json.dumps(events[0].to_json()) + "\n")
    file = OptunaFile("runs/small", "small.log")
    assert file.update() == 0
    watching = loaded()
    assert watching.trials == []
    inode = Path("small.log").stat().st_ino
    for event in events[1:]:
        with JOURNAL.open("a") as journal:
            journal.write(json.dumps(event.to_json()) + "\n")
        file.update()
    OptunaFile("runs/small", "afterwards.log").update()
    for name in ("small", "small-grid"):
        assert plain(loaded(name)) == plain(loaded(name, "afterwards.log"))
    assert plain(watching) == plain(loaded()) and len(watching.trials) == 5
    assert Path("small.log").stat().st_ino == inode
    assert file.update() == 6 and not list(Path().glob(".optuna-*"))


def test_a_second_export_replaces_the_file() -> None:
    telling = mixed(JOURNAL)
    for _ in range(2):
        assert call("study", "export", "small", "--format", "optuna", "--out", "small.log").exit_code == 0
    assert len(loaded().trials) == 5
    telling.run(5, 2, 20.0, 46.0)
    telling.tell("run_evaluated", 5, 1, step=60, metrics={"val/miou": 44.0})
    telling.tell("run_finished", 5, 1, step=100, last={"val/miou": 44.0}, best={"val/miou": 44.0}, best_step=60, seconds=1.0)
    telling.end(5, scores={0: 45.0, 1: 44.0, 2: 46.0})
    assert call("study", "export", "small", "--format", "optuna", "--out", "small.log").exit_code == 0
    assert loaded().trials[4].state == TrialState.COMPLETE and loaded().trials[4].value == 45.0


def test_a_trial_that_runs_again_is_running_again() -> None:
    """A driver that was killed is followed by another one, which trains again what its machinery failed."""
    telling = mixed(JOURNAL)
    file = OptunaFile("runs/small", "small.log")
    file.update()
    assert loaded().trials[2].state == TrialState.FAIL
    telling.tell("study_resumed")
    file.update()
    assert loaded().trials[2].state == TrialState.RUNNING and len(loaded().trials) == 5


def test_following_ends_with_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    telling = mixed(JOURNAL)

    def rest(seconds: float) -> None:
        telling.tell("study_finished", status="failed", best_trial=1)

    # The package has a command of the module's name.
    monkeypatch.setattr(importlib.import_module("css_ray_cli.study.export").time, "sleep", rest)
    result = call("study", "export", "small", "--format", "optuna", "--out", "small.log", "--follow")
    assert result.exit_code == 0, (result.output, result.exception)


def test_two_objectives() -> None:
    telling = Telling(JOURNAL, objective={"aggregate": "mean_and_std"})
    telling.start()
    telling.whole(0, 40.0, 44.0, 48.0)
    telling.whole(1, 50.0, 52.0, 60.0)
    OptunaFile("runs/small", "small.log").update()
    (trial,) = loaded().best_trials
    assert trial.values == [54.0, pytest.approx(28**0.5)] and len(loaded().directions) == 2


def test_a_grid_has_its_settings_as_choices() -> None:
    grid = {"method": [METHOD, {"name": "css", "row": "CSS"}], "data.labelled": [8, 16]}
    telling = Telling(JOURNAL, grid=grid, search=None)
    telling.start()
    for listed in telling.study.grid_trials()[:3]:
        telling.tell(
            "trial_started", listed.index, row=listed.row, source="grid", params=listed.params, config={"train.iterations": 100}
        )
    OptunaFile("runs/small", "small.log").update()
    assert [trial.params for trial in loaded().trials] == [
        {"row": "Sup.", "data.labelled": 8},
        {"row": "Sup.", "data.labelled": 16},
        {"row": "CSS", "data.labelled": 8},
    ]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "a & b_c", 'x"\\'])
def test_names_of_others_are_text(name: str) -> None:
    telling = Telling(JOURNAL, grid={"method": [{**METHOD, "row": name}]}, search=None)
    telling.start()
    assert OptunaFile("runs/small", "small.log").update() == 0  # before a trial began
    telling.tell("trial_started", 0, row=name, source="grid", params={}, config={"train.iterations": 100})
    telling.run(0, 0, 30.0, end="failed", reason=name)
    OptunaFile("runs/small", "small.log").update()
    (trial,) = loaded().trials
    assert trial.params == {"row": name} and trial.state == TrialState.RUNNING and "best_value" not in trial.user_attrs
    with pytest.raises(ValueError, match="No trials are completed"):
        _ = loaded().best_value
