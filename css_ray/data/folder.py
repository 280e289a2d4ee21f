"""Reads folders of images and index masks, as a small YAML file describes them.

    name: camvid
    classes: [Sky, Building, Pole]        # index 0, 1, 2 of the masks
    palette: [[128, 128, 128], ...]       # RGB, one a class; chosen if absent
    void: [11]                            # mask values that are ignored; [255] if absent
    train: {images: train, masks: trainannot, list: train.txt}
    val: {images: val, masks: valannot, list: val.txt}
    unlabelled: {images: more, list: more.txt}   # training images without masks, if any

Paths are relative to the root. The id of an image is its path in `images` without the suffix; its mask has the same id in
`masks`. A list has one id a line; without one, every image of the folder counts. `unlabelled` adds what is not in `train`
already; without a list it also leaves out what is in `val`.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from ..types import IGNORE_INDEX
from .shards import DatasetInfo, Row, Source, decode_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MASK_SUFFIXES = (".png",)  # lossy formats would invent classes

_VERSION = 1  # of this reader: a change of what it makes of the same files must raise it
_SHOWN = 5  # ids that are named where many share a problem


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a description: folders and list relative to the root; None where the description names none."""

    images: str
    masks: str | None
    list: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """A checked YAML description. void: the mask values that become IGNORE_INDEX."""

    info: DatasetInfo
    void: frozenset[int]
    train: Part
    val: Part
    unlabelled: Part | None


def read_description(path: str | Path) -> Description:
    """Read and check a YAML description.

    Raises FileNotFoundError if there is none, ValueError with every problem found in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no description {path}; write one as studies/data/camvid.yaml")
    try:
        described = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} must hold `name:`, `classes:`, `train:` and `val:`, got {described!r}")
    problems = [f"{key} is unknown; there are {', '.join(_KEYS)}" for key in described if key not in _KEYS]
    name = described.get("name")
    if not isinstance(name, str) or not name:
        problems.append(f"name must be a word, got {name!r}")
    classes = described.get("classes")
    if (
        not isinstance(classes, list)
        or not classes
        or len(classes) > IGNORE_INDEX
        or not all(isinstance(one, str) for one in classes)
    ):
        problems.append(f"classes must be a list of 1 to {IGNORE_INDEX} names, got {classes!r}")
        classes = []
    if twice := sorted({one for one in classes if classes.count(one) > 1}):
        problems.append(f"classes has {', '.join(twice)} more than once")
    void = described.get("void", [IGNORE_INDEX])
    if not isinstance(void, list) or not all(map(_is_byte, void)):
        problems.append(f"void must be a list of mask values in 0..255, got {void!r}")
        void = []
    for value in void:
        if value < len(classes):
            problems.append(
                f"void {value} is the class {classes[value]}; void values must lie above the {len(classes)} classes"
            )
    palette = described.get("palette", [_colour(index) for index in range(len(classes))])
    if not isinstance(palette, list) or len(palette) != len(classes) or not all(map(_is_colour, palette)):
        problems.append(
            f"palette must have one [red, green, blue] in 0..255 for each of {len(classes)} classes, got {palette!r}"
        )
    parts = {key: _part(key, described.get(key), problems) for key in ("train", "val", "unlabelled")}
    if problems:
        raise ValueError(_joined(f"{path} has {len(problems)} problem{'s' * (len(problems) > 1)}", problems))
    info = DatasetInfo(str(name), tuple(classes), tuple((red, green, blue) for red, green, blue in palette))
    train, val = parts["train"], parts["val"]
    assert train is not None and val is not None
    return Description(info, frozenset(void), train, val, parts["unlabelled"])


_KEYS = ("name", "classes", "palette", "void", "train", "val", "unlabelled")


def _part(key: str, described: Any, problems: list[str]) -> Part | None:
    if key == "unlabelled" and described is None:
        return None
    needed = {"images"} if key == "unlabelled" else {"images", "masks"}
    if not isinstance(described, dict) or not needed <= described.keys() <= needed | {"list"}:
        problems.append(f"{key} must have {' and '.join(sorted(needed))}, and may have list, got {described!r}")
        return None
    if wrong := [f"{name} {value!r}" for name, value in described.items() if not isinstance(value, str)]:
        problems.append(f"{key} must have paths, got {', '.join(wrong)}")
        return None
    return Part(described["images"], described.get("masks"), described.get("list"))


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))


def _colour(index: int) -> list[int]:
    """Far apart for neighbouring indices: the hue turns by the golden section, in three brightnesses."""
    return [round(255 * share) for share in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1 - 0.2 * (index % 3))]


@dataclass(slots=True)
class _Problems:
    """What is wrong, and with which images; the same words are said once."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, id: str) -> None:
        self.found.setdefault(problem, []).append(id)

    def raise_any(self, root: Path) -> None:
        """Raise ValueError with all of them."""
        if not self.found:
            return
        lines = []
        for problem, ids in self.found.items():
            more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
            lines.append(f"{', '.join(ids[:_SHOWN])}{more}: {problem}")
        total = sum(map(len, self.found.values()))
        raise ValueError(_joined(f"{root} has {total} problem{'s' * (total > 1)}, nothing was written", lines))


