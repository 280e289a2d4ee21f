"""A study on this machine joins no other Ray, and what its own Ray writes is shut to other users and cleared away."""

from __future__ import annotations

import os
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from css_ray.execution import joining, session
from css_ray.study.definition import parse
from css_ray.temporary import private_folder
from tests.places import SPEC, Place, evaluations

STUDY = parse(SPEC | {"data": SPEC["data"] | {"root": "digits"}}, "study.yaml")


class Listener:
    """A program that another user runs, at an address where a Ray might be. asked: how often it was reached."""

    def __init__(self) -> None:
        self.asked = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.asked += 1
            connection.close()

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@pytest.fixture
def place_for_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder during a test, with a name short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def note_address(folder: Path, address: str) -> Path:
    """What `ray start` leaves in its folder, which all users may write to."""
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray").chmod(0o777)
    file = folder / "ray" / "ray_current_cluster"
    file.write_text(address)
    return file


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What `ray.init` is called with, and the environment that the processes get which it starts; it starts none."""
    calls: list[dict[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(settings | {"environment": dict(os.environ)})
        return SimpleNamespace(address_info={"session_dir": str(tmp_path)})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(session, "check_code", lambda: None)
    monkeypatch.setattr(session, "start_coordinator", lambda: calls[-1].update(coordinator=True))
    return calls


def test_a_study_without_an_address_starts_its_own_ray(
    started: list[dict[str, Any]], place_for_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    note_address(place_for_ray, "10.0.0.2:6379")
    session.connect(STUDY, None)
    (call,) = started
    assert call["address"] == "local" and call["coordinator"]
    private = place_for_ray / f"css-ray-{os.getuid()}"
    assert call["environment"]["RAY_TMPDIR"] == str(private)
    assert Path(call["environment"]["TMPDIR"]).parent == private
    # What the study's own process starts later, such as --on-finish, has the environment that the user gave it.
    assert os.environ["TMPDIR"] == str(place_for_ray) and "RAY_TMPDIR" not in os.environ


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (
            Exception("The current node timed out during startup."),
            RuntimeError,
            "Ray does not start on this machine: The current",
        ),
        (
            ConnectionError("Could not read from GCS"),
            RuntimeError,
            "machine: Could not read from GCS; if it is busy, end other",
        ),
        (OSError(28, "No space left on device"), OSError, "No space left on device"),
    ],
)
def test_a_ray_that_does_not_start_is_an_error_in_words(
    raised: Exception, expected: type[Exception], text: str, place_for_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(expected, match=text):
        session.connect(STUDY, None)


def test_auto_is_what_the_environment_names(
    started: list[dict[str, Any]], place_for_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    session.connect(STUDY, "auto")
    session.connect(STUDY, "10.0.0.3:6379")
    assert [call["address"] for call in started] == ["10.0.0.1:6379", "10.0.0.3:6379"]


def test_auto_is_not_the_address_of_a_dashboard(place_for_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://ann:secret@10.0.0.1:8265")
    with pytest.raises(ConnectionError, match=r"RAY_ADDRESS is http://.*10\.0\.0\.1:8265.*--address HOST:PORT") as caught:
        joining.found("auto")
    assert "secret" not in str(caught.value)


def test_auto_is_the_cluster_that_this_user_started(place_for_ray: Path) -> None:
    note_address(place_for_ray, "10.0.0.2:6379\n")
    assert joining.found("auto") == "10.0.0.2:6379"
    note_address(private_folder(), "10.0.0.4:6379")
    assert joining.found("auto") == "10.0.0.4:6379"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_auto_is_no_cluster_of_another_user(place_for_ray: Path, started: list[dict[str, Any]]) -> None:
    os.chown(note_address(place_for_ray, "10.0.0.2:6379"), 4711, -1)
    with pytest.raises(ConnectionError, match=r"written by another user \(id 4711\).*--address HOST:PORT"):
        session.connect(STUDY, "auto")
    assert started == []


def test_auto_without_a_cluster_says_so(place_for_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_ray_folders", lambda: [place_for_ray / "ray"])
    with pytest.raises(ConnectionError, match="no Ray cluster was started on this machine"):
        joining.found("auto")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_shows_its_token_to_nobody_and_leaves_nothing_behind(
    place: Place, place_for_ray: Path, listener: Listener
) -> None:
    private = place_for_ray / f"css-ray-{os.getuid()}"
    note_address(place_for_ray, listener.address)
    place.environment |= {"TMPDIR": str(place_for_ray), "RAY_ADDRESS": listener.address, "RAY_AUTH_TOKEN": "0" * 64}
    place.environment.pop("RAY_TMPDIR", None)

    def left() -> set[str]:
        """What lies in the temporary folder, but for Ray's logs and what we put there."""
        return {str(path.relative_to(place_for_ray)) for path in [*place_for_ray.iterdir(), *private.iterdir()]} - {
            "ray", private.name, f"{private.name}/ray"
        }  # fmt: skip

    driver = place.start("study", "run", str(place.file), "--set", "search=null", "--set", "train.iterations=200")
    place.wait_for(lambda events: evaluations(events) >= 1, driver)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    sockets = [path for path in place_for_ray.rglob("*") if path.is_socket()]
    assert sockets and all(private in path.parents for path in sockets)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    place.wait_until_empty()
    assert left()  # of the driver, which could remove nothing

    driver = place.start("study", "resume", "small")
    place.wait_for(lambda events: evaluations(events) >= 3, driver)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    place.wait_until_empty()

    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    place.wait_until_empty()
    assert left() == set()
    assert len(list((private / "ray").glob("session_2*"))) == 3
    assert listener.asked == 0
