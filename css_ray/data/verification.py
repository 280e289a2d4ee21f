"""Whether the shards of a data set are the ones that were written, and sound, before anything is read from them.

A shard is mapped into memory, where an offset that leads out of it would end the process by a signal, and a changed byte would
be trained on. So its hash is compared, its Arrow data are validated in full, and with them what each row declares of its image
and its mask. What was right is noted in `stamps`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import pyarrow as pa

from css_ray.data.description import SCHEMA, SUBSETS, SetDescription, ShardFile, is_name
from css_ray.data.images import image_size, mask_size
from css_ray.data.problems import Problems
from css_ray.data.processes import num_cores
from css_ray.data.stamps import Stamp, Stamps, settled, stamp_of
from css_ray.messages import os_error_text

_THREADS = 8  # that hash shards side by side; more would only wait for the disk
_ANY = 2**31  # pixels: whoever prepared the data set decided how many an image may have
_SHOWN = 10  # problems that a message names


class ShardTask(NamedTuple):
    """A shard to be looked at: where it is, its subset, and what the description records of it."""

    path: Path
    subset: str
    file: ShardFile
    num_classes: int


def shard_tasks(folder: Path, description: SetDescription) -> list[ShardTask]:
    """The shards of the data set in `folder`, in order."""
    return [
        ShardTask(folder / file.name, name, file, description.info.num_classes)
        for name in SUBSETS
        for file in description.subsets[name].files
    ]


def verify(folder: Path, description: SetDescription, remedy: str) -> None:
    """Look at each shard that this user has not looked at on this machine, or that has changed since.

    Several processes may call at the same time: one looks, the others wait and then find its stamps. remedy: a sentence on what
    to do about damage.

    Raises ValueError with all that is wrong.
    """
    tasks, stamps = shard_tasks(folder, description), Stamps(folder)
    if not _unseen(tasks, stamps.read()):
        return
    with stamps.alone():
        known = stamps.read()
        if not (unseen := _unseen(tasks, known)):
            return
        with ThreadPoolExecutor(min(_THREADS, num_cores(), len(unseen))) as pool:
            found = list(pool.map(_look, unseen))
        new = {task.file.name: stamp for task, (stamp, _) in zip(unseen, found, strict=True) if stamp is not None}
        if new:
            names = {task.file.name for task in tasks}
            stamps.write({name: stamp for name, stamp in known.items() if name in names} | new)
    problems = [problem for _, problems in found for problem in problems]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{folder} is damaged: {'; '.join(problems[:_SHOWN])}{more}. {remedy}")


def _unseen(tasks: Sequence[ShardTask], known: Mapping[str, Stamp]) -> list[ShardTask]:
    """The shards without a stamp for what they are now."""

    def seen(task: ShardTask) -> bool:
        stamp = known.get(task.file.name)
        try:
            return stamp is not None and stamp == stamp_of(task.path, task.file.sha256)
        except (OSError, ValueError):
            return False

    return [task for task in tasks if not seen(task)]


def _look(task: ShardTask) -> tuple[Stamp | None, list[str]]:
    """The stamp of a shard that is right, or all that is wrong with it; neither if it was written a moment ago."""
    name = task.file.name
    try:
        before = stamp_of(task.path, task.file.sha256)
        rows = Problems()
        for batch in read_shard(task):
            _look_at_rows(task, batch, rows)
        if rows.found:
            return None, [f"{name}: {line}" for line in rows.lines()]
        return (before if before == stamp_of(task.path, task.file.sha256) and settled(before) else None), []
    except FileNotFoundError:
        return None, [f"{name} is gone"]
    except OSError as error:
        return None, [os_error_text(error, "read", task.path)]
    except ValueError as error:
        return None, [f"{name} {error}"]


def read_shard(task: ShardTask) -> list[pa.RecordBatch]:
    """The rows of a shard, in mapped memory, which is byte for byte the one that was written and has sound Arrow data.

    Raises ValueError with what is wrong, as a sentence about the shard; OSError if it cannot be read.
    """
    status = os.stat(task.path)
    if not S_ISREG(status.st_mode):  # to open a FIFO is to wait
        raise ValueError("is not a file")
    if status.st_size != task.file.bytes:
        raise ValueError(f"has {status.st_size} bytes, was written with {task.file.bytes}")
    with open(task.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != task.file.sha256:
        raise ValueError(
            f"has the SHA-256 {digest[:12]}, was written with {task.file.sha256[:12]}: its content was altered or damaged"
        )
    batches: list[pa.RecordBatch] = []
    rows = 0
    try:
        with pa.memory_map(str(task.path)) as source:
            reader = pa.ipc.open_file(source)
            if not reader.schema.equals(SCHEMA):
                raise ValueError("its columns are different")
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                batch.validate(full=True)
                if batch.get_total_buffer_size() > status.st_size:
                    raise ValueError("it is compressed")
                rows += batch.num_rows
                batches.append(batch)
                if rows > task.file.rows:
                    break
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise ValueError(f"is not a sound shard: {' '.join(str(error).split())[:200]}") from None
    if rows != task.file.rows:
        raise ValueError(f"has {rows} rows or more, is recorded with {task.file.rows}")
    return batches


def _look_at_rows(task: ShardTask, batch: pa.RecordBatch, problems: Problems) -> None:
    """Compare what each row declares with the headers of its image and mask; no pixel is decoded."""
    columns = {name: batch.column(name).to_pylist() for name in ("id", "classes", "height", "width")}
    images, masks = batch.column("image"), batch.column("mask")
    for row in range(batch.num_rows):
        id = columns["id"][row]
        try:
            if id is None or not is_name(id):
                id = f"row {row}"
                raise ValueError("its id is not a text of one line")
            size = columns["height"][row], columns["width"][row]
            mask = masks[row].as_buffer()
            _look_at_image(images[row].as_buffer(), size)
            _look_at_mask(None if mask is None else mask.to_pybytes(), size, columns["classes"][row], task)
        except ValueError as error:
            problems.add(str(error), id)


def _look_at_image(image: pa.Buffer | None, declared: tuple[Any, Any]) -> None:
    seen = image_size(b"" if image is None else image.to_pybytes(), _ANY)
    if seen != declared:
        raise ValueError(f"image is {seen[1]}x{seen[0]} (width x height), recorded as {declared[1]}x{declared[0]}")


def _look_at_mask(mask: bytes | None, size: tuple[int, int], classes: list[int | None] | None, task: ShardTask) -> None:
    if (mask is None) != (classes is None):
        raise ValueError("has classes without a mask, or a mask without classes")
    if mask is None or classes is None:
        if task.subset == "val":
            raise ValueError("is in val and has no mask; without one it cannot be judged")
        return
    try:
        seen = mask_size(mask)
    except ValueError as error:
        raise ValueError(f"mask {error}") from None
    if seen != size:
        raise ValueError(f"mask is {seen[1]}x{seen[0]} (width x height), must be as its image {size[1]}x{size[0]}")
    present = [-1 if value is None else value for value in classes]
    if present != sorted(set(present)) or not all(0 <= value < task.num_classes for value in present):
        raise ValueError(f"is recorded with the classes {classes}, must be some of 0..{task.num_classes - 1}, ascending")
