"""Damaged split files: every line means an image of the data set, or the file is named with what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from css_ray.data.description import DatasetInfo
from css_ray.data.lists import listed_ids
from css_ray.data.shards import DataSet, open_dataset
from css_ray.data.splits import listed_split
from css_ray.data.writing import Row, rows_source, write_dataset
from tests.fuzz.mutate import EXTREMES, Tally, apart, case_random, damage, outcome_of, share_and_whole
from tests.fuzz.test_images import images

IDS = {
    "train": ("2007_000733", "2008_1", "city/jena_000078_000019", "a room", "x.y", "twice/same", "other/same", "bare"),
    "val": ("2007_000033", "v 2"),
}
FORMATS = (
    "{id}",
    "JPEGImages/{stem}.jpg SegmentationClass/{stem}.png",
    "/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png",
    "leftImg8bit/train/jena/{stem}_leftImg8bit.png\tgtFine/{stem}.png",
    "{stem}_leftImg8bit",
)


def line_of(id: str, random: Random) -> str:
    return random.choice(FORMATS).format(id=id, stem=id.rpartition("/")[2])


def made(ids: list[str], random: Random) -> bytes:
    """A list that is right, or nearly."""
    ending = random.choice(("\n", "\r\n", "\n\n", " \n"))
    return (random.choice(("", "\ufeff")) + "".join(line_of(id, random) + ending for id in ids)).encode()


def altered(content: bytes, random: Random) -> tuple[str, bytes]:
    if random.random() < 0.5:
        return damage(content, random)
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    texts = [value for value in EXTREMES if isinstance(value, str)]
    other = random.choice(
        (
            random.choice(texts).encode("utf-8", "surrogatepass"),
            random.choice(lines),
            random.choice(IDS["val"]).encode(),
            b"../" * 20 + lines[place],
            lines[place] + b" third path",
            b"\xc2\xa0".join(lines),
            b"\xff" + lines[place],
            lines[place] * 1000,
            b"\0".join(lines),
        )
    )
    return f"line {place} = {other[:30]!r}", b"\n".join([*lines[:place], other, *lines[place + 1 :]])


def judge(case: tuple[Path, bytes, bytes | None]) -> str:
    """Whether two lists are refused, or make a split of training images of which the labelled ones have masks."""
    folder, labelled, unlabelled = case
    paths = [folder / "labeled.txt", folder / "unlabeled.txt"]
    paths[0].write_bytes(labelled)
    paths[1].write_bytes(unlabelled or b"")
    dataset = opened(folder)

    def act() -> None:
        found = listed_ids(dataset, paths[0], None if unlabelled is None else paths[1])
        split = listed_split(dataset, 0, *found)
        assert {*split.labelled, *split.unlabelled} <= set(IDS["train"]) and split.labelled
        assert "bare" not in split.labelled and not {*split.labelled} & {*split.unlabelled}

    return outcome_of(act)


_opened: dict[Path, DataSet] = {}


def opened(folder: Path) -> DataSet:
    if folder not in _opened:
        _opened[folder] = open_dataset(folder / "set")
    return _opened[folder]


@share_and_whole(400, 40_000)
def test_split_files(count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    mask = np.zeros((37, 50), np.uint8)
    rows = {name: [Row(id, images()[0], 37, 50, None if id == "bare" else mask) for id in ids] for name, ids in IDS.items()}
    write_dataset(tmp_path / "set", rows_source(DatasetInfo("toy", ("a",), ((0, 0, 0),)), rows))
    words, cases = [], []
    for number in range(count):
        random = case_random("lists", number)
        ids = random.sample(IDS["train"][:5], 4)
        word, labelled = altered(made(ids[:2], random), random)
        unlabelled = None
        if random.random() < 0.5:
            unlabelled = made([*ids[2:], "bare"], random)
            if random.random() < 0.5:
                word, unlabelled = altered(unlabelled, random)
                labelled = made(ids[:2], random)
        words.append(f"{number}: {word}")
        cases.append((tmp_path, labelled, unlabelled))
    tally = Tally("split files")
    for word, outcome in zip(words, apart(judge, cases), strict=True):
        tally.count(word, outcome, named=[str(tmp_path / "labeled.txt"), str(tmp_path / "unlabeled.txt")])
    tally.check(record_property)
