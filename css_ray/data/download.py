"""Fetches the original files of VOC 2012 and SBD, and explains how to fetch those of Cityscapes.

    ROOT/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/...}
    ROOT/sbd/{img,cls,inst,train.txt,val.txt}
    ROOT/VOCtrainval_11-May-2012.tar.part     what has come of an archive; the next call fetches the rest

Where an archive is, what its MD5 is and how it is unpacked is torchvision's knowledge: `VOCSegmentation` and `SBDataset`. It is
unpacked beside its folder, which is renamed when all is there: VOC2012 and sbd are there whole or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import ssl
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, responses
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from torchvision.datasets import SBDataset, VOCSegmentation, voc

from css_ray.messages import printable
from css_ray.storage import locked, unfinished

from .description import SUBSETS
from .problems import brief, joined

STALL_SECONDS = 30.0
"""How long a server may send nothing before it is asked again."""
TRIES = 5
"""How many tries in a row may bring nothing new before the download is given up."""
FIRST_WAIT_SECONDS = 1.0
"""The wait before the second try; it doubles from try to try."""

_BLOCK = 2**16
_UNPACKED = 1.2  # times its archive: photographs barely compress, and small files leave blocks of the disk half empty
_SHOWN = 5  # files that a message names


class _Archive(NamedTuple):
    """A data set as torchvision fetches it.

    url, md5, filename: of its archive. base: the folder below the root that torchvision's classes are given. folder: where the
    files lie, below the root too. top: the folder that holds all in the archive. read: the classes of all lists; asked to, the
    first one unpacks the archive.
    """

    url: str
    md5: str
    filename: str
    base: Path
    folder: Path
    top: str
    read: Callable[[Path, bool], Sequence[Any]]


def _archive(name: str) -> _Archive:
    if name == "voc":
        year = voc.DATASET_YEAR_DICT["2012"]
        return _Archive(year["url"], year["md5"], year["filename"], Path(), Path(year["base_dir"]), "VOCdevkit", _read_voc)
    if name == "sbd":
        folder = Path("sbd")
        return _Archive(SBDataset.url, SBDataset.md5, SBDataset.filename, folder, folder, "benchmark_RELEASE", _read_sbd)
    raise ValueError(f"{name!r} cannot be downloaded; choose voc or sbd (cityscapes is fetched by hand)")


def _read_voc(folder: Path, download: bool) -> list[Any]:
    first = VOCSegmentation(folder, image_set="trainval", download=download)
    return [first, *(VOCSegmentation(folder, image_set=name) for name in ("train", "val"))]


def _read_sbd(folder: Path, download: bool) -> list[Any]:
    # Not "train_noval": its list lies on a server that is gone. The reader leaves VOC's val images out by itself.
    first = SBDataset(folder, image_set="train", mode="segmentation", download=download)
    return [first, SBDataset(folder, image_set="val", mode="segmentation")]


def find(name: str, root: str | Path) -> Path | None:
    """The folder of `voc` or `sbd` below `root`, if every image and mask that its lists name is in it; else None.

    Raises ValueError for any other name.
    """
    archive = _archive(name)
    return None if _absent(archive, Path(root) / archive.base) else Path(root) / archive.folder


def _absent(archive: _Archive, base: Path, *, unpack: bool = False) -> list[str]:
    """Which files the lists name that are not there, or empty as a power cut leaves them; unpack: first unpack the archive."""
    try:
        datasets = archive.read(base, unpack)
    except (RuntimeError, FileNotFoundError) as error:  # of torchvision for a folder, of Python for a list that is not there
        return [getattr(error, "filename", None) or str(base / archive.folder.relative_to(archive.base))]
    except UnicodeDecodeError:
        return [f"a list in {base / archive.folder.relative_to(archive.base)} that is text"]
    wanted = {str(path) for dataset in datasets for path in (*dataset.images, *dataset.masks)}
    return sorted(path for path in wanted if not (os.path.isfile(path) and os.path.getsize(path)))


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{', '.join(map(printable, files[:_SHOWN]))}{more}"  # a damaged list names anything


def download(
    name: str,
    root: str | Path,
    *,
    url: str | None = None,
    keep_archive: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Fetch `voc` or `sbd` and unpack it below `root`; returns its folder. If it is there already, nothing is done.

    A call that was cut off or killed is completed by the next: it fetches only what is missing of the archive, and unpacks it
    again. Several processes of a machine may call at the same time: one fetches, the others wait and then find the result. An
    archive in `root` that was there before is used, and never deleted.

    url: another address of the same archive, http or https; user and password in it are used and never shown.
    keep_archive: leave the archive in `root` when all is done. progress: called with how many bytes of the archive are here,
    and of how many; 0 if the server does not report it. say: called with a line for the user on what happens.

    Raises ValueError for an unknown name or URL, for files in the way, or an archive that does not hold what it should; OSError
    if the archive cannot be fetched, has another MD5, or does not fit on the disk.
    """
    archive = _archive(name)
    server = _Server.parse(archive.url if url is None else url)
    root = Path(root)
    folder = root / archive.folder
    if find(name, root) is not None:
        return folder
    if not hasattr(tarfile, "data_filter"):
        raise OSError("archives are unpacked safely by Python 3.11.4 and newer only; update Python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (absent := _absent(archive, root / archive.base)):  # another process was faster
            return folder
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} is incomplete: absent or empty: {_some(absent)}; move it away and run the command again"
            )
        ready = root / archive.filename
        if given := ready.exists():
            if (found := _md5(ready).hexdigest()) != archive.md5:
                raise ValueError(
                    f"{ready} has the MD5 {found}, must have {archive.md5}: delete it, or rename it to {ready.name}.part "
                    "to have it completed"
                )
            packed = ready
        else:
            packed = root / f"{archive.filename}.part"
            _fetch(server, packed, archive.md5, progress, say)
        say(f"unpacking {archive.filename}")
        with unfinished(folder) as growing:
            _unpack(archive, packed, growing)
        if not given:
            packed.rename(ready) if keep_archive else packed.unlink()
            _version_file(packed).unlink(missing_ok=True)
    return folder


