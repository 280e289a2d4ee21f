"""A prepared data set on disk: Arrow shards that are mapped into memory, and a `dataset.json` that makes them one set.

    data/camvid/
      dataset.json        name, classes, palette; per subset its files, counts and content hash. Written last.
      train-00000.arrow   rows (id, image, mask, classes, height, width), Arrow IPC file format
      val-00000.arrow

The image is an encoded JPEG, PNG or WebP; the mask a PNG of class indices, null where there is none. Everything appears at
once, by one rename: a folder that holds a `dataset.json` is complete.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from ..types import IGNORE_INDEX

DESCRIPTION = "dataset.json"
FORMAT = 1
SUBSETS = ("train", "val")

# One shard is small enough to copy around; one record batch stays far below the 2 GiB that 32-bit offsets can address.
SHARD_BYTES = 256 * 2**20
BATCH_BYTES = 8 * 2**20

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("mask", pa.binary()),
        pa.field("classes", pa.list_(pa.uint8())),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)


def decode_rgb(encoded: bytes | pa.Buffer) -> Tensor:
    """A JPEG, PNG or WebP as uint8 [3, H, W]. Raises RuntimeError or ValueError for anything else."""
    # torch wants writable memory, and a mapped file is not: copy the encoded bytes, which are few.
    image: Tensor = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
    if image.dtype != torch.uint8:
        raise ValueError(f"has {image.dtype} pixels, must be 8 bits a channel; convert it")
    return image


def _decode_mask(encoded: pa.Buffer) -> Tensor:
    """uint8 [H, W]. Our masks are grey PNGs: torchvision gives the indices as they are only in that mode."""
    mask: Tensor = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return mask[0]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a data set is about.

    class_names: one name a class, in index order; palette: one RGB colour in 0..255 a class.
    content: sha256 in hex over the ids, the encoded images and the class indices of all subsets.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    content: str = ""

    @property
    def num_classes(self) -> int:
        """C, not counting the ignored label."""
        return len(self.class_names)


class Row(NamedTuple):
    """One image on its way into a shard: its encoded bytes, and class indices uint8 [H, W] or None."""

    id: str
    image: bytes
    height: int
    width: int
    mask: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader found, ready to be written.

    hash: of all that the rows depend on; the same hash means the same data set. num_rows: over all subsets.
    rows: reads the images of each subset, lazily. What is wrong with them is raised by the last one as one ValueError.
    """

    info: DatasetInfo
    hash: str
    num_rows: int
    rows: Callable[[], Mapping[str, Iterable[Row]]]


class Sample(NamedTuple):
    """One decoded image: uint8 [3, H, W] RGB, and its mask uint8 [H, W] or None."""

    id: str
    image: Tensor
    mask: Tensor | None


