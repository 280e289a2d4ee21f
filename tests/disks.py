"""Small disks that fill: a tmpfs of a few megabytes, and a file that takes what is left of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
"""Bytes that a tmpfs gives to a file at a time."""


class SmallDisk:
    """A disk of its own at `path`. `filler`: a file that takes room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filler = path / "filler"

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_bsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but `leave` bytes, to a whole page."""
        with self.filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), max(1, self.free - leave // PAGE * PAGE))

    def clear(self) -> None:
        """Give the room back."""
        self.filler.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All that is on the disk, but for the filler."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path != self.filler)


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[SmallDisk]:
    """A tmpfs mounted on `folder`, which is made, with these options; the test is skipped where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "css-ray-test", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a small disk cannot be mounted here: there is no command mount")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here, which takes root: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a journal is open until its process ends