# Fetching


class _TryAgain(Exception):
    """The network failed in a way that may pass."""


@dataclass(frozen=True, slots=True)
class _Server:
    """The server of an archive. shown: the address as messages name it; headers: go to this server, to no other."""

    url: str = field(repr=False)
    shown: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> _Server:
        """Raises ValueError, without the URL, which may hold a password, if it is not an http or https URL."""
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError("the URL must be http://HOST/... or https://HOST/..., without spaces (%20 stands for one)")
        user, _, host = parts.netloc.rpartition("@")
        headers = {}
        if user:
            name, _, password = user.partition(":")
            pair = f"{unquote(name)}:{unquote(password)}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        bare = parts._replace(netloc=host, fragment="")
        return cls(bare.geturl(), bare._replace(query="").geturl(), headers)

    def ask(self, headers: Mapping[str, str]) -> HTTPResponse:
        """An answer of status 2xx, or 416. Raises _TryAgain, or OSError if it would be of no use."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "css-ray", **headers})
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)  # a server that it points to must not learn the password
        try:
            response: HTTPResponse = _opener().open(request, timeout=STALL_SECONDS)
        except HTTPError as error:
            error.close()
            status = f"{error.code} {responses.get(error.code, '')}".strip()
            if error.code >= 500 or error.code in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
                raise _TryAgain(f"the server answered {status}") from None
            raise OSError(f"{self.shown}: the server answered {status}; give the address of a mirror with --url") from None
        except URLError as error:
            if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise _TryAgain(_named(error.reason)) from None
            raise OSError(f"{self.shown}: {error.reason}") from None
        except (OSError, HTTPException) as error:
            raise _TryAgain(_named(error)) from None
        return response


class _AllowStale(urllib.request.HTTPErrorProcessor):
    """416, nothing of the file is left to send, is an answer like others."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return response
        return super().http_response(request, response)

    https_response = http_response


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone: a server cannot point to a file of this machine, or to FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        _AllowStale(),
    ):
        opener.add_handler(handler)
    return opener


