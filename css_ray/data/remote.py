"""Prepared data sets at URLs: described by `dataset.json`, copied once per machine, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from css_ray.messages import command
from css_ray.secrets import shown
from css_ray.storage import locate, locked, plain_name, read_blocks, sync, unfinished

DESCRIPTION = "dataset.json"
CACHE_VARIABLE = "CSS_RAY_CACHE"

_STREAMS = 8  # files fetched at the same time; one S3 stream fills no network card


def read_description(place: str | Path) -> dict[str, Any] | None:
    """What `dataset.json` holds; None if there is none.

    Raises ValueError if it is not JSON, OSError if the place cannot be reached.
    """
    filesystem, path = locate(place)
    try:
        text = b"".join(read_blocks(filesystem, f"{path}/{DESCRIPTION}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        described = json.loads(text)
    except ValueError:
        raise ValueError(f"{shown(place)}/{DESCRIPTION} is not JSON; delete the folder and prepare it again") from None
    if not isinstance(described, dict):
        raise ValueError(f"{shown(place)}/{DESCRIPTION} describes no data set; delete the folder and prepare it again")
    return described


def cache_folder() -> Path:
    """Where copies of remote data sets are kept: $CSS_RAY_CACHE, or css-ray in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "css-ray"


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
    folder = cache_folder() / re.sub(r"[^\w-]", "_", f"{described['name']}-{described['content'][:16]}")
    if (folder / DESCRIPTION).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / DESCRIPTION).is_file():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        files = [file for subset in described["subsets"].values() for file in subset["files"]]
        needed, free = sum(file["bytes"] for file in files), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise OSError(
                f"a copy of {shown(url)} takes {needed / 1e9:.2f} GB, {folder.parent} has {free / 1e9:.2f} GB free; "
                f"make room, or point {CACHE_VARIABLE} to a larger disk"
            )
        with unfinished(folder) as growing:
            _fetch(url, files, growing)
            (growing / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
            sync(growing / DESCRIPTION)
    return folder


def _fetch(url: str, files: list[Mapping[str, Any]], folder: Path) -> None:
    filesystem, root = locate(url)

    def fetch(file: Mapping[str, Any]) -> None:
        digest, name = hashlib.sha256(), plain_name(file["name"], f"{url}/{DESCRIPTION}")
        with open(folder / name, "wb") as target:
            for block in read_blocks(filesystem, f"{root}/{name}"):
                digest.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != file["sha256"]:
            raise OSError(
                f"{shown(url)}/{name} has the SHA-256 {digest.hexdigest()[:12]}, its data set records {file['sha256'][:12]}: "
                "it was damaged or replaced; prepare the data set again"
            )

    with ThreadPoolExecutor(_STREAMS) as pool:
        for _ in pool.map(fetch, files):
            pass
