"""Who may import whom (README, map of the code): downwards only, in no circle, and each dependency in one home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"css_ray": ROOT / "css_ray", "css_ray_cli": ROOT / "cli"}

WORDS = {
    "types",
    "config",
    "views",
    "messages",
    "secrets",
    "storage",
    "matrices",
    "distributed",
    "temporary",
    "room",
    "events",
    "clocks",
    "records",
    "standing",
}
LOWER = WORDS | {"functional", "models", "data", "methods", "training"}

LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "types": (set(), {"torch"}),
    "config": (set(), set()),
    "messages": (set(), set()),
    "secrets": (set(), set()),
    "events": (set(), set()),
    "records": (set(), set()),
    "views": ({"config"}, set()),
    "distributed": (set(), {"torch"}),
    "storage": ({"messages", "secrets"}, {"pyarrow"}),
    "matrices": ({"secrets", "storage"}, {"numpy"}),
    "temporary": (set(), set()),
    "room": ({"secrets", "storage"}, set()),
    "clocks": ({"events"}, set()),
    "standing": ({"events", "clocks", "records"}, set()),
    "functional": ({"types", "views"}, {"torch", "torchvision"}),
    "models": ({"types", "config", "messages"}, {"torch", "timm", "safetensors"}),
    "data": (
        {"types", "config", "views", "messages", "secrets", "storage"},
        {"torch", "torchvision", "pyarrow", "numpy", "PIL", "sklearn", "yaml"},
    ),
    "methods": ({"types", "config", "views", "messages", "distributed", "functional", "models"}, {"torch"}),
    "testing": ({"types", "config", "views", "functional", "models", "methods", "training"}, {"torch", "pytest"}),
    "training": (
        {
            "types",
            "config",
            "views",
            "messages",
            "storage",
            "matrices",
            "room",
            "distributed",
            "functional",
            "models",
            "methods",
        },
        {"torch", "safetensors"},
    ),
    "prediction": (
        {"types", "messages", "secrets", "storage", "records", "functional", "models", "data", "training"},
        {"torch", "numpy", "PIL", "timm", "onnxruntime"},
    ),
    "tracking": (WORDS, {"mlflow", "numpy"}),
    "study": (LOWER | {"tracking"}, {"torch", "optuna", "pydantic", "yaml", "pyarrow", "scipy"}),
    "execution": (LOWER | {"tracking", "study"}, {"ray", "torch", "pyarrow"}),
    "figures": (
        {"types", "messages", "matrices", "data", "methods", "prediction"},
        {"torch", "numpy", "scipy", "matplotlib"},
    ),
    "selection": (LOWER | {"tracking", "study", "prediction"}, {"torch", "pyarrow"}),
    "registration": (LOWER | {"tracking", "study", "prediction", "selection"}, set()),
    "reports": (WORDS, {"numpy", "pandas", "scipy", "altair", "vl_convert", "jinja2"}),
    "reporting": (WORDS | {"study", "reports"}, set()),
    "illustration": (
        LOWER | {"prediction", "study", "selection", "reports", "reporting", "figures"},
        {"torch"},
    ),
    "audience": (WORDS | {"api", "study"}, set()),  # the names of types alone
    "api": (LOWER | {"tracking", "study", "execution", "reporting", "reports", "illustration", "audience"}, {"pandas"}),
}
"""By layer: the layers of css_ray that it may import besides itself, and the packages of others."""

HOMES = {
    "ray": ["css_ray/execution/"],
    "mlflow": ["css_ray/tracking/"],
    "optuna": [
        "css_ray/study/sampling.py",
        "css_ray/study/importance.py",
        "css_ray/study/optuna_internals.py",
        "css_ray/study/optuna_file.py",
        "css_ray/study/pruning/optuna_pruner.py",
    ],
    "pydantic": ["css_ray/study/definition/"],
    "yaml": ["css_ray/study/definition/", "css_ray/data/"],
    "pandas": ["css_ray/api.py", "css_ray/reports/frames.py"],
    "altair": ["css_ray/reports/charts.py", "css_ray/reports/search_charts.py"],
    "vl_convert": ["css_ray/reports/charts.py"],
    "matplotlib": ["css_ray/figures/draw.py"],
    "jinja2": ["css_ray/reports/page.py"],
    "onnxruntime": ["css_ray/prediction/"],
    "click": ["cli/"],
    "rich": ["cli/"],
}
"""The only places that may import these; whoever upgrades one reads its home."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages by its full name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def type_checking(path: Path) -> set[ast.AST]:
    """What a type checker alone sees."""
    blocks = (node for node in ast.walk(tree(path)) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(name: str, *, types: bool = True) -> set[str]:
    """Full names of what a module imports, anywhere in it. types: also what is imported for type checkers alone."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    left_out = set() if types else type_checking(path)
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in modules() else base)
    return found - {name}


def layers() -> Iterator[tuple[str, str]]:
    for name in modules():
        package, *rest = name.split(".")
        if package == "css_ray" and rest:
            yield rest[0], name


@pytest.mark.parametrize(("layer", "name"), list(layers()), ids=lambda value: str(value))
def test_imports_point_downwards(layer: str, name: str) -> None:
    inside, outside = LAYERS[layer]
    for imported in imports(name):
        top, *rest = imported.split(".")
        if top == "css_ray" and rest:
            assert rest[0] in inside | {layer}, f"{name} imports {imported}; {layer} may import {sorted(inside)}"
        elif top not in sys.stdlib_module_names and top != "css_ray":
            assert top in outside, f"{name} imports {imported}; {layer} may use {sorted(outside)}"


@pytest.mark.parametrize("package", HOMES)
def test_each_dependency_has_one_home(package: str) -> None:
    homes = HOMES[package]
    found = [
        modules()[name].relative_to(ROOT).as_posix()
        for name in modules()
        if any(imported.split(".")[0] == package for imported in imports(name))
    ]
    allowed = [*homes, "cli/doctor.py"] if package == "ray" else homes  # it starts a Ray of its own, to see whether one starts
    assert found and not [path for path in found if not path.startswith(tuple(allowed))]


def test_no_circle_of_files() -> None:
    graph = {name: {each for each in imports(name, types=False) if each in modules()} for name in modules()}
    graph["css_ray"] = set()  # it offers `Study` and `load_model` on use
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


PRIVATE = re.compile(r"^(ray|mlflow)\b.*(\._(?!_)|\.internal|\.generated)")
ATTRIBUTES = re.compile(r"_internal_kv|_connect_and_get_accessor|_create_default_callbacks|ENV_VARS_TO_PROPAGATE|\.actor\.")


def private_names(path: Path) -> list[str]:
    """What a file imports of Ray or MLflow that is private to them, by its name."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if PRIVATE.match(name)]


def test_private_names_of_ray_and_mlflow_are_in_one_file() -> None:
    paths = [*modules().values(), *sorted((ROOT / "benchmarks").rglob("*.py"))]
    private = [path for path in paths if private_names(path) or ATTRIBUTES.search(path.read_text())]
    found = {path.relative_to(ROOT).as_posix() for path in private}
    assert found == {"css_ray/execution/ray_internals.py"}


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_training_needs_no_platform() -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'optuna', 'mlflow', 'pydantic', 'click', 'rich'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import css_ray.training.loop, css_ray.training.best, css_ray.data.loaders, css_ray.data.catalogue, css_ray.methods, css_ray.study.run\n"
        "import torch\n"
        "torch.cuda.is_available = lambda: False\n"
        "from benchmarks.__main__ import main\n"
        "assert main(['gpu']) == 0"
    )
    assert run_python(program) == "gpu: skipped, torch sees no CUDA device\n"


