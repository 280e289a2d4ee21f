"""Folders and URLs alike: where a study, a data set or a checkpoint lies, read and written by pyarrow's file systems."""

from __future__ import annotations

import datetime
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs

from css_ray.messages import os_error_text
from css_ray.secrets import shown

ATTEMPTS = 6
"""How often a request to S3 is made until one is answered. Up to 1, 2, 4, 8, 16 s pass in between, on average half as much."""

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""How long S3 may take to accept a connection, and to send anything on it, before an attempt counts as failed."""

_BLOCK = 2**23  # bytes fetched by one request


def is_url(place: str | Path) -> bool:
    """True for `scheme://...`, False for a path."""
    return "://" in str(place)


def below(place: str | Path, *names: str) -> str:
    """The place `names` below another, a path or a URL, whose query stays at its end."""
    above, mark, query = str(place).partition("?") if is_url(place) else (str(place), "", "")
    return "/".join([above.rstrip("/"), *names]) + mark + query


def parted(place: str | Path) -> tuple[str, str]:
    """The place above another, and the last of its names; what `below` puts together. The first is empty if there is none."""
    text, mark, query = str(place).partition("?") if is_url(place) else (str(place), "", "")
    above, slash, name = text.rstrip("/").rpartition("/")
    return (above or slash) + (mark + query if slash else ""), name


def locate(place: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a place, and the path in it.

    On S3 a request that fails is made again, and one that makes no progress is given up, see `ATTEMPTS`; a call that fails for
    good raises OSError within 31 s if the store answers or refuses, and within ATTEMPTS * REQUEST_SECONDS more if it hangs.

    Raises ValueError if the URL names a file system that pyarrow does not know, or lacks a part.
    """
    if not is_url(place):
        return pyarrow.fs.LocalFileSystem(), str(Path(place).absolute())
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(str(place))
    except (OSError, ValueError) as error:
        secret = str(place).partition("://")[2]
        raise ValueError(f"{shown(place)} is not a place that css-ray can open: {str(error).replace(secret, '...')}") from None
    if filesystem.type_name in ("s3", "gcs"):
        filesystem = _patient(filesystem)
    return filesystem, path.rstrip("/")


def _patient(filesystem: pyarrow.fs.FileSystem) -> pyarrow.fs.FileSystem:
    """The same with our bounds. A URL cannot name them, so it is made again from the arguments that pickle would keep of it."""
    _, (arguments,) = filesystem.__reduce__()
    if filesystem.type_name == "gcs":  # without a bound it tries for ever
        limit = datetime.timedelta(seconds=ATTEMPTS * CONNECT_SECONDS)
        return pyarrow.fs.GcsFileSystem(**arguments | {"retry_time_limit": limit})
    return pyarrow.fs.S3FileSystem(
        **arguments
        | {
            "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            "connect_timeout": CONNECT_SECONDS,
            "request_timeout": REQUEST_SECONDS,
            # A small file is then one request, which may be made twice; else it is three, of which the last may not.
            "allow_delayed_open": True,
        }
    )


def read_blocks(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[bytes]:
    """The content of a file, bit by bit, so that it need not fit into memory.

    Raises FileNotFoundError if there is none, OSError that names it if it cannot be read to its end, or is a FIFO or a device.
    """
    local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    if local and filesystem.get_file_info(path).type == pyarrow.fs.FileType.Unknown:  # to open a FIFO is to wait
        raise OSError(f"{path} is neither a file nor a folder; give the path of a file")
    try:
        with filesystem.open_input_stream(path) as stream:
            while block := stream.read(_BLOCK):
                yield block
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:  # of a connection that was cut in the middle, pyarrow names no place
        why = os_error_text(error, "read", path) if error.errno is not None else f"{path} could not be read: {error}"
        raise OSError(why) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a local file so that `path` holds all of `data` or is as it was, also when the machine stops half-way."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` at the end of the block, once it is on the disk; nothing is left if that fails."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put(filesystem: pyarrow.fs.FileSystem, path: str, data: bytes) -> None:
    """Write a small file whole, or not at all, as stores do by themselves."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        write_whole(Path(path), data)
        return
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def send(file: Path, filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Copy a local file to a path; returns once it is there whole, and raises OSError if it is not.

    `pyarrow.fs.copy_files` does neither: it returns before the store has taken a file, and drops the error if it takes none.
    """
    # In one piece: were the file read bit by bit, an interrupt in between would close the stream, and half of it would count.
    with pa.memory_map(str(file)) as source, filesystem.open_output_stream(path) as stream:
        stream.write(source.read_buffer())


def receive(filesystem: pyarrow.fs.FileSystem, path: str, folder: Path) -> None:
    """Copy the files right in the folder `path` to a local one, which is made.

    Raises FileNotFoundError if there is no such folder, OSError if a file cannot be read whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path)):
        if not info.is_file:
            continue
        with (folder / plain_name(info.base_name, path)).open("wb") as file:
            file.writelines(read_blocks(filesystem, info.path))
            if file.tell() != info.size:
                raise OSError(f"{info.path} has {info.size} bytes, of which {file.tell()} could be read")


def free_bytes(place: str | Path) -> int | None:
    """Free space in bytes on the disk of a folder, which need not exist yet; None at a URL."""
    if is_url(place):
        return None
    return shutil.disk_usage(existing_folder(place)).free


def existing_folder(place: str | Path) -> Path:
    """The folder of a local path that exists, or the nearest one above it that does."""
    folder = Path(place).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_folder(place: str | Path) -> None:
    """Raise OSError if a local path is a file or cannot be looked at. It need not exist yet."""
    try:
        mode = os.stat(place).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))


def check_writable_folder(place: str | Path) -> None:
    """Raise OSError if a local folder, which need not exist yet, cannot be written; leaves no trace."""
    # Permission bits reveal nothing of a disk that is mounted read-only, and do not restrict root.
    tempfile.TemporaryFile(dir=existing_folder(place)).close()


def check_writable_file(path: str | Path) -> None:
    """Raise OSError if a local file, which need not exist yet, cannot be written; leaves no trace."""
    if Path(path).exists():
        open(path, "ab").close()
    else:
        tempfile.TemporaryFile(dir=Path(path).absolute().parent).close()


def plain_name(name: str, source: str | Path) -> str:
    """The name of a file as another program wrote it, in a description or a store.

    Raises:
        ValueError: It would lead out of the folder that it is meant for. `source` names where it was written.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{shown(source)} names the file {name!r}, which is not a plain name; make that folder again")
    return name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Held by the one process of this machine that may write `folder`; the others wait. It is free when its holder dies."""
    with open(folder.parent / f".{folder.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name at the end of the block, as a whole; nothing is left if the block raises.

    The caller holds the lock of `folder`: what a killed process left is removed.
    """
    prefix = f".{folder.name}.unfinished-"
    for left in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    growing = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield growing
        growing.chmod(0o777 & ~_umask())  # mkdtemp lets only its user in
        sync(growing)
        os.rename(growing, folder)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise
    sync(folder.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
