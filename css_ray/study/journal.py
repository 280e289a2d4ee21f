"""The journal: an append-only list of events, the one truth of a study. MLflow, Optuna and the tables are made from it.

A study lives in a folder of the storage, `<storage>/<study name>`, which is a local path or any URI that pyarrow's file systems
open (`s3://...`). On a local disk an event is one line of `journal.jsonl`, written by one call and fsynced. Object stores
cannot append: there each event is an object of its own under `journal/`, which such stores write whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow.fs

from css_ray.records import Event

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 120.0


class StudyLockedError(RuntimeError):
    """Another driver is at work on the study."""


class JournalError(RuntimeError):
    """The journal is damaged in a place where no interrupted write can have left it so."""


class StudyMissingError(LookupError):
    """The storage holds no study of that name."""


def is_uri(storage: str) -> bool:
    """True for `scheme://...`, False for a path."""
    return "://" in storage


def study_folder(storage: str, name: str) -> str:
    """The folder of a study, absolute where it is a local path, so that every process of the cluster means the same place."""
    return f"{storage.rstrip('/')}/{name}" if is_uri(storage) else str(Path(storage).resolve() / name)


def studies_in(storage: str) -> list[str]:
    """Names of the studies that a storage holds."""
    if not is_uri(storage):
        return sorted(path.parent.name for path in Path(storage).glob("*/journal.jsonl"))
    filesystem, root = pyarrow.fs.FileSystem.from_uri(storage)
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    return sorted(
        entry.base_name
        for entry in entries
        if entry.type == pyarrow.fs.FileType.Directory and _Objects(f"{storage.rstrip('/')}/{entry.base_name}").read()
    )


class Journal:
    """The events of one study, in the order in which they became known.

    Reading needs no lock; `append` needs the one of `driving`. Events of a run are identified by kind, trial, split and step:
    the same one told again, as a resumed run does, is not written again.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._store: _Store = _Objects(folder) if is_uri(folder) else _File(Path(folder))
        self.events: list[Event] = []
        for number, line in enumerate(self._store.read(), 1):
            try:
                self.events.append(_event(line))
            except ValueError as error:
                raise JournalError(
                    f"event {number} of the journal in {folder} is damaged ({error}); "
                    "restore it from a copy, or remove that event"
                ) from None
        self._known = {_key(event) for event in self.events} - {None}
        self._count = len(self.events)
        self._keeps = True

    def append(self, event: Event) -> bool:
        """Write one event durably; False, and nothing written, if it stands in the journal already."""
        key = _key(event)
        if key is not None and key in self._known:
            return False
        self._store.append(json.dumps(event, allow_nan=False, separators=(",", ":")), self._count)
        self._count += 1
        if self._keeps:
            self.events.append(event)
        self._known.add(key)
        return True

    def forget(self) -> None:
        """Keep no event in memory from now on, only what tells a new one: a driver folds them as they come."""
        self.events, self._keeps = [], False

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the study's lock, so that one driver writes. Raises StudyLockedError with who holds it."""
        with self._store.lock():
            yield


