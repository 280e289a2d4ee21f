"""A Ray cluster of several nodes on this machine, each a `ray start` with an address of the loopback device, behind a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.workloads.processes import free_port

HEAD = "127.0.0.2"
"""The head's address; the other nodes count on from it. Ray replaces 127.0.0.1 by one that others can reach."""


class LocalCluster:
    """A head without cores, and nodes with some. `environment` is what its processes, and those that join it, need."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.environment = {
            **(environment or os.environ),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # As in an environment that was activated: what a job calls `python` is this one.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # Short: Ray's sockets lie there, and the path of a socket has 107 bytes at most.
        self.scratch = tempfile.mkdtemp(prefix="cssray-", dir="/tmp")
        self.port, self.dashboard_port = free_port(HEAD), free_port(HEAD)
        self.address, self.dashboard = f"{HEAD}:{self.port}", f"http://127.0.0.1:{self.dashboard_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, nodes: int) -> None:
        """Start the head and `nodes` others; returns when all have joined."""
        arguments = ["--head", "--port", str(self.port), "--num-cpus", "0"]
        arguments += ["--include-dashboard", "true", "--dashboard-port", str(self.dashboard_port)]
        self._start(HEAD, arguments, {})
        self.wait(self._dashboard_answers, "the dashboard to answer")
        for number in range(1, nodes + 1):
            self.add(number)

    def add(self, number: int, *, cores: int = 1, hidden: Sequence[Path] = (), **environment: str) -> str:
        """Start the node `number`, counted from 1; returns its address when it has joined.

        hidden: folders that are empty there, as on a machine of its own; needs the right to mount (see `can_hide`).
        """
        address = f"127.0.0.{2 + number}"
        self._start(address, ["--address", self.address, "--num-cpus", str(cores)], environment, hidden)
        return address

    def kill(self, address: str) -> None:
        """SIGKILL all that a `ray start` started, as when a machine loses its power."""
        process = self.processes.pop(address)
        # The raylet's processes are in groups of their own, and lose their node with it.
        for child in [*_below(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()

    def alive(self) -> int:
        """How many nodes Ray counts."""
        program = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50);"
        program += "print(sum(node['Alive'] for node in ray.nodes()))"
        command = [sys.executable, "-c", program, self.address]
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return int(ended.stdout) if ended.returncode == 0 else 0

    def close(self) -> None:
        for address in reversed(list(self.processes)):
            self.kill(address)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, f"waited for {what}:\n{self.last_words()}"
            time.sleep(0.5)

    def last_words(self) -> str:
        logs = sorted(self.folder.glob("node-*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-500:]}" for log in logs)

    def _start(self, address: str, arguments: list[str], environment: Mapping[str, str], hidden: Sequence[Path] = ()) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address", address, *arguments]
        # A folder of each node's own, as on machines of their own: they would take each other's files away.
        command += ["--temp-dir", f"{self.scratch}/{address.rpartition('.')[2]}"]
        command += ["--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
        if hidden:
            command = [
                *_HIDE,
                "; ".join([*(f"mount -t tmpfs none {folder}" for folder in hidden), 'exec "$@"']),
                "sh",
                *command,
            ]
        path = self.folder / f"node-{address}.log"
        with path.open("wb") as log:
            self.processes[address] = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # One after the other: two that start together on one machine are in each other's way.
        self.wait(lambda: "will now block" in path.read_text(errors="replace"), f"the node {address}")

    def _dashboard_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=2):
                return True
        except urllib.error.HTTPError:
            return True  # it wants the token
        except OSError:
            return False


_HIDE = ["unshare", "--mount", "sh", "-ec"]


def can_hide() -> bool:
    """Whether this user may mount, in a mount namespace of its own: root may, in a container often not."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return subprocess.run([*_HIDE, f"mount -t tmpfs none {folder}"], capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


def _below(process: int) -> list[int]:
    """The processes that `process` started, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, left = [], [process]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found
