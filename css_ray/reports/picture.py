"""A picture as a page takes it: encoded, with what is said of it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Picture:
    """webp: its file. alt: what a reader who does not see it should know."""

    title: str
    caption: str
    alt: str
    webp: bytes = field(repr=False)

    @property
    def uri(self) -> str:
        """The picture itself as an address, so that a page with it loads nothing."""
        return f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"
