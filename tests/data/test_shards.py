"""A prepared data set on disk: what goes in comes out, all of it or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from css_ray.data import shards, writing
from css_ray.data.digits import digits_source
from css_ray.data.processes import in_processes
from css_ray.data.shards import DatasetInfo, open_dataset
from css_ray.data.writing import Row, Source, rows_source, write_dataset
from css_ray.types import IGNORE_INDEX

INFO = DatasetInfo("small", ("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def pixels(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)


def row(id: str, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Row:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    return Row(id, encoded.getvalue(), image.shape[0], image.shape[1], mask)


def some_rows(count: int = 7) -> list[Row]:
    """Of different sizes; the third without a mask."""
    rows = []
    for seed in range(count):
        image = pixels(seed, 5 + seed, 9)
        mask = np.random.RandomState(seed).choice(np.array([0, 2, IGNORE_INDEX], np.uint8), image.shape[:2])
        rows.append(row(f"image {seed}", image, None if seed == 2 else mask))
    return rows


def source(train: list[Row], val: list[Row] | None = None, version: str = "rows") -> Source:
    return rows_source(INFO, {"train": train, "val": some_rows(1) if val is None else val}, version)


def shards_of(folder: Path, subset: str) -> list[Path]:
    return sorted(folder.glob(f"{subset}-*.arrow"))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    rows = some_rows()
    assert write_dataset(tmp_path / "set", source(rows))
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.info.name, dataset.info.class_names, dataset.info.palette) == ("small", INFO.class_names, INFO.palette)
    assert dataset.info.num_classes == 3
    train = dataset.train
    assert len(train) == 7 and train.ids == tuple(f"image {seed}" for seed in range(7))
    assert train.sizes == tuple((5 + seed, 9) for seed in range(7))
    assert train.classes == ((0, 2), (0, 2), None, (0, 2), (0, 2), (0, 2), (0, 2))  # 255 is no class
    for seed, (sample, expected) in enumerate(zip((train[index] for index in range(7)), rows, strict=True)):
        assert sample.id == expected.id
        assert torch.equal(sample.image, torch.from_numpy(pixels(seed, 5 + seed, 9)).permute(2, 0, 1))
        if expected.mask is None:
            assert sample.mask is None
        else:
            assert sample.mask is not None and np.array_equal(sample.mask.numpy(), expected.mask)
    assert train.positions(["image 6", "image 0"]) == [6, 0]
    with pytest.raises(KeyError, match="image 9"):
        train.positions(["image 0", "image 9"])
    with pytest.raises(IndexError, match=r"7 is outside 0\.\.6"):
        train[7]


def test_the_files_describe_themselves(tmp_path: Path) -> None:
    rows = some_rows()
    write_dataset(tmp_path / "set", source(rows))
    (path,) = shards_of(tmp_path / "set", "train")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column("image").to_pylist() == [one.image for one in rows]  # the encoded bytes, untouched
    metadata = table.schema.metadata
    assert (metadata[b"name"], metadata[b"ignore_index"]) == (b"small", b"255")
    assert json.loads(metadata[b"class_names"]) == ["a", "b", "c"]
    assert json.loads(metadata[b"palette"]) == [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
    made_of = hashlib.sha256()
    for one in rows:
        made_of.update(hashlib.sha256(one.image).digest())
        made_of.update(b"" if one.mask is None else hashlib.sha256(one.mask.tobytes()).digest())
    assert metadata[b"source"].decode() == made_of.hexdigest()
    described = json.loads((tmp_path / "set" / "dataset.json").read_text())
    (file_,) = described["subsets"]["train"]["files"]
    assert file_ == {
        "name": path.name,
        "rows": 7,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_many_shards_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows()
    write_dataset(tmp_path / "one", source(rows))
    size = len(rows[0].image)
    monkeypatch.setattr(writing, "SHARD_BYTES", 3 * size)
    write_dataset(tmp_path / "many", source(rows))
    assert len(shards_of(tmp_path / "many", "train")) > 2
    one, many = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "many")
    assert many.train.ids == one.train.ids
    assert all(torch.equal(many.train[index].image, one.train[index].image) for index in range(7))
    assert many.info.content == one.info.content  # what is stored, not how


def test_content_hash_sees_images_masks_and_ids(tmp_path: Path) -> None:
    first, *rest = some_rows()
    assert first.mask is not None
    other_mask = first.mask.copy()
    other_mask[0, 0] = 1
    changed = [first, first._replace(id="another"), first._replace(mask=other_mask), first._replace(mask=None)]
    changed.append(row("image 0", pixels(9, first.height, first.width), first.mask))
    contents = set()
    for number, one in enumerate(changed):
        write_dataset(tmp_path / str(number), source([one, *rest]))
        contents.add(open_dataset(tmp_path / str(number)).info.content)
    assert len(contents) == len(changed)


def test_pickle_carries_no_pixels(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", source([row("big", pixels(0, 200, 200), None)]))
    train = open_dataset(tmp_path / "set").train
    pickled = pickle.dumps(train)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled)[0].image, train[0].image)


def test_masks_are_left_alone_if_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "set", source(some_rows()))
    train = open_dataset(tmp_path / "set").train

    def refuse(encoded: object) -> None:
        raise AssertionError("a mask was decoded")

    monkeypatch.setattr(shards, "decode_mask", refuse)
    assert train.sample(0, mask=False).mask is None
    with pytest.raises(AssertionError, match="decoded"):
        train.sample(0)


def test_the_same_source_is_written_once(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", source(some_rows()))
    before = (tmp_path / "set" / "dataset.json").stat()

    assert not write_dataset(tmp_path / "set", source(some_rows()))
    assert (tmp_path / "set" / "dataset.json").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(FileExistsError, match="delete it or choose another folder"):
        write_dataset(tmp_path / "set", source(some_rows(), version="another"))
    with pytest.raises(FileExistsError, match="delete it or choose another folder"):
        write_dataset(tmp_path / "set", source(some_rows(6)))
    assert len(open_dataset(tmp_path / "set").train) == 7


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(FileExistsError, match="not empty"):
        write_dataset(tmp_path / "set", source(some_rows()))
    assert (tmp_path / "set" / "thesis.tex").read_text() == "ten years of work"


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class Failing:
    """Cannot read every second item."""

    def __call__(self, item: Row) -> Row:
        if int(item.id[-1]) % 2:
            raise ValueError("is odd")
        return item

    def digest(self, item: Row) -> bytes:
        raise AssertionError("nothing is there to compare with")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_leaves_nothing_and_names_everything(tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 100)
    rows = some_rows()
    wrong = Source(
        INFO, "", {"train": rows, "val": rows}, {"train": [60] * 7, "val": [60] * 7}, Failing(), "here", {"is late": ["x"]}
    )
    with pytest.raises(ValueError) as caught:
        write_dataset(tmp_path / "set", wrong, spread=in_processes(processes))
    assert str(caught.value) == (
        "here has 7 problems, nothing was written:\n  x: is late\n  image 1, image 3, image 5, image 1, image 3 and 1 more: is odd"
    )
    assert entries(tmp_path) == []


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 1500)
    for processes in (1, 2, 3):
        done: list[int] = []
        write_dataset(tmp_path / str(processes), source(some_rows(20)), done.append, in_processes(processes))
        assert sum(done) == 21
    files = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert len(files) > 4
    for processes in (2, 3):
        assert {path.name: path.read_bytes() for path in (tmp_path / str(processes)).iterdir()} == files


def test_a_run_killed_at_any_moment_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 20_000)
    undisturbed = digits_source(num_train=60, num_val=10)
    started = time.monotonic()
    write_dataset(tmp_path / "undisturbed", undisturbed)
    duration = time.monotonic() - started
    expected = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()}
    random, out, cut = Random(0), tmp_path / "digits", 0
    for attempt in range(10):
        process = get_context("fork").Process(
            target=write_dataset, args=(out, undisturbed), kwargs={"spread": in_processes(1 + attempt % 2)}
        )
        process.start()
        time.sleep(random.random() * 1.5 * duration)
        process.kill()
        process.join()
        if not out.exists():
            cut += 1
            with pytest.raises(FileNotFoundError, match=f"{out} holds no prepared data set"):
                open_dataset(out)
        write_dataset(out, undisturbed)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
        shutil.rmtree(out)
    assert cut >= 3, "too few runs were killed in their midst"
    assert entries(tmp_path) == ["undisturbed"]


AT_ONCE = """
import sys
from css_ray.data import catalogue
made = []
real = catalogue.digits_source
catalogue.digits_source = lambda: real(num_train=20, num_val=10)
real_write = catalogue.write_dataset
catalogue.write_dataset = lambda *arguments: made.append(real_write(*arguments))
print("ready", flush=True)
sys.stdin.readline()
dataset = catalogue.ensure_dataset("digits", sys.argv[1])
print(made, len(dataset.train))
"""


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "digits")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    # A late one may find the set complete before it asks to write.
    assert sorted(answers)[-1] == "[True] 20\n"
    assert all(answer in ("[False] 20\n", "[] 20\n") for answer in sorted(answers)[:-1]), answers


def test_a_missing_set_names_folder_and_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no prepared data set.*css-ray data prepare .* --out .*nowhere"):
        open_dataset(tmp_path / "nowhere")


def test_missing_and_cut_shards_are_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", source(some_rows()))
    (val,), (train,) = shards_of(tmp_path / "set", "val"), shards_of(tmp_path / "set", "train")
    val.unlink()
    whole = train.stat().st_size
    os.truncate(train, whole - 10)
    with pytest.raises(ValueError, match="is damaged") as caught:
        open_dataset(tmp_path / "set")
    assert f"{train.name} has {whole - 10} bytes, was written with {whole}; {val.name} is gone" in str(caught.value)
    assert "css-ray data prepare again" in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", ".."])
def test_a_description_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path / "set", source(some_rows()))
    described = json.loads((tmp_path / "set" / "dataset.json").read_text())
    described["subsets"]["train"]["files"][0]["name"] = name
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="not a plain name"):
        open_dataset(tmp_path / "set")


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", source(some_rows()))
    described = json.loads((tmp_path / "set" / "dataset.json").read_text())
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({**described, "format": 1}))
    with pytest.raises(ValueError, match="has format 1, this version reads 2; delete it"):
        open_dataset(tmp_path / "set")
