"""`css-ray data splits`: what its commands print, write and refuse."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.shards import open_dataset
from css_ray.data.splits import make_split


def run(*arguments: object) -> Result:
    from css_ray_cli.data import data

    return CliRunner().invoke(data, ["splits", *map(str, arguments)])


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    ensure_dataset("digits", root)
    return root


@pytest.mark.parametrize("nested", [True, False])
def test_show(digits: Path, nested: bool) -> None:
    options = () if nested else ("--independent",)
    text = output("show", digits, "--labelled", 8, "--split", 0, "--split", 3, *options)
    dataset = open_dataset(digits)
    splits = [make_split(dataset, 8, index, nested=nested) for index in (0, 3)]
    for split in splits:
        assert re.search(rf"^ +{split.index} +8 +392 +6 of 6  {split.hash[:12]}$", text, re.M), text
    # Counted in the masks themselves.
    masks = {sample.id: sample.mask for sample in (dataset.train[number] for number in range(400))}
    for number, name in enumerate(dataset.info.class_names):
        counts = [sum(bool((np.asarray(masks[id]) == number).any()) for id in split.labelled) for split in splits]
        assert re.search(rf"^ +{number} +{name} +{counts[0]} +{counts[1]}$", text, re.M), text


def test_three_splits_are_shown_if_none_is_named(digits: Path) -> None:
    assert "split 0   split 1   split 2\n" in output("show", digits, "--labelled", 8)
    assert "cannot label 401 images: 400 of the 400 training images of digits have a mask" in refused(
        "show", digits, "--labelled", 401
    )
    assert "holds no prepared data set" in refused("show", digits / "else", "--labelled", 4)


def test_write_once(digits: Path, tmp_path: Path) -> None:
    arguments = ("write", digits, "--labelled", 8, "--split", 1, "--out", tmp_path / "lists")
    split = make_split(open_dataset(digits), 8, 1)
    folder = tmp_path / "lists" / "8" / "1"
    assert output(*arguments) == f"{folder}: 8 labelled, 392 unlabelled, {split.hash[:12]}\n"
    assert [path.name for path in sorted(folder.iterdir())] == ["labeled.txt", "unlabeled.txt"]
    assert (folder / "labeled.txt").read_text().split() == list(split.labelled)
    assert (folder / "unlabeled.txt").read_text().split() == list(split.unlabelled)
    assert "there already, nothing was done" in output(*arguments)
    assert "would change: delete the old files or choose another folder" in refused(*arguments, "--independent")
    text = output("check", digits, "--labelled-list", folder / "labeled.txt", "--unlabelled-list", folder / "unlabeled.txt")
    assert text.splitlines() == [
        "8 labelled, 392 unlabelled, 0 training images in neither part",
        "6 of 6 classes are labelled",
        f"hash {split.hash}",
    ]


def test_check_names_every_problem(digits: Path, tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "l.txt", tmp_path / "u.txt"
    labelled.write_text("train-0000\ntrain-0001\ntrain-9999\n")
    unlabelled.write_text("train-0001\nval-0003\n")
    text = refused("check", digits, "--labelled-list", labelled, "--unlabelled-list", unlabelled)
    assert text.splitlines() == [
        "Error: 3 problems in the split files:",
        f"  {labelled}: train-9999 (line 3): is not in the data set; is the list made for another one?",
        f"  {unlabelled}: train-0001 (line 1): is in the labelled list {labelled} too; remove it here",
        f"  {unlabelled}: val-0003 (line 2): is an image of val, on which nothing may train; remove it",
    ]
    labelled.write_text("train-0000")
    unlabelled.write_text("train-0001\ntrain-0002")
    text = output("check", digits, "--labelled-list", labelled, "--unlabelled-list", unlabelled)
    assert "1 labelled, 2 unlabelled, 397 training images in neither part" in text


def test_compare(digits: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one" / "labeled.txt", tmp_path / "other.txt"
    one.parent.mkdir()
    one.write_bytes(b"train-0000\r\ntrain-0001\r\ntrain-0002")
    other.write_text(
        "JPEG/train-0001.jpg Class/train-0001.png\nJPEG/train-0002.jpg Class/train-0002.png\nJPEG/train-0003.jpg x"
    )
    for options in ((), ("--data", digits)):
        lines = output("compare", one.parent, other, *options).splitlines()
        assert [line.split() for line in lines] == [
            ["3", "images", "in", str(one.parent)],
            ["3", "images", "in", str(other)],
            ["2", "shared"],
            ["1", "only", "in", f"{one.parent}:", "train-0000"],
            ["1", "only", "in", f"{other}:", "train-0003"],
            ["0.5000", "Jaccard", "index", "(shared", "of", "all)"],
        ]
    other.write_text("elsewhere\n")
    assert "0.0000 Jaccard" in output("compare", one, other)
    text = refused("compare", one, other, "--data", digits)
    assert "elsewhere (line 1): is not in the data set" in text
    assert f"{tmp_path}/none: there is no such file" in refused("compare", one, tmp_path / "none")
