"""A rank that hangs ends itself, since its peers would wait for it forever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from css_ray import distributed


class Watchdog:
    """Ends this process if training makes no progress for `seconds`: a hung rank, which its peers would wait for forever.

    Whoever waits for a hung rank makes no progress either, so all ranks of a job end within moments of each other.

    say_why: called with the reason first.
    """

    def __init__(self, seconds: float, say_why: Callable[[str], None]) -> None:
        self.seconds = seconds
        self.say_why = say_why
        self._latest: float | None = None
        self._over = threading.Event()

    def beat(self) -> None:
        """Note that training makes progress. The watch begins with the first beat: opening the data may take its time."""
        self._latest = time.monotonic()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="css-ray-watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        rank = distributed.rank()
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if self._latest is not None and time.monotonic() - self._latest > self.seconds:
                self.say_why(
                    f"rank {rank} made no progress for more than {self.seconds:g} s: a rank hangs, or "
                    "resources.hang_seconds is less than a step takes"
                )
                os._exit(1)
