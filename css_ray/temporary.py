"""Where css-ray's processes keep what nobody needs after them: a folder that other users cannot enter, and that is cleared.

A process that is killed removes nothing. Each process therefore holds a lock on its folder, which the system drops with the
process, and whoever makes the next folder removes those that nobody holds. (systemd, too, spares locked folders of /tmp.)
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONGEST = (107 if sys.platform == "linux" else 103) - 72
"""Bytes of `private_folder()`: those of a Unix socket's path, less what Ray takes of them for the socket of a session."""

_held: list[int] = []
"""The open directories that this process holds."""

_of_process: dict[int, Path] = {}
"""The temporary folder of each process, by its id: after a fork the child has the parent's memory, but not its folder."""


def private_folder(parent: str | None = None) -> Path:
    """The folder of this user in `parent`, by default the system's temporary one, of mode 0700: `/tmp/css-ray-1000`.

    It is below /tmp if the name would be too long for Ray's sockets, and has a random ending where another user was there
    first with that name, or where it is open to others. Raises OSError if no folder can be made.
    """
    base = Path(parent or tempfile.gettempdir())
    name = f"css-ray-{os.getuid()}"
    for folder in (base, *base.parents):  # a process whose temporary files already lie in it
        if folder.name.startswith(name) and _is_private(folder):
            return folder
    if len(os.fsencode(base / f"{name}-xxxxxxxx")) > _LONGEST:
        base = Path("/tmp")
    first = base / name
    try:
        first.mkdir(mode=0o700)
    except FileExistsError:
        for folder in (first, *sorted(base.glob(f"{name}-*"))):
            if _is_private(folder):
                return folder
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
    return first


def temporary_folder() -> Path:
    """The folder of this process for temporary files, made at the first call, removed when the process ends.

    If it is killed, the next process of this user that makes one removes it. It lies in the private folder, or in that of the
    process that started this one, with which it goes at the latest.
    """
    pid = os.getpid()
    if pid not in _of_process:
        private, present = private_folder(), Path(tempfile.gettempdir())
        parent = present if private in present.parents else private
        with _lock(private):  # so that nobody finds a folder that is not held yet
            remove_abandoned(parent, "tmp-*")
            folder = _of_process[pid] = Path(tempfile.mkdtemp(prefix="tmp-", dir=parent))
            hold(folder)
        atexit.register(_remove, pid)
    return _of_process[pid]


def keep_temporary_files_here() -> None:
    """Have all that this process and its children write to temporary files lie in `temporary_folder()`."""
    folder = str(temporary_folder())
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = folder


def hold(folder: Path) -> None:
    """Mark a folder as in use until this process, and the children that it forked, have ended. Raises OSError if it is."""
    directory = os.open(folder, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.append(directory)


def remove_abandoned(parent: Path, pattern: str, *, keep: int = 0) -> None:
    """Remove the folders in `parent`, a private one, that no process holds, but for the last `keep` by name."""
    folders = sorted(folder for folder in parent.glob(pattern) if folder.is_dir() and not folder.is_symlink())
    for folder in folders[: len(folders) - keep]:
        with contextlib.suppress(OSError), _lock(folder, fcntl.LOCK_NB):  # held by a process; removed by another
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, flags: int = 0) -> Iterator[None]:
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(directory)


def _remove(pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(_of_process.pop(pid), ignore_errors=True)


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
