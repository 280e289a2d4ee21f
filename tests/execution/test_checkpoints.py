"""Checkpoints of a trial: whole or not there, two kept, patient where the disk is full."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from css_ray import room
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
    free = [10]
    monkeypatch.setattr(room, "free_bytes", lambda place: free[0])
    monkeypatch.setattr(room, "POLL_SECONDS", 0.0)
    waited: list[tuple[str, list[Path]]] = []

    def waiting(reason: str) -> None:
        waited.append((reason, list(tmp_path.iterdir())))
        free[0] += 30

    kept = Checkpoints(str(tmp_path), min_free=100, waiting=waiting)
    kept.save(writing("a"))
    assert waited == [(f"no room for a checkpoint in {tmp_path}, where 0 MB are free", [])] * 3
    assert kept.newest_first() == ["000001"]


def test_a_disk_that_fills_while_writing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [50]
    monkeypatch.setattr(room, "free_bytes", lambda place: free[0])
    monkeypatch.setattr(room, "POLL_SECONDS", 0.0)
    attempts = []

    def write(folder: Path) -> None:
        attempts.append(free[0])
        (folder / "first").touch()
        if free[0] < 100:
            raise OSError(errno.ENOSPC, "no space left on device")
        writing("a")(folder)

    def more(reason: str) -> None:
        assert list(tmp_path.iterdir()) == []  # what there was no room for takes none
        free[0] += 30

    kept = Checkpoints(str(tmp_path), waiting=more)
    kept.save(write)
    assert attempts == [50, 80, 110] and kept.newest_first() == ["000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_of_a_quota_or_a_store_nobody_sees_the_room_and_it_is_tried_now_and_then(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scratch disk of this machine, at a URL; a quota, in a folder."""
    monkeypatch.setattr(room, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(room, "RETRY_SECONDS", 0.1)
    attempts, reasons = [0], list[str]()

    def write(folder: Path) -> None:
        attempts[0] += 1
        if attempts[0] < 3:
            raise OSError(number, "no room")
        writing("a")(folder)

    kept = Checkpoints(f"file://{tmp_path}/trial", waiting=reasons.append)
    kept.save(write)
    assert kept.newest_first() == ["000001"] and attempts == [3]
    assert 4 <= len(reasons) <= 12 and set(reasons) == {f"no room for a checkpoint in file://{tmp_path}/trial"}


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with pytest.raises(OSError, match="broken"):
        Checkpoints(str(tmp_path)).save(write)
    assert Checkpoints(str(tmp_path)).newest_first() == []
