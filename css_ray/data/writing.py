"""Writes prepared data sets: shard by shard, by any number of processes, all of it or nothing.

The shards of a data set and their bytes follow from its source alone, however many processes write them. The description is
written last, and a folder without one holds no data set: what a killed run leaves is never read, and the next run removes it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray
from PIL import Image

from css_ray.data.description import DESCRIPTION, FORMAT, SCHEMA, SUBSETS, DatasetInfo, read_description
from css_ray.messages import os_error_text, os_errors_in_words
from css_ray.secrets import shown
from css_ray.storage import is_url, locate, locked, sync, unfinished

from ..types import IGNORE_INDEX
from .problems import Problems, find_twins
from .processes import ParallelMap

SHARD_BYTES = 16 * 2**20
"""About how many bytes of files a shard holds: enough to stream, and few enough to share out among processes."""

_SHARD_NAME = r"(train|val)-\d{5}-[0-9a-f]{8}\.arrow"


class Row(NamedTuple):
    """One image on its way into a shard.

    image: encoded JPEG, PNG or WebP. mask: class indices uint8 [H, W], IGNORE_INDEX where void, or None.
    png: a grey 8-bit PNG of just the mask's indices; None if one must be made. source: hash of what it was made of.
    """

    id: str
    image: bytes
    height: int
    width: int
    mask: NDArray[np.uint8] | None
    png: bytes | None = None
    source: bytes = b""


class Reader(Protocol):
    """Makes rows of a source's items. It is sent to other processes."""

    def __call__(self, item: Any) -> Row:
        """Read one item. Raises ValueError with what is wrong with it, OSError if a file cannot be read."""

    def digest(self, item: Any) -> bytes:
        """What `source` of its row would be, without decoding anything."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader found, ready to be written.

    version: all that the rows depend on beside the items. subsets: what `read` makes a row of, each with an `id`, in order.
    sizes: about how many bytes each item has. place: what messages call it. problems: known before anything is read, by what is
    wrong; each with the ids that have it. distinct: whether an image of val that is byte for byte one of train is refused.
    """

    info: DatasetInfo
    version: str
    subsets: Mapping[str, Sequence[Any]]
    sizes: Mapping[str, Sequence[int]]
    read: Reader
    place: str
    problems: Mapping[str, Sequence[str]] = field(default_factory=dict)
    distinct: bool = False

    @property
    def num_rows(self) -> int:
        """The number of rows of all subsets."""
        return sum(map(len, self.subsets.values()))


@dataclass(frozen=True, slots=True)
class _RowReader:
    """Reads rows that are in memory already."""

    def __call__(self, item: Row) -> Row:
        return item._replace(source=self.digest(item))

    def digest(self, item: Row) -> bytes:
        mask = b"" if item.mask is None else hashlib.sha256(item.mask.tobytes()).digest()
        return hashlib.sha256(item.image).digest() + mask


def rows_source(info: DatasetInfo, subsets: Mapping[str, Sequence[Row]], version: str = "rows") -> Source:
    """A source of rows that are in memory already."""
    sizes = {name: [len(row.image) for row in rows] for name, rows in subsets.items()}
    return Source(info, version, subsets, sizes, _RowReader(), info.name)


def write_dataset(
    out: str | Path,
    source: Source,
    advance: Callable[[int], None] = lambda done: None,
    spread: ParallelMap = map,  # type: ignore[assignment]
) -> bool:
    """Write a source to `out`, a folder or a URL, all or nothing; True if written, False if it was there already.

    A complete `out` of the same source is left as it is. Several processes of a machine may call at the same time: one writes,
    the others wait and then find the result. advance: called with how many images were done since the last call.
    spread: how the shards are shared out among processes, see `in_processes`.

    Raises ValueError with everything that is wrong with the source, FileExistsError if `out` holds anything else, OSError if it
    cannot be written. Nothing is left then.
    """
    with os_errors_in_words("write", shown(out)):
        if is_url(out):
            return _write_remote(str(out), source, advance, spread)
        return _write_local(Path(out), source, advance, spread)


