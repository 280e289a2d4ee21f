"""Altered descriptions of data sets: `dataset.json` of a prepared one, and the YAML file of a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from css_ray.data.catalogue import prepare
from css_ray.data.check import check_dataset
from css_ray.data.digits import digits_source
from css_ray.data.shards import DataSet, open_dataset
from css_ray.data.writing import write_dataset
from tests.fuzz.mutate import Tally, alter, apart, as_json, case_random, damage, outcome_of, share_and_whole


def contents(dataset: DataSet) -> dict[str, str]:
    """The hash of each encoded image, by its id."""
    found = {}
    for shards in (dataset.train, dataset.val):
        for index, id in enumerate(shards.ids):
            found[id] = hashlib.sha256(shards.encoded(index)[0]).hexdigest()
    return found


def judge_set(case: tuple[Path, bytes, dict[str, str]]) -> str:
    """Whether a set with another description is refused, or holds images of the one that was prepared and no others."""
    folder, text, known = case
    (folder / "dataset.json").write_bytes(text)

    def act() -> None:
        dataset = open_dataset(folder)
        assert contents(dataset).items() <= known.items()
        assert 1 <= dataset.info.num_classes == len(dataset.info.palette) <= 255
        assert dataset.info.name.isprintable()
        assert all(value < dataset.info.num_classes for classes in dataset.train.classes for value in classes or ())

    checked = outcome_of(lambda: check_dataset(folder))
    return checked if checked.startswith("failed") else outcome_of(act)


@share_and_whole(200, 20_000)
def test_descriptions_of_prepared_sets(count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    folder = tmp_path / "set"
    write_dataset(folder, digits_source(num_train=6, num_val=3))
    known, text = contents(open_dataset(folder)), (folder / "dataset.json").read_bytes()
    words, cases = [], []
    for number in range(count):
        random = case_random("dataset.json", number)
        if random.random() < 0.7:
            word, value = alter(json.loads(text), random)
            changed = as_json(value)
        else:
            word, changed = damage(text, random)
        words.append(f"{number}: {word}")
        cases.append((folder, changed, known))
    tally = Tally("dataset.json")
    for word, outcome in zip(words, apart(judge_set, cases), strict=True):
        tally.count(word, outcome, named=str(folder))
    tally.check(record_property)


def judge_folder(case: tuple[Path, bytes]) -> str:
    """Whether a description of a folder is refused, or what it makes can be opened."""
    root, text = case
    out = root.parent / "out"
    (root / "set.yaml").write_bytes(text)

    def act() -> None:
        prepare(root / "set.yaml", out, root=root)
        dataset = open_dataset(out)
        assert set(dataset.train.ids) <= {"a", "b", "c", "d"} and len(dataset.val) > 0
        assert dataset.train.num_masks > 0 and dataset.val.num_masks == len(dataset.val)

    try:
        return outcome_of(act)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@share_and_whole(150, 15_000)
def test_descriptions_of_folders(count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    root = tmp_path / "root"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for seed, id in enumerate("abcde"):
        random_pixels = np.random.RandomState(seed)
        Image.fromarray(random_pixels.randint(0, 256, (6, 8, 3), np.uint8)).save(root / "images" / f"{id}.png")
        Image.fromarray(random_pixels.choice(np.array([0, 1, 2], np.uint8), (6, 8))).save(root / "masks" / f"{id}.png")
    (root / "train.txt").write_text("a\nb\nc\n")
    (root / "val.txt").write_text("d\ne\n")
    spec = {
        "name": "rooms",
        "classes": ["floor", "wall", "chair"],
        "palette": [[0, 0, 0], [9, 9, 9], [200, 0, 0]],
        "void": [255, [1, 2, 3]],
        "train": {"images": "images", "masks": "masks", "list": "train.txt"},
        "val": {"images": "images", "masks": "masks", "list": "val.txt"},
        "image_suffix": ".png",
        "mask_suffix": ".png",
    }
    text = yaml.safe_dump(spec, sort_keys=False).encode()
    words, cases = [], []
    for number in range(count):
        random = case_random("folder.yaml", number)
        way = random.random()
        if way < 0.5:
            word, value = alter(spec, random)
            changed = as_json(value)  # which is YAML
        elif way < 0.8:
            word, changed = damage(text, random)
        else:
            word = random.choice(TRICKS)
            place = random.choice([index for index, byte in enumerate(text) if byte == ord("\n")]) + 1
            changed = text[:place] + word.encode() + b"\n" + text[place:]
        words.append(f"{number}: {word}")
        cases.append((root, changed))
    tally = Tally("descriptions of folders")
    for word, outcome in zip(words, apart(judge_folder, cases), strict=True):
        tally.count(word, outcome, named=[str(root), str(tmp_path / "out")])
    tally.check(record_property)


BOMB = "\n".join(["b0: &b0 [x]", *(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 10)}]" for n in range(1, 12))])
TRICKS = (
    "name: !!python/object/apply:os.system [touch planted]",
    "name: &name [*name]",
    "classes: &classes [*classes, *classes]",
    f"{BOMB}\nclasses: *b11",
    f"{BOMB}\nname: *b11",
    f"{BOMB}\npalette: *b11",
    "void: 2024-13-45",
    "name: 2024-02-30",
    "name: !!int ''",
    "name: !!bool maybe",
    "name: !!timestamp x",
    "name: !!binary '***'",
    "name: 1e999",
    f"name: {'9' * 6000}",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "<<: 3",
    "<<: {name: merged}",
    f"classes: {'[' * 3000}",
    f"train: {'{a: ' * 300}",
    "train: {images: /, masks: /proc, list: /dev/zero}",
    "train: {images: ../../.., masks: masks}",
    'train: {images: "a\\0b", masks: masks}',
    'name: "\\ud800"',
    'name: "\\e]52;c;AAAA\\a"',
    "---\nname: second",
    "%YAML 9.9\n---",
    "\t",
)