def _joined(title: str, lines: Iterable[str]) -> str:
    return "\n  ".join([f"{title}:", *lines])


@dataclass(frozen=True, slots=True)
class _Item:
    """The files of one image."""

    id: str
    image: Path
    mask: Path | None


def folder_source(description: str | Path, root: str | Path | None, resize: tuple[int, int] | None = None) -> Source:
    """The data set that the YAML file `description` describes, whose files lie in `root` (beside the description if None).

    resize: (width, height) in pixels that all images (antialiased bilinear) and masks (nearest) get; a JPEG stays one, at
    quality 95, anything else becomes a PNG. Without it the files' bytes are kept.

    Raises FileNotFoundError with the folders and lists that are absent, ValueError with every problem of the description.
    What is wrong with the files is raised together, when the rows have been read.
    """
    if resize is not None and min(resize) < 1:
        raise ValueError(f"resize must be at least 1x1, got {resize[0]}x{resize[1]}")
    described = read_description(description)
    root = Path(description).parent if root is None else Path(root)
    listing = _Problems()
    subsets = _listed(described, root, listing)

    def rows() -> dict[str, Iterator[Row]]:
        problems = _Problems({problem: list(ids) for problem, ids in listing.found.items()})

        def val() -> Iterator[Row]:
            yield from _rows(subsets["val"], described, resize, problems)
            problems.raise_any(root)

        return {"train": _rows(subsets["train"], described, resize, problems), "val": val()}

    return Source(described.info, _hash(described, subsets, resize), sum(map(len, subsets.values())), rows)


def _listed(described: Description, root: Path, problems: _Problems) -> dict[str, list[_Item]]:
    """The files of train (with masks, then without) and val, in the order of the lists, or of the ids."""
    parts = [part for part in (described.train, described.val, described.unlabelled) if part is not None]
    folders = [folder for part in parts for folder in (part.images, part.masks) if folder is not None]
    absent = [root / folder for folder in folders if not (root / folder).is_dir()]
    absent += [root / part.list for part in parts if part.list is not None and not (root / part.list).is_file()]
    if absent:
        raise FileNotFoundError(f"absent: {', '.join(map(str, dict.fromkeys(absent)))}; is {root} the right root?")
    train = _items(described.train, root, problems)
    val = _items(described.val, root, problems)
    known = {item.id for item in train}
    seen = {item.id for item in val}
    for item in train:
        if item.id in seen:
            problems.add("is in train and in val", item.id)
    if described.unlabelled is not None:
        for item in _items(described.unlabelled, root, problems):
            if item.id in seen and described.unlabelled.list is not None:
                problems.add("is in unlabelled and in val", item.id)
            if item.id not in known | seen:
                train.append(item)
    for name, items in (("train", train), ("val", val)):
        if not items:
            problems.add("has no image", name)
    return {"train": train, "val": val}


def _items(part: Part, root: Path, problems: _Problems) -> list[_Item]:
    images = _files(root, part.images, IMAGE_SUFFIXES, problems)
    masks = {} if part.masks is None else _files(root, part.masks, MASK_SUFFIXES, problems)
    if part.list is None:
        ids = sorted(images)
    else:
        ids = [line.strip() for line in (root / part.list).read_text().splitlines() if line.strip()]
        for id in sorted({id for id in ids if id not in images}):
            problems.add(f"is in {part.list}, but no image of that name is in {part.images} (an id has no suffix)", id)
        for id, count in Counter(ids).items():
            if count > 1:
                problems.add(f"is {count} times in {part.list}", id)
        ids = [id for id in dict.fromkeys(ids) if id in images]
    if part.masks is None:
        return [_Item(id, images[id], None) for id in ids]
    for id in ids:
        if id not in masks:
            problems.add(
                f"has no mask in {part.masks} (a {' or '.join(MASK_SUFFIXES)}); without one it belongs to unlabelled", id
            )
    return [_Item(id, images[id], masks[id]) for id in ids if id in masks]