def test_importing_the_study_changes_no_environment_variable_and_loads_no_ray() -> None:
    program = (
        "import os, sys, torch\n"
        "import torch.distributed.nn.functional\n"  # torch sets variables of its own
        "before = dict(os.environ)\n"
        "import css_ray.api, css_ray.study.driver, css_ray.study.preflight, css_ray.study.hooks, css_ray.reports.table\n"
        "changed = {name for name in before | os.environ if before.get(name) != os.environ.get(name)}\n"
        "print(sorted(name for name in changed if not name.startswith('TORCH')))\n"
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])"
    )
    assert run_python(program) == "[]\n[]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["study", "--help"], ["study", "run", "--help"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys, click.testing\n"
        "from css_ray_cli.main import main\n"
        f"result = click.testing.CliRunner().invoke(main, {arguments})\n"
        "assert result.exit_code == 0 and 'Usage' in result.output, result.output\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'pydantic', 'rich', 'optuna', 'numpy') if name in sys.modules])"
    )
    assert run_python(program) == "[]\n"


@pytest.mark.parametrize("arguments", [["methods", "augseg"], ["study", "list"]])
def test_what_shows_something_loads_no_torchvision(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, click.testing\n"
        "from css_ray_cli.main import main\n"
        f"result = click.testing.CliRunner().invoke(main, {arguments}, env={{'CSS_RAY_STORAGE': {str(tmp_path)!r}}})\n"
        "assert result.exit_code == 0, result.output\n"
        "print([name for name in ('torchvision', 'torch._dynamo', 'timm', 'ray', 'mlflow') if name in sys.modules])"
    )
    assert run_python(program) == "[]\n"


