"""MLflow as a projection of the journal, checked in a real SQLite file through MLflow's own client and through plain SQL."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from css_ray import tracking
from css_ray.events import (
    Event,
    RunEvaluated,
    RunFailed,
    RunFinished,
    RunLogged,
    RunStarted,
    StudyFinished,
    StudyInterrupted,
    StudyResumed,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from css_ray.standing import records_from_events
from css_ray.tracking import client as mlflow_client
from css_ray.tracking import forms
from css_ray.tracking import projection as projection_module
from css_ray.tracking import server as server_module
from css_ray.tracking import tracker as tracker_module

Content = dict[str, list[tuple[Any, ...]]]
CLASSES = ["sky", "tv/monitor", "bike (rider)"]


class Journal:
    """Makes events with a clock of its own, a second a tick."""

    def __init__(self, study: str = "toy", study_id: str = "id-1", start: float = 1_700_000_000.125) -> None:
        self.events: list[Event] = []
        self.time = start
        self.add(StudyStarted, study=study, study_id=study_id, spec={"study": study}, versions={"torch": "2"})

    def add(self, kind: type[Event], **fields: Any) -> None:
        self.time += 1
        self.events.append(kind(time=self.time, **fields))

    def start_trial(self, trial: int, row: str = "CSS (mix)", **params: Any) -> None:
        params = params or {"data.labelled": 92, "method.name": "css", "method.temperature": 0.5}
        config = params | {"train.lr": 0.0064, "data.root": "data/voc"}
        self.add(TrialStarted, trial=trial, row=row, source="grid", params=params, config=config)

    def start_run(self, trial: int, split: int) -> None:
        self.add(
            RunStarted, trial=trial, split=split, seed=7 + split, dataset="voc", split_hash=f"{split}" * 64,
            num_labelled=92, num_unlabelled=1372, class_names=CLASSES,
        )  # fmt: skip

    def train(self, trial: int, split: int, steps: range) -> None:
        for step in steps:
            self.add(RunLogged, trial=trial, split=split, step=step, metrics={"train/loss": 1 / step, "train/lr": 0.01})
            scores = {"val/miou": 50.0 + step + split, "val/pixel_accuracy": 90.0} | {f"val/iou/{CLASSES[0]}": 40.0 + step}
            self.add(RunEvaluated, trial=trial, split=split, step=step, metrics=scores)

    def finish_run(self, trial: int, split: int, step: int) -> None:
        last, best = {"val/miou": 50.0 + step + split}, {"val/miou": 60.1 + split}
        self.add(
            RunFinished, trial=trial, split=split, step=step, last=last, best=best, best_step=step - 1, seconds=12.25
        )  # fmt: skip

    def finish_trial(self, trial: int, values: dict[str, float], num_splits: int, **changes: Any) -> None:
        # As they come out of JSON: the keys of `values` are strings.
        fields = {"status": "finished", "reason": "", "mean": 53.5, "std": 0.7071, "n": len(values)} | changes
        self.add(TrialFinished, trial=trial, values=values, num_splits=num_splits, **fields)


def whole_journal() -> list[Event]:
    """Two trials on two splits; one run fails, one is interrupted and goes on."""
    journal = Journal()
    journal.start_trial(0)
    for split in (0, 1):
        journal.start_run(0, split)
        journal.train(0, split, range(1, 4))
        journal.finish_run(0, split, step=3)
    journal.finish_trial(0, {"0": 53.0, "1": 54.0}, num_splits=2)
    journal.start_trial(1, row="Sup.", **{"data.labelled": 183, "note": "12", "flag": True, "none": None, "list": [1, 2]})
    journal.start_run(1, 0)
    journal.train(1, 0, range(1, 3))
    journal.add(StudyInterrupted, reason="Ctrl-C")
    journal.add(StudyResumed)
    journal.train(1, 0, range(3, 4))
    journal.finish_run(1, 0, step=3)
    journal.start_run(1, 1)
    journal.train(1, 1, range(1, 2))
    journal.add(RunFailed, trial=1, split=1, step=1, reason="CUDA out of memory")
    journal.finish_trial(1, {"0": 53.0}, num_splits=2, status="failed", reason="1 of 2 splits failed", mean=53.0, std=None)
    journal.add(StudyFinished, status="finished", best_trial=0)
    return journal.events


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables, which take seconds to make."""
    folder = tmp_path_factory.mktemp("schema")
    with pytest.raises(LookupError, match="has no study 'nothing'"):
        tracking.read_records(tracking.default_uri(folder), "nothing")
    file = folder / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    return fresh_uri(empty_database, tmp_path / "one")


