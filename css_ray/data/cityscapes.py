"""Cityscapes: street scenes of 1024 x 2048 pixels in 19 classes; 2,975 for training and 500 for validation, all with masks.

    ROOT/leftImg8bit/{train,val}/CITY/CITY_xxxxxx_xxxxxx_leftImg8bit.png
    ROOT/gtFine/{train,val}/CITY/CITY_xxxxxx_xxxxxx_gtFine_labelIds.png

The id of an image is CITY_xxxxxx_xxxxxx. If all images have a mask of class indices, `_gtFine_labelTrainIds.png` as the
official scripts write it, or `_gtFine_trainIds.png`, it is taken as it is; `_gtFine_labelIds.png`, which comes with the data
set, is translated.
"""

from __future__ import annotations

from pathlib import Path

from ..types import IGNORE_INDEX
from .description import SUBSETS, DatasetInfo
from .files import FileItem, Problems, files_source
from .images import MAX_PIXELS
from .masks import Colour, MaskCoding, make_coding
from .writing import Source

# name, label id, colour; the place in the list is the class index.
_CLASSES: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

_VERSION = 1  # of this reader: a change of what it makes of the same files must raise it
_IMAGE = "_leftImg8bit.png"
_REMEDY = "fetch the masks again, or delete them if there are labelIds too"
_TRAIN_IDS = make_coding(len(_CLASSES), remedy=_REMEDY)
_LABEL_IDS = MaskCoding(
    # Void is the rule here: whatever is not among the 19, -1 too, which a PNG holds as 255.
    dict.fromkeys(range(256), IGNORE_INDEX) | {label: index for index, (_, label, _) in enumerate(_CLASSES)},
    {},
    _REMEDY,
)
_MASKS = {
    "_gtFine_labelTrainIds.png": _TRAIN_IDS,
    "_gtFine_trainIds.png": _TRAIN_IDS,
    "_gtFine_labelIds.png": _LABEL_IDS,
}
"""How each kind of mask is read, the ones that need the least work first."""


def cityscapes_source(root: Path | None, resize: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS) -> Source:
    """Train and val in the order of their ids, masks all of one kind: the first that all images have, else the one that most
    have.

    resize, max_pixels: as for `files_source`.

    Raises ValueError without a root, FileNotFoundError with the folders that are absent.
    """
    remedy = "css-ray data download cityscapes explains what to fetch, and where to unpack it"
    if root is None:
        raise ValueError(f"cityscapes needs a root: the folder that holds leftImg8bit and gtFine; {remedy}")
    folders = [root / kind / subset for kind in ("leftImg8bit", "gtFine") for subset in SUBSETS]
    if absent := [str(folder) for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(f"absent: {', '.join(absent)}; is {root} the right root? {remedy}")
    images = {subset: _files(root / "leftImg8bit" / subset, _IMAGE) for subset in SUBSETS}
    masks = {kind: {subset: _files(root / "gtFine" / subset, kind) for subset in SUBSETS} for kind in _MASKS}

    def count(kind: str) -> int:
        return sum(len(images[subset].keys() & masks[kind][subset].keys()) for subset in SUBSETS)

    kind = max(_MASKS, key=count)  # the first of equals
    if not count(kind):
        raise FileNotFoundError(f"no image in {root / 'leftImg8bit'} has a mask in {root / 'gtFine'}; {remedy}")
    problems = Problems()
    subsets: dict[str, list[FileItem]] = {}
    for subset in SUBSETS:
        subsets[subset] = []
        for id, image in images[subset].items():
            if id in masks[kind][subset]:
                subsets[subset].append(FileItem(id, image, masks[kind][subset][id]))
            else:
                problems.add(f"has no mask *{kind} in {root / 'gtFine' / subset}, as most images have; {remedy}", id)
    info = DatasetInfo("cityscapes", tuple(name for name, _, _ in _CLASSES), tuple(colour for _, _, colour in _CLASSES))
    version = f"cityscapes {_VERSION} {kind}"
    return files_source(
        info,
        subsets,
        _MASKS[kind],
        root=root,
        version=version,
        resize=resize,
        max_pixels=max_pixels,
        problems=problems,
    )


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of all cities by id, in the order of the ids."""
    found = {path.name.removesuffix(suffix): path for path in folder.glob(f"*/*{suffix}") if not path.name.startswith(".")}
    return dict(sorted(found.items()))
