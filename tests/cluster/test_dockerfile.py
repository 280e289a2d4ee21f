"""The Dockerfile, read; and built where an engine is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
BUILT_FROM = {
    "pyproject.toml",
    PROJECT["project"]["readme"],
    *PROJECT["project"]["license-files"],
    *(FOLDERS.get(name, name) for name in PROJECT["tool"]["setuptools"]["packages"] if "." not in name),
}
"""What of this folder it takes to build css-ray."""


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile of ours."""
    found, steps = [], instructions(text)
    bases = [arguments for name, arguments in steps if name == "FROM"]
    if not bases or any(not re.search(r":\d+\.\d+\.\d+", base) for base in bases):
        found.append("FROM is not pinned to a version")
    if any(name == "ADD" for name, _ in steps):
        found.append("ADD fetches and unpacks; use COPY")
    users = [arguments for name, arguments in steps if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        found.append("it ends as root")
    if any(
        name in ("ENV", "ARG")
        and re.search("token=|password|secret|_key", arguments, re.IGNORECASE)
        and "RAY_AUTH_MODE" not in arguments
        for name, arguments in steps
    ):
        found.append("a secret in ENV or ARG stays in the image")
    installs = [arguments for name, arguments in steps if name == "RUN" and "pip install" in arguments]
    if any("constraint" not in arguments and "--no-deps" not in arguments for arguments in installs) or not installs:
        found.append("pip install without constraints.txt")
    copied: set[str] = set()
    for name, arguments in steps:
        if name == "COPY":
            copied |= {source.removeprefix("./") for source in arguments.split()[:-1]}
        # setuptools refuses to build a package whose folders are not there.
        if name == "RUN" and re.search(r"pip install\b.* \.(\s|$)", arguments) and (missing := BUILT_FROM - copied):
            found.append(f"css-ray is installed before {', '.join(sorted(missing))} is copied")
    order = [arguments.split()[0] for name, arguments in steps if name == "COPY"]
    heavy = next((index for index, (name, arguments) in enumerate(steps) if name == "RUN" and "--constraint" in arguments), -1)
    code = next(
        (index for index, (name, arguments) in enumerate(steps) if name == "COPY" and arguments.startswith("css_ray ")), -1
    )
    if not 0 <= heavy < code:
        found.append("the code is copied before the packages are installed: each change would install torch again")
    found += [f"COPY {source}, which is not there" for source in order if not (ROOT / source).exists()]
    return found


def test_the_dockerfile_is_sound() -> None:
    assert problems((ROOT / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (r"FROM python:\S+", "FROM python:latest", "FROM is not pinned to a version"),
        ("USER ray", "USER root", "it ends as root"),
        ("COPY studies studies", "ADD https://example.org/studies.tar studies", "ADD fetches and unpacks; use COPY"),
        ("ENV RAY_AUTH_MODE", "ENV DB_PASSWORD=x\nENV RAY_AUTH_MODE", "a secret in ENV or ARG stays in the image"),
        ("--constraint constraints.txt ", "", "pip install without constraints.txt"),
        ("COPY constraints.txt", "COPY css_ray css_ray\nCOPY constraints.txt", "the code is copied before"),
        ("COPY cli cli", "COPY clli cli", "COPY clli, which is not there"),
        ("COPY cli cli", "", "css-ray is installed before cli is copied"),
        ("COPY README.md LICENSE", "COPY README.md", "css-ray is installed before LICENSE is copied"),
    ],
)
def test_what_would_be_wrong_is_found(old: str, new: str, found: str) -> None:
    text, count = re.subn(old, new, (ROOT / "Dockerfile").read_text(), count=1)
    assert count == 1
    assert any(problem.startswith(found) for problem in problems(text))


def test_only_what_is_copied_goes_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, arguments in instructions((ROOT / "Dockerfile").read_text())
        if name == "COPY"
        for source in arguments.split()[:-1]
    }
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert copied == allowed


def copied_until(instruction: str, folder: Path) -> list[str]:
    """Copy into `folder` what the Dockerfile copies before the RUN that contains `instruction`; returns the shell's parts of it."""
    for name, arguments in instructions((ROOT / "Dockerfile").read_text()):
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                there = folder / (source if target == "./" else target)
                if target.endswith("/"):
                    there = folder / target / Path(source).name
                    there.parent.mkdir(exist_ok=True)
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, there)
        elif name == "RUN" and instruction in arguments:
            return arguments.split(" && ")
    raise AssertionError(f"no RUN has {instruction}")


def test_the_packages_that_are_installed_first_are_those_of_the_project(tmp_path: Path) -> None:
    listing, install = copied_until("--requirement", tmp_path)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(["/bin/sh", "-c", listing], cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines == PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["head"]
    assert "--requirement requirements.txt" in install and "--constraint constraints.txt" in install


def test_the_package_builds_from_what_was_copied(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools 77, which nothing is downloaded for")
    (install,) = copied_until("--no-deps", tmp_path)
    assert install.split()[:2] == ["pip", "install"] and install.split()[-1] == "."
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        "made",
    ]
    subprocess.run([*pip, "."], cwd=tmp_path, check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "made").glob("css_ray-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        f"{package}/{file.name}"
        for package, folder in (("css_ray/study", "css_ray/study"), ("css_ray_cli", "cli"))
        for file in (ROOT / folder).glob("*.py")
    }
    assert modules <= inside and "css_ray/py.typed" in inside


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_image_builds() -> None:
    engine = shutil.which("docker") or shutil.which("podman")
    if engine is None or subprocess.run([engine, "info"], capture_output=True).returncode:
        pytest.skip("no docker or podman answers here: the Dockerfile is read, not built")
    subprocess.run([engine, "build", "--tag", "css-ray-test", str(ROOT)], check=True)
    subprocess.run([engine, "run", "--rm", "css-ray-test", "css-ray", "--version"], check=True)
