"""The fields of a section as pydantic checks them, and its errors as problems of a file."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model

from css_ray.config import Config, Problem, bounds_text
from css_ray.study.definition.problems import unknown_key
from css_ray.study.definition.sections import Section


@cache
def checker_of(config: type[Config]) -> type[BaseModel]:
    """A pydantic model with the fields, types and bounds of a Config class."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        bounds = field.metadata.get("bounds", {})
        default = ... if field.default is dataclasses.MISSING else field.default
        if _is_tuple(hint):
            # YAML has lists only; bounds of a tuple hold for its entries and are checked by the Config itself.
            fields[field.name] = (typing.Annotated[hint, Field(strict=False)], default)
        else:
            fields[field.name] = (
                hint,
                Field(default, allow_inf_nan=False, **bounds) if float in _members(hint) else Field(default, **bounds),
            )
    return create_model(config.__qualname__, __base__=Section, **fields)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(member) is tuple for member in _members(hint))


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
}


def problems_of(error: ValidationError, path: str, known: Collection[str] = ()) -> list[Problem]:
    """The errors of pydantic as problems, one per value, each with the value, the bound and the remedy.

    known: the fields of the section at `path`; empty if a single value is there.
    """
    by_path: dict[str, list[Any]] = {}
    problems = []
    for detail in error.errors():
        place = path
        for part in detail["loc"]:
            # Other parts name the member of a union that was tried.
            if isinstance(part, int):
                place += f"[{part}]"
            elif part in known:
                place += f".{part}"
        if detail["type"] == "extra_forbidden":
            key = detail["loc"][-1]
            problems.append(unknown_key(f"{place}.{key}", key, known))
        else:
            by_path.setdefault(place, []).append(detail)
    return [*(Problem(place, _sentence(details)) for place, details in by_path.items()), *problems]


def _sentence(details: Sequence[Any]) -> str:
    """What is wrong with one value; several details are those of the members of a union."""
    # A member that has the value's type explains more than the others.
    detail = next((each for each in details if each["type"] not in _TYPES), details[0])
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return "missing"
    if kind in _TYPES:
        return f"must be {', or '.join(dict.fromkeys(_TYPES[each['type']] for each in details))}, got {value!r}"
    for name in ("gt", "ge", "lt", "le"):
        if name in context:
            return f"must be {bounds_text({name: context[name]})}, got {value!r}"
    if kind == "value_error":
        return f"{context['error']}, got {value!r}"
    if kind == "string_too_short":
        return f"must not be empty, got {value!r}"
    if kind in ("too_short", "too_long"):
        bound, word = (context["min_length"], "at least") if kind == "too_short" else (context["max_length"], "at most")
        return f"must have {word} {bound} {'entry' if bound == 1 else 'entries'}, got {value!r}"
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(' or ', ', ')}, got {value!r}"
    return f"{detail['msg']}, got {value!r}"
