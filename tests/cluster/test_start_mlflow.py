"""cluster/start-mlflow.sh, run as the head of a cluster runs it."""

from __future__ import annotations

import base64
import configparser
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "start-mlflow.sh"


def start(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def answer(port: int, host: str, path: str, user: str = "") -> int:
    """The status of a request to the server of this machine under the name `host`, by `user` ("name:password")."""
    headers = {"Host": host} | ({"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"} if user else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def command_lines() -> str:
    """What all users of the machine can read."""
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(lines)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A head's home; MLflow, where one was started in it, is ended."""
    folder = tmp_path / "home"
    folder.mkdir()
    yield folder
    file = folder / "mlflow" / "pid"
    if file.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, "--exclude=SC1090", str(SCRIPT)], check=True)


def credentials(home: Path) -> tuple[str, str]:
    """User and password, read as MLflow's clients do."""
    file = configparser.ConfigParser()
    file.read(home / ".mlflow" / "credentials")
    return file["mlflow"]["mlflow_tracking_username"], file["mlflow"]["mlflow_tracking_password"]


@pytest.mark.slow
def test_the_server_answers_the_user_under_the_heads_name_and_keeps_all_in_its_places(
    home: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mlflow").mkdir()
    (home / "mlflow" / "env").write_text(f"export MLFLOW_BACKEND_STORE_URI=sqlite:///{home}/planted-secret.db\n")
    artifacts = tmp_path / "shared" / "artifacts"
    started = start(home, "127.0.0.1", "head.lab", str(artifacts), str(port))
    assert started.returncode == 0, started.stderr

    api = "/api/2.0/mlflow/experiments/search?max_results=1"
    hosts = {
        f"head.lab:{port}": 200,
        "localhost:5001": 200,
        f"127.0.0.1:{port}": 200,
        "rebound.example.org": 403,
        "10.0.0.9:5000": 403,
    }
    name, password = credentials(home)
    assert {host: answer(port, host, api, f"{name}:{password}") for host in hosts} == hosts
    assert (home / ".mlflow" / "credentials").stat().st_mode & 0o777 == 0o600
    assert name == "css-ray" and len(password) == 32 and password not in (home / "mlflow" / "log").read_text()
    for path in ("/", api, "/ajax-api/2.0/mlflow/experiments/search?max_results=1", "/graphql", "/signup"):
        for stranger in ("", f"{name}:guess", f"admin:{password}"):
            assert answer(port, "localhost:5001", path, stranger) == 401, (path, stranger)

    # A database by the environment, whose address is on no command line.
    assert (home / "planted-secret.db").exists() and not (home / "mlflow" / "mlflow.db").exists()
    lines = command_lines()
    assert f"--port {port}" in lines and "planted-secret" not in lines and password not in lines

    # A driver: first with a password of its own, then on the head, where the file lies.
    from mlflow import MlflowClient

    from css_ray.tracking import check

    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guess")
    with pytest.raises(
        ConnectionError, match="does not take the user and the password; give its own by MLFLOW_TRACKING_USERNAME"
    ):
        check(url)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    assert "1 experiments" in check(url)
    client = MlflowClient(url)
    run = client.create_run(client.create_experiment("study")).info.run_id
    client.log_text(run, "a table", "results.md")
    assert [file.read_text() for file in artifacts.rglob("results.md")] == ["a table"]

    # Run again, as the next `ray up` does.
    pid = (home / "mlflow" / "pid").read_text()
    assert start(home, "127.0.0.1", "head.lab", str(artifacts), str(port)).returncode == 0
    assert (home / "mlflow" / "pid").read_text() == pid and credentials(home) == (name, password)


@pytest.mark.slow
def test_sqlite_is_the_default_and_lies_in_a_folder_for_the_user_alone(home: Path, port: int, tmp_path: Path) -> None:
    (home / "mlflow").mkdir()
    (home / "mlflow" / "users.db").write_text("of a password that was lost")
    assert start(home, "127.0.0.1", "head.lab", str(tmp_path / "artifacts"), str(port)).returncode == 0
    assert (home / "mlflow" / "mlflow.db").exists() and (home / "mlflow").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(home: Path, port: int, tmp_path: Path) -> None:
    (home / "mlflow").mkdir()
    (home / "mlflow" / "env").write_text("export MLFLOW_BACKEND_STORE_URI=oracle9://nowhere\n")
    started = start(home, "127.0.0.1", "head.lab", str(tmp_path / "artifacts"), str(port))
    assert started.returncode == 1
    assert started.stderr.startswith("MLflow did not start") and "oracle9" in started.stderr
