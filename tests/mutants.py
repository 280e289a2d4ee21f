"""Would the tests notice? `make mutants` changes one thing at a time in the pure modules and runs that module's tests.

A change is a comparison, + for -, `and` for `or`, 0 for 1, a `not` or a return value that becomes None. Each runs in a copy of
the tree. What no test notices is printed as `file:line: before → after`: either it is equivalent, or a test is missing. Ctrl-C
ends early, with the count so far.

    python tests/mutants.py --limit 150 --seed 1 css_ray/reports css_ray/functional
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    "css_ray/functional": ["tests/functional/test_{name}.py", "tests/functional/test_oracles.py"],
    "css_ray/functional/precision.py": ["tests/functional/test_similarity.py"],
    "css_ray/functional/resizing.py": ["tests/functional/test_resizing.py", "tests/functional/test_similarity.py"],
    "css_ray/reports": ["tests/reports"],
    "css_ray/study/pruning": ["tests/study/test_pruning.py"],
    "css_ray/study/budget.py": ["tests/study/test_driver.py"],
    "css_ray/study/upkeep.py": ["tests/study/test_keep.py"],
    "css_ray/clocks.py": ["tests/test_clocks.py"],
    "css_ray/config.py": ["tests/test_config.py"],
    "css_ray/events.py": ["tests/test_events.py"],
    "css_ray/records.py": ["tests/test_records.py"],
    "css_ray/secrets.py": ["tests/test_secrets.py"],
    "css_ray/standing.py": ["tests/test_standing.py"],
}
"""What is changed, a file or a folder, and the tests that must notice; {name} is the module's."""

COPIED = ("css_ray", "cli", "benchmarks", "tests", "studies", "docs", "pyproject.toml")
"""The parts of the tree that these tests read."""

PAIRS: Sequence[tuple[type[ast.AST], type[ast.AST]]] = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Add, ast.Sub),
    (ast.And, ast.Or),
]  # fmt: skip
SWAPS = {before: after for pair in PAIRS for before, after in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    """A module with one change. source: the whole of it. tests: what must notice."""

    path: Path
    line: int
    before: str
    after: str
    source: str
    tests: list[str]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before[:110]} → {self.after[:110]}"


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All of a module but annotations, which nothing computes."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from nodes(child)


def changes(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """The line of each change, and what is there before and after; while it is yielded, `tree` has it."""
    for node in nodes(tree):
        for owner, key, old, new in _changes(node):
            before = ast.unparse(node)
            _put(owner, key, new)
            yield getattr(node, "lineno", 0), before, ast.unparse(node)
            _put(owner, key, old)


def _changes(node: ast.AST) -> Iterator[tuple[object, str | int, object, object]]:
    """The changes of one node: what to write where (an attribute or a place in a list), and what is there."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                yield node.ops, place, operator, SWAPS[type(operator)]()
        case ast.BinOp(op=ast.Add() | ast.Sub()) | ast.AugAssign(op=ast.Add() | ast.Sub()) | ast.BoolOp():
            yield node, "op", node.op, SWAPS[type(node.op)]()
        case ast.Constant(value=int() | float() as value) if value in (0, 1) and not isinstance(value, bool):
            yield node, "value", value, type(value)(1 - value)
        case ast.UnaryOp(op=ast.Not()):
            yield node, "operand", node.operand, ast.UnaryOp(ast.Not(), node.operand)
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield node, "value", value, ast.Constant(None)


def _put(owner: object, key: str | int, value: object) -> None:
    if isinstance(owner, list):
        owner[key] = value  # type: ignore[index]
    else:
        setattr(owner, str(key), value)


def tests_of(path: Path) -> list[str]:
    """The tests of a module, by the longest entry of TESTS that it is, or is below of."""
    named = next((TESTS[str(each)] for each in (path, *path.parents) if str(each) in TESTS), [])
    return [test.format(name=path.stem) for test in named]


def mutants(paths: Sequence[Path], limit: int | None, seed: int) -> list[Mutant]:
    """All mutants of the modules, or a sample of `limit`, by file and line."""
    trees = {path: ast.parse((ROOT / path).read_text()) for path in paths}
    places = [(path, number) for path, tree in trees.items() for number, _ in enumerate(changes(tree))]
    chosen = set(places if limit is None else random.Random(seed).sample(places, min(limit, len(places))))
    return [
        Mutant(path, line, before, after, ast.unparse(tree), tests_of(path))
        for path, tree in trees.items()
        for number, (line, before, after) in enumerate(changes(tree))
        if (path, number) in chosen
    ]


def start(tree: Path, tests: Sequence[str]) -> subprocess.Popen[bytes]:
    """The tests of a copy of the tree, in a process group of their own."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *tests]
    # Compiled files are known by second and size, which a change may have in common with the one before.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=tree, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def copy_tree(into: Path) -> Path:
    for part in COPIED:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, into / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, into / part)
    return into


