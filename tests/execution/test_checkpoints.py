"""Checkpoints of a trial: whole or not there, two kept, patient where the disk is full."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from css_ray.execution import checkpoints as module
from css_ray.execution.checkpoints import COMPLETE, Checkpoints


def writing(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state").write_text(text)

    return write


def test_the_newest_two_stay(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path / "trial"))
    assert kept.newest_first() == []
    for text in "abcd":
        kept.save(writing(text))
    assert kept.newest_first() == ["000004", "000003"]
    assert sorted(path.name for path in (tmp_path / "trial").iterdir()) == ["000003", "000004"]
    assert (kept.fetch("000003", tmp_path / "scratch") / "state").read_text() == "c"


def test_one_that_was_interrupted_counts_for_nothing_and_is_cleared_away(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path))
    kept.save(writing("a"))

    def interrupted(folder: Path) -> None:
        writing("b")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.save(interrupted)
    assert kept.newest_first() == ["000001"]
    again = Checkpoints(str(tmp_path))
    again.save(writing("c"))
    assert again.newest_first() == ["000003", "000001"]
    assert not (tmp_path / "000002").exists()


def test_at_a_url(tmp_path: Path) -> None:
    kept = Checkpoints(f"file://{tmp_path}/trial")
    for text in "abc":
        kept.save(writing(text))
    assert kept.newest_first() == ["000003", "000002"]
    folder = kept.fetch("000002", tmp_path / "scratch")
    assert folder.parent == tmp_path / "scratch" and (folder / "state").read_text() == "b" and (folder / COMPLETE).exists()


def test_no_checkpoint_is_begun_before_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10, 20, 99, 100])
    monkeypatch.setattr(module, "free_bytes", lambda place: next(free))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    waited = []
    kept = Checkpoints(str(tmp_path), min_free=100, waiting=lambda: waited.append(list(tmp_path.iterdir())))
    kept.save(writing("a"))
    assert waited == [[], [], []] and kept.newest_first() == ["000001"]


def test_a_disk_that_fills_while_writing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [50]
    monkeypatch.setattr(module, "free_bytes", lambda place: free[0])
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    attempts = []

    def write(folder: Path) -> None:
        attempts.append(free[0])
        if free[0] < 100:
            raise OSError(errno.ENOSPC, "no space left on device")
        writing("a")(folder)

    def more() -> None:
        free[0] += 30

    kept = Checkpoints(str(tmp_path), waiting=more)
    kept.save(write)
    assert attempts == [50, 80, 110] and kept.newest_first() == ["000001"]


def test_a_full_scratch_disk_is_no_reason_to_wait_at_a_url(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    kept = Checkpoints(f"file://{tmp_path}/trial")
    with pytest.raises(OSError, match="no space left"):
        kept.save(write)
    assert kept.newest_first() == []


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="broken"):
        Checkpoints(str(tmp_path)).save(write)
    assert Checkpoints(str(tmp_path)).newest_first() == []
