"""Re-reads a prepared data set, every byte and every pixel of it, and reports everything that is wrong together."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from css_ray.data import png
from css_ray.data.description import DESCRIPTION, SUBSETS, is_name, read_description
from css_ray.data.images import MAX_PIXELS, decode_mask, decode_rgb, image_size, mask_size, read_png
from css_ray.data.remote import local_copy
from css_ray.data.verification import ShardTask, read_shard, shard_tasks
from css_ray.messages import os_error_text
from css_ray.secrets import shown
from css_ray.storage import is_url

from ..types import IGNORE_INDEX
from .problems import Problems, find_twins
from .processes import ParallelMap, in_processes


@dataclass(slots=True)
class _Found:
    """What a shard holds. read: whether it could be read. images: of each row, its id and the hash of its encoded image."""

    read: bool = False
    images: list[tuple[str, bytes]] = field(default_factory=list)
    masks: int = 0
    problems: Problems = field(default_factory=Problems)


def check_dataset(
    root: str | Path,
    advance: Callable[[int], None] = lambda done: None,
    spread: ParallelMap | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, Problems]:
    """Look for everything that could harm a training later; return how many images were read, and the problems.

    Looked for: files that are gone, cut short or not the ones that were written; images and masks that cannot be decoded, or
    have another size than recorded, or more pixels than allowed; labels that are not classes; ids that are listed twice;
    validation images without a mask, or that are in the training images too, by their id or byte for byte under another id.

    root: a folder or a URL, whose copy is checked. advance: called with how many images were read since the last call.

    Raises FileNotFoundError if the data set is missing; ValueError if its description is wrong or of another format; OSError if
    a URL cannot be reached.
    """
    folder = local_copy(str(root)) if is_url(root) else Path(root)
    described = read_description(folder)
    if described is None:
        raise FileNotFoundError(
            f"{shown(root)} holds no prepared data set (no {DESCRIPTION}); make one with: css-ray data prepare"
        )
    tasks = shard_tasks(folder, described)
    problems = Problems()
    images: dict[str, list[tuple[str, bytes]]] = {name: [] for name in SUBSETS}
    masks = dict.fromkeys(SUBSETS, 0)
    whole = dict.fromkeys(SUBSETS, True)
    look = functools.partial(_check_shard, max_pixels=max_pixels)
    for task, found in zip(tasks, (spread or in_processes(1))(look, tasks), strict=True):
        images[task.subset] += found.images
        masks[task.subset] += found.masks
        whole[task.subset] &= found.read
        problems.update(found.problems.found)
        advance(task.file.rows)
    _compare(images, problems)
    for name in SUBSETS:
        recorded = described.subsets[name]
        if not problems.found and (len(images[name]), masks[name]) != (recorded.images, recorded.masks):
            problems.add(
                f"{DESCRIPTION} counts {recorded.images} images and {recorded.masks} masks, "
                f"the files hold {len(images[name])} and {masks[name]}; prepare the data set again",
                name,
            )
    if whole["train"] and not masks["train"]:
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
    find_twins(images, problems)


def _check_shard(task: ShardTask, *, max_pixels: int) -> _Found:
    found = _Found()
    try:
        batches = read_shard(task)  # a decoder, or Arrow itself, may crash, not merely fail, on damaged bytes
    except FileNotFoundError:
        found.problems.add("is gone; prepare the data set again", task.file.name)
        return found
    except OSError as error:
        found.problems.add(os_error_text(error, "read", task.path), task.file.name)
        return found
    except ValueError as error:
        found.problems.add(f"{error}; prepare the data set again", task.file.name)
        return found
    found.read = True
    for batch in batches:
        for row in range(batch.num_rows):
            _check_row(task, batch, row, found, max_pixels)
    return found


def _check_row(task: ShardTask, batch: pa.RecordBatch, row: int, found: _Found, max_pixels: int) -> None:
    problems = found.problems
    id = batch.column("id")[row].as_py()
    if id is None or not is_name(id):
        problems.add("its id is not a text of one line; prepare the data set again", f"row {row} of {task.file.name}")
        return
    size = batch.column("height")[row].as_py(), batch.column("width")[row].as_py()
    stored, mask = batch.column("image")[row].as_buffer(), batch.column("mask")[row].as_buffer()
    image = b"" if stored is None else stored.to_pybytes()
    found.images.append((id, hashlib.sha256(image).digest()))
    try:
        seen = image_size(image, max_pixels)  # first: torchvision's decoder crashes on some damaged PNGs
        decoded = tuple(decode_rgb(image).shape[1:])
    except ValueError as error:
        problems.add(f"image cannot be decoded ({error}); fetch the original again", id)
        return
    if decoded != size or seen != size:
        problems.add(f"image is {decoded[1]}x{decoded[0]} (width x height), recorded as {size[1]}x{size[0]}", id)
    if mask is None:
        if task.subset == "val":
            problems.add("is in val and has no mask; without one it cannot be judged", id)
        return
    found.masks += 1
    _check_mask(task, id, mask.to_pybytes(), decoded, batch.column("classes")[row].as_py(), problems)


def _check_mask(
    task: ShardTask, id: str, mask: bytes, size: tuple[int, ...], classes: Sequence[int] | None, problems: Problems
) -> None:
    if (declared := png.declared_size(mask)) is not None and declared != size:
        problems.add(f"mask is {declared[1]}x{declared[0]} (width x height), must be as its image {size[1]}x{size[0]}", id)
        return
    try:
        mask_size(mask)
        opened = read_png(mask)
        read = decode_mask(mask)  # as training reads it
    except ValueError as error:
        problems.add(f"mask cannot be decoded ({error}); prepare the data set again", id)
        return
    if opened.mode != "L" or not np.array_equal(read.numpy(), np.asarray(opened)):
        problems.add(f"mask is not a grey PNG of class indices (mode {opened.mode}); prepare the data set again", id)
        return
    present = [value for value, pixels in enumerate(opened.histogram()[:IGNORE_INDEX]) if pixels]
    if wrong := [value for value in present if value >= task.num_classes]:
        bounds = f"classes are 0..{task.num_classes - 1}, ignored is {IGNORE_INDEX}"
        problems.add(f"mask has the values {', '.join(map(str, wrong))}; {bounds}", id)
    elif present != list(classes or ()):
        problems.add(f"mask shows the classes {present}, recorded are {list(classes or ())}; prepare the data set again", id)
