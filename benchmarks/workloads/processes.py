"""Processes of this machine and the ports on which they listen, read from /proc; and commands that are started again. Linux."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

MARK = "CSS_RAY_CHAOS"
"""The environment variable by which all processes of one call are known, whoever started them."""


def processes(mark: str, title: str = "") -> dict[int, str]:
    """Titles of the live processes with `mark` in their environment, by id; of those whose title holds `title`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            said = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            zombie = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if title in said and not zombie:
                found[int(entry.name)] = said
    return found


def sockets_of(process: int) -> set[str]:
    """The inodes of the sockets that a process holds."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    return found


def listening() -> dict[str, int]:
    """The ports on which anybody on this machine listens, by the inode of the socket."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass
class Part:
    """A command that runs in a process group of its own, and that may be started again after its death."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    due: float | None = None

    def start(self) -> None:
        """Start it, with its output appended to the log."""
        self.due = None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.log.parent, stdout=log, stderr=log, start_new_session=True
            )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL the whole group."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End it in order: SIGTERM, and SIGKILL for what of its group is still there after 20 s."""
        if self.process is None:
            return
        if self.alive():
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text.strip()[-2000:]
