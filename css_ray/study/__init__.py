"""The platform: studies under Ray Tune and Ray Train, judged over splits. The only home of Ray and Optuna."""

import os
import sys
from pathlib import Path


def _use_token() -> None:
    """Show Ray's token where there is one.

    Ray asks for the mode once, where it is imported, and keeps the token to itself without it: a cluster that wants it would
    let nobody in. Where Ray was imported before, the mode is as it is; set now, only the processes that Ray starts would know.
    """
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path(token).is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


_use_token()
