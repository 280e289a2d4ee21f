"""Methods of other packages: found when they are asked for, and refused one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from css_ray.methods import METHODS, MethodError, Methods
from tests.plugin import install, install_readme_package, on_path

HEAD = "from css_ray.methods import Method, Supervised\n"

BROKEN = {
    # package: (entry point, its value, source of the module, what the error says)
    "absent": ("absent", "not_there:X", "", "cannot be loaded (ModuleNotFoundError: No module named 'not_there')"),
    "unnamed": (
        "unnamed",
        "unnamed:Missing",
        "",
        "cannot be loaded (AttributeError: module 'unnamed' has no attribute 'Missing')",
    ),
    "malformed": (
        "malformed",
        "not a module!",
        "",
        "cannot be loaded (",
    ),  # the type depends on the version of importlib.metadata
    "failing": ("failing", "failing:X", "raise RuntimeError('no\\n  licence')", "cannot be loaded (RuntimeError: no licence)"),
    "leaving": ("leaving", "leaving:X", "raise SystemExit", "cannot be loaded (SystemExit)"),
    "number": ("number", "number:x", "x = 3", "it is of type int, not a subclass of css_ray.methods.Method"),
    "stranger": ("stranger", "stranger:X", "class X: pass", "it is the class X, not a subclass of css_ray.methods.Method"),
    "lossless": ("lossless", "lossless:X", HEAD + "class X(Method): name = 'lossless'", "X does not define forward"),
    "renamed": (
        "renamed",
        "renamed:X",
        HEAD + "class X(Supervised): name = 'other'",
        "X.name is 'other'; give the entry point and the class the same name",
    ),
    "bare": (
        "bare",
        "bare:X",
        HEAD + "class X(Supervised):\n name = 'bare'\n class Config(Supervised.Config): x: int = 1",
        "X.Config is not a dataclass",
    ),
    "plain": (
        "plain",
        "plain:X",
        HEAD
        + "import dataclasses\nclass X(Supervised):\n name = 'plain'\n @dataclasses.dataclass(frozen=True, kw_only=True)\n class Config(Supervised.Config): x: int = 1",
        "X.Config.x is a plain field; make each setting by css_ray.config.knob",
    ),
    "unresolved": (
        "unresolved",
        "unresolved:X",
        "from __future__ import annotations\n"
        + HEAD
        + "import dataclasses\nclass X(Supervised):\n name = 'unresolved'\n @dataclasses.dataclass(frozen=True, kw_only=True)\n class Config(Supervised.Config): x: Intt = 1",
        "cannot be loaded (NameError: name 'Intt' is not defined)",
    ),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder that packages are installed into, on the path."""
    with on_path(tmp_path):
        yield tmp_path


def methods() -> Methods:
    """A registry that has not looked for entry points yet."""
    return Methods(METHODS.own.values())


def error_of(registry: Methods, name: str) -> str:
    with pytest.raises(MethodError) as caught:
        registry[name]
    return str(caught.value)


def test_a_method_of_another_package_is_one_of_the_methods(site: Path) -> None:
    install_readme_package(site)
    registry = methods()
    assert isinstance(registry, Mapping)
    assert "entropy" in registry and "entropi" not in registry
    assert list(registry) == [*METHODS.own, "entropy"] and len(registry) == len(METHODS.own) + 1
    assert registry["entropy"].__module__ == "entropy_methods"
    assert registry.get("entropy") is registry["entropy"] and registry.get("entropi") is None
    assert dict(registry.items()) == METHODS.own | {"entropy": registry["entropy"]}
    assert registry.package_of("entropy") == "entropy-methods 1.0" and registry.package_of("supervised") is None
    assert registry.packages == {"entropy-methods": "1.0"} and registry.broken == {}
    assert error_of(registry, "entropi") == "entropi is unknown (did you mean entropy?)"


@pytest.mark.parametrize("package", BROKEN)
def test_a_plug_in_that_cannot_be_used_is_one_error_of_its_own(package: str, site: Path) -> None:
    name, value, source, expected = BROKEN[package]
    install_readme_package(site)
    install(site, f"{package}-methods", {name: value}, {f"{package}.py": source}, version="2.1")
    registry = methods()
    for _ in range(2):  # the same each time it is asked for
        message = error_of(registry, name)
        assert expected in message
        assert f"{package}-methods 2.1 (entry point {name} = {value})" in message
        assert message.endswith(f"pip uninstall {package}-methods")
        assert "\n" not in message
    # All others are as if it were not there.
    assert name not in registry and list(registry) == [*METHODS.own, "entropy"]
    assert registry["entropy"].name == "entropy" and registry.broken == {name: message}


def test_the_error_of_a_plug_in_keeps_its_cause(site: Path) -> None:
    install(
        site, "failing-methods", {"failing": "failing:X"}, {"failing.py": "def f():\n    raise RuntimeError('no licence')\nf()"}
    )
    with pytest.raises(MethodError) as caught:
        methods()["failing"]
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "python -c 'import failing' shows where it fails" in str(caught.value)


def test_a_name_that_two_packages_register_is_refused(site: Path) -> None:
    install_readme_package(site)
    install(site, "other-methods", {"entropy": "other:X"}, {"other.py": HEAD + "class X(Supervised): name = 'entropy'"})
    registry = methods()
    message = error_of(registry, "entropy")
    assert "entropy-methods 1.0 (entry point entropy = entropy_methods:EntropyMinimisation)" in message
    assert "other-methods 1.0 (entry point entropy = other:X)" in message
    assert "rename" in message and "pip uninstall" in message
    assert dict(registry) == METHODS.own and list(registry.broken) == ["entropy"]


def test_a_name_of_css_ray_that_a_package_registers_is_refused(site: Path) -> None:
    taken = next(iter(METHODS.own))
    install(site, "greedy-methods", {taken: "greedy:X"}, {"greedy.py": HEAD + f"class X(Supervised): name = {taken!r}"})
    registry = methods()
    message = error_of(registry, taken)
    assert (
        f"the name '{taken}' is registered by css-ray itself and by greedy-methods 1.0 (entry point {taken} = greedy:X)"
        in message
    )
    assert message.endswith("pip uninstall greedy-methods")
    assert dict(registry) == {name: method for name, method in METHODS.own.items() if name != taken}


def test_one_class_that_is_registered_twice_is_no_clash(site: Path) -> None:
    install_readme_package(site)
    install(site, "entropy-methods-old", {"entropy": "entropy_methods:EntropyMinimisation"})
    assert methods()["entropy"].name == "entropy"


PROGRAM = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "optuna", "mlflow", "pydantic", "click", "rich"): raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import css_ray
assert "importlib.metadata" not in sys.modules and "torch" not in sys.modules
from css_ray.methods import METHODS
read = []
sys.addaudithook(lambda event, arguments: read.append(arguments[0]) if event == "open" and "entry_points.txt" in str(arguments[0]) else None)
import css_ray.testing, css_ray.training.loop
assert not read
assert [METHODS[name].name for name in METHODS.own] == list(METHODS.own)
assert "entropy_methods" not in sys.modules and "failing" not in sys.modules
assert METHODS["entropy"].name == "entropy" and "failing" not in sys.modules
print(*METHODS, *METHODS.broken)
"""


def test_plug_ins_are_found_late_and_without_the_platform(tmp_path: Path) -> None:
    """Importing css-ray looks for none, a method of css-ray imports none, and one of them imports no other."""
    install_readme_package(tmp_path)
    install(tmp_path, "failing-methods", {"failing": "failing:X"}, {"failing.py": "raise RuntimeError('no licence')"})
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*METHODS.own, "entropy", "failing"]
