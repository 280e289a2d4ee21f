"""What a prepared data set consists of: the columns of its shards, and its `dataset.json`, whoever may have written that."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from css_ray.data.problems import joined, quoted
from css_ray.secrets import shown
from css_ray.storage import locate, plain_name, read_blocks

from ..types import IGNORE_INDEX

DESCRIPTION = "dataset.json"
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

_MOST_BYTES = 2**26  # of a description: a shard takes about 200
_SHOWN = 10  # problems that a message lists
_AGAIN = "delete it and prepare the data set again, or restore the file"


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


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard as it was written: its file name, how many rows and bytes it has, and its hash in hex."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Subset:
    """The shards of a subset in order, and how many images and masks they hold."""

    files: tuple[ShardFile, ...]
    images: int
    masks: int


@dataclass(frozen=True, slots=True)
class SetDescription:
    """A `dataset.json`. source: the hash of what the set was made of. text: the file as it was read."""

    info: DatasetInfo
    source: str
    subsets: Mapping[str, Subset]
    text: bytes = field(repr=False)

    @property
    def files(self) -> tuple[ShardFile, ...]:
        """The shards of all subsets."""
        return tuple(file for name in SUBSETS for file in self.subsets[name].files)


def read_description(place: str | Path) -> SetDescription | None:
    """The description of the data set in a folder or at a URL; None if there is none.

    Raises ValueError with everything that is wrong in it, OSError if it cannot be read.
    """
    filesystem, path = locate(place)
    where = f"{shown(place)}/{DESCRIPTION}"
    text = b""
    try:
        for block in read_blocks(filesystem, f"{path}/{DESCRIPTION}"):
            text += block
            if len(text) > _MOST_BYTES:
                raise ValueError(f"{where} has more than {_MOST_BYTES:,} bytes, so it describes no data set; {_AGAIN}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse(text, where)


def parse(text: bytes, where: str) -> SetDescription:
    """The description that the bytes of a `dataset.json` hold. where: what messages call it.

    Raises ValueError with everything that is wrong in it.
    """
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON; {_AGAIN}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{where} describes no data set; {_AGAIN}")
    if (found := described.get("format")) != FORMAT or isinstance(found, bool | float):
        raise ValueError(
            f"{where} has format {quoted(found)}, this version reads {FORMAT}; delete it and prepare the data set again"
        )
    problems: list[str] = []
    fields = _Fields(described, "", problems)
    info = DatasetInfo(fields.name("name"), fields.class_names(), fields.palette(), fields.digest("content"))
    source = fields.digest("source")
    if described.get("ignore_index", IGNORE_INDEX) != IGNORE_INDEX:
        problems.append(f"ignore_index must be {IGNORE_INDEX}, got {quoted(described['ignore_index'])}")
    if len(info.palette) != len(info.class_names) and not problems:
        problems.append(f"palette has {len(info.palette)} colours for {len(info.class_names)} classes")
    parts = fields.object("subsets")
    subsets = {name: _subset(parts.object(name), f"{where}", problems) for name in SUBSETS}
    names = Counter(file.name for subset in subsets.values() for file in subset.files)
    problems += [f"subsets lists the file {name} {count} times" for name, count in names.items() if count > 1]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ValueError(joined(f"{where} is not as css-ray writes it; {_AGAIN}", problems[:_SHOWN] + more))
    return SetDescription(info, source, subsets, text)


def _subset(fields: _Fields, where: str, problems: list[str]) -> Subset:
    files = []
    for number, file in enumerate(fields.list("files")):
        each = _Fields(file, f"{fields.path}files[{number}].", problems)
        name = each.name("name")
        try:
            plain_name(name or "unnamed", where)
        except ValueError as error:
            problems.append(str(error))
        files.append(ShardFile(name, each.count("rows"), each.count("bytes"), each.digest("sha256")))
    images, masks = fields.count("images"), fields.count("masks")
    if not problems and images != sum(file.rows for file in files):
        problems.append(f"{fields.path}images is {images}, but its files have {sum(file.rows for file in files)} rows")
    if not problems and masks > images:
        problems.append(f"{fields.path}masks is {masks}, more than its {images} images")
    return Subset(tuple(files), images, masks)


class _Fields:
    """The fields of a JSON object, checked as they are asked for. What is wrong with one goes to `problems`."""

    def __init__(self, value: Any, path: str, problems: list[str]) -> None:
        self.path = path
        self._problems = problems
        if not isinstance(value, dict):
            problems.append(f"{path.rstrip('.')} must be an object, got {quoted(value)}")
        self._value: dict[Any, Any] = value if isinstance(value, dict) else {}
        self._known = isinstance(value, dict)

    def _wrong(self, key: str, wanted: str) -> None:
        if self._known:  # else that was said already
            got = quoted(self._value[key]) if key in self._value else "nothing"
            self._problems.append(f"{self.path}{key} must be {wanted}, got {got}")

    def object(self, key: str) -> _Fields:
        if self._known and isinstance(self._value.get(key), dict):
            return _Fields(self._value[key], f"{self.path}{key}.", self._problems)
        self._wrong(key, "an object")
        return _Fields({}, f"{self.path}{key}.", [])

    def list(self, key: str) -> list[Any]:
        value = self._value.get(key)
        if isinstance(value, list):
            return value
        self._wrong(key, "a list")
        return []

    def count(self, key: str) -> int:
        value = self._value.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        self._wrong(key, "a number >= 0")
        return 0

    def digest(self, key: str) -> str:
        value = self._value.get(key)
        if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
            return value
        self._wrong(key, "a SHA-256 in hexadecimal digits")
        return ""

    def name(self, key: str) -> str:
        value = self._value.get(key)
        if isinstance(value, str) and is_name(value):
            return value
        self._wrong(key, _NAME)
        return ""

    def class_names(self) -> tuple[str, ...]:
        values = self.list("class_names")
        if values and len(values) <= IGNORE_INDEX and all(isinstance(value, str) and is_name(value) for value in values):
            return tuple(values)
        if isinstance(self._value.get("class_names"), list):
            self._wrong("class_names", f"a list of 1 to {IGNORE_INDEX} names, each {_NAME}")
        return ()

    def palette(self) -> tuple[tuple[int, int, int], ...]:
        values = self.list("palette")
        if all(isinstance(value, list) and len(value) == 3 and all(map(is_byte, value)) for value in values):
            return tuple((red, green, blue) for red, green, blue in values)
        self._wrong("palette", "a list of [red, green, blue] in 0..255")
        return ()


_MOST_CHARACTERS = 1000
_NAME = f"a text of 1 to {_MOST_CHARACTERS} characters, none of them a control character"


def is_name(text: str) -> bool:
    """Whether a text can name a data set, a class, a file or an image: messages and split files can show it on one line."""
    return 0 < len(text) <= _MOST_CHARACTERS and not any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in text
    )


def is_byte(value: object) -> bool:
    """Whether a value is a whole number in 0..255."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
