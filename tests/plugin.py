"""The package with a method of its own that the README shows, and broken ones, installed into a folder as pip would."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from css_ray.methods import METHODS, Methods

README = Path(__file__).parent.parent / "README.md"


def readme_files() -> dict[str, str]:
    """The files of the README's section on methods of your own, each a block that opens with its name."""
    section = README.read_text().split("## A method of your own\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", section, re.S | re.M)
    return dict(blocks)


def install_readme_package(folder: Path) -> None:
    """Install the README's package, and put its test file beside it."""
    files = readme_files()
    project: dict[str, Any] = tomllib.loads(files.pop("pyproject.toml"))["project"]
    (points,) = project["entry-points"].values()
    assert list(project["entry-points"]) == ["css_ray.methods"]
    install(folder, project["name"], points, files, version=project["version"])


def install(
    folder: Path, package: str, entry_points: dict[str, str], files: dict[str, str] | None = None, *, version: str = "1.0"
) -> None:
    """Install a distribution into `folder`, which is to be on the path: its files, and what pip writes beside them.

    entry_points: of the group of methods, `module:attribute` by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    about = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[css_ray.methods]", *lines, ""]))


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Within it, METHODS of this process finds what is installed in `folder`, before or after; its modules are forgotten then."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name, value in vars(Methods(METHODS.own.values())).items():
            patch.setattr(METHODS, name, value)
        METHODS.__dict__.pop("_points", None)
        yield
    METHODS.__dict__.pop("_points", None)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
