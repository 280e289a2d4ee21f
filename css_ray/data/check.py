"""Re-reads a prepared data set, every byte and every pixel of it, and reports everything that is wrong together."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from css_ray.data.remote import DESCRIPTION, local_copy, read_description
from css_ray.secrets import shown
from css_ray.storage import is_url, plain_name

from ..types import IGNORE_INDEX
from .files import image_size
from .problems import Problems
from .processes import ParallelMap, in_processes
from .shards import FORMAT, SCHEMA, SUBSETS, Shards, decode_rgb


class _File(NamedTuple):
    """A task: one shard, and what the description records of it."""

    subset: str
    path: Path
    record: dict[str, Any]
    num_classes: int


@dataclass(slots=True)
class _Found:
    """What a shard holds. images: of each row, its id and the hash of its encoded image."""

    images: list[tuple[str, bytes]] = field(default_factory=list)
    masks: int = 0
    problems: Problems = field(default_factory=Problems)


def check_dataset(
    root: str | Path, advance: Callable[[int], None] = lambda done: None, spread: ParallelMap | None = None
) -> tuple[int, Problems]:
    """Look for everything that could harm a training later; return how many images were read, and the problems.

    Looked for: files that are gone, cut short or not the ones that were written; images and masks that cannot be decoded, or
    have another size than recorded; labels that are not classes; ids that are listed twice; validation images without a mask,
    or that are in the training images too, by their id or byte for byte under another id.

    root: a folder or a URL, whose copy is checked. advance: called with how many images were read since the last call.

    Raises FileNotFoundError if there is no data set; ValueError if it is of another format; OSError if a URL cannot be
    reached.
    """
    folder = local_copy(str(root)) if is_url(root) else Path(root)
    described = read_description(folder)
    if described is None:
        raise FileNotFoundError(
            f"{shown(root)} holds no prepared data set (no {DESCRIPTION}); make one with: css-ray data prepare"
        )
    if described.get("format") != FORMAT:
        raise ValueError(f"{shown(root)} has format {described.get('format')}, this version reads {FORMAT}; prepare it again")
    tasks = [
        _File(name, folder / plain_name(record["name"], folder / DESCRIPTION), record, len(described["class_names"]))
        for name in SUBSETS
        for record in described["subsets"][name]["files"]
    ]
    problems = Problems()
    images: dict[str, list[tuple[str, bytes]]] = {name: [] for name in SUBSETS}
    masks = dict.fromkeys(SUBSETS, 0)
    for task, found in zip(tasks, (spread or in_processes(1))(_check_file, tasks), strict=True):
        images[task.subset] += found.images
        masks[task.subset] += found.masks
        problems.update(found.problems.found)
        advance(task.record["rows"])
    _compare(images, problems)
    for name in SUBSETS:
        recorded = described["subsets"][name]
        if not problems.found and (len(images[name]), masks[name]) != (recorded["images"], recorded["masks"]):
            problems.add(
                f"{DESCRIPTION} counts {recorded['images']} images and {recorded['masks']} masks, "
                f"the files hold {len(images[name])} and {masks[name]}; prepare the data set again",
                name,
            )
    if not masks["train"]:
        problems.add("no image has a mask, so that none can be labelled; prepare the data set with masks", "train")
    return sum(map(len, images.values())), problems


def _compare(images: dict[str, list[tuple[str, bytes]]], problems: Problems) -> None:
    """Find ids that are listed twice, and validation images that are trained on."""
    counts = {name: Counter(id for id, _ in rows) for name, rows in images.items()}
    for name in SUBSETS:
        for id, count in counts[name].items():
            if count > 1:
                problems.add(f"is listed {count} times in {name}", id)
    for id, _ in images["val"]:
        if id in counts["train"]:
            problems.add("is in train and in val: the score would be of images that were learned", id)
    trained = {digest: id for id, digest in images["train"]}
    for id, digest in images["val"]:
        if id not in counts["train"] and (twin := trained.get(digest)) is not None:
            problems.add(f"is in val, and byte for byte the training image {twin}", id)


def _check_file(task: _File) -> _Found:
    found = _Found()
    name = task.path.name
    if not task.path.is_file():
        found.problems.add("is gone; prepare the data set again", name)
        return found
    with open(task.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != task.record["sha256"]:
        found.problems.add(
            f"has {task.path.stat().st_size} bytes with the SHA-256 {digest[:12]}, was written as {task.record['bytes']} bytes "
            f"with {task.record['sha256'][:12]}; prepare the data set again",
            name,
        )
        return found  # a decoder may crash, not merely fail, on damaged bytes
    try:
        with pa.memory_map(str(task.path)) as source:
            schema = pa.ipc.open_file(source).schema
        if not schema.equals(SCHEMA):
            raise ValueError("its columns are different")
        shards = Shards([task.path])
        rows = zip(shards.ids, shards.sizes, shards.classes, strict=True)
        for index, (id, size, classes) in enumerate(rows):
            _check_row(task, shards, index, id, size, classes, found)
    except (OSError, ValueError, pa.ArrowException) as error:
        found.problems.add(f"is not a readable shard: {' '.join(str(error).split())}; prepare the data set again", name)
    return found


def _check_row(
    task: _File, shards: Shards, index: int, id: str, size: tuple[int, int], classes: Sequence[int] | None, found: _Found
) -> None:
    problems = found.problems
    image, mask = shards.encoded(index)
    found.images.append((id, hashlib.sha256(image).digest()))
    try:
        image_size(image.to_pybytes())  # first: torchvision's decoder crashes on some damaged PNGs
        seen = tuple(decode_rgb(image).shape[1:])
    except (RuntimeError, ValueError) as error:
        problems.add(f"image cannot be decoded ({_first_line(error)}); fetch the original again", id)
        return
    if seen != tuple(size):
        problems.add(f"image is {seen[1]}x{seen[0]} (width x height), recorded as {size[1]}x{size[0]}", id)
    if mask is None:
        if task.subset == "val":
            problems.add("is in val and has no mask; without one it cannot be judged", id)
        return
    found.masks += 1
    try:
        with Image.open(io.BytesIO(mask.to_pybytes()), formats=("PNG",)) as opened:
            opened.load()
    except (OSError, SyntaxError, ValueError) as error:
        problems.add(f"mask cannot be decoded ({_first_line(error)}); prepare the data set again", id)
        return
    if (opened.height, opened.width) != seen:
        problems.add(f"mask is {opened.width}x{opened.height} (width x height), must be as its image {seen[1]}x{seen[0]}", id)
    read = shards.sample(index).mask  # as training reads it
    assert read is not None
    if opened.mode != "L" or not np.array_equal(read.numpy(), np.asarray(opened)):
        problems.add(f"mask is not a grey PNG of class indices (mode {opened.mode}); prepare the data set again", id)
        return
    present = [value for value, pixels in enumerate(opened.histogram()[:IGNORE_INDEX]) if pixels]
    if wrong := [value for value in present if value >= task.num_classes]:
        bounds = f"classes are 0..{task.num_classes - 1}, ignored is {IGNORE_INDEX}"
        problems.add(f"mask has the values {', '.join(map(str, wrong))}; {bounds}", id)
    elif present != list(classes or ()):
        problems.add(f"mask shows the classes {present}, recorded are {list(classes or ())}; prepare the data set again", id)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
