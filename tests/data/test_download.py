"""`css-ray data download`, against a real server on loopback that fails in the ways that servers do."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from torchvision.datasets import SBDataset, voc

from css_ray.data import download as module
from css_ray.data.download import count_cityscapes, download, find

IDS = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}


class Sent(NamedTuple):
    """What a request asked for, and how it was answered."""

    path: str
    range: str | None
    if_range: str | None
    authorization: str | None
    status: int


@dataclass
class Site:
    """What the server has, and how it behaves. faults: one a request, in order; without one it does right.

    A fault is a status, "cut N" (the connection ends N bytes into the body) or "stall N" (nothing more comes after N bytes).
    """

    content: bytes
    etag: str | None = '"one"'
    date: str | None = None
    ranges: bool = True
    knows_if_range: bool = True
    says_length: bool = True
    faults: list[str] = field(default_factory=list)
    kind: str = "application/x-tar"
    redirect: str | None = None
    log: list[Sent] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> list[str | None]:
        return [sent.range for sent in self.log]


def make_handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fault, _, number = (site.faults.pop(0) if site.faults else "").partition(" ")
            wanted, if_range = self.headers["Range"], self.headers["If-Range"]
            body, status, start = site.content, 200, 0
            if fault.isdigit():
                body, status = b"no", int(fault)
            elif site.redirect:
                status, body = 302, b""
            elif wanted and site.ranges and (not site.knows_if_range or if_range in (None, site.etag, site.date)):
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                status, body = (206, site.content[start:]) if start < len(site.content) else (416, b"")
            site.log.append(Sent(self.path, wanted, if_range, self.headers["Authorization"], status))
            self.send_response(status)
            if site.redirect and status == 302:
                self.send_header("Location", site.redirect)
            self.send_header("Content-Type", site.kind)
            if site.says_length:
                self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(site.content)}")
            if site.etag:
                self.send_header("ETag", site.etag)
            if site.date:
                self.send_header("Last-Modified", site.date)
            self.end_headers()
            if fault in ("cut", "stall"):
                self.wfile.write(body[: int(number)])
                self.wfile.flush()
                if fault == "stall":
                    site.released.wait(20)
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class Servers:
    """Starts as many servers as a test wants."""

    def __init__(self) -> None:
        self._started: list[tuple[ThreadingHTTPServer, Site]] = []

    def __call__(self, content: bytes, name: str, **behaviour: object) -> Site:
        site = Site(content, **behaviour)  # type: ignore[arg-type]
        server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(site))
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_port}/{name}"
        self._started.append((server, site))
        return site

    def stop(self) -> None:
        for server, site in self._started:
            site.released.set()
            server.shutdown()
            server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    servers = Servers()
    yield servers
    servers.stop()


def pack(files: dict[str, bytes], compressed: bool = False) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0) if compressed else packed.getvalue()


def noise(seed: str, size: int = 20_000) -> bytes:
    return Random(seed).randbytes(size)


def voc_files() -> dict[str, bytes]:
    """By path below VOC2012."""
    files = {f"ImageSets/Segmentation/{name}.txt": "".join(f"{id}\n" for id in ids).encode() for name, ids in IDS.items()}
    files["ImageSets/Segmentation/trainval.txt"] = b"".join(files.values())
    for id in (*IDS["train"], *IDS["val"]):
        files[f"JPEGImages/{id}.jpg"], files[f"SegmentationClass/{id}.png"] = noise(f"{id}.jpg"), noise(f"{id}.png", 900)
    return files


def sbd_files() -> dict[str, bytes]:
    """By path below sbd; the lists end without a line feed, as SBD's do not."""
    files = {f"{name}.txt": "\n".join(ids).encode() for name, ids in IDS.items()}
    for id in (*IDS["train"], *IDS["val"]):
        files |= {f"img/{id}.jpg": noise(id), f"cls/{id}.mat": noise(f"{id}c", 900), f"inst/{id}.mat": noise(f"{id}i", 900)}
    return files


def voc_archive() -> bytes:
    return pack({f"VOCdevkit/VOC2012/{name}": content for name, content in voc_files().items()})


def sbd_archive() -> bytes:
    files = {f"benchmark_RELEASE/dataset/{name}": content for name, content in sbd_files().items()}
    return pack(files | {"benchmark_RELEASE/README": b"code and more"}, compressed=True)


