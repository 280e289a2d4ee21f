"""Hostile archives in the place of VOC's and SBD's: nothing is written outside of the root, and what is refused leaves nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from torchvision.datasets import SBDataset, voc

from css_ray.data.download import download, find
from tests.data.test_download import noise, sbd_files, voc_files
from tests.fuzz.mutate import Tally, apart, case_random, damage, outcome_of, share_and_whole

TOPS = {"voc": "VOCdevkit/VOC2012/", "sbd": "benchmark_RELEASE/dataset/"}
FILENAMES = {"voc": str(voc.DATASET_YEAR_DICT["2012"]["filename"]), "sbd": SBDataset.filename}


def files_of(name: str) -> dict[str, bytes]:
    files = voc_files() if name == "voc" else sbd_files()
    return {path: content[:400] for path, content in files.items()}


def hostile(name: str, random: Random) -> tuple[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Members that lead out of the archive, or are no files."""
    top, inside = TOPS[name], random.choice(list(files_of(name)))
    member = tarfile.TarInfo(f"{top}{inside}")
    content = noise("hostile", 50)
    members = [(member, content)]
    kind = random.choice(("name", "link", "through a link", "hard link", "device", "folder", "size", "pax", "mode"))
    if kind == "name":
        member.name = random.choice(
            (
                "../planted",
                f"{top}../../../planted",
                "/tmp/../planted",
                "planted",
                f"{top}{'d/' * 200}planted",
                f"{top}{'x' * 300}",
                f"{top}a\udcffb",
                f"{top}a\nb\x1b[2J",
                "",
                ".",
                "..",
                f"{top}{inside}/below",
                top.rstrip("/"),
            )
        )
    elif kind in ("link", "hard link"):
        member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
        member.linkname = random.choice(("../../../../planted", "/etc/passwd", f"{top}{inside}", ".", "", f"{top}nowhere"))
        members = [(member, b"")]
    elif kind == "through a link":
        link = tarfile.TarInfo(f"{top}door")
        link.type, link.linkname = tarfile.SYMTYPE, random.choice(("../../..", "/tmp", "..", "."))
        member.name = f"{top}door/planted"
        members = [(link, b""), (member, content)]
    elif kind == "device":
        member.type = random.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"Z"))
        member.devmajor, member.devminor = 1, 5
        members = [(member, b"")]
    elif kind == "folder":
        member.type = tarfile.DIRTYPE
        members = [(member, b"")]
    elif kind == "size":
        member.size = random.choice((10**12, 2**33, 10**6))
        return kind, members
    elif kind == "pax":
        key = random.choice(("path", "linkpath", "size", "mtime", "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.major"))
        member.pax_headers = {key: random.choice(("../planted", "99999999999999999999", "-1", "nan", "x" * 3000, "1", "a\nb"))}
    else:
        member.mode = random.choice((0o7777, 0o000, 0o4755, 0o222))
    member.size = len(members[0][1]) if kind != "through a link" else 0
    for each, data in members:
        each.size = len(data)
    return f"{kind} {ascii(member.name)[-40:]} {member.linkname}", members


def packed(name: str, random: Random) -> tuple[str, bytes]:
    target = io.BytesIO()
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    for path, content in files_of(name).items():
        member = tarfile.TarInfo(f"{TOPS[name]}{path}")
        member.size = len(content)
        members.append((member, content))
    words = []
    for _ in range(random.choice((0, 1, 1, 2))):
        word, more = hostile(name, random)
        words.append(word)
        place = random.randrange(len(members) + 1)
        members[place:place] = more
    with tarfile.open(fileobj=target, mode="w", format=random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for member, content in members:
            try:
                target.write(member.tobuf(tar.format, "utf-8", "surrogateescape"))
            except ValueError:  # what this format cannot say
                continue
            target.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
        tar.offset = target.tell()
    content = target.getvalue()
    if not words or random.random() < 0.3:
        word, content = damage(content, random)
        words.append(word)
    if name == "sbd":
        content = gzip.compress(content, mtime=0)
        if random.random() < 0.2:
            word, content = damage(content, random)
            words.append(f"packed: {word}")
    return "; ".join(words), content


def around(folder: Path, root: Path) -> dict[str, str]:
    """What lies in a folder, but for `root`: each file's content, each link's target."""
    found = {}
    for path in folder.rglob("*"):
        if path != root and root not in path.parents:
            found[str(path)] = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "folder"
    return found


def judge(case: tuple[Path, str, bytes]) -> str:
    folder, name, content = case
    root = folder / "outer" / "inner" / "root"
    root.mkdir(parents=True)
    (folder / "canary").write_text("mine")
    (folder / "outer" / "planted").write_text("mine")
    before = around(folder, root)
    (root / FILENAMES[name]).write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    voc.DATASET_YEAR_DICT["2012"]["md5"] = SBDataset.md5 = md5

    def act() -> None:
        place = download(name, root, url="http://127.0.0.1:9/never")
        assert find(name, root) == place
        for path in root.rglob("*"):
            assert path.resolve().is_relative_to(root.resolve()), f"{path} leads out"
            assert path.is_file() or path.is_dir(), f"{path} is neither a file nor a folder"

    try:
        outcome = outcome_of(act)
        if around(folder, root) != before:
            return f"failed: something was written outside of the root ({outcome})"
        left = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != FILENAMES[name]]
        if outcome.startswith("refused") and left:
            return f"failed: {left[0]} was left"
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@share_and_whole(60, 2_000)
@pytest.mark.parametrize("name", ["voc", "sbd"])
def test_archives(count: int, name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    words, cases = [], []
    for number in range(count):
        word, content = packed(name, case_random(f"archives {name}", number))
        words.append(f"{number}: {word}")
        cases.append((tmp_path / str(number), name, content))
    tally = Tally(f"archives, {name}")
    for word, outcome in zip(words, apart(judge, cases), strict=True):
        tally.count(word, outcome, named=[FILENAMES[name], "root"])
    tally.check(record_property)
