"""The journal: durable, each event once, one driver."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from css_ray.events import RunLogged, StudyStarted
from css_ray.study import journal as module
from css_ray.study.journal import Follower, Journal, JournalError, StudyLockedError, studies_in, study_folder

STARTED = StudyStarted(time=1.0, study="s", study_id="x", spec={}, versions={})
LINE = json.dumps(STARTED.to_json())


def logged(split: int, step: int, value: float = 0.5, time: float = 2.0) -> RunLogged:
    return RunLogged(time=time, trial=0, split=split, step=step, metrics={"train/loss": value})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock on an object store, with less patience than it has by default."""
    for name, seconds in (("HEARTBEAT", 0.1), ("STALE", 1.0), ("SETTLE", 0.1)):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A study's folder, on a local path and through pyarrow's file systems, as an object store is reached."""
    return study_folder(str(tmp_path) if request.param == "path" else f"file://{tmp_path}", "s")


def test_events_come_back_in_order(folder: str) -> None:
    journal = Journal(folder)
    with journal.driving():
        for event in (STARTED, logged(0, 10), logged(1, 10)):
            assert journal.append(event)
    assert Journal(folder).events == [STARTED, logged(0, 10), logged(1, 10)]


def test_an_event_told_twice_is_written_once(folder: str) -> None:
    journal = Journal(folder)
    journal.append(STARTED)
    assert journal.append(logged(0, 10))
    # A resumed run tells it again, at another time and from another process.
    again = Journal(folder)
    assert not again.append(logged(0, 10, time=99.0))
    assert again.append(logged(0, 20))
    assert [getattr(event, "step", None) for event in Journal(folder).events] == [None, 10, 20]


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(STARTED)
    path = tmp_path / "journal.jsonl"
    with path.open("a") as file:
        file.write('{"event":"run_logged","ti')
    again = Journal(str(tmp_path))
    assert again.events == [STARTED]
    again.append(logged(0, 10))
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["study_started", "run_logged"]


def test_damage_elsewhere_is_refused_by_place(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": oops}\n' + LINE + "\n")
    with pytest.raises(JournalError, match=rf"^line 1 of {tmp_path}/journal.jsonl is damaged"):
        Journal(str(tmp_path))


def test_values_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(str(tmp_path)).append(logged(0, 1, float("nan")))


def test_a_second_driver_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from css_ray.study.journal import Journal\n"
        f"with Journal({str(tmp_path)!r}).driving():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StudyLockedError, match=f"process {holder.pid}"), Journal(str(tmp_path)).driving():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Journal(str(tmp_path)).driving():
        pass


@pytest.mark.parametrize("kept", [False, True])
def test_a_study_that_was_refused_leaves_no_trace(kept: bool, tmp_path: Path) -> None:
    storage = tmp_path / "new" / "runs"
    if kept:
        storage.mkdir(parents=True)
        (storage / "mlflow.db").touch()
    with contextlib.suppress(ValueError), Journal(str(storage / "small")).driving():
        assert (storage / "small" / "driver.lock").exists()
        raise ValueError("no disk holds it")
    assert sorted(path.name for path in tmp_path.rglob("*")) == (["mlflow.db", "new", "runs"] if kept else [])


def test_a_driver_that_waits_at_a_removed_lock_does_not_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two calls, to open the lock's file and to lock it, a driver that was refused removes that file."""
    import fcntl

    locks: list[int] = []
    flock = fcntl.flock

    def late(file: Any, how: int) -> None:
        if not locks:
            (tmp_path / "small" / "driver.lock").unlink()
        locks.append(os.fstat(file.fileno()).st_ino)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Journal(str(tmp_path / "small")).driving():
        monkeypatch.undo()
        assert locks[-1] == (tmp_path / "small" / "driver.lock").stat().st_ino and len(locks) == 2
        with pytest.raises(StudyLockedError), Journal(str(tmp_path / "small")).driving():
            pass


