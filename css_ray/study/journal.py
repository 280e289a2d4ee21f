"""The journal: an append-only list of events, the one truth of a study. MLflow, Optuna and the tables are made from it.

A study lives in a folder of the storage, `<storage>/<study name>`, which is a local path or any URI that pyarrow's file systems
open (`s3://...`). On a local disk an event is one line of `journal.jsonl`, written by one call and fsynced. Object stores
cannot append: there each event is an object of its own under `journal/`, which such stores write whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow.fs

from css_ray.events import Event, EventError, NewerEventError, from_json
from css_ray.messages import study_command
from css_ray.room import has_no_room
from css_ray.secrets import shown
from css_ray.storage import below, is_url, locate, parted, read_blocks, sync, write_whole
from css_ray.study.order import Order, WrongStudyError

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""How often a driver shows, on an object store, that it is alive."""

STALE_SECONDS = 60.0
"""After how long without a heartbeat a driver counts as dead, by the watcher's own clock: no two clocks are compared."""

SETTLE_SECONDS = 2.0
"""How long a driver waits before it looks whether another one took the lock in the same moment."""

_EVENT = re.compile(r"\d{9}\.json")  # the object of an event

_STREAMS = 24  # events fetched at the same time; each costs the store two answers


class StudyLockedError(RuntimeError):
    """Another driver is at work on the study."""


class JournalError(RuntimeError):
    """The journal cannot be used: it is damaged where no interrupted write can have left it so, or of a newer version."""


class StudyMissingError(LookupError):
    """The storage holds no study of that name."""


def study_folder(storage: str, name: str) -> str:
    """The folder of a study, absolute if it is a local path, so that every process of the cluster means the same place."""
    return below(storage if is_url(storage) else Path(storage).resolve(), name)


def studies_in(storage: str) -> list[str]:
    """Names of the studies that a storage holds."""
    if not is_url(storage):
        return sorted(path.parent.name for path in Path(storage).glob("*/journal.jsonl"))
    filesystem, root = locate(storage)
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    folders = [entry for entry in entries if entry.type == pyarrow.fs.FileType.Directory]
    first = filesystem.get_file_info([_object(folder.path, 0) for folder in folders])
    return sorted(folder.base_name for folder, event in zip(folders, first, strict=True) if event.is_file)


class Journal:
    """The events of one study, in the order in which they became known.

    Reading needs no lock; `append` needs the one of `driving`. Events of a run are identified by kind, trial, split and step:
    the same one reported again, as by a resumed run, is not written again.

    error: what ended it for good, an append that failed, a lock that was lost or an event that cannot be; each later `append`
    raises it again.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.error: OSError | StudyLockedError | JournalError | None = None
        self._store = store_of(folder)
        self.read()

    def read(self) -> None:
        """Read the events again: what another driver wrote before this one held the lock is part of the study.

        Raises JournalError if one is damaged or missing, OSError if the storage cannot be reached.
        """
        self.events = [_event(line, number, self.folder) for number, line in enumerate(self._store.read(), 1)]
        self._known = {event.identity for event in self.events} - {None}
        self._count = len(self.events)
        self._keeps = True

    def append(self, event: Event) -> bool:
        """Write one event durably; False, and nothing written, if it is in the journal already.

        Raises OSError if it cannot be written, StudyLockedError if another driver has taken over. Nothing can be written
        after that: on an object store it is unknown whether the event is there, and the next one might take its place. But if
        there was no room for it on a disk, nothing of it is there, and it may be written again.
        """
        if self.knows(event):
            return False
        if self.error is not None:
            raise self.error
        try:
            self._store.append(json.dumps(event.to_json(), allow_nan=False, separators=(",", ":")), self._count)
        except (OSError, StudyLockedError) as error:
            if not has_no_room(error):
                self.error = error
            raise
        self._count += 1
        if self._keeps:
            self.events.append(event)
        self._known.add(event.identity)
        return True

    def knows(self, event: Event) -> bool:
        """Whether an event is in the journal, as what a resumed run reports again is."""
        return event.identity is not None and event.identity in self._known

    def forget(self) -> None:
        """Keep no event in memory from now on, only what identifies a new one: a driver folds them as they come."""
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
        self._store = store_of(folder)
        self._mark: int | str | None = None
        self._count = 0

    def new(self) -> list[Event]:
        """The events that were written since the last call. An event that is being written comes with a later call.

        Raises JournalError if one is none, or the journal became shorter.
        """
        lines, mark = self._store.read_from(self._mark)
        events = [_event(line, number, self.folder) for number, line in enumerate(lines, self._count + 1)]
        self._mark, self._count = mark, self._count + len(events)
        return events


def in_order(events: Iterable[Event], order: Order, folder: str) -> Iterator[Event]:
    """The events one by one, each once it is known that it can have followed those before, which `order` has taken.

    Raises JournalError at the first that cannot.
    """
    for event in events:
        try:
            order.take(event)
        except WrongStudyError as error:
            remedy = "install the packages that it was begun with, or restore the journal from a copy"
            found = f"{where(folder, order.count + 1)} holds a study that is wrong here ({error})"
            raise JournalError(f"{found}; {remedy}") from None
        except EventError as error:
            found = f"{where(folder, order.count + 1)} cannot have followed what is before it ({error})"
            raise JournalError(f"{found}; {_remedy(folder)}") from None
        yield event


def where(folder: str, number: int) -> str:
    """The place of an event in the journal of a study's folder, in words; its number is counted from 1."""
    return f"event {number} of the journal in {shown(folder)}" if is_url(folder) else f"line {number} of {_path(folder)}"


