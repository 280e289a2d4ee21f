"""Reading a journal while another process writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from css_ray.events import Event, RunFailed, RunLogged
from css_ray.study.journal import Follower, Journal, JournalError, study_folder


def logged(step: int) -> RunLogged:
    return RunLogged(time=2.0, trial=0, split=0, step=step, metrics={"train/loss": 0.5})


def line_of(event: Event) -> str:
    return json.dumps(event.to_json())


def steps(events: list[Event]) -> list[int]:
    return [event.step for event in events if isinstance(event, RunLogged)]


@pytest.fixture(params=["path", "uri"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A study's folder, on a local path and through pyarrow's file systems, as an object store is reached."""
    return study_folder(str(tmp_path) if request.param == "path" else f"file://{tmp_path}", "s")


def test_each_event_comes_once_also_of_a_study_that_had_not_begun(folder: str) -> None:
    follower = Follower(folder)
    assert follower.new() == []
    journal = Journal(folder)
    for step in (10, 20):
        journal.append(logged(step))
    assert steps(follower.new()) == [10, 20]
    assert follower.new() == []
    journal.append(logged(30))
    assert follower.new() == [logged(30)]
    # More events than a byte or a digit counts.
    for step in range(1000, 1300):
        journal.append(logged(step))
    assert steps(follower.new()) == list(range(1000, 1300))
    assert steps(Follower(folder).new()) == [10, 20, 30, *range(1000, 1300)]


def test_only_what_was_appended_is_read(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    journal.append(logged(10))
    follower = Follower(str(tmp_path))
    follower.new()
    path = tmp_path / "journal.jsonl"
    # What was read before may be anything now: it is not looked at again.
    path.write_bytes(b"x" * path.stat().st_size)
    with path.open("a") as file:
        file.write(line_of(logged(20)) + "\n")
    assert follower.new() == [logged(20)]


def test_an_event_in_the_middle_of_its_writing_comes_later(tmp_path: Path) -> None:
    failed = RunFailed(time=2.0, trial=0, split=0, step=10, reason="µ")
    path, line = tmp_path / "journal.jsonl", json.dumps(failed.to_json(), ensure_ascii=False).encode() + b"\n"
    follower = Follower(str(tmp_path))
    for cut in range(1, len(line)):
        path.write_bytes(line[:cut])
        assert follower.new() == []
    path.write_bytes(line)
    assert follower.new() == [failed]


def test_an_object_in_the_middle_of_its_writing_comes_later(tmp_path: Path) -> None:
    journal = Journal(f"file://{tmp_path}/s")
    journal.append(logged(10))
    follower, line = Follower(f"file://{tmp_path}/s"), line_of(logged(20))
    torn = tmp_path / "s" / "journal" / "000000001.json"
    torn.write_text(line[:20])
    assert follower.new() == [logged(10)]
    torn.write_text(line)
    assert follower.new() == [logged(20)]


def test_a_torn_last_line_that_is_written_over(tmp_path: Path) -> None:
    Journal(str(tmp_path)).append(logged(10))
    follower = Follower(str(tmp_path))
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write(line_of(logged(15))[:-1])
    assert follower.new() == [logged(10)]
    # The next driver drops the torn line.
    Journal(str(tmp_path)).append(logged(20))
    assert follower.new() == [logged(20)]


def test_a_damaged_journal_and_one_begun_anew_are_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(line_of(logged(10)) + "\n")
    follower = Follower(str(tmp_path))
    follower.new()
    with path.open("a") as file:
        file.write("no json\n")
    for _ in range(2):  # and again whenever it is asked: what comes after the damage is not read as if there were none
        with pytest.raises(JournalError, match=rf"^line 2 of {path} is damaged .it is not JSON: "):
            follower.new()
    path.write_text("")
    with pytest.raises(JournalError, match="became shorter"):
        follower.new()
