"""VOC 2012 with SBD in the layouts that it comes in: which images, which masks, and what is said where something is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from css_ray.data.catalogue import prepare
from css_ray.data.masks import voc_palette
from css_ray.data.shards import DataSet, open_dataset
from css_ray.types import IGNORE_INDEX

TRAIN = ("2007_000032", "2007_000039")
VAL = ("2007_000033", "2007_000042")
ADDED = ("2008_000002", "2008_000007", "2008_000008")
ALL = sorted((*TRAIN, *ADDED))

SIZE = (12, 16)


def image_of(id: str) -> NDArray[np.uint8]:
    """One grey an image, which a JPEG keeps."""
    return np.full((*SIZE, 3), int(id[5:]) * 23 % 256, np.uint8)


def own_mask(id: str) -> NDArray[np.uint8]:
    """As VOC's annotators drew it: with void."""
    return np.random.RandomState(int(id[5:])).choice(np.array([0, 1, 15, 20, 255], np.uint8), SIZE)


def sbd_mask(id: str) -> NDArray[np.uint8]:
    """As SBD's did: other outlines, no void."""
    return np.random.RandomState(100 + int(id[5:])).choice(np.array([0, 1, 15, 20], np.uint8), SIZE)


def write_mask(path: Path, mask: NDArray[np.uint8], *, paletted: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if paletted:
        image.putpalette(np.array(voc_palette(), np.uint8).tobytes())
    image.save(path)


def write_images(folder: Path, ids: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for id in ids:
        Image.fromarray(image_of(id)).save(folder / f"{id}.jpg", quality=95)


def write_voc(voc: Path, *, images: Iterable[str] = (*TRAIN, *VAL, *ADDED)) -> Path:
    """The tree of VOCtrainval_11-May-2012.tar below VOCdevkit."""
    write_images(voc / "JPEGImages", images)
    for id in (*TRAIN, *VAL):
        write_mask(voc / "SegmentationClass" / f"{id}.png", own_mask(id), paletted=True)
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{id}\n" for id in TRAIN))
    (lists / "val.txt").write_text("\r\n".join(VAL))
    (lists / "trainval.txt").write_text("".join(f"{id}\n" for id in (*TRAIN, *VAL)))
    return voc


def write_sbd(sbd: Path) -> Path:
    """The tree of benchmark_RELEASE/dataset. SBD has masks of images in VOC's train and val, too."""
    (sbd / "cls").mkdir(parents=True)
    for id in (*ADDED, TRAIN[0], VAL[0]):
        boundaries = np.empty((20, 1), object)
        boundaries.fill(np.zeros((2, 2), np.uint8))
        fields = {"Boundaries": boundaries, "Segmentation": sbd_mask(id), "CategoriesPresent": np.array([[1]], np.uint8)}
        savemat(sbd / "cls" / f"{id}.mat", {"GTcls": fields}, do_compression=True)
    write_images(sbd / "img", (*ADDED, TRAIN[0], VAL[0]))
    return sbd


def write_merged(folder: Path) -> None:
    """SegmentationClassAug: grey masks of all images; VOC's own where there is one."""
    for id in (*TRAIN, *VAL, *ADDED):
        write_mask(folder / f"{id}.png", sbd_mask(id) if id in ADDED else own_mask(id), paletted=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """As `css-ray data download` leaves it."""
    write_voc(tmp_path / "raw" / "VOCdevkit" / "VOC2012")
    write_sbd(tmp_path / "raw" / "sbd")
    return tmp_path / "raw"


def prepared(name: str, root: Path) -> DataSet:
    out = root.parent / name
    shutil.rmtree(out, ignore_errors=True)
    assert prepare(name, out, root=root)
    return open_dataset(out)


def refused(name: str, root: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        prepare(name, root.parent / name, root=root)
    assert not (root.parent / name).exists()
    return str(caught.value)


def check(dataset: DataSet, masks: dict[str, NDArray[np.uint8]]) -> None:
    """All images of train and val are there, and just these have masks, exact to the index."""
    assert list(dataset.train.ids) == ALL and dataset.val.ids == VAL
    found = {}
    for shards in (dataset.train, dataset.val):
        for index in range(len(shards)):
            sample = shards[index]
            assert np.abs(sample.image.permute(1, 2, 0).numpy().astype(int) - image_of(sample.id)).max() <= 1
            if sample.mask is not None:
                found[sample.id] = sample.mask.numpy()
    assert found.keys() == masks.keys()
    for id, mask in masks.items():
        assert np.array_equal(found[id], mask), id


CLASSIC = {id: own_mask(id) for id in (*TRAIN, *VAL)}
BLENDER = CLASSIC | {id: sbd_mask(id) for id in ADDED}


def test_as_it_is_downloaded(root: Path) -> None:
    classic, blender = prepared("voc_classic", root), prepared("voc_blender", root)
    check(classic, CLASSIC)
    check(blender, BLENDER)
    assert (classic.info.name, blender.info.name) == ("voc_classic", "voc_blender")
    assert classic.info.class_names == blender.info.class_names and len(classic.info.class_names) == 21
    assert classic.info.class_names[:2] == ("background", "aeroplane") and classic.info.class_names[-1] == "tvmonitor"
    assert classic.info.palette[20] == (0, 64, 128)


@pytest.mark.parametrize("voc", ["VOCdevkit/VOC2012", "VOC2012", "."])
@pytest.mark.parametrize("source", ["sbd", ".", "benchmark_RELEASE/dataset"])
def test_roots(tmp_path: Path, voc: str, source: str) -> None:
    root = tmp_path / "raw"
    write_voc(root / voc)
    write_sbd(root / source)
    check(prepared("voc_blender", root), BLENDER)


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_a_root_inside_finds_what_lies_beside_it(root: Path, inside: str) -> None:
    assert prepare("voc_blender", root.parent / "out", root=root / inside)
    check(open_dataset(root.parent / "out"), BLENDER)


def test_merged_masks(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "raw" / "VOC2012")
    write_merged(voc / "SegmentationClassAug")
    check(prepared("voc_blender", tmp_path / "raw"), BLENDER)
    check(prepared("voc_classic", tmp_path / "raw"), CLASSIC)


def test_merged_masks_under_the_name_of_vocs_own(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "raw")
    shutil.rmtree(voc / "SegmentationClass")
    write_merged(voc / "SegmentationClass")
    check(prepared("voc_blender", voc), BLENDER)
    check(prepared("voc_classic", voc), CLASSIC)


def test_merged_masks_alone(tmp_path: Path) -> None:
    voc = write_voc(tmp_path / "raw")
    shutil.rmtree(voc / "SegmentationClass")
    write_merged(voc / "SegmentationClassAug")
    check(prepared("voc_blender", voc), BLENDER)
    check(prepared("voc_classic", voc), CLASSIC)


def test_masks_of_voc_go_before_merged_ones_and_these_before_those_of_sbd(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    other = np.full(SIZE, 3, np.uint8)
    for id in (TRAIN[0], VAL[0], ADDED[0]):
        write_mask(voc / "SegmentationClassAug" / f"{id}.png", other, paletted=False)
    check(prepared("voc_blender", root), BLENDER | {ADDED[0]: other})


def test_images_of_sbd_fill_in(root: Path) -> None:
    for id in ADDED:
        (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{id}.jpg").unlink()
    check(prepared("voc_classic", root), CLASSIC)


@pytest.mark.parametrize("file", ["Segmentation/train_aug.txt", "Segmentation/trainaug.txt", "SegmentationAug/train_aug.txt"])
def test_classic_needs_names_alone(tmp_path: Path, file: str) -> None:
    voc = write_voc(tmp_path / "raw")
    path = voc / "ImageSets" / file
    path.parent.mkdir(exist_ok=True)
    # With an image of val, as lists made from SBD alone have it.
    path.write_text("\r\n".join(f"/JPEGImages/{id}.jpg /SegmentationClassAug/{id}.png" for id in (*ADDED, *TRAIN, VAL[0])))
    check(prepared("voc_classic", voc), CLASSIC)
    assert "voc_blender needs the masks" in refused("voc_blender", voc)


def test_classic_never_opens_the_masks_of_unlabelled_images(root: Path) -> None:
    for path in (root / "sbd" / "cls").glob("2008*.mat"):
        path.write_text("no mask")
    for id in ADDED:
        path = root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / f"{id}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_text("no mask")
    check(prepared("voc_classic", root), CLASSIC)


def test_void_is_void(root: Path) -> None:
    classic = prepared("voc_classic", root)
    mask = classic.val[0].mask
    assert mask is not None and bool((mask == IGNORE_INDEX).any()) and classic.val.classes[0] == (0, 1, 15, 20)


def test_without_the_images_that_sbd_adds(root: Path) -> None:
    shutil.rmtree(root / "sbd")
    for name, what in (("voc_classic", "the names"), ("voc_blender", "the masks")):
        message = refused(name, root)
        assert f"{name} needs {what} of the images that SBD adds to VOC's train" in message
        assert f"css-ray data download sbd --root {root}" in message


def test_without_voc(root: Path) -> None:
    with pytest.raises(ValueError, match=r"voc_classic needs a root: .*css-ray data download voc --root ROOT"):
        prepare("voc_classic", root.parent / "out")
    absent = root / "nowhere"
    assert f"{absent} has neither VOCdevkit/VOC2012 nor VOC2012 nor JPEGImages" in refused("voc_classic", absent)
    voc = root / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    shutil.rmtree(voc / "SegmentationClass")
    message = refused("voc_blender", root)
    assert f"{voc}/ImageSets/Segmentation/val.txt, {voc}/SegmentationClass; css-ray data download voc" in message


def test_all_that_is_wrong_is_said_at_once(root: Path) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages" / f"{TRAIN[1]}.jpg").unlink()
    (voc / "SegmentationClass" / f"{VAL[0]}.png").unlink()  # SBD has one, but without void
    (voc / "SegmentationClass" / f"{TRAIN[0]}.png").unlink()
    write_mask(voc / "SegmentationClass" / f"{VAL[1]}.png", np.full(SIZE, 21, np.uint8), paletted=True)
    savemat(root / "sbd" / "cls" / f"{ADDED[0]}.mat", {"GTcls": {"Segmentation": np.full(SIZE, 255, np.uint8)}})
    (root / "sbd" / "cls" / f"{ADDED[1]}.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("2008_000099\n2008_000008\n2008_000123")
    write_images(voc / "JPEGImages", ["2008_000123"])
    message = refused("voc_blender", root)
    for expected in (
        f"{TRAIN[1]}, 2008_000099: has no image in {voc}/JPEGImages",
        f"{VAL[0]}: has no mask; css-ray data download voc",
        "2008_000123: has no mask; css-ray data download sbd",
        f"{VAL[1]}: mask has the values 21; classes are 0..20, void is 255: fetch the masks again",
        f"{ADDED[1]}: mask is not a .mat file of SBD",
    ):
        assert expected in message, message
    assert f"{TRAIN[0]}:" not in message  # SBD's mask will do


def test_mats_have_no_void(root: Path) -> None:
    savemat(root / "sbd" / "cls" / f"{ADDED[0]}.mat", {"GTcls": {"Segmentation": np.full(SIZE, 33, np.uint8)}})
    assert f"{ADDED[0]}: mask has the values 33" in refused("voc_blender", root)


def test_val_in_train_is_refused(root: Path) -> None:
    with open(root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", "a") as file:
        file.write(f"{VAL[1]}\n")
    assert f"{VAL[1]}: is in train and in val" in refused("voc_classic", root)


def test_resize(root: Path) -> None:
    assert prepare("voc_blender", root.parent / "small", root=root, resize=(8, 6))
    dataset = open_dataset(root.parent / "small")
    assert set(dataset.train.sizes + dataset.val.sizes) == {(6, 8)}