def event_of(line: str) -> Event:
    """The event of a line. Raises EventError, and NewerEventError, if it is none."""
    if "\ufffd" in line:  # before its kind is looked at: a damaged name is not one of a newer version
        raise EventError("some bytes are not text")
    try:
        return from_json(json.loads(line))
    except EventError:
        raise
    except RecursionError:
        raise EventError("its values are nested too deep") from None
    except ValueError as error:
        raise EventError(f"it is not JSON: {error}") from None


def _event(line: str, number: int, folder: str) -> Event:
    """The event of a line. Raises JournalError, with its number, if it is none."""
    try:
        return event_of(line)
    except NewerEventError as error:
        newer = f"{where(folder, number)} is of a newer version: {error}; use the version that wrote it, or a later one"
        raise JournalError(newer) from None
    except EventError as error:
        raise JournalError(f"{where(folder, number)} is damaged ({error}); {_remedy(folder)}") from None


def _remedy(folder: str) -> str:
    storage, name = parted(folder)
    return f"keep what is sound with: {study_command('repair', name, storage)}; or restore the journal from a copy"


def _path(folder: str | Path) -> Path:
    """The journal of a study whose folder is local."""
    return Path(folder) / "journal.jsonl"


def store_of(folder: str) -> _Store:
    """Where the journal of a study's folder is read and written, line by line."""
    return _Objects(folder) if is_url(folder) else _File(Path(folder))


class _Store(Protocol):
    def read(self) -> list[str]: ...
    def read_all(self) -> list[str | None]: ...
    def rewrite(self, lines: Sequence[str]) -> str: ...
    def read_from(self, mark: Any) -> tuple[list[str], Any]: ...
    def append(self, line: str, number: int) -> None: ...
    def lock(self) -> contextlib.AbstractContextManager[None]: ...


