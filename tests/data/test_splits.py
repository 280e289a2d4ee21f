"""Splits: the documented rule, computed here by hand, and what a split promises whatever the rule."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from css_ray.data import images
from css_ray.data.digits import digits_source
from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.splits import count_shown, listed_split, make_split, write_split
from css_ray.data.writing import Row, rows_source, write_dataset

NUM_CLASSES = 6


def prepared(folder: Path, shown: Mapping[str, tuple[int, ...] | None]) -> DataSet:
    """A data set on disk whose training images show these classes; None has no mask."""
    png = io.BytesIO()
    Image.new("RGB", (NUM_CLASSES, 1)).save(png, "PNG")

    def row(id: str, classes: tuple[int, ...] | None) -> Row:
        mask = None if classes is None else np.array([[*classes, *[255] * (NUM_CLASSES - len(classes))]], np.uint8)
        return Row(id, png.getvalue(), 1, NUM_CLASSES, mask)

    rows = {"train": [row(id, classes) for id, classes in shown.items()], "val": [row("judge", (0,))]}
    info = DatasetInfo("toy", tuple("abcdef"), ((0, 0, 0),) * NUM_CLASSES)
    write_dataset(folder, rows_source(info, rows))
    return open_dataset(folder)


def alike(count: int) -> dict[str, tuple[int, ...] | None]:
    return {f"scene-{number:02d}": (0,) for number in range(count)}


def test_the_rule(tmp_path: Path) -> None:
    # All images show the same class, so the best ranked are the labelled ones.
    dataset = prepared(tmp_path / "toy", alike(30))
    for index, seed in [(0, 0), (1, 0), (7, 5)]:
        keys = {id: hashlib.sha256(f"toy\n{seed}\n{index}\n{id}".encode()).hexdigest() for id in alike(30)}
        ranked = sorted(keys, key=lambda id: keys[id])
        split = make_split(dataset, 8, index, seed)
        assert (split.index, split.labelled, split.unlabelled) == (index, tuple(sorted(ranked[:8])), tuple(sorted(ranked[8:])))
        text = json.dumps([sorted(ranked[:8]), sorted(ranked[8:])])
        assert split.hash == hashlib.sha256(text.encode()).hexdigest()


def test_index_and_seed_choose_anew(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "toy", alike(30))
    splits = [make_split(dataset, 8, index, seed) for index in range(4) for seed in range(3)]
    assert len({split.labelled for split in splits}) == len({split.hash for split in splits}) == 12


def test_the_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    there = prepared(tmp_path / "there", alike(20))
    back = prepared(tmp_path / "back", dict(reversed(alike(20).items())))
    assert make_split(there, 5, 2) == make_split(back, 5, 2)


def test_images_without_a_mask_are_unlabelled(tmp_path: Path) -> None:
    shown = alike(10) | {f"bare-{number}": None for number in range(10)}
    dataset = prepared(tmp_path / "toy", shown)
    for index in range(5):
        split = make_split(dataset, 6, index)
        assert len(split.labelled) == 6 and not any(id.startswith("bare") for id in split.labelled)
        assert sorted(split.labelled + split.unlabelled) == sorted(shown)
    assert set(make_split(dataset, 10, 0).unlabelled) == {id for id in shown if id.startswith("bare")}


def test_every_class_is_labelled(tmp_path: Path) -> None:
    # Classes 4 and 5 are shown by one image of 60 each: a blind choice of 6 would miss them nine times out of ten.
    shown = {id: (0, number % 4) for number, id in enumerate(alike(60))} | {"scene-17": (0, 4), "scene-42": (0, 5)}
    dataset = prepared(tmp_path / "toy", shown)
    for index in range(20):
        labelled = make_split(dataset, 6, index).labelled
        assert len(labelled) == 6
        assert {one for id in labelled for one in shown[id]} == set(range(NUM_CLASSES))


def test_classes_that_the_best_ranked_show_change_nothing(tmp_path: Path) -> None:
    plain = prepared(tmp_path / "plain", alike(40))
    varied = prepared(tmp_path / "varied", {id: (number % 2,) for number, id in enumerate(alike(40))})
    same = [make_split(plain, 12, index) == make_split(varied, 12, index) for index in range(10)]
    assert all(same)


def random_classes(seed: int) -> dict[str, tuple[int, ...] | None]:
    """Up to 30 images of up to 12 classes, some rare, some images without a class or without a mask."""
    source = random.Random(seed)
    num_classes = source.randint(1, 12)
    chances = [source.choice([0.03, 0.1, 0.5]) for _ in range(num_classes)]
    shown: dict[str, tuple[int, ...] | None] = {}
    for number in range(source.randint(num_classes, 30)):
        present = tuple(index for index, chance in enumerate(chances) if source.random() < chance)
        shown[f"{source.choice('abc')}/{number}"] = None if source.random() < 0.1 else present
    shown["last"] = (0,)
    return shown


def in_memory(shown: dict[str, tuple[int, ...] | None]) -> Any:
    """What a split looks at, without files."""
    train = SimpleNamespace(ids=tuple(shown), classes=tuple(shown.values()))
    return SimpleNamespace(info=DatasetInfo("toy", tuple("abcdefghijkl"), ((0, 0, 0),) * 12), train=train)


def by_the_words(shown: dict[str, tuple[int, ...] | None], count: int, index: int, seed: int, nested: bool) -> set[str]:
    """The documented rule once more, sentence by sentence."""
    text = f"toy\n{seed}\n{index}\n" if nested else f"toy\n{seed}\n{index}\n{count}\n"
    pairs = sorted((hashlib.sha256((text + id).encode()).hexdigest(), id) for id in shown if shown[id] is not None)
    ranked = [id for _, id in pairs]

    def show(ids: list[str]) -> set[int]:
        return {one for id in ids for one in shown[id] or ()}

    group_1 = [id for place, id in enumerate(ranked) if show([id]) - show(ranked[:place])]
    group_2 = [id for id in ranked if id not in group_1]

    def cover(pool: list[str]) -> list[str]:
        chosen: list[str] = []
        while show(chosen) != show(pool):
            gains = [(-len(show([id]) - show(chosen)), place) for place, id in enumerate(pool)]
            chosen.append(pool[min(gains)[1]])
        return chosen

    if nested:
        best = cover(group_1)
        order = best + [id for id in group_1 if id not in best] + group_2
    elif len(group_1) > count:
        best = cover(ranked)
        order = best + [id for id in ranked if id not in best]
    else:
        order = group_1 + group_2
    return set(order[:count])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_the_rule_on_random_classes(seed: int, nested: bool) -> None:
    shown = random_classes(seed)
    dataset = in_memory(shown)
    masks = [id for id, classes in shown.items() if classes is not None]
    for count in range(1, len(masks) + 1):
        split = make_split(dataset, count, seed % 3, seed, nested=nested)
        assert set(split.labelled) == by_the_words(shown, count, seed % 3, seed, nested)
        assert sorted(split.labelled + split.unlabelled) == sorted(shown)


@pytest.mark.parametrize("seed", range(25))
def test_nested_splits_are_nested_and_cover(seed: int) -> None:
    shown = random_classes(seed)
    dataset = in_memory(shown)
    masks = {id: set(classes) for id, classes in shown.items() if classes is not None}
    present = set().union(*masks.values())
    made = [set(make_split(dataset, count, 1).labelled) for count in range(1, len(masks) + 1)]
    assert all(smaller < larger for smaller, larger in pairwise(made))
    for labelled in made[len(present) - 1 :]:
        assert set().union(*(masks[id] for id in labelled)) == present


def test_independent_counts_share_images_by_chance_alone() -> None:
    dataset = in_memory({f"scene-{number}": (0,) for number in range(1000)})
    shared = [
        len(
            set(make_split(dataset, 100, index, nested=False).labelled)
            & set(make_split(dataset, 200, index, nested=False).labelled)
        )
        for index in range(50)
    ]
    # Of 100 images 20 lie in another choice of 200 of 1000, with a standard deviation of 3.8.
    assert 18 < sum(shared) / len(shared) < 22
    assert make_split(dataset, 100, 0, nested=False) != make_split(dataset, 100, 0)


def test_a_small_independent_count_covers_as_much_as_it_can(tmp_path: Path) -> None:
    shown = {"a": (0,), "b": (1,), "c": (2,), "d": (3,), "e": (4,), "f": (5,), "left": (0, 1, 2), "right": (3, 4, 5)}
    dataset = prepared(tmp_path / "toy", shown)
    for index in range(10):
        assert make_split(dataset, 2, index, nested=False).labelled == ("left", "right")
        assert make_split(dataset, 1, index, nested=False).labelled[0] in ("left", "right")


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(tmp_path / "toy", alike(10))
    monkeypatch.setattr(images, "decode_image", None)
    with pytest.raises(TypeError):
        dataset.train[0]
    assert len(make_split(dataset, 3, 0).labelled) == 3


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_count_out_of_bounds_says_what_is_there(tmp_path: Path, count: int) -> None:
    dataset = prepared(tmp_path / "toy", alike(10) | {"bare": None})
    with pytest.raises(ValueError) as caught:
        make_split(dataset, count, 0)
    assert str(caught.value) == (
        f"cannot label {count} images: 10 of the 11 training images of toy have a mask; label 1 to 10, or add masks and prepare "
        "the data set again"
    )


def test_digits_are_frozen(tmp_path: Path) -> None:
    write_dataset(tmp_path / "digits", digits_source())
    dataset = open_dataset(tmp_path / "digits")
    split = make_split(dataset, 24, 0)
    assert (len(split.labelled), len(split.unlabelled)) == (24, 376)
    assert split.hash == "56cb0f990b55448358829435f50eb42021cc2b559d20c74cc10cbfe823664026"
    assert {one for id in split.labelled for one in dataset.train.classes[dataset.train.ids.index(id)] or ()} == set(range(6))


def test_a_listed_split_of_the_same_ids_is_the_same_split(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "toy", alike(10) | {"bare": None})
    made = make_split(dataset, 4, 2)
    assert listed_split(dataset, 2, made.labelled[::-1]) == made
    assert listed_split(dataset, 2, made.labelled, made.unlabelled[::-1]) == made
    part = listed_split(dataset, 0, ["scene-03", "scene-01"], ["bare", "scene-00"])
    assert (part.labelled, part.unlabelled) == (("scene-01", "scene-03"), ("bare", "scene-00"))
    text = '[["scene-01", "scene-03"], ["bare", "scene-00"]]'
    assert part.hash == hashlib.sha256(text.encode()).hexdigest()


def test_a_listed_split_names_every_wrong_id(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "toy", alike(4) | {"bare": None})
    with pytest.raises(ValueError) as caught:
        listed_split(dataset, 1, ["scene-00", "bare", "else", "scene-01"], ["scene-01", "judge"])
    assert str(caught.value).splitlines() == [
        "the listed split 1 of toy has 4 problems, it cannot be used:",
        "  else, judge: is not a training image of toy",
        "  scene-01: is listed twice",
        "  bare: has no mask, so it cannot be labelled",
    ]
    with pytest.raises(ValueError, match="has no labelled image"):
        listed_split(dataset, 0, [])


def test_labelled_images_are_counted_by_class(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "toy", {"a": (0, 1), "b": (1, 5), "c": (0,), "bare": None})
    assert count_shown(dataset, ["a", "b", "bare"]) == [1, 2, 0, 0, 0, 1]
    with pytest.raises(KeyError, match="1 ids are not in this subset: judge"):
        count_shown(dataset, ["judge"])


def test_a_split_is_written_once(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "toy", alike(6))
    split, folder = make_split(dataset, 2, 0), tmp_path / "2" / "0"
    assert write_split(split, folder)
    assert (folder / "labeled.txt").read_text() == "".join(f"{id}\n" for id in split.labelled)
    assert (folder / "unlabeled.txt").read_text() == "".join(f"{id}\n" for id in split.unlabelled)
    assert not write_split(split, folder)
    (folder / "unlabeled.txt").unlink()
    assert write_split(split, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"2/0/labeled.txt and .*unlabeled.txt would change: delete"):
        write_split(make_split(dataset, 3, 0), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