def time_limit(tree: Path, mutant: Mutant) -> float:
    """Seconds that the tests of a mutant get. Ends the program where they fail without a change, or do not see the copy."""
    tests, module = " ".join(mutant.tests), tree / mutant.path
    started = time.monotonic()
    if start(tree, mutant.tests).wait():
        sys.exit(f"{tests}: fails without a change, or does not exist; correct it, or TESTS in tests/mutants.py")
    seconds = time.monotonic() - started
    before = module.read_text()
    module.write_text("raise ImportError")
    if start(tree, mutant.tests).wait() == 0:
        sys.exit(f"{tests}: passes without {mutant.path}; correct TESTS in tests/mutants.py")
    module.write_text(before)
    return 10 + 5 * seconds


def attempt(chosen: Sequence[Mutant], trees: list[Path]) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with what became of it (killed, survived or stopped, at its time limit), one per tree at the same time."""
    one_each = {tuple(mutant.tests): mutant for mutant in chosen}
    limits = {tests: time_limit(trees[0], mutant) for tests, mutant in one_each.items()}
    unchanged = {mutant.path: (trees[0] / mutant.path).read_text() for mutant in chosen}
    waiting = list(reversed(chosen))
    running: dict[Path, tuple[Mutant, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for tree in trees:
                if tree not in running and waiting:
                    mutant = waiting.pop()
                    (tree / mutant.path).write_text(mutant.source)
                    limit = time.monotonic() + limits[tuple(mutant.tests)]
                    running[tree] = mutant, start(tree, mutant.tests), limit
            time.sleep(0.05)
            for tree, (mutant, process, limit) in list(running.items()):
                if process.poll() is not None or time.monotonic() > limit:
                    fate = "stopped" if process.returncode is None else "killed" if process.returncode else "survived"
                    kill(process)
                    (tree / mutant.path).write_text(unchanged[mutant.path])
                    del running[tree]
                    yield mutant, fate
    finally:
        for _, process, _ in running.values():
            kill(process)


def interrupt(number: int, frame: object) -> None:
    """Once: what follows stops the tests that run, and prints the count."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("paths", nargs="*", default=list(TESTS), help="files or folders; by default all that has tests here")
    parser.add_argument("--limit", type=int, help="try a sample of so many changes; by default all, which takes hours")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="changes tried at the same time")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    files = [
        file for path in options.paths for file in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))
    ]
    modules = sorted({file.relative_to(ROOT) for file in files})
    if unknown := [str(path) for path in modules if not tests_of(path)]:
        parser.error(f"{', '.join(unknown)}: no tests are named for this; add it to TESTS")
    counts = {"killed": 0, "survived": 0, "stopped": 0}
    with tempfile.TemporaryDirectory(prefix="css-ray-mutants-") as scratch:
        trees = [copy_tree(Path(scratch) / str(number)) for number in range(options.jobs)]
        try:
            for mutant, fate in attempt(mutants(modules, options.limit, options.seed), trees):
                counts[fate] += 1
                if fate != "killed":
                    print(mutant if fate == "survived" else f"{mutant} (stopped at its time limit)", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        # Who never ends does not pass either.
        print(f"{counts['killed'] + counts['stopped']} killed, {counts['survived']} survived", flush=True)


if __name__ == "__main__":
    main()
