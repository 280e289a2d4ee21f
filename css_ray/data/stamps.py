"""Which files were looked at whole, byte for byte, and were right: noted once per machine, so that it is done once.

A stamp holds for the file it was made of and for no other content: it names the hash, and the size, the inode and the times
that the file had before it was read and still has. One of these is the time of the last change to the inode, which no program
can set back as it can the time of the last change to the content.

Stamps lie in the user's own cache folder, one file per data set. Beside the shards others may write, who could then vouch for
what they altered; and looking at a data set should leave nothing in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from css_ray.data.remote import cache_folder
from css_ray.storage import locked

VERSION = 1
"""Of what a stamp vouches for: a change of `verification` that refuses more must raise it."""

SETTLED_SECONDS = 2.0
"""How long ago the last change of a file must be for a stamp: two changes within one tick of its clock have the same time."""

Stamp = Mapping[str, Any]


def stamp_of(path: Path, sha256: str) -> Stamp:
    """The stamp of a file as it is now, if `sha256` is its hash.

    Raises OSError if it does not exist, ValueError if it is not a file.
    """
    status = os.stat(path)
    if not S_ISREG(status.st_mode):
        raise ValueError("is not a file")
    return {
        "sha256": sha256,
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def settled(stamp: Stamp) -> bool:
    """Whether the file has been left alone for so long that another change would show in its times."""
    changed: int = max(stamp["mtime_ns"], stamp["ctime_ns"])
    return time.time_ns() - changed > SETTLED_SECONDS * 1e9


class Stamps:
    """The stamps of the files in a folder, as this user left them on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:32]
        try:
            self._path: Path | None = cache_folder() / "checked" / f"{name}.json"
        except OSError:
            self._path = None

    def read(self) -> dict[str, Stamp]:
        """The stamps by file name; none if they cannot be read, or somebody else could have written them."""
        if (path := self._ours()) is None:
            return {}
        try:
            noted = json.loads(path.read_text())
            files = noted["files"] if (noted["version"], noted["folder"]) == (VERSION, self._folder) else {}
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return {}
        return files if isinstance(files, dict) else {}

    def write(self, stamps: Mapping[str, Stamp]) -> None:
        """Take the place of all stamps of the folder. If they cannot be written, the files are looked at again next time."""
        if (path := self._ours()) is None:
            return
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            try:
                with open(descriptor, "w") as file:
                    json.dump({"version": VERSION, "folder": self._folder, "files": stamps}, file, indent=1)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            _forget_the_gone(path.parent)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Held by the one process of this user that looks at the folder; the others wait, and then find its stamps."""
        with contextlib.ExitStack() as held:
            if self._path is not None:
                with contextlib.suppress(OSError):  # without a place for stamps there is nothing to wait for
                    self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    held.enter_context(locked(self._path))
            yield

    def _ours(self) -> Path | None:
        """The file of the stamps if its folder is there, and nobody else may write there."""
        if self._path is None:
            return None
        try:
            status = os.stat(self._path.parent)
        except OSError:
            return None
        return self._path if status.st_uid == os.geteuid() and not status.st_mode & 0o022 else None


def _forget_the_gone(checked: Path) -> None:
    """Remove the stamps of folders that are gone."""
    for path in checked.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not os.path.isdir(json.loads(path.read_text())["folder"]):
                path.unlink()
                path.with_name(f".{path.name}.lock").unlink()
