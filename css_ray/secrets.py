"""Places as people see them: URLs without what may be secret."""

from __future__ import annotations

import re
from pathlib import Path

_SECRET = re.compile(r"token|secret|passw|pwd|signature|^sig$|credential|^auth$|authorization|key$|keyid$", re.IGNORECASE)
# All up to the last `@`: a password pasted as it is may hold `/` and `@`, and only a port tells a host from a user then.
_USER = re.compile(r"(?<=://)(?:[^/@:\[\s]*:(?!\d+/)\S*|[^/\s]*)@")
_SETTING = re.compile(r"(?<=[?&])([^=&?\s]+)=([^&\s'\"]*)")


def shown(place: str | Path) -> str:
    """A place as messages name it: without user, password and query, which may be secret."""
    return re.sub(r"(?s)[?#].*$", "", _USER.sub("", str(place))) if "://" in str(place) else str(place)


def secret_in(place: str | Path) -> str:
    """What a URL holds that should be in no file, in words; nothing where it holds none, or is a path."""
    if "://" not in str(place):
        return ""
    if _USER.search(str(place)):
        return "a user or a password"
    names = [name for name, _ in _SETTING.findall(str(place)) if _SECRET.search(name)]
    return f"what looks like a secret ({', '.join(names)})" if names else ""


def without_secrets(text: object) -> str:
    """A message of somebody else's, its URLs without users, passwords and what looks like a secret in a query."""
    return _SETTING.sub(lambda found: f"{found[1]}=..." if _SECRET.search(found[1]) else found[0], _USER.sub("", str(text)))
