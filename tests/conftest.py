"""One data set and one undisturbed study, for all that compare with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: on some processors MKL computes logarithms and the like in float64 to half of their digits, so that
# golden losses would differ from those of other processors.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

from tests.places import Place


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of remote data sets, and stamps of local ones, are not kept in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSS_RAY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from css_ray.data.catalogue import ensure_dataset

    root = tmp_path_factory.mktemp("data") / "digits"
    ensure_dataset("digits", str(root))
    return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Place:
    place = Place(tmp_path_factory.mktemp("undisturbed"), data)
    code, output = place.run()
    assert code == 0, output
    place.output = output  # type: ignore[attr-defined]
    return place


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Iterator[Place]:
    place = Place(tmp_path, data)
    yield place
    for process in place.processes():
        os.kill(process, signal.SIGKILL)


WITHOUT_RAY = tuple(
    f"tests/{place}" for place in ("cluster/", "methods/", "prediction/", "reports/", "training/", "test_benchmarks.py")
)
"""Where slow tests start no Ray."""


@pytest.hookimpl(optionalhook=True)  # of xdist, without which the tests run as well
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has all tests that may start Ray, one after another: two at a time would wait for each other longer than Ray
    waits for its own processes. The others have the rest.
    """
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneRay(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(WITHOUT_RAY) else "ray"

    return OneRay(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the inputs of the fuzzers."""
    from tests.fuzz.mutate import FIGURES

    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    rows = [
        value
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == FIGURES
    ]
    if rows:
        terminalreporter.section(FIGURES)
        terminalreporter.write_line(f"{'kind':40} {'tried':>7} {'refused well':>13} {'accepted':>9} {'failed':>7}")
        for kind, tried, refused, accepted, failed in sorted(rows):
            terminalreporter.write_line(f"{kind:40} {tried:7} {refused:13} {accepted:9} {failed:7}")
