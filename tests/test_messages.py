"""Small parts of messages: errors of the operating system in words, close names, the line of a traceback that matters."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest

from css_ray.messages import did_you_mean, last_line, os_error_text, os_errors_in_words


def caught(call: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as raised:
        call()
    return raised.value


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    inside = tmp_path / "notes" / "runs" / "a"
    said = f"cannot write {inside}: {tmp_path}/notes is a file, not a folder; choose another path"
    assert os_error_text(caught(lambda: inside.mkdir(parents=True)), "write", inside) == said
    own = caught(lambda: (tmp_path / "notes").mkdir(parents=True, exist_ok=True))
    assert os_error_text(own, "write") == f"cannot write {tmp_path}/notes: it is a file, not a folder; choose another path"
    folder = caught(lambda: tmp_path.mkdir())
    assert os_error_text(folder, "write") == f"cannot write {tmp_path}: it exists already; choose another path"


def test_what_does_not_exist(tmp_path: Path) -> None:
    lost = tmp_path / "lost one" / "file"  # a path with a blank is quoted, so that it can be pasted
    assert os_error_text(caught(lambda: lost.write_text("")), "write") == (
        f"cannot write '{lost}': its folder does not exist; create it"
    )
    assert os_error_text(caught(lambda: lost.read_text()), "read") == f"cannot read '{lost}': it does not exist; check the path"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "permission denied; change its permissions, or choose another path"),
        (errno.EPERM, "permission denied; change its permissions, or choose another path"),
        (errno.EROFS, "its file system is read-only; choose a path on another disk"),
        (errno.ENOSPC, "the disk is full; make room, or choose a path on another disk"),
        (errno.EXDEV, "invalid cross-device link"),  # one that we have no words for
    ],
)
def test_the_reason_and_the_remedy_follow_from_the_number(number: int, reason: str) -> None:
    error = OSError(number, os.strerror(number), "data/out")
    assert os_error_text(error, "write") == f"cannot write data/out: {reason}"
    assert os_error_text(error, "write", "elsewhere") == f"cannot write elsewhere: {reason}"
    assert os_error_text(OSError(number, os.strerror(number)), "write") == f"cannot write a file: {reason}"


def test_no_error_of_the_system_shows_its_number() -> None:
    for number in errno.errorcode:
        text = os_error_text(OSError(number, os.strerror(number), "x"))
        assert text.startswith("cannot open x: ") and not re.search(r"errno|\[|\n", text, re.IGNORECASE), text


def test_what_pyarrow_says_keeps_its_file(tmp_path: Path) -> None:
    error = caught(lambda: pyarrow.fs.LocalFileSystem().open_output_stream(str(tmp_path)))
    assert error.filename is None and "[errno" in str(error)
    assert os_error_text(error) == (
        f"Failed to open local file '{tmp_path}': it is a folder, not a file; give the path of a file"
    )
    assert os_error_text(error, "write", tmp_path) == (
        f"cannot write {tmp_path}: it is a folder, not a file; give the path of a file"
    )


def test_a_sentence_of_our_own_stays_as_it_is() -> None:
    assert os_error_text(FileNotFoundError("no study file x.yaml"), "read", "y") == "no study file x.yaml"


def test_errors_of_a_block_are_raised_in_words_and_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, os_errors_in_words("write", "out"):
        (tmp_path / "lost" / "file").write_text("")
    assert str(raised.value) == "cannot write out: its folder does not exist; create it"
    assert raised.value.errno is None and str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    with pytest.raises(FileExistsError, match=r"^ours$"), os_errors_in_words("write", "out"):
        raise FileExistsError("ours")
    with os_errors_in_words("write", "out"):
        pass


def test_a_close_name_or_all_that_are_known() -> None:
    assert did_you_mean("itertions", ["iterations", "lr"]) == " (did you mean iterations?)"
    assert did_you_mean("zzz", ["iterations", "lr"]) == "; known: iterations, lr"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean(7, {"a": 1, "b": 2}) == "; known: a, b"


def test_the_last_line_names_the_exception() -> None:
    assert last_line("Traceback (most recent call last):\n  File 'x'\nValueError: crop 41 is odd\n\n") == (
        "ValueError: crop 41 is odd"
    )
    assert last_line(RuntimeError("one\n two ")) == "two"
    assert last_line(RuntimeError()) == "RuntimeError (no message)"
    assert last_line(ValueError("x" * 2000)) == "x" * 1000 and last_line(ValueError("xyz"), 2) == "xy"


def test_an_error_of_google_is_told_once() -> None:
    error = OSError(
        "google::cloud::Status(UNAVAILABLE: Could not create an access token - CURL error [6]=Could not resolve hostname "
        "error_info={reason=, domain=, metadata={original=Could not create an access token - CURL error [6]}})"
    )
    assert os_error_text(error) == (
        "Google Cloud Storage: Could not create an access token - CURL error [6]=Could not resolve hostname"
    )
