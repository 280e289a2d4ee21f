"""Shards are looked at before they are used: once per machine and content, and never is a stamp trusted for other content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from css_ray.data import stamps, verification, writing
from css_ray.data.description import SCHEMA
from css_ray.data.digits import digits_source
from css_ray.data.remote import local_copy
from css_ray.data.shards import open_dataset
from css_ray.data.writing import write_dataset
from css_ray.study.definition import read
from css_ray.study.inputs import prepare
from css_ray.study.run import run_spec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of several shards, with a cache of its own, whose files count as settled at once."""
    monkeypatch.setenv("CSS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(writing, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 0.0)
    write_dataset(tmp_path / "set", digits_source(num_train=30, num_val=10))
    time.sleep(0.02)  # more than a tick of the file system's clock
    return tmp_path / "set"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were read, byte for byte."""
    read, names = verification.read_shard, list[str]()

    def watched(task: verification.ShardTask) -> list[pa.RecordBatch]:
        names.append(task.file.name)
        return read(task)

    monkeypatch.setattr(verification, "read_shard", watched)
    return names


def shard(folder: Path, subset: str = "train") -> Path:
    return min(folder.glob(f"{subset}-*.arrow"))


def flip(path: Path, position: int) -> None:
    """Change a byte in the file itself: its inode and its size stay."""
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_byte_is_noticed_wherever_it_is(folder: Path, seed: int) -> None:
    path = sorted(folder.glob("*.arrow"))[seed % 3]
    flip(path, Random(seed).randrange(path.stat().st_size))
    with pytest.raises(
        ValueError, match=f"{path.name} has the SHA-256 .*, was written with .*: its content was altered"
    ) as caught:
        open_dataset(folder)
    assert str(caught.value).startswith(f"{folder} is damaged: ")
    assert str(caught.value).endswith("Delete the folder and run css-ray data prepare again")


def test_all_damaged_shards_are_named(folder: Path) -> None:
    paths = sorted(folder.glob("*.arrow"))
    assert len(paths) >= 4
    flip(paths[0], 100)
    flip(paths[-1], 100)
    paths[1].unlink()
    paths[2].unlink()
    os.mkfifo(paths[2])  # is not opened, which would wait for ever
    with pytest.raises(ValueError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert f"{paths[0].name} has the SHA-256" in message and f"{paths[-1].name} has the SHA-256" in message
    assert f"{paths[1].name} is gone" in message and f"{paths[2].name} is not a file" in message


def test_each_shard_is_looked_at_once(folder: Path, looked: list[str]) -> None:
    all_shards = sorted(path.name for path in folder.glob("*.arrow"))
    open_dataset(folder)
    assert sorted(looked) == all_shards
    open_dataset(folder)
    open_dataset(f"{folder}/../{folder.name}")  # the same folder
    assert sorted(looked) == all_shards


def test_nothing_is_left_in_the_folder(folder: Path) -> None:
    before = sorted(folder.iterdir()), folder.stat().st_mtime_ns
    open_dataset(folder)
    assert (sorted(folder.iterdir()), folder.stat().st_mtime_ns) == before


def changed_in_place(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def changed_with_its_date_set_back(path: Path) -> None:
    before = path.stat()
    flip(path, path.stat().st_size // 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def replaced_by_one_with_its_date(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other, path.stat().st_size // 2)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [changed_in_place, changed_with_its_date_set_back, replaced_by_one_with_its_date])
def test_a_stamp_is_not_trusted_for_other_content(folder: Path, looked: list[str], change: Callable[[Path], None]) -> None:
    open_dataset(folder)
    looked.clear()
    time.sleep(0.02)
    change(shard(folder))
    with pytest.raises(ValueError, match=f"{shard(folder).name} has the SHA-256"):
        open_dataset(folder)
    assert looked == [shard(folder).name]  # and no other


def test_a_stamp_of_one_set_is_none_of_another(folder: Path, looked: list[str]) -> None:
    open_dataset(folder)
    looked.clear()
    other = folder.rename(folder.with_name("other"))
    open_dataset(other)
    assert len(looked) == len(list(other.glob("*.arrow")))


def test_a_file_that_changed_a_moment_ago_gets_no_stamp(
    folder: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change within the same tick of the clock would leave its times as they are."""
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 3600.0)
    open_dataset(folder)
    count = len(looked)
    open_dataset(folder)
    assert len(looked) == 2 * count