def _named(error: Exception) -> str:
    """Words for a network error. Those of http.client may hold the URL that a server pointed to, with a secret in it."""
    if isinstance(error, HTTPException):
        return f"the server broke the protocol ({type(error).__name__})"
    return (isinstance(error, OSError) and error.strerror) or str(error)  # without [Errno 111]


def _md5(path: Path) -> hashlib._Hash:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))


def _version_file(part: Path) -> Path:
    """Holds what the server calls the version of the file that a part is of."""
    return part.with_name(f"{part.name}.version")


class _Part:
    """The first bytes of an archive on disk, and the MD5 of them so far. A part without any is deleted at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 - closed by __exit__
        self.digest = _md5(path)
        self.size = path.stat().st_size
        version = _version_file(path)
        self.validator = version.read_text() if version.is_file() and self.size else ""

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if not self.size:
            self.path.unlink()
            _version_file(self.path).unlink(missing_ok=True)

    def restart(self, validator: str) -> None:
        """Drop all bytes; those to come are of the version that `validator` names."""
        self._file.truncate(0)  # first: a killed process must not leave old bytes under a new name
        _version_file(self.path).write_text(validator)
        self.validator, self.size, self.digest = validator, 0, hashlib.md5(usedforsecurity=False)

    def append(self, block: bytes) -> None:
        self._file.write(block)
        self._file.flush()  # what has come is kept when this process is killed
        self.digest.update(block)
        self.size += len(block)


def _fetch(server: _Server, path: Path, md5: str, progress: Callable[[int, int], None], say: Callable[[str], None]) -> None:
    """Complete the file at `path`, until its MD5 is `md5`."""
    with _Part(path) as part:
        if part.digest.hexdigest() == md5:
            return
        failures, most = 0, part.size
        while True:
            try:
                _receive(server, part, progress)
                break
            except _TryAgain as error:
                # A server that is cut off at the same byte each time brings nothing new, though it sends.
                failures = 0 if part.size > most else failures + 1
                most = max(most, part.size)
                if failures == TRIES:
                    raise OSError(
                        f"{server.shown}: {error}; given up after {TRIES} tries that brought nothing new. "
                        f"{part.size / 1e6:.1f} MB are here: run the command again to continue, or give a mirror with --url"
                    ) from None
                wait = FIRST_WAIT_SECONDS * 2**failures
                say(f"{error} at {part.size / 1e6:.1f} MB; trying again in {wait:g} s")
            time.sleep(wait)
        if (found := part.digest.hexdigest()) != md5:
            size = part.size
            part.restart("")
            raise OSError(
                f"{server.shown} gave {size} bytes with the MD5 {found}, must be {md5}: damaged on the way, or not this "
                "file. They were deleted; run the command again, or give a mirror with --url"
            )


def _receive(server: _Server, part: _Part, progress: Callable[[int, int], None]) -> None:
    """One request for what is missing. Raises _TryAgain if less than that came."""
    headers = {}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator  # a file that has changed comes whole
    with server.ask(headers) as response:
        if (
            response.status == HTTPStatus.OK and response.headers.get_content_type() == "text/html"
        ):  # it must not replace what has come
            raise OSError(
                f"{server.shown} sent a web page, not an archive; if this network wants you to sign in, open a browser, "
                "or give the address of a mirror with --url"
            )
        etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        validator = date if etag.startswith("W/") or not etag else etag  # a weak tag guarantees nothing about bytes
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            changed = bool(part.validator and validator and part.validator != validator)  # a server may not know If-Range
            if extent is None or int(extent[1]) != part.size or changed:
                part.restart("")
                raise _TryAgain("the server sent a piece of another file")
            total = 0 if extent[2] == "*" else int(extent[2])
        elif response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # The part is as long as the file or longer, and its MD5 is another one.
            part.restart("")
            raise _TryAgain("what was here is not part of the server's file")
        else:
            total = int(response.headers.get("Content-Length") or 0)
            part.restart(validator)
        _check_space(part.path.parent, total - part.size + _UNPACKED * total)
        for block in _blocks(response):
            part.append(block)
            progress(part.size, total)
    if part.size < total:
        raise _TryAgain("the connection was cut")


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read1(_BLOCK):  # read() would lose what came before a stall
            yield block
    except (OSError, HTTPException) as error:
        raise _TryAgain(_named(error)) from None


def _check_space(folder: Path, needed: float) -> None:
    """Raises OSError if the disk of `folder` has fewer than `needed` bytes free."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(
            f"the files take {needed / 1e9:.2f} GB more, the disk of {folder} has {free / 1e9:.2f} GB free; "
            "make room, or choose a --root on another disk"
        )