class Shards:
    """The images of one subset, in the order they were written; decoded on access, from memory-mapped files.

    Pickling carries only the paths; the copy maps the files again.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._open()

    def _open(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        for path in self._paths:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                self._batches += [reader.get_batch(number) for number in range(reader.num_record_batches)]
        starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self._starts: list[int] = starts[:-1]
        self._length: int = starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_paths"])  # type: ignore[misc]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, mask included. Raises IndexError outside 0..len-1."""
        return self.sample(index)

    def sample(self, index: int, *, mask: bool = True) -> Sample:
        """The sample at `index`; with `mask=False` the mask is neither read nor decoded, and None."""
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is outside 0..{self._length - 1}")
        number = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[number]
        batch = self._batches[number]
        stored = batch.column("mask")[row].as_buffer() if mask else None
        return Sample(
            id=batch.column("id")[row].as_py(),
            image=decode_rgb(batch.column("image")[row].as_buffer()),
            mask=None if stored is None else _decode_mask(stored),
        )

    def _column(self, name: str) -> list[Any]:
        return [value for batch in self._batches for value in batch.column(name).to_pylist()]

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, unique, in order."""
        return tuple(self._column("id"))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image in pixels, without decoding."""
        return tuple(zip(self._column("height"), self._column("width"), strict=True))

    @property
    def classes(self) -> tuple[tuple[int, ...] | None, ...]:
        """The classes present in each mask, ascending and without the ignored label; None without a mask."""
        return tuple(None if present is None else tuple(present) for present in self._column("classes"))

    def positions(self, ids: Iterable[str]) -> list[int]:
        """The index of each id. Raises KeyError with the ids that are not here."""
        index = {id: position for position, id in enumerate(self.ids)}
        ids = list(ids)
        if missing := [id for id in ids if id not in index]:
            raise KeyError(f"{len(missing)} ids are not in this subset: {', '.join(missing[:5])}")
        return [index[id] for id in ids]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A prepared data set: `train` holds labelled and unlabelled images, every image of `val` has a mask."""

    info: DatasetInfo
    train: Shards
    val: Shards


def open_dataset(root: str | Path) -> DataSet:
    """Map the data set in the folder `root`.

    Raises FileNotFoundError where there is none, or where one of its files is gone; ValueError where its format is another.
    """
    root = Path(root)
    if not (root / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"{root} holds no prepared data set (no {DESCRIPTION}); make one by: css-ray data prepare NAME_OR_YAML --out {root}"
        )
    described = json.loads((root / DESCRIPTION).read_text())
    if described["format"] != FORMAT:
        raise ValueError(f"{root} has format {described['format']}, this version reads {FORMAT}; prepare it again")
    subsets = {}
    for name in SUBSETS:
        files = described["subsets"][name]["files"]
        if missing := [file for file in files if not (root / file).is_file()]:
            raise FileNotFoundError(f"{root} lacks {', '.join(missing)}; delete the folder and run css-ray data prepare again")
        subsets[name] = Shards([root / file for file in files])
    info = DatasetInfo(
        name=described["name"],
        class_names=tuple(described["class_names"]),
        palette=tuple((red, green, blue) for red, green, blue in described["palette"]),
        content=described["content"],
    )
    return DataSet(info, subsets["train"], subsets["val"])


def source_of(root: Path) -> str | None:
    """The hash of the source that `root` was prepared from; None where no complete data set lies there."""
    try:
        return str(json.loads((root / DESCRIPTION).read_text())["source"])
    except FileNotFoundError:
        return None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Held by the one process that may write `out`; the others wait. The kernel frees it when its holder dies."""
    with open(out.parent / f".{out.name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_dataset(out: Path, source: Source, advance: Callable[[], None] = lambda: None) -> bool:
    """Write a source to the folder `out`, all or nothing; True if written, False if it was there already.

    A complete `out` of the same source hash is left as it is. Whatever the source raises leaves no trace. Several processes may
    call at once: one writes, the others wait and then find the result. `advance` is called after each image.

    Raises FileExistsError if `out` holds anything else.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        if source_of(out) == source.hash:
            return False
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(
                f"{out} is not empty and was not prepared from this source in this way; delete it or choose another folder"
            )
        unfinished = out.parent / f".{out.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process: we hold the lock, so nobody writes there
        unfinished.mkdir()
        try:
            _write_files(unfinished, source, advance)
            os.rename(unfinished, out)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _sync(out.parent)
    return True


def _write_files(folder: Path, source: Source, advance: Callable[[], None]) -> None:
    info = source.info
    metadata = {
        "name": info.name,
        "class_names": json.dumps(info.class_names),
        "palette": json.dumps(info.palette),
        "ignore_index": str(IGNORE_INDEX),
        "source": source.hash,
    }
    rows = source.rows()
    subsets = {name: _write_subset(folder, name, rows[name], SCHEMA.with_metadata(metadata), advance) for name in SUBSETS}
    content = hashlib.sha256("".join(subsets[name]["content"] for name in SUBSETS).encode()).hexdigest()
    description = {
        "format": FORMAT,
        "name": info.name,
        "class_names": info.class_names,
        "palette": info.palette,
        "ignore_index": IGNORE_INDEX,
        "source": source.hash,
        "content": content,
        "subsets": subsets,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    _sync(folder / DESCRIPTION)
    _sync(folder)


def _write_subset(
    folder: Path, name: str, rows: Iterable[Row], schema: pa.Schema, advance: Callable[[], None]
) -> dict[str, Any]:
    """Write one subset; return what `dataset.json` says of it."""
    files: list[str] = []
    images = masks = 0
    digest = hashlib.sha256()
    for shard in _chunks(map(_packed, rows), SHARD_BYTES):
        files.append(f"{name}-{len(files):05d}.arrow")
        with pa.OSFile(str(folder / files[-1]), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for chunk in map(list, _chunks(shard, BATCH_BYTES)):
                writer.write_batch(pa.RecordBatch.from_pylist([record for record, _ in chunk], schema=schema))
                for record, own in chunk:
                    digest.update(own)
                    images += 1
                    masks += record["mask"] is not None
                    advance()
        _sync(folder / files[-1])
    return {"files": files, "images": images, "masks": masks, "content": digest.hexdigest()}


_Packed = tuple[dict[str, Any], bytes]


def _packed(row: Row) -> _Packed:
    """The record of a row, and the digest of what it means: class indices, not the PNG that some zlib made of them."""
    digest = hashlib.sha256(f"{row.id}\n{row.height}x{row.width}\n".encode())
    digest.update(hashlib.sha256(row.image).digest())
    record: dict[str, Any] = {"id": row.id, "image": row.image, "height": row.height, "width": row.width}
    if row.mask is None:
        record |= {"mask": None, "classes": None}
    else:
        digest.update(hashlib.sha256(row.mask.tobytes()).digest())
        encoded = io.BytesIO()
        Image.fromarray(row.mask).save(encoded, "PNG")
        present = np.flatnonzero(np.bincount(row.mask.ravel(), minlength=256)[:IGNORE_INDEX]).tolist()
        record |= {"mask": encoded.getvalue(), "classes": present}
    return record, digest.digest()


def _chunks(packed: Iterable[_Packed], num_bytes: int) -> Iterator[Iterator[_Packed]]:
    """Split into runs of at least `num_bytes` of images (the last may be shorter), each read before the next is asked for."""
    packed = iter(packed)

    def run(first: _Packed) -> Iterator[_Packed]:
        item: _Packed | None = first
        size = 0
        while item is not None:
            yield item
            size += len(item[0]["image"])
            item = next(packed, None) if size < num_bytes else None

    while (first := next(packed, None)) is not None:
        yield run(first)


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