def stamp_file(folder: Path) -> Path:
    (path,) = (folder.parent / "cache" / "checked").glob("*.json")
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"files": 3}', b'{"version": 1, "folder": 1, "files": {}}', b"\xff\xfe", b"[" * 100_000],
)
def test_damaged_stamps_are_none(folder: Path, looked: list[str], content: bytes) -> None:
    open_dataset(folder)
    count = len(looked)
    stamp_file(folder).write_bytes(content)
    open_dataset(folder)
    assert len(looked) == 2 * count
    open_dataset(folder)
    assert len(looked) == 2 * count


def test_a_stamp_names_the_hash_and_what_the_file_is(folder: Path) -> None:
    open_dataset(folder)
    noted = json.loads(stamp_file(folder).read_text())
    path, status = shard(folder), shard(folder).stat()
    assert noted["folder"] == str(folder.resolve())
    assert noted["files"][path.name] == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": status.st_size,
        "inode": status.st_ino,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }
    assert stamp_file(folder).parent.stat().st_mode & 0o777 == 0o700


def test_stamps_that_others_could_write_are_not_trusted(folder: Path, looked: list[str]) -> None:
    open_dataset(folder)
    count = len(looked)
    stamp_file(folder).parent.chmod(0o777)
    open_dataset(folder)
    assert len(looked) == 2 * count


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_place_for_stamps_the_shards_are_looked_at_each_time(
    folder: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "a file":
        (folder.parent / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("CSS_RAY_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    open_dataset(folder)
    open_dataset(folder)
    assert len(looked) == 2 * len(list(folder.glob("*.arrow")))


def test_stamps_of_sets_that_are_gone_are_removed(folder: Path, tmp_path: Path) -> None:
    open_dataset(folder)
    write_dataset(tmp_path / "other", digits_source(num_train=3, num_val=2))
    shutil.rmtree(folder)
    time.sleep(0.02)
    open_dataset(tmp_path / "other")
    assert json.loads(stamp_file(folder).read_text())["folder"] == str(tmp_path / "other")


AT_ONCE = """
import sys, time
from css_ray.data import shards, stamps, verification
stamps.SETTLED_SECONDS = 0.0
looked, read = [], verification.read_shard
verification.read_shard = lambda task: (looked.append(1), time.sleep(0.05), read(task))[2]
print("ready", flush=True)
sys.stdin.readline()
shards.open_dataset(sys.argv[1])
print(len(looked))
"""


def test_of_several_processes_one_looks(folder: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(folder)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = sorted(int(process.communicate()[0]) for process in processes)
    assert counts == [0, 0, len(list(folder.glob("*.arrow")))]


# Shards whose hash is right


def reseal(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the first training shard anew, and a description that fits it."""
    path = shard(folder)
    with pa.ipc.open_file(path) as reader:
        rows = reader.read_all().num_rows
    write(path)
    described = json.loads((folder / "dataset.json").read_text())
    (record,) = (each for each in described["subsets"]["train"]["files"] if each["name"] == path.name)
    assert record["rows"] == rows
    record |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    (folder / "dataset.json").write_text(json.dumps(described))


def rows_of(path: Path) -> list[dict[str, Any]]:
    with pa.ipc.open_file(path) as reader:
        found: list[dict[str, Any]] = reader.read_all().to_pylist()
    return found


def written(path: Path, batch: pa.RecordBatch, **options: Any) -> None:
    with pa.ipc.new_file(path, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)


@pytest.mark.parametrize("column", ["id", "image", "mask"])
@pytest.mark.parametrize("offset", [2**30, -5, 2**31 - 1])
def test_offsets_that_lead_out_of_the_file_are_noticed(folder: Path, column: str, offset: int) -> None:
    """Read without being noticed, they end the process by a signal."""

    def write(path: Path) -> None:
        batch = pa.RecordBatch.from_pylist(rows_of(path), schema=SCHEMA)
        columns = dict(zip(SCHEMA.names, batch.columns, strict=True))
        validity, offsets, content = columns[column].buffers()
        changed = np.frombuffer(offsets, np.int32).copy()
        changed[1] = offset
        columns[column] = pa.Array.from_buffers(
            SCHEMA.field(column).type, batch.num_rows, [validity, pa.py_buffer(changed.tobytes()), content]
        )
        written(path, pa.RecordBatch.from_arrays(list(columns.values()), schema=SCHEMA))

    reseal(folder, write)
    with pytest.raises(ValueError, match=f"{shard(folder).name} is not a sound shard: "):
        open_dataset(folder)


def test_compressed_columns_are_refused(folder: Path) -> None:
    """A few bytes of them may fill the memory."""
    rows = rows_of(shard(folder))
    rows[0]["image"] = bytes(3_000_000)
    reseal(folder, lambda path: written(path, pa.RecordBatch.from_pylist(rows, schema=SCHEMA), compression="zstd"))
    with pytest.raises(ValueError, match=f"{shard(folder).name} is not a sound shard: it is compressed"):
        open_dataset(folder)


def test_other_columns_are_refused(folder: Path) -> None:
    rows = rows_of(shard(folder))
    other = pa.schema([*list(SCHEMA)[:-1], pa.field("width", pa.int64())])
    reseal(folder, lambda path: written(path, pa.RecordBatch.from_pylist(rows, schema=other)))
    with pytest.raises(ValueError, match="is not a sound shard: its columns are different"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, r"row 1: its id is not a text of one line"),
        ({"id": "two\nlines"}, r"row 1: its id is not a text of one line"),
        ({"id": "\x1b]52;c;AAAA\x07"}, r"row 1: its id is not a text of one line"),
        ({"height": 41}, r"train-0001: image is 40x40 \(width x height\), recorded as 40x41"),
        ({"width": -40}, r"train-0001: image is 40x40 \(width x height\), recorded as -40x40"),
        ({"image": b""}, r"train-0001: image is empty"),
        ({"image": b"GIF89a"}, r"train-0001: image is not a readable"),
        ({"mask": None}, r"train-0001: has classes without a mask"),
        ({"classes": None}, r"train-0001: has classes without a mask, or a mask without classes"),
        ({"classes": [0, 6]}, r"train-0001: is recorded with the classes \[0, 6\], must be some of 0\.\.5, ascending"),
        ({"classes": [1, 0]}, r"must be some of 0\.\.5, ascending"),
        ({"mask": b"no PNG"}, r"train-0001: mask is not a whole grey 8-bit PNG"),
    ],
)
def test_rows_that_contradict_their_images_are_named(folder: Path, change: dict[str, Any], message: str) -> None:
    rows = rows_of(shard(folder))
    rows[1] |= change
    reseal(folder, lambda path: written(path, pa.RecordBatch.from_pylist(rows, schema=SCHEMA)))
    with pytest.raises(ValueError, match=f"{shard(folder).name}: {message}" if "train-0001" in message else message):
        open_dataset(folder)


# Who looks


def study_file(folder: Path) -> Path:
    data = {"dataset": "digits", "root": str(folder), "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4}
    model = {"encoder": "tiny", "output_stride": 4, "pretrained": False}
    grid = {"method": [{"name": "supervised", "row": "Sup."}]}
    spec = {"study": "small", "data": data, "model": model, "train": {"iterations": 4, "lr": 0.05}, "splits": [0], "grid": grid}
    path = folder.parent / "study.yaml"
    path.write_text(json.dumps(spec))
    return path


def test_a_study_is_refused_before_anything_starts(folder: Path) -> None:
    from css_ray_cli.main import main

    for command in (["study", "plan"], ["study", "run", "--storage", str(folder.parent / "runs")]):
        flip(shard(folder), 1000)
        result = CliRunner().invoke(main, [*command, str(study_file(folder))])
        assert result.exit_code == 2, result.output
        assert f"data: {folder} is damaged: {shard(folder).name} has the SHA-256" in result.output
        assert "run css-ray data prepare again" in result.output
        flip(shard(folder), 1000)
    assert not list((folder.parent / "runs").glob("**/journal.jsonl"))


def test_a_worker_looks_at_the_shards_of_its_own_node(folder: Path) -> None:
    study = read(study_file(folder))
    spec = run_spec(study, study.grid_trials()[0], 0)
    assert prepare(spec).split.labelled
    flip(shard(folder, "val"), 1000)
    with pytest.raises(ValueError, match=f"{shard(folder, 'val').name} has the SHA-256"):
        prepare(spec)


def test_a_damaged_copy_of_a_remote_set_is_fetched_again(folder: Path) -> None:
    url = f"file://{folder}"  # as any other URL, it is copied once
    copy = local_copy(url)
    open_dataset(url)
    flip(shard(copy), 1000)
    with pytest.raises(ValueError) as caught:
        open_dataset(url)
    assert str(caught.value).startswith(f"{copy} is damaged: {shard(copy).name} has the SHA-256")
    assert str(caught.value).endswith(f"Delete the folder and run the command again, which fetches it from {url}")
    shutil.rmtree(copy)
    assert len(open_dataset(url).train) == 30