class _File:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = _path(folder)
        self.descriptor: int | None = None

    def read(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole, newline, _ = text.rpartition(b"\n")
        # A last line without its end is a write that was cut off: the run that it is about reports it again.
        self.end = len(whole) + len(newline)
        return whole.decode(errors="replace").split("\n") if newline else []

    def read_all(self) -> list[str | None]:
        """The lines, as `read` returns them."""
        return list(self.read())

    def rewrite(self, lines: Sequence[str]) -> str:
        """Replace the lines, as a whole; returns where a copy of those before is, which is written first."""
        before = _free(str(self.path), os.path.exists)
        write_whole(Path(before), self.path.read_bytes())
        try:
            write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())
        except BaseException:
            Path(before).unlink()
            raise
        sync(self.folder)
        return before

    def read_from(self, mark: int | None) -> tuple[list[str], int]:
        """The whole lines from byte `mark` on, and where they end."""
        mark = mark or 0
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(mark)
                whole, newline, _ = file.read().rpartition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            size, whole, newline = 0, b"", b""
        if size < mark:
            raise JournalError(
                f"the journal in {self.folder} became shorter: the study was removed or begun again; run this command again"
            )
        return (whole.decode(errors="replace").split("\n") if newline else []), mark + len(whole) + len(newline)

    def append(self, line: str, number: int) -> None:
        if self.descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self.descriptor, getattr(self, "end", 0))
        data, start = line.encode() + b"\n", os.lseek(self.descriptor, 0, os.SEEK_END)
        try:
            if os.write(self.descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, start)
            raise

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        with self._lock_file() as file:
            try:
                # For whoever is refused; a full disk may have no room for it.
                with contextlib.suppress(OSError), open(file.name, "w") as name:
                    name.write(f"process {os.getpid()} on {socket.gethostname()}")
                yield
            finally:
                if not self.path.exists():  # the study was refused: it leaves no trace
                    os.unlink(file.name)
                    for folder in new:
                        with contextlib.suppress(OSError):  # somebody keeps something there
                            folder.rmdir()

    def _lock_file(self) -> IO[str]:
        """The lock's open file, locked: by the process, so that it is free the moment a driver dies, however it dies."""
        import fcntl

        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                file = stack.enter_context((self.folder / "driver.lock").open("a+"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    raise StudyLockedError(f"another driver is at work on {self.folder} ({file.read().strip()})") from None
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(file.name), os.fstat(file.fileno())):
                        stack.pop_all()
                        return file
                # A driver that was refused removed the file between the two calls: ours is not the one that others find.


def _object(folder: str, number: int) -> str:
    """The path of an event's object, of the study whose folder has that path."""
    return f"{folder}/journal/{number:09d}.json"


class _Objects:
    def __init__(self, uri: str) -> None:
        self.folder, self.uri = uri, shown(uri)
        self.filesystem, self.root = locate(uri)
        self.begun = False
        self.lost: StudyLockedError | None = None

    def read(self) -> list[str]:
        lines = self.read_all()
        for number, line in enumerate(lines, 1):
            if line is None:
                raise JournalError(f"{where(self.folder, number)} is missing; {_remedy(self.folder)}")
        return [line for line in lines if line is not None]

    def read_all(self) -> list[str | None]:
        """The lines by their numbers, None for one that is missing."""
        paths = self._paths()
        contents = dict(zip(paths, self._lines(paths), strict=True))
        # A last object cut short is a write that was interrupted, as a last line without its end is.
        if paths and not _is_whole(contents[paths[-1]]):
            del contents[paths.pop()]
        count = int(Path(paths[-1]).stem) + 1 if paths else 0
        return [contents.get(_object(self.root, number)) for number in range(count)]

    def rewrite(self, lines: Sequence[str]) -> str:
        """Replace the lines; returns where a copy of those before is, which is written first."""
        paths = self._paths()
        before = _free(f"{self.root}/journal", self._is_folder)
        self.filesystem.create_dir(before, recursive=True)
        wanted = {_object(self.root, number): line for number, line in enumerate(lines)}
        contents = dict(zip(paths, self._lines(paths), strict=True))
        for path in paths:
            self._put(f"{before}/{Path(path).name}", self._get(path))
        for path, line in wanted.items():
            if contents.get(path) != line:
                self._put(path, line.encode())
        for path in paths:
            if path not in wanted:
                self.filesystem.delete_file(path)
        return below(self.folder, before.rpartition("/")[2])

    def read_from(self, mark: str | None) -> tuple[list[str], str | None]:
        """The objects after the one at the path `mark`, and the path of the last of them."""
        paths = [path for path in self._paths() if mark is None or path > mark]
        # One that is being written, or was cut off and will be written over, ends what can be read.
        whole = list(itertools.takewhile(_is_whole, self._lines(paths)))
        return whole, (paths[len(whole) - 1] if whole else mark)

    def append(self, line: str, number: int) -> None:
        if self.lost is not None:
            raise self.lost
        path = _object(self.root, number)
        try:
            if not self.begun:
                self.filesystem.create_dir(f"{self.root}/journal", recursive=True)
                self.begun = True
            if self._is_another(path, line):
                raise StudyLockedError(
                    f"another driver is at work on {self.uri}: it wrote event {number + 1} of the journal, so this one stops"
                )
            self._put(path, line.encode())
        except OSError as error:
            raise OSError(f"event {number + 1} of the journal in {self.uri} could not be written: {error}") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold `driver.json`, for stores offer no lock, and pyarrow no write that fails if an object exists already.

        A driver writes its own token there, again and again, and looks first who wrote it last: the last one to write
        continues, any other stops. Should two drive for a moment all the same, `append` does not replace another's event.
        """
        path, token = f"{self.root}/driver.json", uuid.uuid4().hex
        stop, beats = threading.Event(), itertools.count()

        def beat() -> None:
            holder = {"who": f"process {os.getpid()} on {socket.gethostname()}", "token": token, "beat": next(beats)}
            self._put(path, json.dumps(holder).encode())

        def keep_beating() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                # What fails is tried again with the next: an outage does not make another the holder.
                with contextlib.suppress(OSError):
                    holder = self._holder(path)
                    if holder.get("token", token) != token:
                        self.lost = self._locked(holder)
                        return
                    beat()

        self.filesystem.create_dir(self.root, recursive=True)
        self._wait_until_dead(path)
        beat()
        time.sleep(SETTLE_SECONDS)
        if (holder := self._holder(path)).get("token") != token:
            raise self._locked(holder)
        self.lost = None
        thread = threading.Thread(target=keep_beating, daemon=True, name="study-heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                if self._holder(path).get("token") == token:
                    self.filesystem.delete_file(path)

    def _wait_until_dead(self, path: str) -> None:
        """Return once nobody holds the lock. Raises StudyLockedError as soon as its holder shows that it lives."""
        first = self._holder(path)
        if not first:
            return
        _log.warning(
            "%s was held by %s; waiting for up to %g s to see whether it lives", self.uri, first.get("who"), STALE_SECONDS
        )
        until = time.monotonic() + STALE_SECONDS
        while (holder := self._holder(path)) and time.monotonic() < until:
            if holder != first:
                raise self._locked(holder)
            time.sleep(min(1.0, HEARTBEAT_SECONDS / 4))

    def _locked(self, holder: dict[str, Any]) -> StudyLockedError:
        return StudyLockedError(f"another driver is at work on {self.uri} ({holder.get('who')})")

    def _holder(self, path: str) -> dict[str, Any]:
        """Who holds the lock, as it records; empty if it is free."""
        try:
            holder: dict[str, Any] = json.loads(self._get(path))
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"who": "one whose heartbeat cannot be read"}
        return holder

    def _is_another(self, path: str, line: str) -> bool:
        """Whether a whole event other than `line` is at `path`."""
        try:
            there = self._get(path).decode(errors="replace")
        except FileNotFoundError:
            return False
        return _is_whole(there) and there != line

    def _paths(self) -> list[str]:
        """The paths of all events, in order."""
        infos = self.filesystem.get_file_info(pyarrow.fs.FileSelector(f"{self.root}/journal", allow_not_found=True))
        return sorted(info.path for info in infos if _EVENT.fullmatch(info.base_name))

    def _is_folder(self, path: str) -> bool:
        return bool(self.filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory)

    def _lines(self, paths: list[str]) -> list[str]:
        with ThreadPoolExecutor(_STREAMS) as pool:
            return [content.decode(errors="replace") for content in pool.map(self._get, paths)]

    def _get(self, path: str) -> bytes:
        return b"".join(read_blocks(self.filesystem, path))

    def _put(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)


def _is_whole(line: str) -> bool:
    return line.endswith("}")


def _free(path: str, exists: Callable[[str], bool]) -> str:
    """The first name after a path's own that nothing has, for a copy of what is there."""
    return next(name for number in itertools.count(1) if not exists(name := f"{path}.before-repair-{number}"))
