"""How a process gets into a Ray cluster: it starts one on this machine, or joins the one that the user names, never another.

Ray by itself joins what RAY_ADDRESS or a file in /tmp/ray names, and shows its token there. That folder is open to all users of
a machine: any of them could write the address of a program that collects tokens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from css_ray.execution.address import check_address
from css_ray.execution.token import guard_token
from css_ray.messages import last_line
from css_ray.secrets import shown
from css_ray.temporary import hold, private_folder, remove_abandoned, temporary_folder

KEPT_SESSIONS = 5
"""How many of Ray's folders of earlier studies on this machine are kept, for their logs."""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def start_here(**settings: Any) -> None:
    """Start a Ray of our own on this machine, whatever else runs here. settings: of `ray.init`.

    Its folder, with its sockets and the code that its processes load, lies in one that other users cannot enter, and so do the
    temporary files of its processes.

    Raises RuntimeError if Ray does not start, and what the system raises, such as OSError if the disk is full.
    """
    guard_token()
    private = private_folder(os.environ.get("RAY_TMPDIR"))
    remove_abandoned(private / "ray", "session_*", keep=KEPT_SESSIONS - 1)
    with _environment(RAY_TMPDIR=str(private), TMPDIR=str(temporary_folder())):
        try:
            context: Any = ray.init(address="local", **QUIET, **settings)
        except Exception as error:  # such as when Ray's processes are not up within 30 s
            if isinstance(error, OSError) and error.errno is not None:  # such as a full disk, which its own words name best
                raise
            said = last_line(error, 300).removesuffix(".")
            remedy = "if it is busy, end other work and try again"
            raise RuntimeError(f"Ray does not start on this machine: {said}; {remedy}") from error
    hold(Path(context.address_info["session_dir"]))


def join(address: str, **settings: Any) -> None:
    """Join the cluster at `address`: host:port, or `auto`, see `found`. settings: of `ray.init`.

    Raises ConnectionError if none answers there.
    """
    check_address(address)
    place = found(address)
    guard_token()
    try:
        ray.init(address=place, **QUIET, **settings)
    except Exception as error:
        raise ConnectionError(f"no Ray cluster answers at {shown(address)}: {last_line(error, 300)}") from None


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Be a member of the cluster at `address` inside. Raises what `join` raises."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    join(address)
    try:
        yield
    finally:
        ray.shutdown()


def found(address: str) -> str:
    """What `auto` stands for: RAY_ADDRESS, or the cluster that this user or root started here with `ray start`.

    Any other address is returned as it is. Raises ConnectionError if there is none, or if another user wrote the address.
    """
    if address != "auto":
        return address
    if named := os.environ.get("RAY_ADDRESS"):
        if "://" in named:  # of a dashboard or a Ray Client
            raise ConnectionError(
                f"--address auto: RAY_ADDRESS is {shown(named)}, no cluster's own address; name that: --address HOST:PORT"
            )
        return named
    for folder in _ray_folders():
        try:
            file = open(folder / "ray_current_cluster", encoding="utf-8")  # noqa: SIM115 - see `with`
        except OSError:
            continue
        with file:  # who wrote it is asked of the open file: another could be put in its place between two looks
            owner = os.fstat(file.fileno()).st_uid
            if owner not in (0, os.getuid()):
                raise ConnectionError(
                    f"--address auto: {file.name} was written by another user (id {owner}), whose cluster would receive your "
                    "token; if you trust that cluster, name it: --address HOST:PORT"
                )
            return file.read().strip()
    raise ConnectionError("--address auto: no Ray cluster was started on this machine; name one: --address HOST:PORT")


def _ray_folders() -> list[Path]:
    """Where `ray start` may have noted its address: in this user's private folder, or where Ray puts it by itself."""
    base = os.environ.get("RAY_TMPDIR")
    return [private_folder(base) / "ray", Path(base or tempfile.gettempdir()) / "ray", Path("/tmp/ray")]


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
