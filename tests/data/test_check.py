"""`data check`: every kind of damage is found, all of it at once, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from css_ray.data import writing
from css_ray.data.check import check_dataset
from css_ray.data.description import SCHEMA, DatasetInfo
from css_ray.data.digits import digits_source
from css_ray.data.processes import in_processes
from css_ray.data.writing import Row, rows_source, write_dataset

INFO = DatasetInfo("small", ("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def encoded(seed: int, height: int = 24, width: int = 32, kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)).save(target, kind)
    return target.getvalue()


def mask(height: int = 24, width: int = 32, value: int = 1) -> NDArray[np.uint8]:
    indices = np.zeros((height, width), np.uint8)
    indices[: height // 2] = value
    indices[0] = 255
    return indices


def some_rows(prefix: str, count: int = 3, first: int = 0) -> list[Row]:
    return [Row(f"{prefix}{number}", encoded(first + number), 24, 32, mask()) for number in range(count)]


def found(tmp_path: Path, train: list[Row], val: list[Row]) -> dict[str, list[str]]:
    write_dataset(tmp_path / "set", rows_source(INFO, {"train": train, "val": val}))
    return check_dataset(tmp_path / "set")[1].found


def test_nothing_is_wrong_with_the_built_in_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 50_000)
    write_dataset(tmp_path / "digits", digits_source(num_train=40, num_val=10))
    done: list[int] = []
    images, problems = check_dataset(tmp_path / "digits", done.append, in_processes(2))
    assert (images, sum(done), problems.found) == (50, 50, {})


def test_everything_is_said_at_once(tmp_path: Path) -> None:
    whole = encoded(7, kind="JPEG")
    train = [
        *some_rows("t"),
        Row("t1", encoded(50), 24, 32, mask()),
        Row("cut", whole[: len(whole) // 2], 24, 32, mask()),
        Row("small mask", encoded(51), 24, 32, mask(12, 16)),
        Row("odd label", encoded(52), 24, 32, mask(value=7)),
        Row("wide", encoded(53, 24, 40), 24, 32, None),
    ]
    val = [*some_rows("v", first=10), Row("t2", encoded(54), 24, 32, mask()), Row("twin", encoded(0), 24, 32, mask())]
    val.append(Row("bare", encoded(55), 24, 32, None))
    problems = found(tmp_path, train, val)
    (cut,) = (problem for problem in problems if "cannot be decoded" in problem)
    assert problems.pop(cut) == ["cut"] and cut.startswith("image cannot be decoded (")
    assert problems == {
        "mask is 16x12 (width x height), must be as its image 32x24": ["small mask"],
        "mask has the values 7; classes are 0..2, ignored is 255": ["odd label"],
        "image is 40x24 (width x height), recorded as 32x24": ["wide"],
        "is in val and has no mask; without one it cannot be judged": ["bare"],
        "is listed 2 times in train": ["t1"],
        "is in train and in val: the score would be of images that were learned": ["t2"],
        "is in val, and byte for byte the training image t0": ["twin"],
    }


def test_without_masks_nothing_can_be_labelled(tmp_path: Path) -> None:
    problems = found(tmp_path, [row._replace(mask=None) for row in some_rows("t")], some_rows("v", first=10))
    assert problems == {"no image has a mask, so that none can be labelled; prepare the data set with masks": ["train"]}


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is gone; prepare the data set again"),
        (altered, "has the SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "has 200 bytes, was written with"),
        (lambda path: path.write_bytes(b"not Arrow at all"), "has 16 bytes, was written with"),
    ],
    ids=["gone", "altered", "cut", "foreign"],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_dataset(tmp_path / "set", rows_source(INFO, {"train": some_rows("t"), "val": some_rows("v", first=10)}))
    (path,) = (tmp_path / "set").glob("val-*.arrow")
    damage(path)
    problems = check_dataset(tmp_path / "set")[1].found
    assert any(message in problem and ids == [path.name] for problem, ids in problems.items()), problems


def reseal(folder: Path, rows: list[dict[str, Any]], **counts: int) -> None:
    """Write other rows as the training images, with a description that fits, but for `counts`."""
    (path,) = folder.glob("train-*.arrow")
    with pa.ipc.new_file(path, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    described = json.loads((folder / "dataset.json").read_text())
    masks = sum(row["mask"] is not None for row in rows)
    described["subsets"]["train"] |= {"images": len(rows), "masks": masks} | counts
    described["subsets"]["train"]["files"][0] |= {
        "rows": len(rows),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }
    (folder / "dataset.json").write_text(json.dumps(described))


def test_a_shard_that_contradicts_itself(tmp_path: Path) -> None:
    """Its own hash is right, but what it records of a mask is not what the mask shows."""
    folder = tmp_path / "set"
    write_dataset(folder, rows_source(INFO, {"train": some_rows("t"), "val": some_rows("v", first=10)}))
    (path,) = folder.glob("train-*.arrow")
    with pa.ipc.open_file(path) as reader:
        rows = reader.read_all().to_pylist()
    reseal(folder, [rows[0], rows[1] | {"classes": [0, 2]}, rows[2]])
    assert check_dataset(folder)[1].found == {
        "mask shows the classes [0, 1], recorded are [0, 2]; prepare the data set again": ["t1"]
    }
    reseal(folder, rows[:2], masks=1)
    assert check_dataset(folder)[1].found == {
        "dataset.json counts 2 images and 1 masks, the files hold 2 and 2; prepare the data set again": ["train"]
    }
    reseal(folder, rows[:2], images=3)
    with pytest.raises(ValueError, match=r"dataset\.json is not as css-ray writes it.*\n.*train.images is 3, .* have 2 rows"):
        check_dataset(folder)


def test_an_altered_shard_is_the_only_problem(tmp_path: Path) -> None:
    """What it held is not known, so nothing is said about it: not that no image has a mask."""
    write_dataset(tmp_path / "set", rows_source(INFO, {"train": some_rows("t"), "val": some_rows("v", first=10)}))
    (path,) = (tmp_path / "set").glob("train-*.arrow")
    altered(path)
    problems = check_dataset(tmp_path / "set")[1]
    assert problems.count == 1 and problems.lines()[0].startswith(f"{path.name}: has the SHA-256"), problems.lines()


def run(*arguments: object) -> Result:
    from css_ray_cli.data import data

    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_the_command(tmp_path: Path) -> None:
    write_dataset(tmp_path / "good", rows_source(INFO, {"train": some_rows("t"), "val": some_rows("v", first=10)}))
    result = run("check", tmp_path / "good", "--processes", 1)
    assert result.exit_code == 0 and "6 images read, nothing is wrong" in result.output, result.output
    write_dataset(tmp_path / "bad", rows_source(INFO, {"train": some_rows("x"), "val": some_rows("x")}))
    result = run("check", tmp_path / "bad", "--processes", 2)
    assert result.exit_code == 1, result.output
    assert "3 problems in" in result.output and "x0, x1, x2: is in train and in val" in result.output
    result = run("check", tmp_path / "nowhere")
    assert result.exit_code == 2 and "holds no prepared data set" in result.output
