"""YAML as a study file is written in it."""

from __future__ import annotations

import re
from typing import Any

import yaml


class StudyLoader(yaml.SafeLoader):
    """YAML 1.2 floats (1e-4 is a number), and a key given twice is an error rather than the last one silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # `<<` takes over another mapping, whose keys may be given here again.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is listed twice", own[place].start_mark)
        return super().construct_mapping(node, deep)


def read_value(text: str) -> Any:
    """A value as a study file would have it. Raises ValueError if it is not YAML."""
    try:
        return yaml.load(text, Loader=StudyLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not a YAML value ({yaml_error_text(error)})") from None


def yaml_error_text(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


StudyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*)(\.[\d_]*)?([eE][-+]?\d+)$|^[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
