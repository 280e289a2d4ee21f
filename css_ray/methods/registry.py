"""The registry of methods: css-ray's own, and those that other packages register by an entry point."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from css_ray.messages import did_you_mean
from css_ray.methods.base import Method

GROUP = "css_ray.methods"
"""The group of the entry points by which other packages register methods."""


class MethodError(KeyError):
    """No method of the name that was asked for can be used; the message explains why, and what to do."""

    def __str__(self) -> str:
        return str(self.args[0])  # a plain KeyError shows its message in quotes


class Methods(Mapping[str, type[Method]]):
    """Every method that can be used, by its name in a study.

    A package registers a method of its own by an entry point of the group `css_ray.methods`, named as the method is:

        [project.entry-points."css_ray.methods"]
        entropy = "entropy_methods:EntropyMinimisation"

    Entry points are read when a method is first asked for, and a package is imported when its method is asked for, or all
    methods are. A plug-in that cannot be used is not an entry; `broken` explains why, and so does the error of asking for it.

    Args:
        own: The methods of css-ray itself.
    """

    def __init__(self, own: Iterable[type[Method]]) -> None:
        self.own = {method.name: method for method in own}
        self._loaded: dict[str, type[Method] | MethodError] = {}

    def __getitem__(self, name: str) -> type[Method]:
        """The method of this name.

        Raises:
            MethodError: If there is no such method, its plug-in cannot be used, or two methods have this name.
        """
        found = self._found(name)
        if isinstance(found, MethodError):
            # A new exception each time, or tracebacks would pile up in the one that is kept.
            raise MethodError(str(found)) from found.__cause__
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if not isinstance(self._found(name), MethodError))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def broken(self) -> dict[str, str]:
        """Why a plug-in cannot be used, by its name; imports all of them."""
        found = {name: self._found(name) for name in self._names}
        return {name: str(error) for name, error in found.items() if isinstance(error, MethodError)}

    @property
    def packages(self) -> dict[str, str]:
        """The installed packages that register methods, with their versions; imports none of them."""
        registered = (point.dist for points in self._points.values() for point in points)
        return {dist.name: dist.version for dist in registered if dist is not None}

    def package_of(self, name: str) -> str | None:
        """The package that registers the method, such as `entropy-methods 1.0`; None for css-ray's own."""
        return _package(self._points[name][0]) if name in self._points else None

    @property
    def _names(self) -> list[str]:
        return [*self.own, *sorted(set(self._points) - set(self.own))]

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        by_name: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=GROUP):
            others = by_name.setdefault(point.name, [])
            # One class that is registered twice, such as by two installations of a package, is not a clash.
            if all(point.value != other.value for other in others):
                others.append(point)
        return by_name

    def _found(self, name: str) -> type[Method] | MethodError:
        if name not in self._loaded:
            self._loaded[name] = self._find(name)
        return self._loaded[name]

    def _find(self, name: str) -> type[Method] | MethodError:
        points = self._points.get(name, [])
        if len(points) + (name in self.own) > 1:
            # Neither is chosen: which method a number comes from must not depend on what else is installed.
            claims = ["css-ray itself"] * (name in self.own) + [_shown(point) for point in points]
            return MethodError(
                f"the name {name!r} is registered by {' and by '.join(claims)}; "
                f"rename the plug-in's, or uninstall its package: {_uninstall(points[-1])}"
            )
        if name in self.own:
            return self.own[name]
        if not points:
            near = did_you_mean(name, self._names)
            remedy = "" if "did you mean" in near else "; install the package that registers it on this machine"
            return MethodError(f"{name} is unknown{near}{remedy}")
        return _load(points[0])


def _load(point: EntryPoint) -> type[Method] | MethodError:
    """The method of an entry point, or what is wrong with it."""
    try:
        found = point.load()
        fault = _fault(point.name, found)
    except (Exception, SystemExit) as error:  # a module can do anything when it is imported
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        broken = MethodError(
            f"the method {point.name!r} of {_shown(point)} cannot be loaded ({said}); "
            f"repair that package ({shlex.join(['python', '-c', f'import {_module(point)}'])} shows where it fails), "
            f"or uninstall it: {_uninstall(point)}"
        )
        broken.__cause__ = error
        return broken
    if fault is None:
        return found  # type: ignore[no-any-return]
    return MethodError(
        f"the method {point.name!r} of {_shown(point)} cannot be used: {fault}; or uninstall the package: {_uninstall(point)}"
    )


def _fault(name: str, found: Any) -> str | None:
    """Why what an entry point named `name` names is not a method, with the remedy; None if it is one."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        kind = f"the class {found.__qualname__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        return f"it is {kind}, not a subclass of css_ray.methods.Method; let the entry point name one"
    if inspect.isabstract(found):
        return f"{found.__qualname__} does not define {', '.join(sorted(found.__abstractmethods__))}; define it"
    own_name = getattr(found, "name", None)
    if own_name != name:
        return f"{found.__qualname__}.name is {own_name!r}; give the entry point and the class the same name"
    if "__dataclass_fields__" not in vars(found.Config):
        return f"{found.__qualname__}.Config is not a dataclass; decorate it with @dataclass(frozen=True, kw_only=True)"
    typing.get_type_hints(found.Config)  # css-ray reads them to check a study; raises NameError for what it cannot resolve
    plain = [field.name for field in dataclasses.fields(found.Config) if "bounds" not in field.metadata]
    if plain:
        return f"{found.__qualname__}.Config.{plain[0]} is a plain field; make each setting by css_ray.config.knob"
    return None


def _shown(point: EntryPoint) -> str:
    return f"{_package(point)} (entry point {point.name} = {point.value})"


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "a package without a name"


def _uninstall(point: EntryPoint) -> str:
    return shlex.join(["pip", "uninstall", point.dist.name if point.dist is not None else _module(point).partition(".")[0]])


def _module(point: EntryPoint) -> str:
    return point.value.partition(":")[0].strip()  # point.module raises if the value is malformed
