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
from torch import Tensor

from css_ray.data.description import DESCRIPTION, SCHEMA, SUBSETS, read_description
from css_ray.data.description import DatasetInfo as DatasetInfo
from css_ray.data.images import decode_mask, decode_rgb
from css_ray.data.remote import local_copy
from css_ray.data.verification import verify
from css_ray.messages import command
from css_ray.secrets import shown
from css_ray.storage import is_url


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
        self._origins: list[Path] = []
        for path in self._paths:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                self._batches += [reader.get_batch(number) for number in range(reader.num_record_batches)]
                self._origins += [path] * reader.num_record_batches
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
        """The sample at `index`, mask included. Raises as `sample`."""
        return self.sample(index)

    def sample(self, index: int, *, mask: bool = True) -> Sample:
        """The sample at `index`; with `mask=False` the mask is neither read nor decoded, and None.

        Raises IndexError outside 0..len-1, ValueError that names shard and image if one of the two cannot be decoded.
        """
        number, row = self._locate(index)
        batch = self._batches[number]
        id = batch.column("id")[row].as_py()
        stored = batch.column("mask")[row].as_buffer() if mask else None
        what = "image"
        try:
            image = decode_rgb(batch.column("image")[row].as_buffer())
            what = "mask"
            return Sample(id, image, None if stored is None else decode_mask(stored))
        except ValueError as error:
            path = self._origins[number]
            check = command("data", "check", str(path.parent))
            raise ValueError(
                f"{path}: the {what} of {id} cannot be decoded ({error}); {check} names all that are damaged: fetch their "
                "originals, and prepare the data set again"
            ) from None

    def encoded(self, index: int) -> tuple[pa.Buffer, pa.Buffer | None]:
        """The bytes of the image at `index` and of its mask as they were stored, without a copy."""
        number, row = self._locate(index)
        batch = self._batches[number]
        return batch.column("image")[row].as_buffer(), batch.column("mask")[row].as_buffer()

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is outside 0..{self._length - 1}")
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

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

    Its shards are compared with their hashes first, once per machine and content, see `verification`.

    Raises FileNotFoundError if there is none; ValueError if its format is another, or with all that is damaged; OSError if a
    URL cannot be reached.
    """
    remote = is_url(root)
    folder = local_copy(str(root)) if remote else Path(root)
    described = read_description(folder)
    if described is None:
        raise FileNotFoundError(
            f"{folder} holds no prepared data set (no {DESCRIPTION}); make one with: "
            + command("data", "prepare", "NAME_OR_YAML", "--out", str(folder))
        )
    again = f"run the command again, which fetches it from {shown(root)}" if remote else "run css-ray data prepare again"
    verify(folder, described, f"Delete the folder and {again}")
    train, val = (Shards([folder / file.name for file in described.subsets[name].files]) for name in SUBSETS)
    return DataSet(described.info, train, val)