def test_a_command_ends_without_a_last_look_at_all_objects() -> None:
    program = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import css_ray_cli.main"
    assert run_python(program) == "True\n"


def test_a_tracker_loads_mlflow_before_the_first_event_and_writes_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from css_ray.tracking import Tracker\n"
        "assert 'mlflow' not in sys.modules\n"
        f"tracker, limit = Tracker('sqlite:///{tmp_path}/runs/mlflow.db'), time.monotonic() + 120\n"
        "while 'mlflow' not in sys.modules and time.monotonic() < limit: time.sleep(0.05)\n"
        "print('mlflow' in sys.modules, tracker.close(60))"
    )
    assert run_python(program) == "True 0\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["utils", "common", "helper", "manager"])
def test_banned_names(word: str) -> None:
    assert not [path for path in ROOT.glob("c*/**/*.py") if word in path.stem and ".venv" not in path.parts]


def test_files_have_one_subject() -> None:
    long = {path: lines for path in modules().values() if (lines := path.read_text().count("\n")) >= 600}
    assert not long, f"split what has 600 lines or more: {long}"


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {name for name, path in modules().items() if path.name == "__init__.py"}


def test_the_map_of_the_readme_is_the_tree() -> None:
    """Each folder of the packages, and each file right in css_ray/, is in the map, and the map names nothing else."""
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## Map of the code") :].split("```")[1]
    mapped: set[str] = set()
    above: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"(?:[\w.-]+(?:/|\.py|\.yaml)\s+)*", line.strip() + " ")
        for name in names[0].split() if names else []:
            above[depth:] = [name.rstrip("/")]
            mapped.add("/".join(above))
    inside = [path for folder in PACKAGES.values() for path in (folder, *folder.rglob("*"))]
    folders = [path for path in inside if path.is_dir() and path.name != "__pycache__"]
    files = [path for path in (ROOT / "css_ray").glob("*.py") if path.name != "__init__.py"]
    wanted = {path.relative_to(ROOT).as_posix() for path in (*folders, *files)}
    mapped = {name for name in mapped if name.split("/")[0] in ("css_ray", "cli")}
    assert mapped == wanted, f"not in the map: {sorted(wanted - mapped)}; not in the tree: {sorted(mapped - wanted)}"


def test_no_method_imports_another_and_neither_loop_nor_studies_name_one() -> None:
    from css_ray.methods import METHODS

    modules_of = {name: METHODS[name].__module__ for name in METHODS}
    for name, module in modules_of.items():
        others = set(modules_of.values()) - {module}
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & others, f"{name} imports {imported & others}; share what both need in a module of its own"
    for path in [*ROOT.glob("css_ray/training/*.py"), *ROOT.glob("css_ray/study/**/*.py")]:
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not words & modules_of.keys(), f"{path} names a method: {words & modules_of.keys()}"
