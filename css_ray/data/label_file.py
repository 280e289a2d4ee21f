"""Labels that a method made, by the ids of their images, in one Arrow file of grey PNGs of class indices.

As in the shards of a data set: the file is mapped into memory, so that the processes of a loader share it, and a mask is
decoded when it is asked for. Labels of whole objects take a hundredth of their pixels.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor

from css_ray.data.images import decode_mask

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("mask", pa.binary(), nullable=False)])

_ROWS = 4096  # of a batch: an Arrow array of bytes holds 2 GB


def encode_labels(labels: Tensor) -> bytes:
    """Labels [H, W] in {0..254, IGNORE_INDEX} as a PNG."""
    target = io.BytesIO()
    Image.fromarray(labels.byte().cpu().numpy()).save(target, "PNG", compress_type=zlib.Z_RLE)  # as the shards' masks
    return target.getvalue()


def encode_file(masks: Mapping[str, bytes]) -> pa.Buffer:
    """The content of a file with these PNGs; the same masks give the same bytes."""
    ids = sorted(masks)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        for start in range(0, len(ids), _ROWS):
            part = ids[start : start + _ROWS]
            writer.write_batch(pa.record_batch([part, [masks[id] for id in part]], schema=SCHEMA))
    return sink.getvalue()


class LabelFile:
    """The labels in a file. Pickling carries only its path; the copy maps the file again.

    ids: of the images that have labels, ascending.
    """

    ids: tuple[str, ...]

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as file:
            self._table = pa.ipc.open_file(file).read_all()
        self.ids = tuple(self._table.column("id").to_pylist())

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self, index: int) -> Tensor:
        """uint8 [H, W]: the labels of the image `ids[index]`."""
        return decode_mask(self.encoded(index))

    def encoded(self, index: int) -> bytes:
        """The same as they are stored."""
        encoded: bytes = self._table.column("mask")[index].as_py()
        return encoded
