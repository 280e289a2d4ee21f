"""Who may import whom (README, map of the code), and that everything up to training needs no platform."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# layer: (layers of css_ray it may import, third-party packages it may import)
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "config": (set(), set()),
    "messages": (set(), set()),
    "records": (set(), set()),
    "types": (set(), {"torch"}),
    "views": ({"config"}, set()),
    "distributed": (set(), {"torch"}),
    "functional": ({"types", "views"}, {"torch"}),
    "models": ({"types", "config"}, {"torch", "timm", "safetensors"}),
    "data": (
        {"types", "config", "views", "places", "messages"},
        {"torch", "torchvision", "pyarrow", "numpy", "PIL", "sklearn", "scipy", "yaml"},
    ),
    "methods": ({"types", "config", "views", "distributed", "functional", "models"}, {"torch"}),
    "training": ({"types", "config", "distributed", "functional", "models", "methods"}, {"torch"}),
    "places": (set(), set()),
    "tracking": ({"records", "places"}, {"mlflow"}),
    "reports": ({"records"}, {"scipy"}),
    "api": ({"records", "messages", "places", "data", "reports", "study", "tracking"}, {"pandas"}),
    "study": (
        {
            "messages",
            "places",
            "types",
            "config",
            "views",
            "records",
            "distributed",
            "functional",
            "models",
            "data",
            "methods",
            "training",
            "tracking",
        },
        {"torch", "ray", "optuna", "pydantic", "yaml", "pyarrow", "scipy"},
    ),
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it, relative ones resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
                module = ".".join((*package, *module.split("."))).rstrip(".")
            names |= {f"css_ray.{alias.name}" if module == "css_ray" else module for alias in node.names}
    return names


def files() -> list[tuple[str, Path]]:
    package = ROOT / "css_ray"
    found = [(path.relative_to(package).parts[0].removesuffix(".py"), path) for path in sorted(package.rglob("*.py"))]
    return [(layer, path) for layer, path in found if layer != "__init__"]


@pytest.mark.parametrize(("layer", "path"), files(), ids=lambda value: str(value) if isinstance(value, str) else value.stem)
def test_imports_point_downwards(layer: str, path: Path) -> None:
    inside, outside = LAYERS[layer]
    for name in imports(path):
        top, *rest = name.split(".")
        if name == "css_ray.__version__":
            continue
        if top == "css_ray":
            assert rest[0] in inside | {layer}, f"{path.relative_to(ROOT)} imports {name}; {layer} may import {sorted(inside)}"
        elif top not in sys.stdlib_module_names:
            assert top in outside, f"{path.relative_to(ROOT)} imports {name}; {layer} may use {sorted(outside)}"


def test_click_and_rich_live_in_the_cli_alone() -> None:
    for path in (ROOT / "cli").glob("*.py"):
        assert not any(name.split(".")[0] in ("ray", "optuna", "mlflow") for name in imports(path)) or path.stem == "doctor", (
            path
        )


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_training_needs_no_platform() -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'optuna', 'mlflow', 'pydantic', 'click', 'rich'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import css_ray.training.loop, css_ray.data.loaders, css_ray.data.catalogue, css_ray.methods, css_ray.study.run\n"
        "print('imported')"
    )
    assert run_python(program) == "imported\n"


def test_help_loads_no_torch() -> None:
    program = (
        "import sys, click.testing\n"
        "from css_ray_cli.main import main\n"
        "result = click.testing.CliRunner().invoke(main, ['--help'])\n"
        "assert result.exit_code == 0 and 'doctor' in result.output, result.output\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pydantic', 'rich', 'optuna', 'numpy') if name in sys.modules])"
    )
    assert run_python(program) == "[]\n"


@pytest.mark.parametrize("word", ["utils", "common", "helper", "manager"])
def test_banned_names(word: str) -> None:
    assert not [path for path in ROOT.glob("c*/**/*.py") if word in path.stem and ".venv" not in path.parts]