# Unpacking


def _unpack(archive: _Archive, packed: Path, folder: Path) -> None:
    """Unpack an archive of the right MD5 so that `folder` holds the files of the data set, and nothing else.

    Raises ValueError if it holds others, or if a member is not to be trusted; nothing is unpacked then.
    """
    with _damage_in_words(packed), tarfile.open(packed) as tar:
        members = tar.getmembers()
    _refuse_escapes(members, packed, folder)
    _check_space(folder, sum(member.size for member in members))
    link = folder / archive.filename
    link.symlink_to(packed.absolute())  # torchvision finds its archive, with the right MD5, and asks no server
    with _damage_in_words(packed), _data_filter():
        absent = _absent(archive, folder, unpack=True)
    if absent:
        raise ValueError(f"{packed} does not hold what its lists name: absent or empty: {_some(absent)}")
    link.unlink()
    inner = folder / archive.folder.relative_to(archive.base)
    if inner != folder:
        for entry in inner.iterdir():
            entry.rename(folder / entry.name)
    shutil.rmtree(folder / archive.top)


@contextmanager
def _damage_in_words(packed: Path) -> Iterator[None]:
    """What a damaged archive leads tarfile and its decompressors into is a ValueError that names the archive."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise ValueError(f"{packed} cannot be unpacked: {brief(str(error)) or type(error).__name__}") from None


def _refuse_escapes(members: Sequence[tarfile.TarInfo], packed: Path, folder: Path) -> None:
    """Raises ValueError with all members that would be written outside `folder`, are links, or are devices."""
    found = []
    for member in members:
        if member.name.startswith("/") or ".." in Path(member.name).parts:
            found.append(f"{member.name!r} leads out of the folder")
            continue
        try:
            tarfile.data_filter(member, str(folder))
        except tarfile.FilterError as error:
            found.append(brief(str(error)))
            continue
        if member.issym() or member.islnk():  # its folder is moved once it is unpacked: the link would point nowhere
            found.append(f"{member.name!r} is a link, and the data set has none")
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise ValueError(joined(f"{packed} is not to be trusted, nothing was unpacked", found[:_SHOWN] + more))


@contextmanager
def _data_filter() -> Iterator[None]:
    """torchvision extracts all that an archive holds; within the block tarfile refuses links that lead out, and devices.

    The members were judged before, but only by their names: a link may lead through another link that is unpacked before it.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


# Cityscapes


def count_cityscapes(folder: str | Path) -> dict[str, tuple[int, int]]:
    """How many images, and masks of them, the Cityscapes tree in `folder` holds in train and in val; 2,975 and 500 if whole."""

    def names(kind: str, subset: str, suffix: str) -> set[str]:
        return {path.name.split(suffix)[0] for path in Path(folder).glob(f"{kind}/{subset}/*/*{suffix}*.png")}

    counts = {}
    for subset in SUBSETS:
        images = names("leftImg8bit", subset, "_leftImg8bit")
        masks = names("gtFine", subset, "_gtFine_label") | names("gtFine", subset, "_gtFine_trainIds")
        counts[subset] = len(images), len(images & masks)
    return counts
