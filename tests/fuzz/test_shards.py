"""Altered shards: named before anything is read from them, also if their hash was made to fit; no process dies of them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from css_ray.data import writing
from css_ray.data.check import check_dataset
from css_ray.data.description import SCHEMA
from css_ray.data.digits import digits_source
from css_ray.data.shards import DataSet, open_dataset
from css_ray.data.writing import write_dataset
from tests.fuzz.mutate import EXTREMES, Tally, apart, case_random, damage, outcome_of, share_and_whole

Case = tuple[Path, str, bytes, bool]
"""The folder of a data set, one of its shards, other content for it, and whether the description is to fit the content."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(writing, "SHARD_BYTES", 30_000)
    write_dataset(tmp_path / "set", digits_source(num_train=12, num_val=4))
    return tmp_path / "set"


def judge(case: Case) -> str:
    """Whether a set with an altered shard is refused, or all that is read from it is what it declares."""
    folder, name, content, fits = case
    shard, description = folder / name, folder / "dataset.json"
    whole, described = shard.read_bytes(), description.read_bytes()
    shard.write_bytes(content)
    if fits:
        description.write_bytes(fitting(described, name, content))
    try:
        opened = outcome_of(lambda: read_all(open_dataset(folder)))
        checked = outcome_of(lambda: check_dataset(folder)[1].raise_any(folder))
    finally:
        shard.write_bytes(whole)
        description.write_bytes(described)
    if opened == "accepted" and not fits and content != whole:
        return "failed: other bytes were accepted"
    if opened == "accepted" and "its pixels" in checked:
        return "failed: what training would read was not looked at"
    return opened if not checked.startswith("failed") else checked


def fitting(description: bytes, name: str, content: bytes) -> bytes:
    """The description with the hash and the size of other content, and the rows that Arrow finds in it, if it finds any."""
    described = json.loads(description)
    for subset in described["subsets"].values():
        for file in subset["files"]:
            if file["name"] == name:
                file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(described).encode()


def read_all(dataset: DataSet) -> None:
    for shards in (dataset.train, dataset.val):
        ids, sizes, classes = shards.ids, shards.sizes, shards.classes
        assert len(ids) == len(sizes) == len(classes) == len(shards)
        for index in range(len(shards)):
            sample = shards[index]
            assert sample.id == ids[index] and sample.image.shape == (3, *sizes[index])
            assert (sample.mask is None) == (classes[index] is None)
            assert sample.mask is None or sample.mask.shape == sizes[index]
            assert all(0 <= value < dataset.info.num_classes for value in classes[index] or ())


def tried(kind: str, cases: list[Case], words: list[str], property: Callable[[str, object], None]) -> None:
    tally = Tally(kind)
    for case, word, outcome in zip(cases, words, apart(judge, cases), strict=True):
        tally.count(f"{word} of {case[1]}", outcome, named=case[1])
    tally.check(property)


@share_and_whole(60, 6_000)
@pytest.mark.parametrize("fits", [False, True], ids=["hash differs", "hash fits"])
def test_damaged_bytes(count: int, fits: bool, folder: Path, record_property: Callable[[str, object], None]) -> None:
    paths = sorted(folder.glob("*.arrow"))
    cases, words = [], []
    for number in range(count):
        random = case_random(f"shards {fits}", number)
        path = paths[number % len(paths)]
        word, content = damage(path.read_bytes(), random)
        cases.append((folder, path.name, content, fits))
        words.append(f"{number}: {word}")
    tried(f"shards, bytes, {'hash fits' if fits else 'hash differs'}", cases, words, record_property)


def structure(content: bytes) -> list[int]:
    """Where in a shard its structure lies: all but the encoded images and masks, which are long and noisy."""
    with pa.ipc.open_file(pa.py_buffer(content)) as reader:
        batch = reader.get_batch(0)
    inside: set[int] = set()
    for name in ("image", "mask"):
        for value in batch.column(name):
            start = content.index(value.as_py())
            inside |= set(range(start, start + len(value.as_py())))
    return [position for position in range(len(content)) if position not in inside]


@share_and_whole(120, 12_000)
def test_damaged_structure(count: int, folder: Path, record_property: Callable[[str, object], None]) -> None:
    """Offsets, lengths and Arrow's own descriptions, with a hash that fits."""
    paths = sorted(folder.glob("*.arrow"))
    places = {path: structure(path.read_bytes()) for path in paths}
    cases, words = [], []
    for number in range(count):
        random = case_random("structure", number)
        path = paths[number % len(paths)]
        content, position = bytearray(path.read_bytes()), random.choice(places[path])
        if random.random() < 0.5:
            content[position] ^= 1 << random.randrange(8)
        else:
            value = random.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0"))
            content[position : position + 4] = value
        cases.append((folder, path.name, bytes(content[: path.stat().st_size]), True))
        words.append(f"{number}: at {position}")
    tried("shards, structure, hash fits", cases, words, record_property)


def altered_row(row: dict[str, Any], random: Any) -> tuple[str, dict[str, Any]]:
    """A row with another value in one column, of the column's type if that can be."""
    row = copy.copy(row)
    column = random.choice(list(row))
    if column in ("image", "mask") and random.random() < 0.7:
        word, row[column] = damage(row[column], random)
        return f"{column}: {word}", row
    values: dict[str, tuple[Any, ...]] = {
        "id": tuple(value for value in EXTREMES if isinstance(value, str) and value != "\ud800"),
        "image": (b"", row["mask"], bytes(1000)),
        "mask": (b"", None, row["image"], bytes(1000)),
        "classes": (None, [], [255], [0, 0], [5, 4], [6], list(range(256))),
    }
    row[column] = random.choice(values.get(column, (0, -1, 1, 39, 2**31 - 1, -(2**31))))
    return f"{column} = {ascii(row[column])[:40]}", row


@share_and_whole(60, 6_000)
def test_altered_rows(count: int, folder: Path, record_property: Callable[[str, object], None]) -> None:
    paths = sorted(folder.glob("*.arrow"))
    cases, words = [], []
    for number in range(count):
        random = case_random("rows", number)
        path = paths[number % len(paths)]
        with pa.ipc.open_file(path) as reader:
            rows = reader.read_all().to_pylist()
        place = random.randrange(len(rows))
        word, rows[place] = altered_row(rows[place], random)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        cases.append((folder, path.name, sink.getvalue().to_pybytes(), True))
        words.append(f"{number}, row {place}: {word}")
    tried("shards, rows, hash fits", cases, words, record_property)