def test_a_second_driver_is_refused_on_an_object_store(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/s"
    with (
        Journal(uri).driving(),
        pytest.raises(StudyLockedError, match=f"another driver is at work on {uri} .process {os.getpid()}"),
        Journal(uri).driving(),
    ):
        pass
    with Journal(uri).driving():
        pass


def test_a_dead_drivers_heartbeat_goes_stale(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/s"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "driver.json").write_text(json.dumps({"who": "process 1 on nowhere", "token": "t", "beat": 3}))
    began = time.monotonic()
    with Journal(uri).driving():
        assert time.monotonic() - began >= module.STALE_SECONDS
    assert not (tmp_path / "s" / "driver.json").exists()


def _append_for_ever(folder: str) -> None:
    journal = Journal(folder)
    step = len(journal.events)
    while True:
        journal.append(logged(0, step))
        step += 1


def test_a_kill_at_any_moment_loses_at_most_the_event_in_hand(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    seen = 0
    for _ in range(3):
        writer = context.Process(target=_append_for_ever, args=(str(tmp_path),))
        writer.start()
        while len(Journal(str(tmp_path)).events) < seen + 20:
            time.sleep(0.01)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        steps = [getattr(event, "step", None) for event in Journal(str(tmp_path)).events]
        assert steps == list(range(len(steps)))
        assert len(steps) > seen
        seen = len(steps)


@pytest.mark.parametrize("kind", ["path", "uri"])
def test_nothing_is_written_after_an_append_that_failed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the event is there, nobody knows: another one must not take its place."""
    folder = str(tmp_path / "s") if kind == "path" else f"file://{tmp_path}/s"
    journal = Journal(folder)
    journal.append(STARTED)
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda descriptor, data: os.stat("/nowhere/at/all"))
        broken.setattr(module._Objects, "_put", lambda self, path, data: os.stat("/nowhere/at/all"))
        with pytest.raises(OSError) as first:
            journal.append(logged(0, 1))
    with pytest.raises(OSError) as second:
        journal.append(logged(0, 2))
    assert second.value is first.value is journal.error
    assert Journal(folder).events == [STARTED]


def test_reading_anew_finds_what_another_wrote(folder: str) -> None:
    journal, other = Journal(folder), Journal(folder)
    other.append(STARTED)
    journal.read()
    assert journal.events == [STARTED]
    assert not journal.append(STARTED) and journal.append(logged(0, 10))
    assert Journal(folder).events == [STARTED, logged(0, 10)]


def test_studies_of_a_storage(tmp_path: Path) -> None:
    for storage in (str(tmp_path / "a"), f"file://{tmp_path}/b"):
        assert studies_in(storage) == []
        for name in ("two", "one"):
            Journal(study_folder(storage, name)).append(STARTED)
        assert studies_in(storage) == ["one", "two"]


@pytest.mark.parametrize(
    "damage", [b'{"event": oops}', b"5", b'{"step": 3}', b'{"event":"run_\xff\xfe","time":1.0}', bytes(40)]
)
def test_damage_in_the_middle_is_refused_by_place(damage: bytes, tmp_path: Path) -> None:
    line = LINE.encode()
    (tmp_path / "journal.jsonl").write_bytes(
        line + b"\n" + damage + b"\n" + json.dumps(logged(0, 1).to_json()).encode() + b"\n"
    )
    with pytest.raises(JournalError, match=r"^line 2 of .* is damaged .*; keep what is sound with: css-ray study repair .*"):
        Journal(str(tmp_path))


def test_an_object_that_is_gone_is_missed_and_not_written_over(tmp_path: Path) -> None:
    journal = Journal(f"file://{tmp_path}/s")
    for step in range(5):
        journal.append(logged(0, step))
    (tmp_path / "s" / "journal" / "000000002.json").unlink()
    with pytest.raises(
        JournalError, match=r"^event 3 of the journal in .* is missing; keep what is sound with: css-ray study repair s "
    ):
        Journal(f"file://{tmp_path}/s")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"event": "study_moved"}, "does not know events of the kind 'study_moved'"),
        ({"colour": "red"}, "does not know the field 'colour' of study_paused"),
    ],
)
def test_what_a_newer_version_wrote_is_refused_with_the_remedy(more: dict[str, str], what: str, tmp_path: Path) -> None:
    paused = {"event": "study_paused", "time": 2.0, "reason": "no room"}
    path = tmp_path / "journal.jsonl"
    path.write_text(f"{LINE}\n{json.dumps(paused)}\n")
    assert len(Journal(str(tmp_path)).events) == 2
    path.write_text(f"{LINE}\n{json.dumps(paused | more)}\n")
    remedy = "use the version that wrote it, or a later one"
    said = rf"^line 2 of {path} is of a newer version: this version of css-ray {what}; {remedy}$"
    for read in (lambda: Journal(str(tmp_path)), lambda: Follower(str(tmp_path)).new()):
        with pytest.raises(JournalError, match=said):
            read()