class Follower:
    """Reads the events of a study while another process, here or on another machine, writes them. Takes no lock.

    The study need not have begun. Of a local journal only what was appended is read; an object store is listed again.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._store: _Store = _Objects(folder) if is_uri(folder) else _File(Path(folder))
        self._mark: int | str | None = None
        self._count = 0

    def new(self) -> list[Event]:
        """The events that were written since the last call. An event that is being written comes with a later call.

        Raises JournalError where one is no JSON, or where the journal became shorter.
        """
        lines, self._mark = self._store.read_from(self._mark)
        events = []
        for line in lines:
            self._count += 1
            try:
                events.append(_event(line))
            except ValueError as error:
                raise JournalError(f"event {self._count} of the journal in {self.folder} is damaged ({error})") from None
        return events


def _event(line: str) -> Event:
    """Raises ValueError where the line is no event."""
    event = json.loads(line)
    if not isinstance(event, dict) or "event" not in event or "time" not in event:
        raise ValueError("it has no kind or no time")
    if "\ufffd" in line:
        raise ValueError("some bytes are no text")
    return event


def _key(event: Event) -> tuple[Any, ...] | None:
    kind = event["event"]
    if kind.startswith("run_"):
        return kind, event["trial"], event["split"], event.get("step")
    if kind in ("trial_started", "trial_pruned", "study_started"):
        return kind, event.get("trial")
    return None


class _Store(Protocol):
    def read(self) -> list[str]: ...
    def read_from(self, mark: Any) -> tuple[list[str], Any]: ...
    def append(self, line: str, number: int) -> None: ...
    def lock(self) -> contextlib.AbstractContextManager[None]: ...


class _File:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.descriptor: int | None = None

    def read(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole, newline, _ = text.rpartition(b"\n")
        # A last line without its end is a write that was cut off: what it told is told again by the run that it is about.
        self.end = len(whole) + len(newline)
        return whole.decode(errors="replace").split("\n") if newline else []

    def read_from(self, mark: int | None) -> tuple[list[str], int]:
        """The whole lines from byte `mark` on, and where they end."""
        mark = mark or 0
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(mark)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            size, whole, newline = 0, b"", b""
        if size < mark:
            raise JournalError(f"the journal in {self.folder} became shorter: the study was removed or begun anew; start again")
        return (whole.decode(errors="replace").split("\n") if newline else []), mark + len(whole) + len(newline)

    def append(self, line: str, number: int) -> None:
        if self.descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self.descriptor, getattr(self, "end", 0))
        data, start = line.encode() + b"\n", os.lseek(self.descriptor, 0, os.SEEK_END)
        if os.write(self.descriptor, data) != len(data):
            os.ftruncate(self.descriptor, start)
            raise OSError(
                errno.ENOSPC, "the disk is full, an event could not be written whole; free some space", str(self.path)
            )
        os.fsync(self.descriptor)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "driver.lock").open("a+") as file:
            try:
                # Held by the process, so it is free again the moment a driver dies, however it dies.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StudyLockedError(f"another driver is at work on {self.folder} ({file.read().strip()})") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield


class _Objects:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.filesystem, self.root = pyarrow.fs.FileSystem.from_uri(uri)

    def read(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(f"{self.root}/journal", allow_not_found=True)
        paths = sorted(info.path for info in self.filesystem.get_file_info(selector) if info.base_name.endswith(".json"))
        for number, path in enumerate(paths):
            if not path.endswith(f"/{number:09d}.json"):
                raise JournalError(f"event {number + 1} of the journal in {self.uri} is missing; restore it from a copy")
        lines = [self._get(path).decode(errors="replace") for path in paths]
        # A last object cut short is a write that was interrupted, as a last line without its end is.
        return lines[:-1] if lines and not lines[-1].endswith("}") else lines

    def read_from(self, mark: str | None) -> tuple[list[str], str | None]:
        """The objects after the one named `mark`, and the name of the last of them."""
        selector = pyarrow.fs.FileSelector(f"{self.root}/journal", allow_not_found=True)
        infos = sorted(self.filesystem.get_file_info(selector), key=lambda info: str(info.base_name))
        lines: list[str] = []
        for info in infos:
            if not info.base_name.endswith(".json") or (mark is not None and info.base_name <= mark):
                continue
            line = self._get(info.path).decode(errors="replace")
            if not line.endswith("}"):
                break  # being written, or cut off and to be written over
            lines.append(line)
            mark = info.base_name
        return lines, mark

    def append(self, line: str, number: int) -> None:
        self.filesystem.create_dir(f"{self.root}/journal", recursive=True)
        self._put(f"{self.root}/journal/{number:09d}.json", line.encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        path = f"{self.root}/driver.json"
        self.filesystem.create_dir(self.root, recursive=True)
        if self.filesystem.get_file_info(path).type == pyarrow.fs.FileType.File:
            holder = json.loads(self._get(path))
            age = time.time() - holder["time"]
            if age < STALE_SECONDS:
                raise StudyLockedError(
                    f"another driver was at work on {self.uri} {age:.0f} s ago ({holder['who']}); if it is dead, "
                    f"try again in {STALE_SECONDS - age:.0f} s"
                )
        stop = threading.Event()

        def beat() -> None:
            self._put(
                path, json.dumps({"who": f"process {os.getpid()} on {socket.gethostname()}", "time": time.time()}).encode()
            )

        def keep_beating() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(OSError):
                    beat()

        beat()
        thread = threading.Thread(target=keep_beating, daemon=True, name="study-heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(path)

    def _get(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
        return data

    def _put(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)
