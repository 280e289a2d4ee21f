"""Reads folders of images and masks, as a small YAML file describes them.

    name: camvid
    classes: [Sky, Building, Pole]        # index 0, 1, 2 of the masks
    palette: [[128, 128, 128], ...]       # RGB, one per class; chosen if absent, and then masks may not be coded by colour
    void: [11]                            # mask values, or [red, green, blue] of masks, that are ignored; [255] if absent
    train: {images: train, masks: trainannot, list: train.txt}
    val: {images: val, masks: valannot, list: val.txt}
    unlabelled: {images: more, list: more.txt}   # more training images, in another folder; their masks are never looked at
    image_suffix: _leftImg8bit.png        # how the names of images end, and of masks, if by more than .jpg and .png
    mask_suffix: _gtFine_labelTrainIds.png

Paths are relative to the root. The id of an image is its path in `images` without the suffix; its mask has the same id in
`masks`. A list has one id per line, or any of the lines that `lists` reads; without one, every image of the folder counts.

The images of `train` that have a mask can be labelled, the others are unlabelled. `unlabelled` adds what is not in `train`
already; without a list it also leaves out what is in `val`. Every image of `val` needs a mask.

A forgotten mask looks like an unlabelled image. So what may be a mask under another name is refused, once an image of `train`
has none: a mask whose id no image has, and a picture that has the image's id but not the suffix of a mask. So is a `train`
without any mask. `css-ray data prepare` reports how many images have a mask. In a folder that also holds the masks of other
images, list the images with masks under `train`, and the rest under `unlabelled`, which looks for none.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from css_ray.messages import did_you_mean

from ..types import IGNORE_INDEX
from .description import DatasetInfo, is_byte, is_name
from .files import MASK_SUFFIXES, FileItem, files_source
from .images import IMAGE_SUFFIXES, MAX_PIXELS
from .lists import read_lines, resolve
from .masks import Colour, MaskCoding, make_coding
from .problems import Problems, brief, joined, quoted
from .writing import Source

_MOST_BYTES = 2**20  # of a description
_VERSION = 2  # of this reader: a change of what it makes of the same files must raise it


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a description: folders and list relative to the root; None if the description names none."""

    images: str
    masks: str | None
    list: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """A checked YAML description. The suffixes are those that the names of images and masks may end with."""

    info: DatasetInfo
    coding: MaskCoding
    train: Part
    val: Part
    unlabelled: Part | None
    image_suffixes: tuple[str, ...]
    mask_suffixes: tuple[str, ...]


