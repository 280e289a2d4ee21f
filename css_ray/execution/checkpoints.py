"""The checkpoints of a trial: written by all its ranks together, whole or not at all, the newest two kept."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import torch

from css_ray import distributed
from css_ray.room import write_with_room
from css_ray.storage import is_url, locate, put, receive, send

COMPLETE = "complete.json"
"""Written last: a folder without it was interrupted, and counts for nothing."""

KEPT = 2
"""How many checkpoints are kept: the newest, and the one before, which is used if the newest is damaged."""


class Checkpoints:
    """Folders `000001`, `000002`, ... at `place`, a path that all ranks see, or a URL. Every rank makes one and calls alike.
    The files of a checkpoint lie right in its folder.

    min_free: bytes that must be free on the disk for another one to be written. waiting: called with the reason while there is
    no room.
    """

    def __init__(
        self,
        place: str,
        device: torch.device | str = "cpu",
        *,
        min_free: float = 0,
        waiting: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.place = place
        self.device = device
        self.min_free = min_free
        self.waiting = waiting
        self._filesystem, self._root = locate(place)

    def newest_first(self) -> list[str]:
        """The names of the complete ones; the same on all ranks if all see the storage as rank 0 does."""
        return [name for name in reversed(self._names()) if self._exists(f"{name}/{COMPLETE}")]

    def save(self, write: Callable[[Path], None]) -> None:
        """Write the next one. `write(folder)` writes this rank's files of it. Returns once it counts, on all ranks.

        If the disk is full it waits for room, rather than lose what was trained.
        """
        target = f"{self._root}/{self._next():06d}"
        self.together(lambda: self._write(target, write), self.place, "a checkpoint", undo=lambda: self._remove(target))
        # Apart, for it says of all files that they are there.
        self.together(lambda: self._complete(target), self.place, "a checkpoint")
        if distributed.rank() == 0:
            # Old ones that a store, away for a moment, does not remove now are removed after the next.
            with contextlib.suppress(OSError):
                counting = self.newest_first()[:KEPT]
                for old in self._names():
                    if old not in counting:
                        self._filesystem.delete_dir(f"{self._root}/{old}")
        self._sum(0)

    def together(self, write: Callable[[], None], place: str, what: str, *, undo: Callable[[], None] = lambda: None) -> None:
        """Call `write` on all ranks, again on all of them if one had no room, once there is some; see `write_with_room`."""
        write_with_room(
            write,
            place,
            what,
            waiting=self.waiting,
            min_free=self.min_free,
            undo=undo,
            any_of=lambda here: bool(self._sum(here)),
        )

    def fetch(self, name: str, scratch: Path) -> Path:
        """A folder of this machine with the files of `name`: itself, or a copy under `scratch`.

        Raises FileNotFoundError if it is not there, OSError if the storage cannot be reached.
        """
        if not is_url(self.place):
            return Path(self._root) / name
        folder = scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        receive(self._filesystem, f"{self._root}/{name}", folder)
        return folder

    def _names(self) -> list[str]:
        """All that are there, complete or not, oldest first."""
        found = self._filesystem.get_file_info(pyarrow.fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.isdigit())

    def _exists(self, name: str) -> bool:
        (info,) = self._filesystem.get_file_info([f"{self._root}/{name}"])
        return bool(info.type == pyarrow.fs.FileType.File)

    def _next(self) -> int:
        """The number of the next one: rank 0's, for a rank that was slow to look might see it begun already."""
        return self._sum(1 + int((self._names() or ["0"])[-1]) if distributed.rank() == 0 else 0)

    def _write(self, target: str, write: Callable[[Path], None]) -> None:
        """Write this rank's files."""
        self._filesystem.create_dir(target, recursive=True)
        if not is_url(self.place):
            write(Path(target))
            return
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch))
            for file in sorted(Path(scratch).iterdir()):
                send(file, self._filesystem, f"{target}/{file.name}")

    def _complete(self, target: str) -> None:
        if distributed.rank() == 0:
            put(self._filesystem, f"{target}/{COMPLETE}", json.dumps({"ranks": distributed.world_size()}).encode())

    def _remove(self, target: str) -> None:
        """Remove what was written of a checkpoint that did not fit on the disk."""
        if distributed.rank() == 0:
            with contextlib.suppress(OSError):
                self._filesystem.delete_dir(target)

    def _sum(self, number: int) -> int:
        """The sum of the ranks' numbers; none continues before all are here."""
        return int(distributed.all_reduce_sum(torch.tensor(number, device=self.device)))
