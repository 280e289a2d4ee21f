"""Files and folders that cannot be written: one sentence, exit code 2, before the work; no trace, also as root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray import Study
from css_ray.storage import check_writable_file, check_writable_folder
from tests.cli.made_up import SPEC, Journal, call, refused


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("notes").write_text("mine")


def read_only(*arguments: Any, **settings: Any) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("command", ["table", "pseudo-labels", "compare"])
def test_out_is_checked_before_the_work(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal().whole(0, {0: 40.0, 1: 60.0})
    monkeypatch.setattr(Study, "open", lambda *arguments: pytest.fail("the study was read"))
    said = refused("study", command, "small", "--out", "lost/table.md")
    assert said == "Error: --out: cannot write lost/table.md: its folder does not exist; create it\n"
    said = refused("study", command, "small", "--out", "notes/table.md")
    assert "--out: cannot write notes/table.md: notes is a file, not a folder; choose another path" in said
    assert "is a directory" in refused("study", command, "small", "--out", ".")
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    said = refused("study", command, "small", "--out", "table.md")
    assert "cannot write table.md: its file system is read-only; choose a path on another disk" in said


def test_the_check_leaves_no_trace_and_keeps_what_is_there() -> None:
    before = sorted(Path().iterdir())
    check_writable_file("new.md")
    check_writable_file("notes")
    check_writable_folder("deep/er/runs")
    assert sorted(Path().iterdir()) == before and Path("notes").read_text() == "mine"
    with pytest.raises(NotADirectoryError):
        check_writable_folder("notes/runs")


def test_a_disk_that_fills_up_in_between_is_one_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    Journal().whole(0, {0: 40.0, 1: 60.0})
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **settings: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert "--out: cannot write table.md: the disk is full; make room" in refused(
        "study", "table", "small", "--out", "table.md"
    )


def test_a_storage_that_cannot_be_created(tmp_path: Path) -> None:
    spec = {**SPEC, "data": {**SPEC["data"], "root": str(tmp_path / "digits")}}
    Path("study.yaml").write_text(yaml.safe_dump(spec))
    said = refused("study", "run", "study.yaml", "--storage", "notes/runs")
    assert "--storage: cannot open notes/runs: notes is a file, not a folder; choose another path" in said


def test_a_data_set_that_cannot_be_made(tmp_path: Path) -> None:
    spec = {**SPEC, "data": {**SPEC["data"], "root": str(tmp_path / "notes" / "digits")}}
    Path("study.yaml").write_text(yaml.safe_dump(spec))
    said = refused("study", "run", "study.yaml")
    assert "data: cannot write" in said and "notes is a file, not a folder" in said and not Path("runs").exists()


@pytest.mark.parametrize("content", [None, b"\x89PNG\r\n\x1a\n\xff\xfe"])
def test_a_study_file_that_is_none(content: bytes | None) -> None:
    if content is None:
        Path("study.yaml").mkdir()
    else:
        Path("study.yaml").write_bytes(content)
    said = refused("study", "plan", "study.yaml")
    assert ("it is a folder, not a file" if content is None else "is not a text file") in said


def test_doctor_writes_where_the_storage_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray_cli import doctor

    for check in ("_python", "_packages", "_devices", "_ray"):
        monkeypatch.setattr(doctor, check, lambda: "not looked at in this test")
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 0)
    before = sorted(Path().iterdir())
    well = call("doctor")
    assert well.exit_code == 0 and "writes an SQLite file" in well.output, well.output
    assert sorted(Path().iterdir()) == before
    result = call("doctor", "--storage", "notes/runs")
    assert result.exit_code == 1 and "[Errno" not in result.output
    for name in ("disk", "mlflow"):
        assert f"WRONG  {name:9} --storage: cannot write notes/runs: notes is a file, not a folder" in result.output, (
            result.output
        )
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert call("doctor").output.count("--storage: cannot write runs: its file system is read-only") == 2
