"""Ray's token, the key to a cluster: shown if there is one, and kept from the other users of the machine."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def use_token() -> None:
    """Show Ray's token if there is one.

    Ray asks for the mode once, when it is imported, and keeps the token to itself without it: a cluster that wants it would
    let nobody in. If Ray was imported before, the mode is as it is; set now, only the processes that Ray starts would know.
    """
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def guard_token() -> None:
    """Keep Ray's token, the key to the cluster, from other users of the machine: Ray writes its file readable for all."""
    with contextlib.suppress(OSError):  # of another user, or on a disk that cannot
        folder = Path.home() / ".ray"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