def read_description(path: str | Path) -> Description:
    """Read and check a YAML description.

    Raises FileNotFoundError if there is none, ValueError with every problem found in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no description {path}; write one as studies/data/camvid.yaml")
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than {_MOST_BYTES:,}, so it describes no data set")
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # beside its own, PyYAML raises what the dates and numbers of a file lead it into
        raise ValueError(f"{path} is not YAML: {brief(' '.join(str(error).split()))}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} must hold `name:`, `classes:`, `train:` and `val:`, got {quoted(described)}")
    unknown = [brief(key) if isinstance(key, str) else quoted(key) for key in described if key not in _KEYS]
    problems = [f"{key} is unknown{did_you_mean(key, _KEYS)}" for key in unknown]
    name = described.get("name")
    if not isinstance(name, str) or not is_name(name):
        problems.append(f"name must be a word, got {quoted(name)}")
    classes = described.get("classes")
    if (
        not isinstance(classes, list)
        or not classes
        or len(classes) > IGNORE_INDEX
        or not all(isinstance(one, str) and is_name(one) for one in classes)
    ):
        problems.append(f"classes must be a list of 1 to {IGNORE_INDEX} names, got {quoted(classes)}")
        classes = []
    if twice := sorted({one for one in classes if classes.count(one) > 1}):
        problems.append(f"classes has {', '.join(twice)} more than once")
    palette = described.get("palette", [_colour(index) for index in range(len(classes))])
    if not isinstance(palette, list) or len(palette) != len(classes) or not all(map(_is_colour, palette)):
        problems.append(
            f"palette must have one [red, green, blue] in 0..255 for each of {len(classes)} classes, got {quoted(palette)}"
        )
        palette = []
    void = described.get("void", [IGNORE_INDEX])
    if not isinstance(void, list) or not all(is_byte(value) or _is_colour(value) for value in void):
        problems.append(f"void must be a list of mask values in 0..255 or of [red, green, blue], got {quoted(void)}")
        void = []
    values = [value for value in void if is_byte(value)]
    void_colours = [_rgb(value) for value in void if not is_byte(value)]
    for value in values:
        if value < len(classes):
            problems.append(
                f"void {value} is the class {classes[value]}; void values must lie above the {len(classes)} classes"
            )
    colours = [_rgb(colour) for colour in palette] if "palette" in described else []
    if void_colours and not colours:
        problems.append(f"void has the colour {void_colours[0]}, but there is no palette; give the colours of the classes too")
    for colour, count in Counter([*colours, *dict.fromkeys(void_colours)]).items():
        if count > 1:
            problems.append(f"{colour} stands for {count} of the classes and void; each needs a colour of its own")
    image_suffixes = _suffixes("image_suffix", described, IMAGE_SUFFIXES, problems)
    mask_suffixes = _suffixes("mask_suffix", described, MASK_SUFFIXES, problems)
    parts = {key: _part(key, described.get(key), problems) for key in ("train", "val", "unlabelled")}
    if problems:
        raise ValueError(joined(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems))
    info = DatasetInfo(str(name), tuple(classes), tuple(map(_rgb, palette)))
    coding = make_coding(len(classes), values, colours, void_colours, f"fix the mask, or classes, palette and void in {path}")
    train, val = parts["train"], parts["val"]
    assert train is not None and val is not None
    return Description(info, coding, train, val, parts["unlabelled"], image_suffixes, mask_suffixes)


_KEYS = ("name", "classes", "palette", "void", "train", "val", "unlabelled", "image_suffix", "mask_suffix")


def _suffixes(key: str, described: dict[str, Any], known: tuple[str, ...], problems: list[str]) -> tuple[str, ...]:
    """The one that is described, or all that are known."""
    if key not in described:
        return known
    suffix = described[key]
    if not isinstance(suffix, str) or not suffix.lower().endswith(known):
        problems.append(f"{key} must end with {' or '.join(known)}, got {quoted(suffix)}")
    return (str(suffix),)


def _part(key: str, described: Any, problems: list[str]) -> Part | None:
    if key == "unlabelled" and described is None:
        return None
    needed = {"images"} if key == "unlabelled" else {"images", "masks"}
    if not isinstance(described, dict) or not needed <= described.keys() <= needed | {"list"}:
        problems.append(f"{key} must have {' and '.join(sorted(needed))}, and may have list, got {quoted(described)}")
        return None
    if wrong := [
        f"{name} {quoted(value)}" for name, value in described.items() if not isinstance(value, str) or not is_name(value)
    ]:
        problems.append(f"{key} must have paths, got {', '.join(wrong)}")
        return None
    return Part(described["images"], described.get("masks"), described.get("list"))


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_byte, value))


def _rgb(colour: list[int]) -> Colour:
    red, green, blue = colour
    return red, green, blue


def _colour(index: int) -> list[int]:
    """Far apart for neighbouring indices: the hue turns by the golden section, in three brightnesses."""
    return [round(255 * share) for share in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1 - 0.2 * (index % 3))]


def folder_source(
    description: str | Path,
    root: str | Path | None,
    resize: tuple[int, int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """The data set that the YAML file `description` describes, whose files lie in `root` (beside the description if None).

    resize, max_pixels: as for `files_source`.

    Raises FileNotFoundError with the folders and lists that are absent, ValueError with every problem of the description.
    What is wrong with the files is raised when the source is written.
    """
    described = read_description(description)
    root = Path(description).parent if root is None else Path(root)
    problems = Problems()
    subsets = _listed(described, root, problems)
    coding = described.coding
    version = f"folder {_VERSION} {sorted(coding.values.items())} {sorted(coding.colours.items())}"
    return files_source(
        described.info,
        subsets,
        coding,
        root=root,
        version=version,
        resize=resize,
        max_pixels=max_pixels,
        problems=problems,
    )


def _listed(described: Description, root: Path, problems: Problems) -> dict[str, list[FileItem]]:
    """The files of train and val, in the order of the lists, or of the ids; those of `unlabelled` end train."""
    parts = [part for part in (described.train, described.val, described.unlabelled) if part is not None]
    folders = [folder for part in parts for folder in (part.images, part.masks) if folder is not None]
    absent = [root / folder for folder in folders if not (root / folder).is_dir()]
    absent += [root / part.list for part in parts if part.list is not None and not (root / part.list).is_file()]
    if absent:
        raise FileNotFoundError(f"absent: {', '.join(map(str, dict.fromkeys(absent)))}; is {root} the right root?")
    image_folders = dict.fromkeys(part.images for part in parts)
    mask_folders = dict.fromkeys(part.masks for part in parts if part.masks is not None)
    image_files = {folder: _files(root, folder, described.image_suffixes, problems) for folder in image_folders}
    mask_files = {folder: _files(root, folder, described.mask_suffixes, problems) for folder in mask_folders}

    def items(part: Part) -> list[FileItem]:
        images = image_files[part.images]
        masks = {} if part.masks is None else mask_files[part.masks]
        if part.list is None:
            ids: Iterable[str] = sorted(images)
        else:
            ids = named = _read_list(root, part.list, images, described, problems)
            for id, mask in named.items():
                # A line that names a mask does not mean an image without one: the mask is missing, or its name is wrong.
                if mask and part.masks is not None and id not in masks:
                    problems.add(
                        f"is listed in {part.list} with the mask {mask}, and has no mask in {part.masks} "
                        f"({_mask_names(described)}); add the mask, or list the image alone if it is unlabelled",
                        id,
                    )
        return [FileItem(id, images[id], masks.get(id)) for id in ids]

    train, val = items(described.train), items(described.val)
    for item in val:
        if item.mask is None:
            problems.add(
                f"is in val and has no mask in {described.val.masks} ({_mask_names(described)}); add the mask, or take the "
                "image out of val",
                item.id,
            )
    _find_forgotten(train, described, root, image_files, mask_files, problems)
    known = {item.id for item in train}
    seen = {item.id for item in val}
    if described.unlabelled is not None:
        for item in items(described.unlabelled):
            if item.id in seen and described.unlabelled.list is not None:
                problems.add("is in unlabelled and in val", item.id)
            if item.id not in known | seen:
                train.append(item)
    return {"train": train, "val": val}


def _find_forgotten(
    train: Sequence[FileItem],
    described: Description,
    root: Path,
    image_files: Mapping[str, Mapping[str, Path]],
    mask_files: Mapping[str, Mapping[str, Path]],
    problems: Problems,
) -> None:
    """Find what may be the mask of an image of `train` that seems to have none."""
    folder = described.train.masks
    assert folder is not None
    bare = {item.id for item in train if item.mask is None}
    if not bare:  # masks of other images do no harm
        return
    if len(bare) == len(train):
        problems.add(
            f"none of its {len(train)} images has a mask in {folder} ({_mask_names(described)}); without any nothing can be "
            "learned: check masks and mask_suffix",
            "train",
        )
    for id in sorted(mask_files[folder].keys() - set().union(*image_files.values())):
        problems.add(
            f"is a mask in {folder} that belongs to no image; name it as its image (mask_suffix may help), remove it, or put "
            "the images without masks under unlabelled",
            id,
        )
    suffixes = tuple(f"{suffix[: -len('.png')]}{other}" for suffix in described.mask_suffixes for other in _PICTURES)
    images = {path for files in image_files.values() for path in files.values()}  # which may lie in the folder of the masks
    for id, path in _files(root, folder, suffixes, Problems()).items():
        if id in bare and path not in images:
            problems.add(f"has {path.name} in {folder}, which is not a mask: masks are PNGs; convert it, or remove it", id)


_PICTURES = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def _mask_names(described: Description) -> str:
    return " or ".join(f"ID{suffix}" for suffix in described.mask_suffixes)


def _read_list(root: Path, name: str, images: Mapping[str, Path], described: Description, problems: Problems) -> dict[str, str]:
    """The ids that a list names, each once, with the mask that the line names, empty if it names none."""
    try:
        lines = read_lines(root / name)
    except ValueError:
        problems.add("is empty or not text; write one id per line, or drop the list to take all images", name)
        return {}
    suffixes = described.image_suffixes
    given = dict(lines)
    lines = {number: _without(line, suffixes) or _without(line.split()[0], suffixes) or line for number, line in lines.items()}
    wrong = Problems()
    resolved = resolve(lines, images, wrong)
    ids = resolved.values()
    problems.update({f"listed in {name}, {problem}": where for problem, where in wrong.found.items()})
    for id, count in Counter(ids).items():
        if count > 1:
            problems.add(f"is listed {count} times in {name}", id)
    # An id may have blanks: what follows is a mask only if the first part alone means the image.
    return {
        id: "" if id in (given[number], _without(given[number], suffixes)) else " ".join(given[number].split()[1:])
        for number, id in resolved.items()
    }


def _files(root: Path, folder: str, suffixes: tuple[str, ...], problems: Problems) -> dict[str, Path]:
    """The files of `folder` and its subfolders by id."""
    files: dict[str, Path] = {}
    for path in sorted((root / folder).rglob("*")):
        id = _without(path.relative_to(root / folder).as_posix(), suffixes)
        if id is None or path.name.startswith("."):
            continue
        if id in files:
            problems.add(f"is more than one file in {folder}: {files[id].name}, {path.name}", id)
        files[id] = path
    return files


def _without(name: str, suffixes: tuple[str, ...]) -> str | None:
    """The name without its suffix, in capitals or not; None if it has none of them."""
    for suffix in suffixes:
        if name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return None
