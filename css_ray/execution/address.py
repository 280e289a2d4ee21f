"""Addresses of Ray clusters: which can be one, and what answers there."""

from __future__ import annotations

import re
import socket

from css_ray.messages import os_error_text
from css_ray.secrets import BY_TOKEN, credentials_text, without_secrets

PROBE_SECONDS = 5.0
"""How long a cluster may take to accept a connection; Ray itself would wait for more than a minute."""

_HOST = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)"
_HOST_AND_PORT = re.compile(f"{_HOST}:([0-9]{{1,5}})")
_DASHBOARD = re.compile(f"https?://{_HOST}(:[0-9]{{1,5}})?([/?#][!-~]*)?")


def is_jobs_address(address: str | None) -> bool:
    """Whether an address is that of a cluster's dashboard, through which jobs are submitted: `http://host:8265`."""
    return address is not None and address.startswith(("http://", "https://"))


def dashboard_problem(address: str) -> str:
    """Why no dashboard can be at an address, and what to give; empty if one can."""
    if refused := credentials_text(address, BY_TOKEN):
        return f"--address {refused}"
    if _DASHBOARD.fullmatch(address) is None:
        return f"--address {without_secrets(address)}: must be that of the dashboard, such as http://127.0.0.1:8265"
    return ""


def joining_problem(address: str) -> str:
    """Why no cluster can be joined at an address, and what to give; empty if one can. Looks at the address alone."""
    if address == "auto":
        return ""
    if "@" in address:
        return f"--address {address.rpartition('@')[2]} contains credentials (a user or a password); {BY_TOKEN}"
    if address.startswith("ray://"):
        return f"--address {address}: a Ray Client cannot drive a study; run this on the head with --address auto"
    if is_jobs_address(address):
        return (
            f"--address {without_secrets(address)}: is a dashboard, to which studies are submitted; to join the cluster, give "
            "HOST:PORT of its head, or auto on one of its nodes"
        )
    found = _HOST_AND_PORT.fullmatch(address)
    if found is None or not 0 < int(found[3]) < 65536:
        return (
            f"--address {address or repr(address)}: must be HOST:PORT, such as 10.0.0.1:6379 (the port of `ray start --head`), "
            "or auto on a node of the cluster"
        )
    return ""


def check_address(address: str) -> None:
    """Raise ConnectionError if there cannot be a cluster at `address`, or nothing accepts connections there."""
    if problem := joining_problem(address):
        raise ConnectionError(problem)
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except socket.gaierror:
        raise ConnectionError(
            f"--address {address}: no machine is known by the name {host}; check it, or give its IP"
        ) from None
    except OSError as error:
        why = os_error_text(error, "connect to", address).partition(": ")[2] or "no answer"
        raise ConnectionError(
            f"no Ray cluster answers at {address}: {why}; is Ray started there, and the port open to this machine?"
        ) from None