def fresh_uri(empty_database: Path, folder: Path) -> str:
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return tracking.default_uri(folder)


@pytest.fixture(scope="session")
def whole_content(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """What one undisturbed pass over the whole journal leaves."""
    uri = fresh_uri(empty_database, tmp_path_factory.mktemp("whole") / "one")
    tracking.sync(whole_journal(), uri)
    return content(uri)


def content(uri: str) -> Content:
    """All that MLflow holds of the study, by SQL, with each run's id, also in a link, replaced by its name, unique here."""
    active = "(SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')"
    tables = {
        "runs": "SELECT run_uuid, status, start_time, end_time FROM runs WHERE lifecycle_stage = 'active'",
        "metrics": f"SELECT run_uuid, key, step, timestamp, value FROM metrics WHERE run_uuid IN {active}",
        "params": f"SELECT run_uuid, key, value FROM params WHERE run_uuid IN {active}",
        "tags": f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN {active}",
        "inputs": "SELECT destination_id, name, digest FROM inputs JOIN datasets ON source_id = dataset_uuid",
    }
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        names = dict(database.execute("SELECT run_uuid, name FROM runs").fetchall())
        rows = {name: database.execute(query).fetchall() for name, query in tables.items()}

    def named(entry: Any) -> Any:
        if isinstance(entry, str):
            for run_id, name in names.items():
                entry = entry.replace(run_id, name)
        return entry

    return {name: sorted(tuple(map(named, row)) for row in found) for name, found in rows.items()}


def statuses(uri: str) -> dict[str, str]:
    return {name: status for name, status, *_ in content(uri)["runs"]}


class Flaky:
    """Stands before an MLflow client and fails some calls: before they are made, or after, as if the answer were lost."""

    def __init__(self, client: Any, fatal_calls: set[int], after: bool) -> None:
        self.client, self.fatal_calls, self.after = client, fatal_calls, after
        self.names: list[str] = []
        self.failures = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.names.append(name)
            fatal = len(self.names) in self.fatal_calls
            self.failures += fatal
            if fatal and not self.after:
                raise ConnectionError("no answer")
            result = getattr(self.client, name)(*arguments, **keywords)
            if fatal:
                raise ConnectionError("the answer was lost")
            return result

        return call


def test_one_run_a_trial_and_one_child_a_split(uri: str) -> None:
    tracking.sync(whole_journal(), uri)
    found = content(uri)
    trials = {name for name, key, value in found["tags"] if (key, value) == ("css_ray.kind", "trial")}
    assert trials == {"CSS (mix) #0", "Sup. #1"}
    parents = {name: value for name, key, value in found["tags"] if key == "mlflow.parentRunId"}
    assert parents == {
        "CSS (mix) #0 split 0": "CSS (mix) #0",
        "CSS (mix) #0 split 1": "CSS (mix) #0",
        "Sup. #1 split 0": "Sup. #1",
        "Sup. #1 split 1": "Sup. #1",
    }
    assert statuses(uri) == {name: "FINISHED" for name in ["study", *parents, "CSS (mix) #0"]} | {
        "Sup. #1": "FAILED",
        "Sup. #1 split 1": "FAILED",
    }
    # The split is an MLflow data set: 36 characters of its hash are all that MLflow takes.
    assert ("CSS (mix) #0 split 1", "voc/92/split1", "1" * 36) in found["inputs"]
    # The trial holds the whole configuration, a split only what the study varies.
    assert ("CSS (mix) #0", "train.lr", "0.0064") in found["params"]
    assert {key for name, key, _ in found["params"] if name == "CSS (mix) #0 split 0"} == {
        "data.labelled",
        "method.name",
        "method.temperature",
    }


def test_curves_carry_the_time_of_their_events(uri: str) -> None:
    events = whole_journal()
    tracking.sync(events, uri)
    expected = sorted(
        (event.step, round(event.time * 1000), event.metrics["val/miou"])
        for event in events
        if isinstance(event, RunEvaluated) and (event.trial, event.split) == (1, 0)
    )
    points = [row[2:] for row in content(uri)["metrics"] if row[:2] == ("Sup. #1 split 0", "val/miou")]
    assert points == expected and len(points) == 3


def test_trial_shows_its_score_and_says_what_is_missing(uri: str) -> None:
    tracking.sync(whole_journal(), uri)
    found = content(uri)
    tags = {(name, key): value for name, key, value in found["tags"]}
    assert tags["CSS (mix) #0", "css_ray.score"] == "53.50 ± 0.71"
    assert tags["Sup. #1", "css_ray.score"] == "53.00 (n=1 of 2)"
    note = tags["Sup. #1", "mlflow.note.content"]
    assert "| [1](#/experiments/1/runs/Sup. #1 split 1) | failed: CUDA out of memory |" in note
    assert "| [0](#/experiments/1/runs/Sup. #1 split 0) | 53.00 |" in note
    assert "[The tables of the study](#/experiments/1/runs/study/artifacts/results.md)" in note
    scores = {row[1]: row[4] for row in found["metrics"] if row[0] == "CSS (mix) #0"}
    assert scores == {"mean": 53.5, "std": 0.7071, "n": 2, "num_splits": 2}


def test_replay_changes_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tracking.sync(whole_journal(), uri)
    before = content(uri)
    clients = [Flaky(mlflow_client.connect(uri), set(), after=True)]
    monkeypatch.setattr(projection_module, "connect", lambda uri: clients[0])
    second = tracking.sync(whole_journal(), uri)
    # Two questions suffice to see that nothing is to be done.
    assert clients[0].names == ["get_experiment_by_name", "search_runs"]
    assert (first.runs_created, first.points_sent) == (7, len(before["metrics"]))
    assert (second.runs_created, second.points_sent) == (0, 0)
    assert content(uri) == before


@pytest.mark.parametrize("known", [1, 2, 5, 18, 23, 24, 25, 30, 35])
def test_resume_after_a_partial_projection_equals_one_pass(known: int, uri: str, whole_content: Content) -> None:
    events = whole_journal()
    tracking.sync(events[:known], uri)
    tracking.sync(events, uri)
    assert content(uri) == whole_content


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("in_one_process", [False, True])
def test_resume_after_a_lost_call_equals_one_pass(
    after: bool, in_one_process: bool, empty_database: Path, tmp_path: Path, whole_content: Content
) -> None:
    """For each kind of call, the middle one of its kind fails."""
    events = whole_journal()
    batches = [events[start : start + 2] for start in range(0, len(events), 2)]

    def project(folder: str, fatal_calls: set[int]) -> tuple[str, Flaky]:
        uri = fresh_uri(empty_database, tmp_path / folder)
        projection = tracking.Projection(uri)
        flaky: Any = Flaky(projection._client, fatal_calls, after)
        projection._client = flaky
        for batch in batches:
            try:
                projection.apply(batch)
            except ConnectionError:
                if not in_one_process:
                    break
                projection.apply(batch)
        return uri, flaky

    _, undisturbed = project("undisturbed", set())
    for name in sorted(set(undisturbed.names)):
        calls = [number for number, other in enumerate(undisturbed.names, start=1) if other == name]
        uri, flaky = project(name, {calls[len(calls) // 2]})
        assert flaky.failures == 1
        if not in_one_process:
            tracking.sync(events, uri)
        assert content(uri) == whole_content, name


def test_interruption_known_late_does_not_kill_what_has_gone_on(empty_database: Path, tmp_path: Path) -> None:
    """The study's run and a split's run are written one after the other; a crash between them must not matter."""
    events = whole_journal()
    interrupted = next(index for index, event in enumerate(events) if isinstance(event, StudyInterrupted))
    known, until = events[:interrupted], events[: interrupted + 3]
    clean = fresh_uri(empty_database, tmp_path / "clean")
    tracking.sync(until, clean)
    for fatal_call in range(1, 20):
        uri = fresh_uri(empty_database, tmp_path / str(fatal_call))
        tracking.sync(known, uri)
        projection = tracking.Projection(uri)
        flaky: Any = Flaky(projection._client, {fatal_call}, after=True)
        projection._client = flaky
        with suppress(ConnectionError):
            projection.apply(until)
        tracking.sync(until, uri)
        assert content(uri) == content(clean), f"call {fatal_call}: {flaky.names[-1]}"
        if not flaky.failures:
            break
    assert fatal_call > 5


def test_run_created_twice_is_kept_once(uri: str, whole_content: Content) -> None:
    events = whole_journal()
    projection = tracking.Projection(uri)
    create = projection._client.create_run

    def create_twice(*arguments: Any) -> Any:
        create(*arguments)
        return create(*arguments)

    projection._client.create_run = create_twice  # type: ignore[method-assign, assignment]
    projection.apply(events[:20])
    # Readers are not misled in the meantime.
    records = [replace(record, run_id=None) for record in tracking.read_records(uri, "toy")]
    assert records == records_from_events(events[:20])
    tracking.sync(events, uri)
    assert content(uri) == whole_content


def test_interrupted_runs_are_killed_reopened_and_finished(uri: str) -> None:
    events = whole_journal()
    interrupted = next(index for index, event in enumerate(events) if isinstance(event, StudyInterrupted))
    tracking.sync(events[: interrupted + 1], uri)
    killed = {name for name, status in statuses(uri).items() if status == "KILLED"}
    assert killed == {"study", "Sup. #1", "Sup. #1 split 0"}
    tracking.sync(events[: interrupted + 3], uri)
    assert statuses(uri)["Sup. #1 split 0"] == "RUNNING"
    tracking.sync(events, uri)
    assert statuses(uri)["Sup. #1 split 0"] == "FINISHED"
    assert "RUNNING" not in statuses(uri).values()


def test_end_of_a_trial_leaves_no_split_running(uri: str) -> None:
    journal = Journal()
    journal.start_trial(0)
    journal.start_run(0, 0)
    journal.finish_trial(0, {}, num_splits=2, status="pruned", reason="worse on split 0", mean=None, std=None)
    tracking.sync(journal.events, uri)
    assert statuses(uri) == {"study": "RUNNING", "CSS (mix) #0": "FINISHED", "CSS (mix) #0 split 0": "KILLED"}


def test_failed_run_that_goes_on_is_the_same_run(uri: str) -> None:
    journal = Journal()
    journal.start_trial(0)
    journal.start_run(0, 0)
    for step in (1, 2):
        journal.train(0, 0, range(step, step + 1))
        tracking.sync(journal.events, uri)
        assert statuses(uri) == {"study": "RUNNING", "CSS (mix) #0": "RUNNING", "CSS (mix) #0 split 0": "RUNNING"}
        journal.add(RunFailed, trial=0, split=0, step=step, reason="worker lost")
        tracking.sync(journal.events, uri)
        assert statuses(uri)["CSS (mix) #0 split 0"] == "FAILED"
        journal.finish_trial(0, {}, num_splits=1, status="failed", reason="worker lost", mean=None, std=None)
        journal.add(StudyFinished, status="failed", best_trial=None)
        tracking.sync(journal.events, uri)
        assert statuses(uri) == {"study": "FAILED", "CSS (mix) #0": "FAILED", "CSS (mix) #0 split 0": "FAILED"}
        records = [replace(record, run_id=None) for record in tracking.read_records(uri, "toy")]
        assert records == records_from_events(journal.events)
        journal.add(StudyResumed)
    # As in a journal, which has the start of a trial or a run once.
    journal.train(0, 0, range(3, 4))
    tracking.sync(journal.events, uri)
    assert statuses(uri) == {"study": "RUNNING", "CSS (mix) #0": "RUNNING", "CSS (mix) #0 split 0": "RUNNING"}
    assert [replace(record, run_id=None) for record in tracking.read_records(uri, "toy")] == records_from_events(journal.events)


def test_records_from_mlflow_equal_records_from_events(uri: str) -> None:
    events = whole_journal()
    for known in (4, 9, 24, len(events)):
        tracking.sync(events[:known], uri)
        records = tracking.read_records(uri, "toy")
        assert [replace(record, run_id=None) for record in records] == records_from_events(events[:known])
    # Each with a run of its own, and parameters of their own types.
    assert len({record.run_id for record in records}) == 4 and None not in {record.run_id for record in records}
    assert records[2].params == {"data.labelled": 183, "note": "12", "flag": True, "none": None, "list": [1, 2]}


@pytest.mark.parametrize("value", ["css", "12", "true", "", '"', "NaN", " 1", "[1", 3, 0.1, 1e-30, True, None, [1, "a"], "é"])
def test_parameters_keep_their_value_and_type(value: object) -> None:
    text = forms.encode(value)
    assert forms.decode(text) == value and type(forms.decode(text)) is type(value)


def test_two_journals_of_one_study_do_not_mix(uri: str) -> None:
    old, new = Journal(start=1_000.0), Journal(start=2_000.0)
    for journal, step in ((old, 3), (new, 5)):
        journal.start_trial(0)
        journal.start_run(0, 0)
        journal.finish_run(0, 0, step=step)
        tracking.sync(journal.events, uri)
    tracking.sync(old.events, uri)
    assert [record.step for record in tracking.read_records(uri, "toy")] == [5]
    assert len(content(uri)["runs"]) == 6


def test_what_mlflow_would_refuse_or_spoil_is_put_right(uri: str) -> None:
    journal = Journal()
    journal.start_trial(0, **{"long": "x" * 7000})
    journal.start_run(0, 0)
    metrics = {"train/loss": float("inf"), "train/nan": float("nan"), "val/iou/a+b": 1.0, "val/../up": 2.0, "train/ok": 3.0}
    journal.add(RunLogged, trial=0, split=0, step=1, metrics=metrics)
    journal.add(RunFailed, trial=0, split=0, step=1, reason="y" * 9000)
    tracking.sync(journal.events, uri)
    found = content(uri)
    assert {row[1]: row[4] for row in found["metrics"]} == {"val/iou/a_b": 1.0, "up": 2.0, "train/ok": 3.0}
    (long,) = {value for _, key, value in found["params"] if key == "long"}
    (reason,) = {value for _, key, value in found["tags"] if key == "css_ray.reason"}
    assert (len(long), len(reason)) == (6000, 8000) and long.endswith("(cut)") and reason.endswith("(cut)")


def test_more_points_than_one_call_takes(uri: str) -> None:
    journal = Journal()
    journal.start_trial(0)
    journal.start_run(0, 0)
    journal.train(0, 0, range(1, 450))
    assert tracking.sync(journal.events, uri).points_sent == 449 * 5 == len(content(uri)["metrics"])


def test_events_must_start_with_the_start_of_the_study(uri: str) -> None:
    with pytest.raises(ValueError, match="hand over the whole journal"):
        tracking.Projection(uri).apply(whole_journal()[3:])


def test_deleted_experiment_comes_back(uri: str) -> None:
    from mlflow import MlflowClient

    tracking.sync(whole_journal(), uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    tracking.sync(whole_journal(), uri)
    assert [replace(record, run_id=None) for record in tracking.read_records(uri, "toy")] == records_from_events(
        whole_journal()
    )


def test_tables_are_attached_to_the_study_and_replaced(uri: str) -> None:
    from mlflow import MlflowClient

    tracking.sync(whole_journal(), uri)
    for word in ("first", "second"):
        run_id = tracking.log_tables(uri, "id-1", {"results.md": f"| {word} |", "results.csv": f"{word},1"})
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.run_name == "study" and run.data.tags["mlflow.note.content"].startswith("| second |\n\n[All runs, ")
    assert {file.path for file in client.list_artifacts(run_id)} == {"results.md", "results.csv", "study.json"}
    folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    assert [file.read_text() for file in folder.rglob("results.csv")] == ["second,1"]
    with pytest.raises(LookupError, match="id-2"):
        tracking.log_tables(uri, "id-2", {})


# ------------------------------------------------------------------------------------------------------------- the tracker


def test_tracker_writes_what_sync_writes(uri: str, whole_content: Content) -> None:
    tracker = tracking.Tracker(uri)
    for event in whole_journal():
        tracker.record(event)
    assert tracker.close(timeout=60) == 0
    assert content(uri) == whole_content


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_study_neither_waits_for_a_dead_server_nor_loses_events(
    kind: str, free_port: int, silent_port: int, uri: str, whole_content: Content
) -> None:
    events = whole_journal()
    port = free_port if kind == "refusing" else silent_port
    tracker = tracking.Tracker(f"http://127.0.0.1:{port}")
    start = time.monotonic()
    for event in events:
        tracker.record(event)
    assert time.monotonic() - start < 5
    time.sleep(0.3)
    start = time.monotonic()
    unsent = tracker.close(timeout=1.5)
    assert time.monotonic() - start < 8
    assert unsent == len(events)
    # Nothing is lost: the journal has it all.
    tracking.sync(events, uri)
    assert content(uri) == whole_content


def test_events_wait_for_the_server_and_arrive_in_order(
    uri: str, whole_content: Content, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect = mlflow_client.connect
    clients = [Flaky(connect(uri), {3, 14, 15, 40}, after=True)]
    monkeypatch.setattr(projection_module, "connect", lambda uri: clients[0])
    monkeypatch.setattr(tracker_module, "_EVENTS_A_BATCH", 10)
    tracker = tracking.Tracker(uri, longest_pause=0.01)
    for event in whole_journal():
        tracker.record(event)
    limit = time.monotonic() + 60
    while tracker._waiting and time.monotonic() < limit:
        time.sleep(0.01)
    assert tracker.close() == 0
    assert clients[0].failures == 4 and content(uri) == whole_content
    # One warning each time it goes and one each time it comes back; calls 14 and 15 may or may not be one outage.
    warnings = [message.split("is ")[1][:4] for message in caplog.messages if uri in message]
    assert warnings == ["away", "back"] * (len(warnings) // 2) and len(warnings) in (4, 6, 8)


def test_event_that_cannot_be_written_is_dropped_alone(
    uri: str, whole_content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    events = whole_journal()
    tracker = tracking.Tracker(uri)
    for event in events[:-1]:
        tracker.record(event)
    tracker.record(RunLogged(time=1.0, trial=7, split=0, step=1, metrics={}))  # of a trial that never began
    tracker.record(events[-1])
    assert tracker.close(timeout=60) == 0
    found = content(uri)
    assert (found["metrics"], found["runs"]) == (whole_content["metrics"], whole_content["runs"])
    assert [message for message in caplog.messages if "refuses" in message and "'run_logged'" in message]


# -------------------------------------------------------------------------------------------------------------- the server


def test_port_in_use_is_named_before_anything_starts(silent_port: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"port {silent_port} on 127.0.0.1 .* --port"):
        tracking.start_server(tracking.default_uri(tmp_path), tmp_path, port=silent_port)
    assert not list(tmp_path.iterdir())


def test_ui_command_with_a_port_in_use_is_bad_input(silent_port: int, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    from click.testing import CliRunner

    from css_ray_cli.ui import ui

    result = CliRunner().invoke(ui, ["--storage", str(tmp_path), "--port", str(silent_port)])
    assert result.exit_code == 2 and f"port {silent_port}" in result.output


def test_server_that_cannot_start_says_why(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such module\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(server_module, "connect", lambda uri: None)
    with pytest.raises(RuntimeError, match=r"status 3:\nno such module"):
        tracking.start_server(tracking.default_uri(tmp_path), tmp_path, port=free_port)


def test_stop_ends_the_whole_group() -> None:
    """Also a child that ignores the request to end."""
    program = "trap '' TERM; echo ready; sleep 60 & wait; sleep 60"
    process = subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    server = tracking.Server(process, "")
    server.stop(grace=0.2)
    server.stop()
    assert process.returncode == -9
    process.stdout.read()  # ends only when every process that holds the pipe has ended
    process.stdout.close()


@pytest.mark.slow
def test_server_that_comes_late_gets_everything(free_port: int, uri: str, tmp_path: Path, whole_content: Content) -> None:
    url = f"http://127.0.0.1:{free_port}"
    tracker = tracking.Tracker(url, longest_pause=0.5)
    for event in whole_journal():
        tracker.record(event)
    time.sleep(1)
    server = tracking.start_server(uri, tmp_path / "artifacts", port=free_port)
    try:
        assert server.url == url
        assert tracker.close(timeout=60) == 0
        assert content(uri) == whole_content
        tracking.log_tables(url, "id-1", {"results.md": "| table |"})
        assert [file.read_text() for file in (tmp_path / "artifacts").rglob("results.md")] == ["| table |"]
        assert [replace(record, run_id=None) for record in tracking.read_records(url, "toy")] == records_from_events(
            whole_journal()
        )
    finally:
        server.stop()
    server_module._check_port("127.0.0.1", free_port)  # raises while anything of the server is left
