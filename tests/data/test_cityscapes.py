"""Cityscapes in its own tree: label ids through the 19-class table, ready class indices, and what is said where one is absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from css_ray.data.catalogue import prepare
from css_ray.data.shards import DataSet, open_dataset
from css_ray.types import IGNORE_INDEX

# Label ids of the 19 classes, in the order of their class indices.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
IDS = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313"),
    "val": ("frankfurt_000000_000294",),
}
SIZE = (16, 32)


def image_of(id: str) -> NDArray[np.uint8]:
    return np.random.RandomState(int(id[-6:])).randint(0, 256, (*SIZE, 3), np.uint8)


def label_ids(id: str) -> NDArray[np.uint8]:
    """Every value that a byte can have, each twice."""
    values = np.tile(np.arange(256, dtype=np.uint8), 2)
    return np.random.RandomState(int(id[-6:])).permutation(values).reshape(SIZE)


def class_indices(id: str) -> NDArray[np.uint8]:
    """By another way than the reader's: one comparison a class."""
    indices = np.full(SIZE, IGNORE_INDEX, np.uint8)
    for index, label in enumerate(LABEL_IDS):
        indices[label_ids(id) == label] = index
    return indices


class Tree:
    """leftImg8bit and gtFine as their archives unpack."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for subset, ids in IDS.items():
            for id in ids:
                path = self.image(subset, id)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image_of(id)).save(path)
        self.add("_gtFine_labelIds.png")
        for subset, ids in IDS.items():
            for id in ids:  # what comes with them, and is no mask of classes
                self.mask(subset, id, "_gtFine_polygons.json").write_text("{}")
                Image.new("RGBA", SIZE[::-1]).save(self.mask(subset, id, "_gtFine_color.png"))
                Image.new("I;16", SIZE[::-1], 26001).save(self.mask(subset, id, "_gtFine_instanceIds.png"))

    def image(self, subset: str, id: str) -> Path:
        return self.root / "leftImg8bit" / subset / id.split("_")[0] / f"{id}_leftImg8bit.png"

    def mask(self, subset: str, id: str, kind: str) -> Path:
        return self.root / "gtFine" / subset / id.split("_")[0] / f"{id}{kind}"

    def add(self, kind: str) -> None:
        """Masks of a kind, of all images."""
        for subset, ids in IDS.items():
            for id in ids:
                values = label_ids(id) if kind == "_gtFine_labelIds.png" else class_indices(id)
                path = self.mask(subset, id, kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)

    def remove(self, kind: str) -> None:
        for path in (self.root / "gtFine").rglob(f"*{kind}"):
            path.unlink()

    def prepared(self) -> DataSet:
        assert prepare("cityscapes", self.root.parent / "out", root=self.root)
        return open_dataset(self.root.parent / "out")

    def refused(self) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            prepare("cityscapes", self.root.parent / "out", root=self.root)
        assert not (self.root.parent / "out").exists()
        return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "raw")


def check(dataset: DataSet) -> None:
    for subset, shards in (("train", dataset.train), ("val", dataset.val)):
        assert shards.ids == IDS[subset]
        for index, id in enumerate(shards.ids):
            sample = shards[index]
            assert torch.equal(sample.image, torch.from_numpy(image_of(id)).permute(2, 0, 1))
            assert sample.mask is not None and np.array_equal(sample.mask.numpy(), class_indices(id))


def test_label_ids(tree: Tree) -> None:
    dataset = tree.prepared()
    check(dataset)
    assert dataset.train.classes[0] == tuple(range(19))
    names = dataset.info.class_names
    assert len(names) == len(set(names)) == len(set(dataset.info.palette)) == 19
    assert (names[0], names[5], names[13], names[18]) == ("road", "pole", "car", "bicycle")
    assert dataset.info.palette[0] == (128, 64, 128) and dataset.info.palette[13] == (0, 0, 142)


@pytest.mark.parametrize("kind", ["_gtFine_labelTrainIds.png", "_gtFine_trainIds.png"])
def test_ready_class_indices(tree: Tree, kind: str) -> None:
    tree.remove("_gtFine_labelIds.png")
    tree.add(kind)
    check(tree.prepared())


def test_the_kind_that_all_images_have_is_read(tree: Tree) -> None:
    tree.add("_gtFine_labelTrainIds.png")
    tree.mask("train", IDS["train"][0], "_gtFine_labelTrainIds.png").unlink()
    for path in (tree.root / "gtFine").rglob("*labelTrainIds.png"):
        path.write_text("not looked at")
    check(tree.prepared())


def test_ready_class_indices_go_before_label_ids(tree: Tree) -> None:
    tree.add("_gtFine_labelTrainIds.png")
    for path in (tree.root / "gtFine").rglob("*labelIds.png"):
        path.write_text("not looked at")
    check(tree.prepared())


def test_images_without_a_mask_are_named(tree: Tree) -> None:
    tree.add("_gtFine_labelTrainIds.png")
    for subset, kind in (("train", "_gtFine_labelIds.png"), ("train", "_gtFine_labelTrainIds.png")):
        tree.mask(subset, IDS[subset][1], kind).unlink()
    tree.mask("val", IDS["val"][0], "_gtFine_labelIds.png").unlink()
    message = tree.refused()
    assert f"{IDS['train'][1]}: has no mask *_gtFine_labelTrainIds.png in {tree.root}/gtFine/train" in message
    assert "css-ray data download cityscapes" in message and IDS["val"][0] not in message


def test_masks_of_another_kind_are_refused(tree: Tree) -> None:
    tree.add("_gtFine_trainIds.png")
    first, second, third = IDS["train"]
    Image.new("RGB", SIZE[::-1]).save(tree.mask("train", first, "_gtFine_trainIds.png"))
    Image.new("L", SIZE[::-1], 19).save(tree.mask("train", second, "_gtFine_trainIds.png"))
    Image.new("L", (9, 9)).save(tree.mask("train", third, "_gtFine_trainIds.png"))
    Image.new("I;16", SIZE[::-1], 26001).save(tree.mask("val", IDS["val"][0], "_gtFine_trainIds.png"))
    message = tree.refused()
    for expected in (
        f"{first}: mask has mode RGB",
        f"{second}: mask has the values 19; classes are 0..18, void is 255",
        f"{third}: mask is 9x9 (width x height), must be as its image 32x16",
        f"{IDS['val'][0]}: mask has mode I;16 with 16 bits",
    ):
        assert expected in message, message


def test_absent_folders(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cityscapes needs a root: the folder that holds leftImg8bit and gtFine"):
        prepare("cityscapes", tmp_path / "out")
    shutil.rmtree(tree.root / "gtFine")
    message = tree.refused()
    assert f"absent: {tree.root}/gtFine/train, {tree.root}/gtFine/val; is {tree.root} the right root?" in message
    assert "css-ray data download cityscapes" in message


def test_no_masks_at_all(tree: Tree) -> None:
    tree.remove("_gtFine_labelIds.png")
    assert f"no image in {tree.root}/leftImg8bit has a mask in {tree.root}/gtFine" in tree.refused()
