"""The MLflow server behind `css-ray ui`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO

from css_ray.secrets import without_secrets
from css_ray.tracking.client import SETTINGS, connect


class Server:
    """A running MLflow server with a process group of its own; `stop` ends the whole group."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit status."""
        return self.process.wait()

    def stop(self, grace: float = 10.0) -> None:
        """Ask the group to end, and after `grace` seconds end what is left of it. May be called twice."""
        # Killing the parent alone would leave its workers behind, on the port.
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            limit = time.monotonic() + patience
            while time.monotonic() < limit and _group_lives(self.process):
                time.sleep(0.05)
        self.process.wait()


def start_server(
    uri: str, artifact_root: str | Path, host: str = "127.0.0.1", port: int = 5000, *, timeout: float = 120.0
) -> Server:
    """Start MLflow's pages over a tracking URI and return once they answer, usually within 12 s.

    Raises ValueError if the port cannot be had, RuntimeError if the server ends early, TimeoutError after `timeout` seconds;
    nothing is left running then.
    """
    _check_port(host, port)
    connect(uri)  # prepares the SQLite file and its folder
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
    command += ["--artifacts-destination", str(artifact_root)]
    # The URI not as an argument: it may hold a password, and every user of the machine sees the arguments of all processes.
    # Without the job runner: 2 processes instead of 15, half a gigabyte instead of two and a half.
    environment = os.environ | SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        server = Server(process, f"http://{name}:{port}")
        try:
            _wait_for_health(server, timeout, output)
        except BaseException:
            server.stop()
            raise
    return server


def _wait_for_health(server: Server, timeout: float, output: IO[bytes]) -> None:
    limit = time.monotonic() + timeout
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < limit:
        if server.process.poll() is not None:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-1500:]
            raise RuntimeError(f"the MLflow server ended with status {server.process.returncode}:\n{without_secrets(tail)}")
        try:
            with direct.open(f"{server.url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"the MLflow server did not answer at {server.url}/health within {timeout:g} s")


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port") from error


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the parent, which else counts as a member of its group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
