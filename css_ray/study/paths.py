"""Local paths in settings, made independent of the current folder: that of a worker is another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from css_ray.storage import is_url

LOCATED = (("data", "root"), ("data", "labelled_list"), ("data", "unlabelled_list"), ("model", "pretrained"))
"""The settings that may be paths, by section and key."""


def absolute_paths(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A copy of the sections in which local paths no longer depend on the current folder; a worker's is another."""
    located = {section: dict(values) for section, values in settings.items()}
    for section, key in LOCATED:
        path = located[section][key]
        if isinstance(path, str) and not is_url(path):
            located[section][key] = str(Path(path).resolve())
    return located