def name_in_torchvision(monkeypatch: pytest.MonkeyPatch, name: str, site: Site, content: bytes | None = None) -> None:
    """Let torchvision know the archive of `name` as this one."""
    md5 = hashlib.md5(site.content if content is None else content).hexdigest()
    if name == "voc":
        monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "url", site.url)
        monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "md5", md5)
    else:
        monkeypatch.setattr(SBDataset, "url", site.url)
        monkeypatch.setattr(SBDataset, "md5", md5)


@pytest.fixture
def site(serve: Servers, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The server that torchvision names for VOC."""
    site = serve(voc_archive(), "VOC.tar")
    name_in_torchvision(monkeypatch, "voc", site)
    return site


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def run(*arguments: object) -> Result:
    from css_ray_cli.data import data

    return CliRunner().invoke(data, ["download", *map(str, arguments)])


PART = "VOCtrainval_11-May-2012.tar.part"


@pytest.mark.parametrize(
    ("name", "archive", "files", "place", "left"),
    [
        ("voc", voc_archive, voc_files, "VOCdevkit/VOC2012", {"VOCdevkit"}),
        ("sbd", sbd_archive, sbd_files, "sbd", {"sbd"}),
    ],
)
def test_the_files_are_where_the_readers_want_them_and_nothing_else_is_left(
    name: str,
    archive: Callable[[], bytes],
    files: Callable[[], dict[str, bytes]],
    place: str,
    left: set[str],
    serve: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = serve(archive(), "archive")
    name_in_torchvision(monkeypatch, name, site)
    seen: list[tuple[int, int]] = []
    assert find(name, tmp_path) is None
    folder = download(name, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / place == find(name, tmp_path)
    assert tree(folder) == files()
    assert visible(tmp_path) == left and visible(folder.parent) == ({"VOC2012"} if name == "voc" else left)
    assert seen[-1] == (len(site.content), len(site.content)) and seen == sorted(seen)
    assert folder.stat().st_mode & 0o777 == tmp_path.joinpath(left.pop()).stat().st_mode & 0o777  # not for its user alone
    # A second call asks nobody, though the archive is gone.
    assert download(name, tmp_path) == folder
    assert site.asked == [None]


def test_an_archive_that_is_kept_or_was_there_stays(site: Site, tmp_path: Path) -> None:
    download("voc", tmp_path / "kept", keep_archive=True)
    archive = tmp_path / "kept" / PART.removesuffix(".part")
    assert archive.read_bytes() == site.content
    assert visible(tmp_path / "kept") == {"VOCdevkit", archive.name}
    # Put by hand into another root, it is used without a request, and never deleted.
    (tmp_path / "given").mkdir()
    given = tmp_path / "given" / archive.name
    shutil.copy(archive, given)
    assert tree(download("voc", tmp_path / "given")) == voc_files()
    assert given.exists() and len(site.log) == 1


def test_an_archive_that_was_there_with_another_sum_is_named_and_can_be_completed(site: Site, tmp_path: Path) -> None:
    half = tmp_path / PART.removesuffix(".part")
    half.write_bytes(site.content[:30_000])
    with pytest.raises(
        ValueError, match=rf"must have {hashlib.md5(site.content).hexdigest()}: delete it, or rename it to {PART}"
    ):
        download("voc", tmp_path)
    half.rename(tmp_path / PART)
    assert tree(download("voc", tmp_path)) == voc_files()
    assert site.asked == ["bytes=30000-"]


def test_a_cut_connection_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.faults = ["cut 10000", "503", "503", "cut 7", "503"]
    lines: list[str] = []
    assert tree(download("voc", tmp_path, say=lines.append)) == voc_files()
    assert site.asked == [None, "bytes=10000-", "bytes=10000-", "bytes=10000-", "bytes=10007-", "bytes=10007-"]
    assert [sent.if_range for sent in site.log[1:]] == ['"one"'] * 5
    assert lines[:2] == [
        "the connection was cut at 0.0 MB; trying again in 0.01 s",
        "the server answered 503 Service Unavailable at 0.0 MB; trying again in 0.02 s",
    ]


def test_a_server_that_falls_silent_is_asked_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    site.faults = ["stall 20000"]
    lines: list[str] = []
    assert tree(download("voc", tmp_path, say=lines.append)) == voc_files()
    assert site.asked == [None, "bytes=20000-"]
    assert lines[0].startswith("timed out at 0.0 MB")


def test_tries_are_bounded_and_what_came_is_kept(site: Site, tmp_path: Path) -> None:
    site.faults = ["cut 10000", *["503"] * 20]
    with pytest.raises(
        OSError, match=r"503 Service Unavailable; given up after 5 tries that brought nothing new\. 0\.0 MB are here"
    ):
        download("voc", tmp_path)
    assert len(site.log) == 6
    assert (tmp_path / PART).read_bytes() == site.content[:10_000]
    site.faults = []
    download("voc", tmp_path)
    assert site.log[-1].range == "bytes=10000-" and site.log[-1].if_range == '"one"'


def test_a_server_that_always_breaks_at_the_same_byte_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.faults = ["cut 10000"] * 50
    with pytest.raises(OSError, match="the connection was cut; given up"):
        download("voc", tmp_path)
    assert len(site.log) == 6


def test_a_server_that_is_away(tmp_path: Path, site: Site) -> None:
    with pytest.raises(OSError, match=": Connection refused; given up after 5 tries"):
        download("voc", tmp_path, url="http://127.0.0.1:9/VOC.tar")
    assert not site.log


@pytest.mark.parametrize("status", [403, 404])
def test_what_the_server_refuses_is_not_asked_again(status: int, site: Site, tmp_path: Path) -> None:
    site.faults = [str(status)] * 9
    with pytest.raises(OSError, match=rf"the server answered {status} \w+.*mirror with --url"):
        download("voc", tmp_path)
    assert len(site.log) == 1


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.faults = ["cut 30000"]
    assert tree(download("voc", tmp_path)) == voc_files()
    assert [(sent.range, sent.status) for sent in site.log] == [(None, 200), ("bytes=30000-", 200)]


@pytest.mark.parametrize("validator", ["etag", "date", "weak etag"])
@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_is_not_spliced(
    validator: str, knows_if_range: bool, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an old file came; the archive of the right MD5 is put in its place."""
    new = site.content
    site.content, site.knows_if_range = bytes(len(new)), knows_if_range
    site.etag = {"etag": '"old"', "date": None, "weak etag": 'W/"same"'}[validator]
    site.date = None if validator == "etag" else "Tue, 01 May 2012 00:00:00 GMT"
    site.faults = ["cut 30000", *["503"] * 5]
    with pytest.raises(OSError, match="given up"):
        download("voc", tmp_path)
    site.content, site.faults = new, []
    site.etag = '"new"' if validator == "etag" else site.etag
    site.date = None if validator == "etag" else "Fri, 11 May 2012 00:00:00 GMT"
    site.log.clear()
    assert tree(download("voc", tmp_path)) == voc_files()
    old = '"old"' if validator == "etag" else "Tue, 01 May 2012 00:00:00 GMT"
    assert [(sent.range, sent.if_range, sent.status) for sent in site.log] == (
        [("bytes=30000-", old, 200)] if knows_if_range else [("bytes=30000-", old, 206), (None, None, 200)]
    )


def test_without_a_version_of_the_server_the_sum_tells_a_splice(site: Site, tmp_path: Path) -> None:
    site.etag = None
    (tmp_path / PART).write_bytes(bytes(30_000))
    with pytest.raises(OSError, match=f"must be {hashlib.md5(site.content).hexdigest()}"):
        download("voc", tmp_path)
    assert site.asked == ["bytes=30000-"] and visible(tmp_path) == {"VOCdevkit"}
    download("voc", tmp_path)


def test_a_part_that_is_whole_needs_no_server(site: Site, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(site.content)
    assert tree(download("voc", tmp_path)) == voc_files()
    assert not site.log and visible(tmp_path) == {"VOCdevkit"}


@pytest.mark.parametrize("more", [0, 5])
def test_a_part_as_long_as_the_file_or_longer_is_stale(more: int, site: Site, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(bytes(len(site.content) + more))
    assert tree(download("voc", tmp_path)) == voc_files()
    assert [sent.status for sent in site.log] == [416, 200]


def test_wrong_content_is_deleted_and_both_sums_are_said(site: Site, tmp_path: Path) -> None:
    right, site.content = hashlib.md5(site.content).hexdigest(), b"<html>Sign in to this network</html>"
    with pytest.raises(OSError) as failed:
        download("voc", tmp_path)
    message = str(failed.value)
    assert hashlib.md5(site.content).hexdigest() in message and right in message and "gave 36 bytes" in message
    assert "run the command again" in message and "--url" in message
    assert visible(tmp_path) == {"VOCdevkit"} and not visible(tmp_path / "VOCdevkit")


def test_a_web_page_does_not_cost_what_was_fetched(site: Site, tmp_path: Path) -> None:
    """As a network that one must sign in to answers, whatever is asked."""
    (tmp_path / PART).write_bytes(site.content[:30_000])
    site.ranges, site.kind = False, "text/html; charset=utf-8"
    with pytest.raises(OSError, match="a web page, not an archive"):
        download("voc", tmp_path)
    site.ranges, site.kind = True, "application/x-tar"
    assert tree(download("voc", tmp_path)) == voc_files()
    assert site.asked == ["bytes=30000-"] * 2


def test_a_server_that_does_not_say_how_much_it_sends(site: Site, tmp_path: Path) -> None:
    site.says_length = False
    seen: list[tuple[int, int]] = []
    assert tree(download("voc", tmp_path, progress=lambda done, total: seen.append((done, total)))) == voc_files()
    assert seen[-1] == (len(site.content), 0)


def test_the_disk_is_judged_before_anything_is_fetched(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(site.content)
    free = shutil.disk_usage(tmp_path)._replace(free=2 * size)  # the archive fits, its files do not
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=rf"{2.2 * size / 1e9:.2f} GB more.*make room, or choose a --root on another disk"):
        download("voc", tmp_path)
    assert visible(tmp_path) == {"VOCdevkit"}
    # Of what is here already, no room is asked for again.
    (tmp_path / PART).write_bytes(site.content[: size // 2])
    download("voc", tmp_path)


def test_a_mirror_with_a_password_that_nobody_else_learns(serve: Servers, site: Site, tmp_path: Path) -> None:
    """The mirror wants a user and points to another host; only the mirror gets the password, and no message has it."""
    mirror = serve(b"", "mirror", redirect=site.url)
    url = mirror.url.replace("http://", "http://ann:se%40cret@") + "?token=hidden"
    site.faults = ["cut 10000"]
    lines: list[str] = []
    assert tree(download("voc", tmp_path, url=url, say=lines.append)) == voc_files()
    assert {(sent.path, sent.authorization) for sent in mirror.log} == {("/mirror?token=hidden", "Basic YW5uOnNlQGNyZXQ=")}
    assert [(sent.range, sent.authorization) for sent in site.log] == [(None, None), ("bytes=10000-", None)]
    site.faults = ["404"]
    result = run("voc", "--root", tmp_path / "other", "--url", url)
    assert result.exit_code == 2 and f"{mirror.url}: the server answered 404" in result.output
    for text in (result.output, *lines):
        assert not re.search("se%40cret|se@cret|hidden|ann", text), text


@pytest.mark.parametrize(
    "url", ["ftp://host/x.tar", "file:///etc/passwd", "http://", "http://u:secret@host:port/x", "http://h/a secret"]
)
def test_urls_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be http://HOST/") as failed:
        download("voc", tmp_path, url=url)
    assert "secret" not in str(failed.value) and not visible(tmp_path)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_a_server_cannot_point_to_other_protocols(target: str, site: Site, tmp_path: Path) -> None:
    site.redirect = target
    with pytest.raises(OSError, match=r"the server answered 302|unknown url type: ftp"):
        download("voc", tmp_path)
    assert len(site.log) == 1


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = type, link
    return found


EVIL = {
    "absolute": [member("/{outside}/evil")],
    "parent": [member("VOCdevkit/../../evil")],
    "link out": [member("VOCdevkit/out", tarfile.SYMTYPE, "../..")],
    "absolute link": [member("VOCdevkit/out", tarfile.SYMTYPE, "/{outside}")],
    "hard link out": [member("VOCdevkit/out", tarfile.LNKTYPE, "../evil")],
    "device": [member("VOCdevkit/null", tarfile.CHRTYPE)],
}


def evil_archive(members: list[tarfile.TarInfo], outside: Path) -> bytes:
    packed = io.BytesIO(voc_archive())
    with tarfile.open(fileobj=packed, mode="a") as tar:
        for found in members:
            copy = member(
                found.name.replace("/{outside}", str(outside)), found.type, found.linkname.replace("/{outside}", str(outside))
            )
            tar.addfile(copy)
    return packed.getvalue()


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_that_leads_out_is_refused_before_anything_is_unpacked(
    kind: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    site.content = evil_archive(EVIL[kind], outside)
    name_in_torchvision(monkeypatch, "voc", site)
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match="is not to be trusted, nothing was unpacked:\n") as failed:
        download("voc", tmp_path / "root")
    assert EVIL[kind][0].name.rsplit("/")[-1] in str(failed.value)
    assert not visible(outside) and visible(tmp_path) == {"outside", "root"}
    assert not visible(tmp_path / "root" / "VOCdevkit")


def test_all_that_leads_out_is_named_at_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.content = evil_archive([member(f"../evil{number}") for number in range(7)], tmp_path)
    name_in_torchvision(monkeypatch, "voc", site)
    with pytest.raises(ValueError, match=r"'\.\./evil0'.*\n.*\n.*\n.*\n.*'\.\./evil4'.*\n +and 2 more"):
        download("voc", tmp_path / "root")


def test_a_link_through_a_link_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone the second link stays inside; once the first is on disk it leads out. No link is unpacked."""
    down = "VOCdevkit/here/here/here/here/out"
    chain = [
        member("VOCdevkit/here", tarfile.SYMTYPE, "."),
        member(down, tarfile.SYMTYPE, "../../../.."),
        member("VOCdevkit/out/evil"),
    ]
    site.content = evil_archive(chain, tmp_path)
    name_in_torchvision(monkeypatch, "voc", site)
    with pytest.raises(ValueError, match=r"nothing was unpacked:\n +'VOCdevkit/here' is a link"):
        download("voc", tmp_path / "root")
    assert not list(tmp_path.rglob("*evil*")) and not visible(tmp_path / "root" / "VOCdevkit")
    assert tarfile.TarFile.extraction_filter is None or sys.version_info >= (3, 14)  # others of this process are left alone


def test_an_archive_that_lacks_what_its_lists_name(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"VOCdevkit/VOC2012/{name}": content for name, content in voc_files().items()}
    files["VOCdevkit/VOC2012/JPEGImages/2007_000039.jpg"] = b""
    del files["VOCdevkit/VOC2012/SegmentationClass/2007_000033.png"]
    site.content = pack(files)
    name_in_torchvision(monkeypatch, "voc", site)
    with pytest.raises(ValueError, match=r"absent or empty: \S+/2007_000039.jpg, \S+/2007_000033.png"):
        download("voc", tmp_path)
    assert find("voc", tmp_path) is None and not visible(tmp_path / "VOCdevkit")


def test_files_of_the_user_are_not_touched(site: Site, tmp_path: Path) -> None:
    mine = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"VOC2012 is incomplete: .*move it away and run the command again"):
        download("voc", tmp_path)
    assert mine.read_bytes() == b"mine" and not site.log
    # Other years, and files that were added to a whole one, are in nobody's way.
    (tmp_path / "VOCdevkit" / "VOC2012").rename(tmp_path / "VOCdevkit" / "VOC2007")
    folder = download("voc", tmp_path)
    (folder / "more").mkdir()
    assert download("voc", tmp_path) == folder and len(site.log) == 1


def start(name: str, root: Path) -> BaseProcess:
    """A process that downloads; forked, so that it knows the archives of the test."""
    process = get_context("fork").Process(target=download, args=(name, root), daemon=True)
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()  # SIGKILL: nothing is tidied up
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_killed_while_fetching_then_resumed(site: Site, tmp_path: Path) -> None:
    site.faults = ["stall 500"]
    process = start("voc", tmp_path)
    part = tmp_path / PART
    wait_for(lambda: part.exists() and part.stat().st_size == 500)
    kill(process)
    assert tree(download("voc", tmp_path)) == voc_files()
    assert [(sent.range, sent.if_range) for sent in site.log] == [(None, None), ("bytes=500-", '"one"')]


@pytest.mark.parametrize("name", ["voc", "sbd"])
def test_killed_while_unpacking_then_made_good(
    name: str, serve: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {f"{'JPEGImages' if name == 'voc' else 'img'}/more{number}.jpg": noise(str(number), 100) for number in range(4000)}
    files = more | (voc_files() if name == "voc" else sbd_files())
    top = "VOCdevkit/VOC2012" if name == "voc" else "benchmark_RELEASE/dataset"
    site = serve(pack({f"{top}/{path}": content for path, content in files.items()}, compressed=name == "sbd"), "archive")
    name_in_torchvision(monkeypatch, name, site)
    process = start(name, tmp_path)
    wait_for(lambda: len(list(tmp_path.rglob("*unfinished*/**/more*.jpg"))) > 50)
    kill(process)
    assert find(name, tmp_path) is None and list(tmp_path.rglob("*unfinished*"))
    folder = download(name, tmp_path)
    assert tree(folder) == files and len(site.log) == 1
    assert not list(tmp_path.rglob("*unfinished*")) and not list(tmp_path.glob("*.part*"))


def test_two_processes_at_once_fetch_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.5)
    site.faults = ["stall 40000"]  # long enough for the other to come
    processes = [start("voc", tmp_path) for _ in range(2)]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert site.asked == [None, "bytes=40000-"]
    assert tree(tmp_path / "VOCdevkit" / "VOC2012") == voc_files()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'coco' cannot be downloaded; choose voc or sbd"):
        download("coco", tmp_path)


def test_the_command_says_what_it_does_and_what_comes_next(
    serve: Servers, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "raw files"
    result = run("voc", "--root", root)
    assert result.exit_code == 0, result.output
    assert f"voc is in {root}/VOCdevkit/VOC2012\n" in result.output
    size = f"{len(site.content) / 1e6:.1f}"
    assert (
        f"{size} of {size} MB\n" in result.stderr and "unpacking VOCtrainval" in result.stderr and "\x1b" not in result.output
    )
    # voc_classic needs the names of SBD's images as well.
    download_sbd = f"  css-ray data download sbd --root '{root}'\n"
    prepare = f"  css-ray data prepare voc_classic --root '{root}' --out data/voc_classic\n"
    assert result.stdout.endswith(f"\nnext:\n{download_sbd}{prepare}")

    name_in_torchvision(monkeypatch, "sbd", serve(sbd_archive(), "benchmark.tgz"))
    result = run("sbd", "--root", root)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"\nnext:\n  css-ray data prepare voc_blender --root '{root}' --out data/voc_blender\n")

    result = run("voc", "--root", root)
    assert result.exit_code == 0 and "VOC2012 holds all of voc already; nothing was done\n" in result.output
    assert result.stdout.endswith(f"\nnext:\n{prepare}")
    assert len(site.log) == 1


def test_the_command_fails_with_one_message(site: Site, tmp_path: Path) -> None:
    site.faults = ["404"]
    result = run("voc", "--root", tmp_path)
    assert result.exit_code == 2 and result.stderr.endswith("404 Not Found; give the address of a mirror with --url\n")
    result = run("coco", "--root", tmp_path)
    assert result.exit_code == 2 and "'voc', 'sbd', 'cityscapes'" in result.output


def test_interrupted_the_command_says_how_to_go_on(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_unpack", interrupt)
    result = run("voc", "--root", tmp_path)
    assert result.exit_code == 130 and "the same command continues where it stopped" in result.stderr
    assert (tmp_path / PART).read_bytes() == site.content and not visible(tmp_path / "VOCdevkit")


def test_cityscapes_says_what_to_fetch_and_counts_what_is_there(tmp_path: Path) -> None:
    result = run("cityscapes", "--root", tmp_path)
    assert result.exit_code == 0
    for words in ("leftImg8bit_trainvaltest.zip   11 GB", "gtFine_trainvaltest.zip        241 MB", "cityscapes-dataset.com"):
        assert words in result.output
    assert f"{tmp_path}/cityscapes/gtFine/{{train,val}}/CITY/" in result.output and "holds" not in result.output
    next_ = f"next:\n  css-ray data prepare cityscapes --root {tmp_path}/cityscapes --out data/cityscapes\n"
    assert result.stdout.endswith(next_)

    for subset, city, images, masks in (("train", "aachen", 3, 2), ("train", "ulm", 1, 1), ("val", "lindau", 2, 2)):
        for kind, suffix, count in (
            ("leftImg8bit", "leftImg8bit", images),
            ("gtFine", "gtFine_labelIds", masks),
            ("gtFine", "gtFine_color", 9),
        ):
            folder = tmp_path / "cityscapes" / kind / subset / city
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / f"{city}_{number:06}_000019_{suffix}.png").touch()
    assert count_cityscapes(tmp_path / "cityscapes") == {"train": (4, 3), "val": (2, 2)}
    result = run("cityscapes", "--root", tmp_path)
    assert result.exit_code == 0 and result.stdout.endswith(next_)
    assert "  train     4 images,     3 with masks, of 2975\n  val       2 images,     2 with masks, of 500\n" in result.output
    assert "gtFine_trainvaltest.zip" in result.output  # it is not whole
    # Given the folder of Cityscapes itself, it is found as well.
    assert "train     4 images" in run("cityscapes", "--root", tmp_path / "cityscapes").output


def test_whole_cityscapes_needs_no_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_cityscapes", lambda folder: {"train": (2975, 2975), "val": (500, 500)})
    result = run("cityscapes", "--root", tmp_path)
    assert result.exit_code == 0 and "2975 with masks, of 2975" in result.output and "zip" not in result.output
