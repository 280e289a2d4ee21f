"""`css-ray doctor`: is this machine ready, and if not, what fixes it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

from css_ray.messages import DEFAULT_STORAGE

from .output import echo

MIN_FREE_GB = 5


@click.command()
@click.option(
    "--storage",
    default=DEFAULT_STORAGE,
    show_default=True,
    envvar="CSS_RAY_STORAGE",
    help="The storage whose disk and MLflow are checked.",
)
@click.option("--tracking-uri", help="An MLflow server to reach, instead of the storage's own SQLite file.")
def doctor(storage: str, tracking_uri: str | None) -> None:
    """Check versions, devices, disk, Ray and MLflow; exit 1 if something is wrong."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("packages", _packages),
        ("devices", _devices),
        ("disk", lambda: _disk(storage)),
        ("ray", _ray),
        ("mlflow", lambda: _mlflow(storage, tracking_uri)),
    ]
    from css_ray.secrets import without_secrets

    wrong = 0
    for name, check in checks:
        try:
            echo(f"ok     {name:9} {check()}")
        except Exception as error:
            wrong += 1
            echo(f"WRONG  {name:9} {without_secrets(error)}")
    sys.exit(1 if wrong else 0)


class Wrong(Exception):
    """What is wrong and how to fix it."""


def _python() -> str:
    # Python is known to be new enough: pip installs css-ray on no older one.
    return platform.python_version()


def _packages() -> str:
    from packaging.requirements import Requirement

    found, problems = [], []
    for line in importlib.metadata.requires("css-ray") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
        if requirement.name in ("torch", "ray", "optuna", "mlflow"):
            found.append(f"{requirement.name} {version}")
    if problems:
        raise Wrong("; ".join(problems) + "; fix it with: pip install -c constraints.txt -e .")
    return ", ".join(found)


def _devices() -> str:
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    if not torch.cuda.is_available():
        return f"{cores}, no CUDA device (studies with gpus_per_worker: 0 run)"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    torch.ones(1, device="cuda").add_(1)
    return f"{cores}, {len(names)} GPUs: {', '.join(names)}"


def _disk(storage: str) -> str:
    from css_ray.secrets import shown
    from css_ray.storage import existing_folder, is_url

    if is_url(storage):
        return f"{shown(storage)} is not a local disk"
    _check_writable(storage)
    free = shutil.disk_usage(existing_folder(storage)).free / 1e9
    if free < MIN_FREE_GB:
        raise Wrong(
            f"{free:.1f} GB are free on the disk of {storage}, a study needs {MIN_FREE_GB} GB; "
            "free some, or choose another disk with --storage"
        )
    shared = Path("/dev/shm")
    if shared.exists() and shutil.disk_usage(shared).total < 1e9:
        raise Wrong(
            f"/dev/shm has {shutil.disk_usage(shared).total / 1e9:.1f} GB; Ray needs 1 GB or more (docker: --shm-size=2g)"
        )
    return f"{free:.0f} GB free"


def _check_writable(storage: str) -> None:
    from css_ray.messages import os_error_text
    from css_ray.storage import check_writable_folder

    try:
        check_writable_folder(storage)
    except OSError as error:
        raise Wrong(f"--storage: {os_error_text(error, 'write', storage)}") from None


def _ray() -> str:
    import ray

    from css_ray.execution.joining import start_here
    from css_ray.execution.ray_internals import check_dashboard

    check_dashboard()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    start_here(num_cpus=1, include_dashboard=False)
    try:
        return f"a local cluster starts and answers: {ray.get(ray.remote(lambda: 'yes').remote(), timeout=60)}"
    finally:
        ray.shutdown()


def _mlflow(storage: str, tracking_uri: str | None) -> str:
    import tempfile

    from css_ray.secrets import without_secrets
    from css_ray.storage import existing_folder, is_url
    from css_ray.tracking import check, default_uri

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        try:
            return check(uri)
        except Exception as error:
            raise Wrong(
                f"{' '.join(without_secrets(error).split())[:400]}; start one with `css-ray ui`, or drop the address"
            ) from None
    # An object store holds no SQLite file: there it is in the default storage.
    place = DEFAULT_STORAGE if is_url(storage) else storage
    _check_writable(place)
    # The storage's own file is made by the first study; a doctor leaves no trace.
    with tempfile.TemporaryDirectory(dir=existing_folder(place)) as folder:
        check(default_uri(folder))
    return f"writes an SQLite file where {place} is"