def _write_local(folder: Path, source: Source, advance: Callable[[int], None], spread: ParallelMap) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if _is_there(folder, source, advance, spread):
            return False
        if folder.exists() and any(folder.iterdir()):
            raise _foreign(folder)
        with unfinished(folder) as growing:
            (growing / DESCRIPTION).write_text(_write_shards(growing, source, advance, spread))
            sync(growing / DESCRIPTION)
    return True


def _write_remote(url: str, source: Source, advance: Callable[[int], None], spread: ParallelMap) -> bool:
    """An object store cannot rename: shards carry their own hash in their names, and the description makes them a data set."""
    if _is_there(url, source, advance, spread):
        return False
    filesystem, root = locate(url)
    selector = pyarrow.fs.FileSelector(root, allow_not_found=True)
    before = {entry.base_name for entry in filesystem.get_file_info(selector)}
    if not all(re.fullmatch(_SHARD_NAME, name) for name in before):
        raise _foreign(url)
    filesystem.create_dir(root, recursive=True)
    description = _write_shards(url, source, advance, spread)
    with filesystem.open_output_stream(f"{root}/{DESCRIPTION}") as file:
        file.write(description.encode())
    written = {file["name"] for subset in json.loads(description)["subsets"].values() for file in subset["files"]}
    for name in before - written:  # left by a killed run
        filesystem.delete_file(f"{root}/{name}")
    return True


def _foreign(out: str | Path) -> FileExistsError:
    return FileExistsError(
        f"{shown(out)} is not empty and was not prepared from this source in this way; delete it or choose another folder"
    )


def _is_there(out: str | Path, source: Source, advance: Callable[[int], None], spread: ParallelMap) -> bool:
    """Whether `out` holds the data set of just this source; raises FileExistsError if it holds another one."""
    described = read_description(out)
    if described is None:
        return False
    _refuse(source, {})
    shards = _plan(source)
    digests: dict[str, list[bytes]] = {name: [] for name in SUBSETS}
    for shard, found in zip(shards, spread(functools.partial(_digests, source.read), shards), strict=True):
        digests[shard.subset] += found
        advance(len(found))
    if described.source != _source_hash(source, digests):
        raise _foreign(out)
    return True


class _Shard(NamedTuple):
    """A task: some neighbouring items of a subset that become one file."""

    subset: str
    number: int
    items: Sequence[Any]


class _Written(NamedTuple):
    """What became of a shard: its file, or what is wrong with its items. images: the hash of each encoded image."""

    file: dict[str, Any]
    masks: int
    images: list[bytes]
    contents: list[bytes]
    sources: list[bytes]
    problems: dict[str, list[str]]


