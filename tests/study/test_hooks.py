"""What is told when a study has ended: the command and the webhook, and that neither can do harm."""

from __future__ import annotations

import base64
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from css_ray.study import hooks
from css_ray.study.hooks import HookError, check_webhook, post, run_command, webhook_name
from tests.webhooks import Server, webhook_server

SUMMARY = {"study": "small", "status": "finished", "best": "54.00 ± 5.29", "mean": 54.0}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with webhook_server(monkeypatch) as server:
        yield server


def test_the_summary_is_posted_once(server: Server) -> None:
    post(server.url, SUMMARY)
    ((path, headers, body),) = server.requests
    assert path == "/services/T00/s3cret?token=s3cret" and headers["Content-Type"] == "application/json"
    assert json.loads(body) == SUMMARY


def test_a_user_and_password_in_the_url_become_a_header(server: Server) -> None:
    post(f"http://ann:p%40ss@{server.host}/hook", SUMMARY)
    ((path, headers, _),) = server.requests
    assert path == "/hook" and headers["Host"] == server.host
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"ann:p@ss"


@pytest.mark.parametrize(
    ("answers", "tries", "taken"),
    [([503, 200], 2, True), ([500], 2, False), ([404], 1, False), ([302], 1, False), ([429, 200], 2, True)],
)
def test_who_cannot_take_it_now_is_asked_once_more(server: Server, answers: list[int], tries: int, taken: bool) -> None:
    server.answers = list(answers)
    if taken:
        post(server.url, SUMMARY)
    else:
        with pytest.raises(HookError, match=f"answered {answers[0]}") as raised:
            post(server.url, SUMMARY)
        assert server.host in str(raised.value) and "s3cret" not in str(raised.value)
    assert len(server.requests) == tries


def test_a_server_that_never_answers_takes_two_time_limits(server: Server) -> None:
    server.delay = 30.0
    began = time.monotonic()
    with pytest.raises(HookError, match=r"no answer in 0.2 s|timed out"):
        post(server.url, SUMMARY, seconds=0.2)
    assert time.monotonic() - began < 15
    assert len(server.requests) == 2


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hooks, "_PAUSE_SECONDS", 0.01)
    # Port 9 of loopback (discard) has no server.
    with pytest.raises(HookError, match=r"http://127.0.0.1:9 did not accept the summary: .*refused") as raised:
        post("http://ann:s3cret@127.0.0.1:9/s3cret?s3cret", SUMMARY)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/s3cret", "s3cret", "http://", "http://ho st/s3cret", "http://host:port/s3cret", "http://host/\ns3cret"]
)
def test_what_is_no_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="http:// or https://") as raised:
        check_webhook(url)
    assert "s3cret" not in str(raised.value)


def test_a_webhook_is_named_by_its_server() -> None:
    assert webhook_name("https://ann:pw@hooks.example.org/services/T00/B00/secret?key=1") == "https://hooks.example.org"


def test_a_command_gets_the_study_in_its_environment_and_the_summary_on_its_input(tmp_path: Path) -> None:
    program = "import json, os, sys; json.dump([dict(os.environ), json.load(sys.stdin)], open('told.json', 'w'))"
    run_command(
        f"cd {shlex.quote(str(tmp_path))} && {sys.executable} -c {shlex.quote(program)}", SUMMARY, "s3://bucket/studies"
    )
    environment, summary = json.loads((tmp_path / "told.json").read_text())
    assert summary == SUMMARY
    told = {name: environment.get(f"CSS_RAY_{name}") for name in ("STUDY", "STATUS", "STORAGE", "BEST")}
    assert told == {"STUDY": "small", "STATUS": "finished", "STORAGE": "s3://bucket/studies", "BEST": "54.00 ± 5.29"}


def test_a_command_that_fails_says_how() -> None:
    with pytest.raises(HookError, match="exited with status 3"):
        run_command("exit 3", SUMMARY, "runs")
    # One that does not read its input has done nothing wrong.
    run_command("true", SUMMARY | {"table": "x" * 10**6}, "runs")
    with pytest.raises(HookError, match="could not be run"):
        run_command("echo \0", SUMMARY, "runs")


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(HookError, match=r"longer than 0.5 s"):
        run_command(f"(sleep 2; touch {shlex.quote(str(tmp_path / 'late'))}) & sleep 60", SUMMARY, "runs", seconds=0.5)
    assert time.monotonic() - began < 30
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()
