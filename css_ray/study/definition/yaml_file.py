"""YAML as a study file is written in it: plain values, and no more of them than a study can have."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent

MAX_BYTES = 1_000_000
"""The size of a study file; one with 1000 listed trials has a tenth of it."""

MAX_VALUES = 50_000
"""Values and keys in a file, those behind its aliases counted each time; 1000 listed trials may have 50 each."""

MAX_DEPTH = 20
"""How deep values are nested; a study needs seven levels."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_NO_TYPES_OF_A_STUDY = {f"{_TAG}timestamp", f"{_TAG}value"}


class StudyLoader(yaml.SafeLoader):
    """YAML without what a study has no use for, in time and memory that its length bounds.

    As in YAML 1.2, 1e-4 is a number, and 2026-01-01 is text. A key given twice is an error rather than the last one silently
    winning. Tags are refused, and so are values that contain themselves and files that unfold to more than `MAX_VALUES`.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NO_TYPES_OF_A_STUDY]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0  # so far, those behind aliases counted each time
        self._open: list[int] = []  # of the values that are being read, the outermost first: the levels inside
        self._extents: dict[int, tuple[int, int]] = {}  # by a node's id: its values, and the levels inside

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        self._open.append(0)
        if len(self._open) > MAX_DEPTH:
            raise _refusal(f"values are nested more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        levels = self._open.pop()
        if not isinstance(event, AliasEvent):
            self._values += 1
            self._extents[id(node)] = self._values - before, levels
        elif id(node) in self._extents:
            values, levels = self._extents[id(node)]
            self._values += values
        else:
            inside = f"the alias *{event.anchor} is inside of the value that it stands for"
            raise _refusal(inside, event.start_mark)
        if len(self._open) + 1 + levels > MAX_DEPTH:
            raise _refusal(f"values are nested more than {MAX_DEPTH} levels deep", event.start_mark)
        if self._values > MAX_VALUES:
            many = f"there are more than {MAX_VALUES} values, those behind aliases counted each time"
            raise _refusal(many, event.start_mark)
        if self._open:
            self._open[-1] = max(self._open[-1], levels + 1)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN:
            raise ConstructorError(
                None, None, f"the tag {_tag_text(node.tag)} has no meaning in a study; remove it", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError):  # such as `!!int x`, or a number of more digits than Python reads
            kind = _tag_text(node.tag)
            raise _refusal(f"this cannot be read as a value of the type {kind}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # one that its tag calls a mapping
            return super().construct_mapping(node, deep)
        # `<<` takes over another mapping, whose keys may be given here again.
        own = [key for key, _ in node.value if key.tag != f"{_TAG}merge"]
        known = set()
        for place in own:
            key = self.construct_object(place, deep=True)
            if not isinstance(key, Hashable):
                raise _refusal("a key must be a word, not a list or a mapping", place.start_mark)
            if key in known:
                raise _refusal(f"the key {key!r} is listed twice", place.start_mark)
            known.add(key)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> Any:
    """The value of a YAML file. Raises OSError, UnicodeDecodeError, yaml.YAMLError, or ValueError with a sentence."""
    # A pipe would block until somebody writes to it, and a device need not end.
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
        raise ValueError("is a pipe or a device; give a study in a file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES // 1000} kB; give a study in YAML")
    return load(content.decode())


def load(text: str) -> Any:
    """The value of a text in YAML. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=StudyLoader)


def read_value(text: str) -> Any:
    """A value as a study file would have it. Raises ValueError if it is not YAML."""
    try:
        return load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not a YAML value ({yaml_error_text(error)})") from None


def yaml_error_text(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is U+{error.character:04X}, which YAML does not allow; give a study in YAML"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _refusal(why: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, why, place)


def _tag_text(tag: str) -> str:
    return tag.replace(_TAG, "!!", 1) if tag.startswith(_TAG) else tag


StudyLoader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