def _plan(source: Source) -> list[_Shard]:
    """Cut each subset into shards of about equal size."""
    shards = []
    for name in SUBSETS:
        items, sizes = source.subsets[name], source.sizes[name]
        count = max(1, -(-sum(sizes) // SHARD_BYTES))
        ends = list(itertools.accumulate(sizes))
        cuts = np.searchsorted(ends, [ends[-1] * share / count for share in range(1, count)]).tolist() if ends else []
        for number, (start, end) in enumerate(itertools.pairwise([0, *cuts, len(items)])):
            if start < end or count == 1:
                shards.append(_Shard(name, number, items[start:end]))
    return shards


def _digests(read: Reader, shard: _Shard) -> list[bytes]:
    try:
        return [read.digest(item) for item in shard.items]
    except OSError as error:
        raise type(error)(os_error_text(error, "read")) from None


def _source_hash(source: Source, digests: Mapping[str, Sequence[bytes]]) -> str:
    """The hash of all that the rows depend on; the same hash means the same data set."""
    whole = hashlib.sha256(f"{FORMAT} {source.version}".encode())
    for name in SUBSETS:
        for item, digest in zip(source.subsets[name], digests[name], strict=True):
            whole.update(f"\n{name} {item.id}\n".encode() + digest)
    return whole.hexdigest()


def _write_shards(out: str | Path, source: Source, advance: Callable[[int], None], spread: ParallelMap) -> str:
    """Write all shards; return the text of the description."""
    info = source.info
    metadata = {
        "name": info.name,
        "class_names": json.dumps(info.class_names),
        "palette": json.dumps(info.palette),
        "ignore_index": str(IGNORE_INDEX),
    }
    subsets: dict[str, dict[str, Any]] = {name: {"files": [], "images": 0, "masks": 0} for name in SUBSETS}
    contents: dict[str, Any] = {name: hashlib.sha256() for name in SUBSETS}
    sources: dict[str, list[bytes]] = {name: [] for name in SUBSETS}
    images: dict[str, list[tuple[str, bytes]]] = {name: [] for name in SUBSETS}
    problems = Problems()
    shards = _plan(source)
    write = functools.partial(_write_shard, str(out), source.read, metadata)
    for shard, written in zip(shards, spread(write, shards), strict=True):
        problems.update(written.problems)
        subset = subsets[shard.subset]
        subset["files"].append(written.file)
        subset["images"] += len(shard.items)
        subset["masks"] += written.masks
        images[shard.subset] += zip((item.id for item in shard.items), written.images, strict=False)
        for content in written.contents:
            contents[shard.subset].update(content)
        sources[shard.subset] += written.sources
        advance(len(shard.items))
    if source.distinct:
        find_twins(images, problems)
    _refuse(source, problems.found)
    for name in SUBSETS:
        subsets[name]["content"] = contents[name].hexdigest()
    description = {
        "format": FORMAT,
        "name": info.name,
        "class_names": info.class_names,
        "palette": info.palette,
        "ignore_index": IGNORE_INDEX,
        "source": _source_hash(source, sources),
        "content": hashlib.sha256("".join(subsets[name]["content"] for name in SUBSETS).encode()).hexdigest(),
        "subsets": subsets,
    }
    return json.dumps(description, indent=1) + "\n"


def _refuse(source: Source, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError with the problems of the listing and of the items, if there are any."""
    found = Problems()
    found.update(source.problems)
    found.update(problems)
    found.raise_any(source.place)


def _write_shard(out: str, read: Reader, metadata: Mapping[str, str], shard: _Shard) -> _Written:
    """Read the items, and write them if none is wrong."""
    records, images, contents, sources = [], [], [], []
    problems: dict[str, list[str]] = {}
    for item in shard.items:
        try:
            row = read(item)
        except (OSError, ValueError) as error:
            problem = os_error_text(error, "read") if isinstance(error, OSError) else str(error)
            problems.setdefault(problem, []).append(item.id)
            continue
        record, content = _packed(row)
        records.append(record)
        images.append(hashlib.sha256(row.image).digest())
        contents.append(content)
        sources.append(row.source)
    if problems:
        return _Written({}, 0, [], [], [], problems)
    own = hashlib.sha256(b"".join(sources)).hexdigest()
    schema = SCHEMA.with_metadata({**metadata, "source": own})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
    encoded = sink.getvalue()
    digest = hashlib.sha256(encoded).hexdigest()
    name = f"{shard.subset}-{shard.number:05d}-{digest[:8]}.arrow"
    filesystem, root = locate(out)
    with filesystem.open_output_stream(f"{root}/{name}") as file:
        file.write(encoded)
    if not is_url(out):
        sync(Path(root) / name)
    file = {"name": name, "rows": len(records), "bytes": encoded.size, "sha256": digest}
    masks = sum(record["mask"] is not None for record in records)
    return _Written(file, masks, images, contents, sources, {})


def _packed(row: Row) -> tuple[dict[str, Any], bytes]:
    """The record of a row, and the hash of what it means: class indices, not the PNG that some zlib made of them."""
    digest = hashlib.sha256(f"{row.id}\n{row.height}x{row.width}\n".encode())
    digest.update(hashlib.sha256(row.image).digest())
    record: dict[str, Any] = {"id": row.id, "image": row.image, "height": row.height, "width": row.width}
    if row.mask is None:
        return {**record, "mask": None, "classes": None}, digest.digest()
    digest.update(hashlib.sha256(row.mask.tobytes()).digest())
    image = Image.fromarray(row.mask)
    png = row.png
    if png is None:
        target = io.BytesIO()
        image.save(target, "PNG", compress_type=zlib.Z_RLE)  # for areas of one value smaller than the default, and faster
        png = target.getvalue()
    present = [index for index, pixels in enumerate(image.histogram()[:IGNORE_INDEX]) if pixels]
    return {**record, "mask": png, "classes": present}, digest.digest()
