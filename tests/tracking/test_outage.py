"""MLflow hung, stopped, busy or gone: the driver does not feel it, its memory is bounded, and `sync` makes it good."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workloads.gate import Gate
from css_ray import tracking
from css_ray.events import Event, RunLogged, RunStarted, StudyStarted, TrialStarted
from css_ray.standing import records_from_events
from css_ray.tracking import projection
from css_ray.tracking.client import connect

STARTED = StudyStarted(time=1.0, study="toy", study_id="id", spec={}, versions={})


def logged(step: int) -> Event:
    return RunLogged(time=2.0 + step, trial=0, split=0, step=step, metrics={"train/loss": 0.5})


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives every request the same answer."""

    code, body = 503, b""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.code)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(params=["hung", "closed", "busy", "another's page", "another's 400", "not allowed"])
def away(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that is away, in each of the ways that one can be."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if request.param == "hung":
            port.listen(16)
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        if request.param in ("hung", "closed"):  # bound and not listening: it refuses
            yield address
            return
    code, body = {
        "busy": (503, b"<html>try later</html>"), "another's page": (200, b"<html>hello</html>"),
        "another's 400": (400, b"<html>what?</html>"), "not allowed": (403, b"Invalid Host header"),
    }[request.param]  # fmt: skip
    handler = type("Answer", (Answers,), {"code": code, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_driver_never_waits_and_nothing_counts_as_sent(away: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = tracking.Tracker(away, longest_pause=0.01)
    tracker.record(STARTED)
    time.sleep(1)  # the first try is under way or has failed
    started = time.monotonic()
    for step in range(3000):
        tracker.record(logged(step))
    # The request that hangs does so for ten seconds.
    assert time.monotonic() - started < 8
    started = time.monotonic()
    assert tracker.close(timeout=0.5) == 3001
    assert time.monotonic() - started < 8
    assert len([message for message in caplog.messages if f"{away} is away" in message]) <= 1


def test_a_server_that_hangs_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        tracker = tracking.Tracker(address)
        tracker.record(STARTED)
        limit = time.monotonic() + 60
        while not any(address in message for message in caplog.messages) and time.monotonic() < limit:
            time.sleep(0.05)
        told = f"MLflow at {address} is away, events wait in the journal: it took a request and did not answer within 1 s"
        assert [message for message in caplog.messages if address in message] == [told]
        # `sync` gives up after one such wait, and says what to do.
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="did not answer within 1 s; try again once it does"):
            tracking.sync([STARTED], address)
        assert time.monotonic() - started < 30
        assert tracker.close(timeout=0) == 1
    with pytest.raises(ConnectionError, match="the connection was refused; try again"):
        tracking.sync([STARTED], address)
    away = f"MLflow at {address} does not answer: the connection was refused"
    for ask in (lambda: tracking.read_records(address, "any"), lambda: tracking.check(address)):
        with pytest.raises(ConnectionError, match=away):
            ask()


def test_the_process_ends_though_a_request_hangs() -> None:
    """Though the environment lets a request take minutes, as MLflow's own settings do."""
    program = (
        "import socket, time\nfrom css_ray import tracking\nfrom css_ray.events import StudyStarted\nimport mlflow\n"
        "server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen(16)\n"
        "tracker = tracking.Tracker(f'http://127.0.0.1:{server.getsockname()[1]}')\n"
        f"tracker.record({STARTED!r})\n"
        "held = server.accept(); held[0].recv(1)\n"  # the request is there
        "print(tracker.close(timeout=0), flush=True)\n"
    )
    patient = os.environ | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=patient) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert process.wait(timeout=60) == 0


@pytest.fixture
def journal() -> list[Event]:
    return [
        STARTED,
        TrialStarted(time=1.0, trial=0, row="CSS", source="grid", params={}, config={}),
        RunStarted(
            time=1.0, trial=0, split=0, seed=0, dataset="voc", split_hash="h", num_labelled=9, num_unlabelled=9,
            class_names=["a"],
        ),
        *map(logged, range(1, 400)),
    ]  # fmt: skip


class Breakable:
    """Stands before an MLflow client; while `broken`, every call fails."""

    def __init__(self, client: Any) -> None:
        self.client, self.broken, self.failures = client, True, 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.broken:
                self.failures += 1
                raise ConnectionError("no answer")
            return getattr(self.client, name)(*arguments, **keywords)

        return call


@pytest.fixture
def breakable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Breakable:
    client = Breakable(connect(tracking.default_uri(tmp_path)))
    monkeypatch.setattr(projection, "connect", lambda uri: client)
    return client


def wait_until(condition: Any) -> None:
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    assert condition()


def points(client: Breakable) -> list[int]:
    experiment = client.client.get_experiment_by_name("toy")
    (run,) = client.client.search_runs([experiment.experiment_id], "tags.`css_ray.kind` = 'split'")
    return sorted(point.step for point in client.client.get_metric_history(run.info.run_id, "train/loss"))


def test_memory_is_bounded_however_long_the_outage(
    breakable: Breakable, journal: list[Event], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = tracking.default_uri(tmp_path)
    tracker = tracking.Tracker(uri, longest_pause=0.01, most_waiting=100)
    for event in journal[:50]:
        tracker.record(event)
    wait_until(lambda: breakable.failures > 1)
    for event in journal[50:]:
        tracker.record(event)
        assert len(tracker._waiting) <= 150
    breakable.broken = False
    # Events after a gap would hide it, so none is sent: the server that is back gets all of them from the journal.
    assert tracker.close() == len(journal)
    assert any("is left alone; `css-ray study sync` backfills it from the journal" in message for message in caplog.messages)
    assert tracking.sync(journal, uri).points_sent == 399
    assert points(breakable) == list(range(1, 400))


def test_each_outage_has_the_whole_room(breakable: Breakable, journal: list[Event], tmp_path: Path) -> None:
    tracker = tracking.Tracker(tracking.default_uri(tmp_path), longest_pause=0.01, most_waiting=100)
    sent = 0
    for _ in range(3):
        breakable.broken, failures = True, breakable.failures
        tracker.record(journal[sent])
        wait_until(lambda failures=failures: breakable.failures > failures + 1)
        for event in journal[sent + 1 : sent + 90]:
            tracker.record(event)
        sent += 90
        breakable.broken = False
        wait_until(lambda: not tracker._waiting)
    assert tracker.close() == 0
    assert points(breakable) == list(range(1, sent - 2))


def test_a_clock_that_jumped_back_leaves_every_point(tmp_path: Path, journal: list[Event]) -> None:
    jumped = [replace(event, time=event.time + (0 if number > 200 else 3600)) for number, event in enumerate(journal)]
    uri = tracking.default_uri(tmp_path)
    assert tracking.sync(jumped[:300], uri).points_sent == 297
    assert tracking.sync(jumped, uri).points_sent == 102
    assert [record.step for record in tracking.read_records(uri, "toy")] == [399]
    assert points(Breakable(connect(uri))) == list(range(1, 400))


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["hang", "stop"])
def test_a_real_server_that_goes_in_mid_study_gets_everything(
    outage: str, tmp_path: Path, journal: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a gate that hangs or stops, and opens again: first within the study, then for good, until `sync`."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = tracking.default_uri(tmp_path)
    server = tracking.start_server(uri, tmp_path / "artifacts", port=port)
    gate = Gate(port)
    try:
        tracker = tracking.Tracker(gate.url, longest_pause=0.5)
        for count, away in ((100, False), (200, True), (300, False), (len(journal), True)):
            if away:
                getattr(gate, outage)()
            for event in journal[count - 100 : count] if count < len(journal) else journal[300:]:
                tracker.record(event)
            if not away:
                gate.open()
                wait_until(lambda: not tracker._waiting)
        assert tracker.close(timeout=1) == len(journal) - 300
        with pytest.raises(ConnectionError, match="try again once it does"):
            tracking.sync(journal, gate.url)
        gate.open()
        tracking.sync(journal, gate.url)
        (record,) = tracking.read_records(gate.url, "toy")
        assert (record.step, record.status) == (records_from_events(journal)[0].step, "running") == (399, "running")
        assert points(Breakable(connect(uri))) == list(range(1, 400))
    finally:
        gate.stop()
        server.stop()