def _files(root: Path, folder: str, suffixes: tuple[str, ...], problems: _Problems) -> dict[str, Path]:
    """The files of `folder` and its subfolders by id."""
    files: dict[str, Path] = {}
    for path in sorted((root / folder).rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        id = path.relative_to(root / folder).with_suffix("").as_posix()
        if id in files:
            problems.add(f"is more than one file in {folder}: {files[id].name}, {path.name}", id)
        files[id] = path
    return files


def _hash(described: Description, subsets: dict[str, list[_Item]], resize: tuple[int, int] | None) -> str:
    """Over all that the rows depend on: the content of each file, not its date, so that a copy is the same source."""
    digest = hashlib.sha256(f"folder {_VERSION} {described.info} {sorted(described.void)} {resize}".encode())
    for name, items in subsets.items():
        for item in items:
            digest.update(f"\n{name} {item.id}\n".encode())
            for path in (item.image, item.mask):
                digest.update(b"none" if path is None else hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _rows(items: list[_Item], described: Description, resize: tuple[int, int] | None, problems: _Problems) -> Iterator[Row]:
    """Read each image; note the problems of those that cannot be had, and go on."""
    for item in items:
        image = item.image.read_bytes()
        try:
            pixels = decode_rgb(image)  # by the decoder that training uses
        except (RuntimeError, ValueError) as error:
            reason = str(error) if isinstance(error, ValueError) and image else f"is no readable {'/'.join(IMAGE_SUFFIXES)}"
            problems.add(f"image {reason}", item.id)
            continue
        height, width = pixels.shape[1:]
        mask = None
        if item.mask is not None:
            try:
                mask = _read_mask(item.mask, (height, width), described)
            except ValueError as error:
                problems.add(f"mask {error}", item.id)
                continue
        if resize is not None and resize != (width, height):
            image = _resized(pixels.permute(1, 2, 0).numpy(), resize, jpeg=item.image.suffix.lower() in (".jpg", ".jpeg"))
            mask = None if mask is None else np.asarray(Image.fromarray(mask).resize(resize, Image.Resampling.NEAREST))
            width, height = resize
        yield Row(item.id, image, height, width, mask)


def _read_mask(path: Path, size: tuple[int, int], described: Description) -> NDArray[np.uint8]:
    """Class indices [H, W], void as IGNORE_INDEX. Raises ValueError with what is wrong."""
    encoded = path.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        raise ValueError("is no readable PNG") from None
    depth = encoded[24]  # of the header; Pillow spreads the values of grey PNGs with fewer bits over 0..255
    if image.mode not in ("L", "P") or (image.mode == "L" and depth != 8):
        raise ValueError(
            f"has mode {image.mode} with {depth} bits, must be L with 8 bits or P; write class indices in its place"
        )
    values = np.array(image, dtype=np.uint8)  # mode P: the indices, not the colours
    if values.shape != size:
        raise ValueError(f"is {values.shape[1]}x{values.shape[0]} (width x height), must be as its image {size[1]}x{size[0]}")
    num_classes = described.info.num_classes
    lookup = np.full(256, -1, np.int16)
    lookup[:num_classes] = np.arange(num_classes)
    lookup[sorted(described.void)] = IGNORE_INDEX
    if wrong := [int(value) for value in np.unique(values) if lookup[value] < 0]:
        void = ", ".join(map(str, sorted(described.void)))
        raise ValueError(
            f"has the values {', '.join(map(str, wrong))}; classes are 0..{num_classes - 1}, void is {void or 'none'}: "
            "mend the classes or add to void"
        )
    return lookup[values].astype(np.uint8)


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int], *, jpeg: bool) -> bytes:
    """[H, W, 3] in another (width, height), encoded."""
    encoded = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)  # Pillow averages where it shrinks
    if jpeg:
        image.save(encoded, "JPEG", quality=95)
    else:
        image.save(encoded, "PNG")
    return encoded.getvalue()
