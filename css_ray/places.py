"""Places as people see them: URLs without what may be secret."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

_SECRET = re.compile(r"token|secret|passw|signature|^sig$|credential|key$", re.IGNORECASE)


def shown(place: str | Path) -> str:
    """A place as messages name it: without user, password and query, which may be secret."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*$", "", str(place)) if "://" in str(place) else str(place)


def secret_in(place: str | Path) -> str:
    """What a URL holds that should be in no file, in words; nothing where it holds none, or is a path."""
    if "://" not in str(place):
        return ""
    parts = urlsplit(str(place))
    if "@" in parts.netloc:
        return "a user or a password"
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)]
    return f"what looks like a secret ({', '.join(names)})" if names else ""


def without_secrets(text: object) -> str:
    """A message of somebody else's, its URLs without users and passwords."""
    return re.sub(r"(?<=://)[^/@\s'\"]*@", "", str(text))
