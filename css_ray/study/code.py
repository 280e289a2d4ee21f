"""Which code runs: all nodes of a cluster must run the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
from functools import cache
from pathlib import Path

from css_ray import __version__

PACKAGES = ("css_ray", "css_ray_cli")


@cache
def code_version() -> str:
    """The version of css-ray and a hash of its source, such as `0.1.0+3f2a9c1d0b7e`, of the package that was imported here.

    The hash distinguishes what was edited since: an installation that follows a checkout has the version of its last release.
    """
    folder, digest = _folder("css_ray"), hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return f"{__version__}+{digest.hexdigest()[:12]}"


def versions() -> dict[str, str]:
    """The versions that a study trains with, for its journal."""
    names = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow")
    installed = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "css-ray": code_version()} | installed


def copy_code(folder: Path) -> None:
    """Copy the packages into `folder`, which is then enough to import them from, beside what they depend on."""
    for name in PACKAGES:
        shutil.copytree(_folder(name), folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))
