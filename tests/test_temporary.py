"""Temporary files lie where no other user can reach them, and none is left, however a process ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from css_ray import temporary

NAME = f"css-ray-{os.getuid()}"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder during a test: one with a short name, as Unix sockets need it."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def python(code: str, place: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"TMPDIR": str(place)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


HOLD = "from css_ray.temporary import temporary_folder; print(temporary_folder(), flush=True); input()"


def test_the_private_folder_lets_no_other_user_in(place: Path) -> None:
    folder = temporary.private_folder()
    assert folder == place / NAME == temporary.private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_is_open_to_others_is_not_used(place: Path) -> None:
    (place / NAME).mkdir()
    (place / NAME).chmod(0o777)
    folder = temporary.private_folder()
    assert folder.parent == place and folder.name.startswith(f"{NAME}-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert temporary.private_folder() == folder  # the next process finds it


def test_a_link_that_another_user_put_there_is_not_followed(place: Path) -> None:
    (place / "theirs").mkdir(mode=0o700)
    (place / NAME).symlink_to(place / "theirs")
    assert temporary.private_folder().name.startswith(f"{NAME}-")


def test_a_folder_of_another_user_is_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "css-ray-7").mkdir(mode=0o700)  # of who runs this test, whom 7 is not
    monkeypatch.setattr(os, "getuid", lambda: 7)
    assert not temporary._is_private(place / "css-ray-7")


def test_where_the_name_is_too_long_for_sockets_it_lies_in_tmp(tmp_path: Path) -> None:
    assert temporary.private_folder(str(tmp_path)).parent == Path("/tmp")
    session = "/ray/session_2026-11-26_19-45-43_270566_4194304/sockets/plasma_store"
    assert len(f"{temporary.private_folder(str(tmp_path))}{session}.12") <= (107 if sys.platform == "linux" else 103)


def test_a_process_inside_makes_no_second_one(place: Path) -> None:
    folder = temporary.private_folder()
    assert temporary.private_folder(str(folder)) == folder == temporary.private_folder(str(folder / "tmp-1"))


def test_a_process_that_ends_leaves_nothing(place: Path) -> None:
    process = python(HOLD, place)
    folder = folder_of(process)
    assert folder.parent == place / NAME and folder.is_dir()
    process.communicate("\n")
    assert process.returncode == 0 and not folder.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(place: Path) -> None:
    killed, living = python(HOLD, place), python(HOLD, place)
    gone, kept = folder_of(killed), folder_of(living)
    (gone / "step-1").mkdir()
    (gone / "step-1" / "state.pt").write_bytes(b"0" * 1000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert gone.exists()
    third = python(HOLD, place)
    assert folder_of(third).exists() and not gone.exists() and kept.exists()
    for process in (living, third):
        process.communicate("\n")
    assert list((place / NAME).iterdir()) == []


def test_a_child_keeps_its_own_folder(place: Path) -> None:
    code = """
import os, sys
from css_ray.temporary import temporary_folder
mine = temporary_folder()
if (pid := os.fork()) == 0:
    his = temporary_folder()
    assert his != mine and his.is_dir() and mine.is_dir()
    sys.exit(0)  # with its atexit functions
assert os.waitpid(pid, 0)[1] == 0
assert mine.is_dir()
print(*(path.name for path in mine.parent.iterdir()))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(place)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) == 1
    assert list((place / NAME).iterdir()) == []


def test_a_process_that_another_started_leaves_nothing_beyond_it(place: Path) -> None:
    code = f"""
import os, subprocess, sys
from css_ray.temporary import keep_temporary_files_here, temporary_folder
keep_temporary_files_here()
child = subprocess.Popen([sys.executable, "-c", {HOLD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert child.stdout.readline().startswith(f"{{temporary_folder()}}/tmp-")
child.kill()
child.wait()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(place)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert list((place / NAME).iterdir()) == []


def test_temporary_files_of_a_process_and_its_children_lie_there(place: Path) -> None:
    code = """
import subprocess, sys, tempfile
from css_ray.temporary import keep_temporary_files_here, temporary_folder
keep_temporary_files_here()
ask = "import tempfile; print(tempfile.mkdtemp())"
child = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout.strip()
for made in (tempfile.mkdtemp(), child):
    assert made.startswith(f"{temporary_folder()}/"), made
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(place)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert list((place / NAME).iterdir()) == []


def test_the_last_ones_are_kept_and_what_is_held(place: Path) -> None:
    for number in range(6):
        (place / f"session_{number}" / "logs").mkdir(parents=True)
    (place / "session_latest").symlink_to(place / "session_5")
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
from css_ray.temporary import hold
from pathlib import Path
hold(Path({str(place / "session_1")!r}))
print(flush=True)
input()
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(OSError):
            temporary.hold(place / "session_1")
        temporary.remove_abandoned(place, "session_*", keep=2)
        process.communicate(b"\n")
    assert sorted(path.name for path in place.iterdir()) == ["session_1", "session_4", "session_5", "session_latest"]
