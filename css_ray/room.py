"""What a study does when a disk is full: whatever writes waits until there is room. The one rule of all that a study writes."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

from css_ray.secrets import shown
from css_ray.storage import free_bytes

POLL_SECONDS = 2.0
"""How often a writer that waits looks for room."""

RETRY_SECONDS = 30.0
"""After how long it tries again though it sees no more room than before: of a quota, or of a store, nobody sees any."""


def has_no_room(error: BaseException) -> bool:
    """Whether a write failed since the disk is full, or a quota used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_with_room(
    write: Callable[[], object],
    place: str | Path,
    what: str,
    *,
    waiting: Callable[[str], None],
    min_free: float = 0,
    undo: Callable[[], None] = lambda: None,
    any_of: Callable[[bool], bool] = bool,
) -> None:
    """Call `write`, as often as it takes until there is room for all that it writes.

    Args:
        write: Raises OSError of a full disk if there is no room, and then leaves nothing half-written under its own name. Any
            other error is passed on.
        place: Where it writes, a folder or a URL.
        what: What it writes, in words.
        waiting: Called with the reason every POLL_SECONDS while it waits.
        min_free: Bytes that must be free for it to be called.
        undo: Called after an attempt for which there was no room.
        any_of: Whether something is true of any of those that write together, such as the ranks of a run; each of them calls
            this function, and they try and wait together.
    """
    tried: tuple[float, int | None] | None = None
    while True:
        while any_of(_must_wait(place, min_free, tried)):
            waiting(no_room_text(place, what))
            time.sleep(POLL_SECONDS)
        full = False
        try:
            write()
        except OSError as error:
            if not has_no_room(error):
                raise
            full = True
        if not any_of(full):
            return
        undo()
        tried = time.monotonic(), free_bytes(place)


def no_room_text(place: str | Path, what: str) -> str:
    """That there is no room, in words."""
    free = free_bytes(place)
    return f"no room for {what} in {shown(place)}" + ("" if free is None else f", where {free / 1e6:,.0f} MB are free")


def _must_wait(place: str | Path, min_free: float, tried: tuple[float, int | None] | None) -> bool:
    """Whether it is too early to try. tried: when an attempt failed, and how many bytes were free after it."""
    free = free_bytes(place)
    if free is not None and free < min_free:
        return True
    if tried is None:
        return False
    then, before = tried
    more = free is not None and before is not None and free > before
    return not more and time.monotonic() - then < RETRY_SECONDS
