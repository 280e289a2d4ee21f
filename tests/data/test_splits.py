"""Splits: the documented rule, computed here by hand, and what a split promises whatever the rule."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from css_ray.data import shards
from css_ray.data.digits import digits_source
from css_ray.data.shards import DataSet, DatasetInfo, Row, Source, open_dataset, write_dataset
from css_ray.data.splits import make_split

NUM_CLASSES = 6


def prepared(folder: Path, shown: dict[str, tuple[int, ...] | None]) -> DataSet:
    """A data set on disk whose training images show these classes; None has no mask."""
    png = io.BytesIO()
    Image.new("RGB", (NUM_CLASSES, 1)).save(png, "PNG")

    def row(id: str, classes: tuple[int, ...] | None) -> Row:
        mask = None if classes is None else np.array([[*classes, *[255] * (NUM_CLASSES - len(classes))]], np.uint8)
        return Row(id, png.getvalue(), 1, NUM_CLASSES, mask)

    def rows() -> dict[str, Iterator[Row]]:
        return {"train": (row(id, classes) for id, classes in shown.items()), "val": iter([row("judge", (0,))])}

    info = DatasetInfo("toy", tuple("abcdef"), ((0, 0, 0),) * NUM_CLASSES)
    write_dataset(folder, Source(info, "toy", len(shown) + 1, rows))
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


def test_a_small_count_covers_as_much_as_it_can(tmp_path: Path) -> None:
    shown = {"a": (0,), "b": (1,), "c": (2,), "d": (3,), "e": (4,), "f": (5,), "left": (0, 1, 2), "right": (3, 4, 5)}
    dataset = prepared(tmp_path / "toy", shown)
    for index in range(10):
        assert make_split(dataset, 2, index).labelled == ("left", "right")
        assert make_split(dataset, 1, index).labelled[0] in ("left", "right")


def test_no_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(tmp_path / "toy", alike(10))
    monkeypatch.setattr(shards, "decode_image", None)
    with pytest.raises(TypeError):
        dataset.train[0]
    assert len(make_split(dataset, 3, 0).labelled) == 3


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_count_out_of_bounds_says_what_is_there(tmp_path: Path, count: int) -> None:
    dataset = prepared(tmp_path / "toy", alike(10) | {"bare": None})
    with pytest.raises(
        ValueError, match=rf"num_labelled must be >= 1 and <= 10, got {count}: of the 11 training images of toy"
    ):
        make_split(dataset, count, 0)


def test_digits_are_frozen(tmp_path: Path) -> None:
    write_dataset(tmp_path / "digits", digits_source())
    dataset = open_dataset(tmp_path / "digits")
    split = make_split(dataset, 24, 0)
    assert (len(split.labelled), len(split.unlabelled)) == (24, 376)
    assert split.hash == "56cb0f990b55448358829435f50eb42021cc2b559d20c74cc10cbfe823664026"
    assert {one for id in split.labelled for one in dataset.train.classes[dataset.train.ids.index(id)] or ()} == set(range(6))
