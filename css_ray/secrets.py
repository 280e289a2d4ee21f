"""Places as people see them: URLs without what may be secret."""

from __future__ import annotations

import re
from pathlib import Path

BY_ENVIRONMENT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or use a role of the machine"
BY_CLUSTER = "they would appear in the cluster's logs; set them there, in the environment that Ray is started in"
BY_TOKEN = "Ray asks for a token: put it into ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
BY_MLFLOW = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment, or the whole URL as MLFLOW_TRACKING_URI"
)
"""What to do with credentials instead, see `credentials_text`."""

_SECRET = re.compile(r"token|secret|passw|pwd|signature|^sig$|credential|^auth$|authorization|key$|keyid$", re.IGNORECASE)
# All up to the last `@`: a password pasted as it is may hold `/` and `@`, and then only a port distinguishes
# a host from a user.
_USER = re.compile(r"(?<=//)(?:[^/@:\[\s]{0,1000}:(?!\d+/)\S{0,1000}|[^/\s]{0,1000})@")
# The same without a scheme, as in an address: a word with `:` before its `@`; models:/NAME@ALIAS is a model of MLflow.
_BARE_USER = re.compile(r"(?<![^\s'\"(=,\[])(?!models:/[^/])[^\s/@:'\"(=,\[]{1,1000}:(?!//|\d+/)\S{0,1000}@(?=[^\s@])")
_SETTING = re.compile(r"(?<=[?&;#])([^=&?;\s]+)=([^&;\s'\"]*)")


def shown(place: str | Path) -> str:
    """A place as messages name it: without user, password and query, which may be secret."""
    return without_secrets(re.sub(r"(?s)[?#].*$", "", _USER.sub("", str(place)))) if _has_host(place) else str(place)


def secret_in(place: str | Path) -> str:
    """What a URL contains that should be in no file, in words; nothing if it holds none, or is a path."""
    if not _has_host(place):
        return ""
    if _USER.search(str(place)):
        return "a user or a password"
    names = [name for name, _ in _SETTING.findall(str(place)) if _SECRET.search(name)]
    return f"what looks like a secret ({', '.join(names)})" if names else ""


def _has_host(place: str | Path) -> bool:
    return "://" in str(place) or str(place).startswith("//")


def credentials_text(place: str | Path, remedy: str = BY_ENVIRONMENT) -> str:
    """Why a URL with credentials is refused, and what to do instead; empty if it holds none, or is a path.

    Args:
        place: A URL as the user gave it.
        remedy: `BY_ENVIRONMENT`; `BY_CLUSTER` for what is sent to a cluster; `BY_TOKEN`, `BY_MLFLOW` for the address of one.
    """
    secret = secret_in(place)
    return f"{shown(place)} contains credentials ({secret}); {remedy}" if secret else ""


def without_secrets(text: object) -> str:
    """A message of another program, its URLs and addresses without users, passwords and what looks like a secret."""
    plain = _BARE_USER.sub("", _USER.sub("", str(text)))
    return _SETTING.sub(lambda found: f"{found[1]}=..." if _SECRET.search(found[1]) else found[0], plain)
