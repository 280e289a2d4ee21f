"""PASCAL VOC 2012, with the masks that SBD, the Semantic Boundaries Dataset, adds: 21 classes, background among them.

    ROOT/VOCdevkit/VOC2012/                 or ROOT/VOC2012, or ROOT itself
      JPEGImages/ID.jpg
      SegmentationClass/ID.png              VOC's own 2,913 masks, or those of all 12,031 images, as some share them
      SegmentationClassAug/ID.png           masks of all images, if you have them
      ImageSets/Segmentation/train.txt, val.txt, and train_aug.txt or trainaug.txt if you have it
    ROOT/sbd/cls/ID.mat, sbd/img/ID.jpg     SBD, if you have no SegmentationClassAug; or in ROOT, or in
                                            ROOT/benchmark_RELEASE/dataset

Both data sets train on the same 10,582 images and are evaluated on VOC's val, 1,449. `voc_classic`: the 1,464 images of VOC's
train have masks, the others none, and what masks there are of them is never opened. `voc_blender`: all have masks, VOC's own
if there is one. SBD contains some of VOC's val images: these are left out of train.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from css_ray.messages import command

from ..types import IGNORE_INDEX
from .description import DatasetInfo
from .files import FileItem, Mask, Problems, files_source
from .images import MAX_PIXELS
from .lists import read_lines, stem
from .masks import MaskCoding, make_coding, read_mat, voc_palette
from .writing import Source

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_VERSION = 1  # of this reader: a change of what it makes of the same files must raise it
_LISTS = "ImageSets/Segmentation"
_MORE_LISTS = (f"{_LISTS}/train_aug.txt", f"{_LISTS}/trainaug.txt", "ImageSets/SegmentationAug/*.txt")


def voc_source(
    root: Path | None, resize: tuple[int, int] | None = None, *, blender: bool, max_pixels: int = MAX_PIXELS
) -> Source:
    """`voc_blender`, or `voc_classic`, whose images beyond VOC's train have no masks; train is sorted by id.

    resize, max_pixels: as for `files_source`.

    Raises ValueError without a root, FileNotFoundError with all the files and folders that are absent.
    """
    name = "voc_blender" if blender else "voc_classic"
    if root is None:
        raise ValueError(f"{name} needs a root: the folder that holds VOCdevkit/VOC2012; {_download('voc', Path('ROOT'))}")
    voc, sbd = _find_voc(root), _find_sbd(root)
    own, merged = _files(voc / "SegmentationClass", ".png"), _files(voc / "SegmentationClassAug", ".png")
    mats = {} if sbd is None else _files(sbd / "cls", ".mat")
    pngs = merged | own
    masks = mats | pngs if blender else pngs
    absent = [str(voc / _LISTS / file) for file in ("train.txt", "val.txt") if not (voc / _LISTS / file).is_file()]
    if not pngs:
        absent.append(str(voc / "SegmentationClass"))
    if absent:
        raise FileNotFoundError(f"absent: {', '.join(absent)}; {_download('voc', root)}")
    train, val = list(_ids(voc / _LISTS / "train.txt")), list(_ids(voc / _LISTS / "val.txt"))
    more = {id for pattern in _MORE_LISTS for file in voc.glob(pattern) for id in _ids(file)}
    known = {*masks, *more} if blender else {*masks, *mats, *more}
    added = known - {*train, *val}
    if not added or (blender and added.isdisjoint(masks)):
        raise FileNotFoundError(
            f"{name} needs {'the masks' if blender else 'the names'} of the images that SBD adds to VOC's train, and {root} "
            f"has neither SegmentationClassAug nor SBD's cls/*.mat; {_download('sbd', root)}"
        )
    images = ({} if sbd is None else _files(sbd / "img", ".jpg")) | _files(voc / "JPEGImages", ".jpg")
    problems = Problems()

    def items(ids: list[str], masks: dict[str, Path], needed: set[str]) -> Iterator[FileItem]:
        for id in ids:
            if id not in images:
                problems.add(f"has no image in {voc / 'JPEGImages'}; {_download('voc', root)}", id)
            elif id in needed and id not in masks:
                problems.add(f"has no mask; {_download('sbd' if id in added else 'voc', root)}", id)
            else:
                yield FileItem(id, images[id], masks[id] if id in needed else None)

    labelled = {*train, *added} if blender else {*train}
    subsets = {
        "train": list(items(sorted({*train, *added}), masks, labelled)),
        "val": list(items(val, pngs, {*val})),  # SBD's masks have no void, so they are not used for validation
    }
    palette = voc_palette()
    info = DatasetInfo(name, CLASS_NAMES, palette[: len(CLASS_NAMES)])
    coding = make_coding(
        len(CLASS_NAMES), palette=info.palette, void_colours=[palette[IGNORE_INDEX]], remedy="fetch the masks again"
    )
    version = f"{name} {_VERSION}"
    return files_source(
        info,
        subsets,
        VocMasks(coding),
        root=root,
        version=version,
        resize=resize,
        max_pixels=max_pixels,
        problems=problems,
    )


@dataclass(frozen=True, slots=True)
class VocMasks:
    """Reads VOC's PNGs and SBD's .mat files, distinguished by their first bytes."""

    coding: MaskCoding

    def __call__(self, encoded: bytes) -> Mask:
        """Read a mask. Raises ValueError with what is wrong."""
        if not encoded.startswith(b"MATLAB"):
            return self.coding(encoded)
        indices = read_mat(encoded)
        self.coding.check_values(set(indices.ravel().tolist()))
        return Mask(indices, None)


def _find_voc(root: Path) -> Path:
    for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root} has neither VOCdevkit/VOC2012 nor VOC2012 nor JPEGImages; is it the right root? {_download('voc', root)}"
    )


def _find_sbd(root: Path) -> Path | None:
    folders = [root, root / "VOCdevkit"]
    if root.name in ("VOC2012", "VOCdevkit"):
        folders.append(root.parent)
    if root.parent.name == "VOCdevkit":
        folders.append(root.parent.parent)
    for folder in folders:
        for sbd in (folder / "sbd", folder, folder / "benchmark_RELEASE" / "dataset"):
            if (sbd / "cls").is_dir():
                return sbd
    return None


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a folder by id; none if there is no such folder."""
    return {path.stem: path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")}


def _ids(file: Path) -> Iterator[str]:
    """The ids of the images that a list names."""
    return map(stem, read_lines(file).values())


def _download(what: str, root: Path) -> str:
    return f"{command('data', 'download', what, '--root', str(root))} fetches {'them' if what == 'voc' else 'SBD'}"
