"""The kill test, short, and what its checks find where something is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import SPLITS, check_journal, check_nothing_left
from benchmarks.workloads.processes import MARK, listening, sockets_of

Events = list[dict[str, Any]]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_study_survives_the_death_of_each_of_its_parts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "5", "--trials", "3", "--seed", "1"]
    root = Path(__file__).parents[2]
    ended = subprocess.run([*command, "--keep", str(tmp_path / "kept")], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for victim in ("driver", "worker", "trial", "server", "node"):
        assert f": {victim} " in ended.stdout


def journal() -> Events:
    """A finished study of one trial."""
    events: Events = [{"event": "study_started"}, {"event": "trial_started", "trial": 0, "params": {}}]
    for split in SPLITS:
        events.append(
            {"event": "run_evaluated", "time": 1.0, "trial": 0, "split": split, "step": 10, "metrics": {"val/miou": 30.5}}
        )
        events.append(
            {"event": "run_finished", "time": 2.0, "trial": 0, "split": split, "step": 10, "last": {"val/miou": 30.5}}
        )
    events.append({"event": "trial_finished", "time": 3.0, "trial": 0, "status": "finished", "mean": 30.5})
    return [*events, {"event": "study_finished", "time": 4.0, "status": "finished"}]


def test_a_journal_with_other_times_is_the_same() -> None:
    later = [event | {"time": 99.0} for event in journal()]
    assert list(check_journal([later[0], {"event": "study_resumed"}, *later[1:]], journal(), trials=1)) == []


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda events: events.insert(3, events[3]), "more than once"),
        (lambda events: events.pop(3), "not each of 2 once"),
        (lambda events: events.pop(2), "only the undisturbed study tells"),
        (lambda events: events[2].update(metrics={"val/miou": 30.500000000000004}), "undisturbed {'metrics'"),
        (lambda events: events[-2].update(status="failed"), "'status': 'failed'"),
        (lambda events: events.pop(), "not with the one end of a finished study"),
    ],
)
def test_what_is_wrong_in_a_journal_is_found(spoil: Callable[[Events], Any], found: str) -> None:
    events = journal()
    spoil(events)
    assert any(found in problem for problem in check_journal(events, journal(), trials=1))


def test_a_process_and_a_port_that_are_left_are_found() -> None:
    mark = uuid.uuid4().hex
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env={**os.environ, MARK: mark}, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        port = int(process.stdout.readline())
        everybody = listening()
        sockets = {inode: everybody[inode] for inode in sockets_of(process.pid) & everybody.keys()}
        assert list(sockets.values()) == [port]
        found = list(check_nothing_left(mark, sockets, seconds=0.5))
        assert [str(process.pid) in found[0], found[1]] == [True, f"port {port} is still listened on"]
        process.stdin.write("\n")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass
    assert list(check_nothing_left(mark, sockets, seconds=0)) == []
