"""Split files of published repositories, in the formats that they have there, against the ids that css-ray gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from css_ray.data.lists import ListError, listed_ids, read_lines, resolve, stem
from css_ray.data.problems import Problems
from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.splits import make_split, write_split
from css_ray.data.writing import Row, rows_source, write_dataset

VOC = ("2007_000733", "2010_004493", "2011_000068")
CITY = ("hamburg_000000_080169", "aachen_000013_000019", "jena_000078_000019")


def city_of(id: str) -> str:
    return id.partition("_")[0]


# repository: (ids, one line an image)
FORMATS = {
    "U2PL and PCR, VOC": (VOC, "{id}"),
    "U2PL and PCR, Cityscapes": (CITY, "leftImg8bit/train/{city}/{id}_leftImg8bit.png"),
    "UniMatch and ST++, VOC": (VOC, "JPEGImages/{id}.jpg SegmentationClass/{id}.png"),
    "UniMatch and ST++, Cityscapes": (
        CITY,
        "leftImg8bit/train/{city}/{id}_leftImg8bit.png gtFine/train/{city}/{id}_gtFine_labelTrainIds.png",
    ),
    "CSS and PRCL, VOC": (VOC, "{id}"),
    "CSS and PRCL, Cityscapes": (CITY, "{id}_leftImg8bit"),
    "CCT and PS-MT, VOC": (VOC, "/JPEGImages/{id}.jpg /SegmentationClassAug/{id}.png"),
    "PS-MT, Cityscapes": (
        CITY,
        "/images/city_gt_fine/train/{id}_leftImg8bit.png /annotation/city_gt_fine/train/{id}_gtFine.png",
    ),
    "CPS, VOC": (VOC, "{id}"),
    "CPS, Cityscapes": (CITY, "/images/train/{id}.png\t/segmentation/train/{id}_gtFine.png"),
}
# Every ending that the files have: what stands before, between and after the lines.
ENDINGS = {
    "plain": ("", "\n", "\n"),
    "no end of the last line": ("", "\n", ""),
    "CRLF": ("", "\r\n", "\r\n"),
    "CRLF, no end of the last line": ("", "\r\n", ""),
    "byte order mark": ("\ufeff", "\n", "\n"),
    "blank lines": ("\n", "\n\n", "\n \n\t\n"),
    "trailing blanks": ("", " \t\n", "  \n"),
}


def prepared(folder: Path, train: tuple[str, ...], bare: tuple[str, ...] = (), val: tuple[str, ...] = ("judge",)) -> DataSet:
    """A data set on disk of these images; those in `bare` are training images without a mask."""
    png = folder.with_suffix(".png")
    png.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1)).save(png)

    def row(id: str) -> Row:
        return Row(id, png.read_bytes(), 1, 1, None if id in bare else np.zeros((1, 1), np.uint8))

    rows = {"train": [row(id) for id in (*train, *bare)], "val": [row(id) for id in val]}
    write_dataset(folder, rows_source(DatasetInfo("toy", ("thing",), ((0, 0, 0),)), rows))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    others = tuple(f"2008_{number:06d}" for number in range(20))
    folder = tmp_path_factory.mktemp("lists") / "toy"
    return prepared(
        folder, VOC + CITY + others, bare=("2009_000001", "2009_000002"), val=("2007_000033", "lindau_000000_000019")
    )


def problems(dataset: DataSet, labelled: Path | str, unlabelled: Path | str | None = None, num: int | None = None) -> list[str]:
    with pytest.raises(ListError) as caught:
        listed_ids(dataset, labelled, unlabelled, num_labelled=num)
    lines = list(caught.value.problems)
    assert str(caught.value).splitlines()[1:] == [f"  {line}" for line in lines]
    return lines


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("repository", FORMATS)
def test_every_format(dataset: DataSet, tmp_path: Path, repository: str, ending: str) -> None:
    ids, line = FORMATS[repository]
    before, between, after = ENDINGS[ending]
    text = before + between.join(line.format(id=id, city=city_of(id)) for id in ids) + after
    file = tmp_path / "labeled.txt"
    file.write_bytes(text.encode())
    assert listed_ids(dataset, file) == (ids, None)
    assert [stem(line) for line in read_lines(file).values()] == list(ids)


def test_ids_that_are_paths(tmp_path: Path) -> None:
    ids = ("train/a/one", "train/b/one", "train/b/two", "two words", "v1.5", "jena/jena_000078_000019_leftImg8bit")
    dataset = prepared(tmp_path / "toy", ids, val=("val/a/one",))
    file = tmp_path / "list.txt"
    file.write_text(
        "train/a/one\ntrain/b/one.PNG masks/b/one.png\n/images/two.jpg /masks/two.png\ntwo words\nv1.5\n"
        "jena_000078_000019_leftImg8bit\n"
    )
    assert listed_ids(dataset, file) == (ids, None)
    file.write_text("one.png\na b c\nval/a/one.png")
    assert problems(dataset, file) == [
        f"{file}: one.png (line 1): may mean train/a/one or train/b/one or val/a/one; write the whole id",
        f"{file}: a (line 2): is followed by more than one other path; a line has an id, or the paths of an image and its mask",
        # The training images train/a/one and train/b/one have the same stem, and must not be taken for it.
        f"{file}: val/a/one (line 3): is an image of val, on which nothing may train; remove it",
    ]


def test_an_exact_id_goes_before_a_stem() -> None:
    wrong = Problems()
    assert resolve({1: "one", 4: "x/one", 9: "y/one.jpg"}, ["one", "x/one"], wrong) == {1: "one", 4: "x/one"}
    assert wrong.lines() == ["y/one.jpg (line 9): may mean one or x/one; write the whole id"]


def test_what_a_list_leaves_out_is_in_neither_part(dataset: DataSet, tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    labelled.write_text("\n".join(VOC))
    unlabelled.write_text("\n".join((*CITY, "2009_000001")))
    assert listed_ids(dataset, labelled, unlabelled, num_labelled=3) == (VOC, (*CITY, "2009_000001"))
    unlabelled.write_text("\n".join(id for id in dataset.train.ids if id not in VOC))
    assert listed_ids(dataset, labelled, unlabelled) == (VOC, None)


def test_what_write_split_writes_is_read(dataset: DataSet, tmp_path: Path) -> None:
    split = make_split(dataset, 7, 0)
    write_split(split, tmp_path)
    ids = listed_ids(dataset, tmp_path / "labeled.txt", tmp_path / "unlabeled.txt", num_labelled=7)
    assert ids == (split.labelled, None)


def test_a_list_may_lie_behind_a_url(dataset: DataSet, tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text("2007_000733\n")
    assert listed_ids(dataset, f"file://{tmp_path}/labeled.txt") == (("2007_000733",), None)
    assert problems(dataset, f"file://{tmp_path}/none.txt") == [f"file://{tmp_path}/none.txt: there is no such file"]


def test_an_image_in_both_lists_is_named(dataset: DataSet, tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "pseudoseg_labeled_1-16.txt", tmp_path / "pseudoseg_unlabeled_1-16.txt"
    labelled.write_bytes(b"2007_000733\r\n2010_004493")
    unlabelled.write_bytes(b"2011_000068\r\n2010_004493\r\n2008_000001")
    assert problems(dataset, labelled, unlabelled) == [
        f"{unlabelled}: 2010_004493 (line 2): is in the labelled list {labelled} too; remove it here"
    ]


def test_every_problem_of_both_lists_at_once(dataset: DataSet, tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "labeled.txt", tmp_path / "unlabeled.txt"
    absent = [f"2012_{number:06d}" for number in range(7)]
    labelled.write_text("\n".join(["2007_000733", "", *absent, "2007_000033", "2007_000733", "2009_000001"]))
    unlabelled.write_text("lindau_000000_000019_leftImg8bit\n2007_000733\n2009_000002\n2009_000002.jpg x\n")
    shown = ", ".join(f"{id} (line {number})" for number, id in enumerate(absent[:5], 3))
    assert problems(dataset, labelled, unlabelled, 9) == [
        f"{labelled}: {shown} and 2 more: is not in the data set; is the list made for another one?",
        f"{labelled}: 2007_000733 (lines 1, 11): is listed more than once; keep one line",
        f"{labelled}: 2007_000033 (line 10): is an image of val, on which nothing may train; remove it",
        f"{labelled}: 2009_000001 (line 12): has no mask, so it cannot be labelled; move it to the unlabelled list",
        f"{labelled}: has 11 ids, must have 9; change the count or the list",
        f"{unlabelled}: lindau_000000_000019 (line 1): is an image of val, on which nothing may train; remove it",
        f"{unlabelled}: 2007_000733 (line 2): is in the labelled list {labelled} too; remove it here",
        f"{unlabelled}: 2009_000002 (lines 3, 4): is listed more than once; keep one line",
    ]


@pytest.mark.parametrize(("content", "size"), [(b"", 0), (b"\r\n \n", 4), (b"\xef\xbb\xbf", 3)])
def test_an_empty_list_says_so(dataset: DataSet, tmp_path: Path, content: bytes, size: int) -> None:
    file = tmp_path / "labeled.txt"
    file.write_bytes(content)
    (problem,) = problems(dataset, file)
    assert problem.startswith(f"{file}: names no image ({size} bytes); some repositories ship empty files")


def test_a_file_that_cannot_be_read_says_so(dataset: DataSet, tmp_path: Path) -> None:
    image = tmp_path / "list.png"
    Image.new("L", (1, 1)).save(image)
    first, second = problems(dataset, tmp_path / "none.txt", image)
    assert first == f"{tmp_path}/none.txt: there is no such file"
    assert second.startswith(f"{image}: is not UTF-8 text")
    (third,) = problems(dataset, tmp_path)
    assert third.startswith(f"{tmp_path}: cannot be read")
