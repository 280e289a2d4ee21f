"""A prepared data set: Arrow shards that are mapped into memory, and a `dataset.json` that makes them one set.

    data/camvid/
      dataset.json                    name, classes, palette; per subset its files with their hashes, and counts
      train-00000-5be6d1a4.arrow      rows (id, image, mask, classes, height, width), Arrow IPC file format
      val-00000-0c1f9a7e.arrow

The image is an encoded JPEG, PNG or WebP; the mask a grey PNG of class indices, null if there is none. A folder that holds a
`dataset.json` is complete. `writing` makes them, `remote` fetches them from a URL.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from css_ray.data.remote import DESCRIPTION, local_copy, read_description
from css_ray.messages import command
from css_ray.storage import is_url, plain_name

FORMAT = 2
SUBSETS = ("train", "val")

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
        raise ValueError(f"has {image.dtype} pixels, must be 8 bits per channel; convert it")
    return image


def _decode_mask(encoded: pa.Buffer) -> Tensor:
    """uint8 [H, W]. Our masks are grey PNGs: torchvision gives the indices as they are only in that mode."""
    mask: Tensor = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return mask[0]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a data set is about.

    class_names: one name per class, in index order; palette: one RGB colour in 0..255 per class.
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
        for batch in self._batches:
            # pyarrow makes its objects for the columns at first use. Made later, one by one among freed images, they would
            # scatter over the heap, and the memory of a long run would grow with the number of shards.
            for column in SCHEMA.names:
                batch.column(column)
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
        batch, row = self._locate(index)
        stored = batch.column("mask")[row].as_buffer() if mask else None
        return Sample(
            id=batch.column("id")[row].as_py(),
            image=decode_rgb(batch.column("image")[row].as_buffer()),
            mask=None if stored is None else _decode_mask(stored),
        )

    def encoded(self, index: int) -> tuple[pa.Buffer, pa.Buffer | None]:
        """The bytes of the image at `index` and of its mask as they were stored, without a copy."""
        batch, row = self._locate(index)
        return batch.column("image")[row].as_buffer(), batch.column("mask")[row].as_buffer()

    def _locate(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is outside 0..{self._length - 1}")
        number = bisect.bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]

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

    @property
    def num_masks(self) -> int:
        """How many images have a mask; of train, the others are unlabelled."""
        bare: int = sum(batch.column("mask").null_count for batch in self._batches)
        return len(self) - bare

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
    """Map the data set in the folder `root`, or the copy of the one at the URL `root`, which is fetched if need be.

    Raises FileNotFoundError if there is none, or one of its files is gone; ValueError if its format is another or a
    file is cut short; OSError if a URL cannot be reached.
    """
    folder = local_copy(str(root)) if is_url(root) else Path(root)
    described = read_description(folder)
    if described is None:
        raise FileNotFoundError(
            f"{folder} holds no prepared data set (no {DESCRIPTION}); make one with: "
            + command("data", "prepare", "NAME_OR_YAML", "--out", str(folder))
        )
    if described.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {described.get('format')}, this version reads {FORMAT}; delete it and prepare it again"
        )
    subsets, problems = {}, []
    for name in SUBSETS:
        files = described["subsets"][name]["files"]
        for file in files:
            path = folder / plain_name(file["name"], folder / DESCRIPTION)
            if not path.is_file():
                problems.append(f"{path.name} is gone")
            elif (size := path.stat().st_size) != file["bytes"]:
                problems.append(f"{path.name} has {size} bytes, was written with {file['bytes']}")
        if not problems:
            subsets[name] = Shards([folder / file["name"] for file in files])
    if problems:
        raise ValueError(f"{folder} is damaged: {'; '.join(problems)}. Delete the folder and run css-ray data prepare again")
    info = DatasetInfo(
        name=described["name"],
        class_names=tuple(described["class_names"]),
        palette=tuple((red, green, blue) for red, green, blue in described["palette"]),
        content=described["content"],
    )
    return DataSet(info, subsets["train"], subsets["val"])
