"""Prepared data sets at URLs: copied once per machine, and known by their content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from css_ray.data.description import DESCRIPTION, ShardFile, read_description
from css_ray.messages import command
from css_ray.secrets import shown
from css_ray.storage import locate, locked, read_blocks, sync, unfinished

CACHE_VARIABLE = "CSS_RAY_CACHE"

_STREAMS = 8  # files fetched at the same time; one S3 stream fills no network card


def cache_folder() -> Path:
    """Where copies of remote data sets are kept: $CSS_RAY_CACHE, or css-ray in the user's cache folder.

    Raises OSError if the user has no home folder, and the environment names no other.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "css-ray"
    try:
        return Path.home() / ".cache" / "css-ray"
    except RuntimeError:
        raise OSError(
            f"this user has no home folder to keep copies of data sets in; set {CACHE_VARIABLE} to a folder"
        ) from None


def local_copy(url: str) -> Path:
    """The folder of this machine that holds the data set at `url`; it is fetched if it is not here yet.

    A copy is known by the hash of its content, so that a data set prepared again is fetched again, and two URLs of one data set
    share a copy. Several processes may ask at the same time: one fetches, the others wait. Each file's hash is compared before
    the copy counts, and nothing that an interrupted copy leaves is ever read.

    Raises FileNotFoundError if no data set is there, OSError if it cannot be reached or the disk is too small for it.
    """
    described = read_description(url)
    if described is None:
        raise FileNotFoundError(
            f"{shown(url)} holds no prepared data set (no {DESCRIPTION}); make one with: "
            + command("data", "prepare", "NAME_OR_YAML", "--out", shown(url))
        )
    # The description may come from an untrusted source: no part of it leads out of the cache.
    folder = cache_folder() / re.sub(r"[^\w-]", "_", f"{described.info.name[:100]}-{described.info.content[:16]}")
    if (folder / DESCRIPTION).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / DESCRIPTION).is_file():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        needed, free = sum(file.bytes for file in described.files), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise OSError(
                f"a copy of {shown(url)} takes {needed / 1e9:.2f} GB, {folder.parent} has {free / 1e9:.2f} GB free; "
                f"make room, or point {CACHE_VARIABLE} to a larger disk"
            )
        with unfinished(folder) as growing:
            _fetch(url, described.files, growing)
            (growing / DESCRIPTION).write_bytes(described.text)
            sync(growing / DESCRIPTION)
    return folder


def _fetch(url: str, files: Sequence[ShardFile], folder: Path) -> None:
    filesystem, root = locate(url)

    def fetch(file: ShardFile) -> None:
        digest = hashlib.sha256()
        with open(folder / file.name, "wb") as target:
            for block in read_blocks(filesystem, f"{root}/{file.name}"):
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != file.sha256:
            raise OSError(
                f"{shown(url)}/{file.name} has the SHA-256 {digest.hexdigest()[:12]}, its data set records {file.sha256[:12]}: "
                "it was damaged or replaced; prepare the data set again"
            )

    with ThreadPoolExecutor(_STREAMS) as pool:
        for _ in pool.map(fetch, files):
            pass
