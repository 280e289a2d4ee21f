"""One trained study for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.made_up import Journal
from tests.prediction.trained import train_study


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Journal:
    return train_study(tmp_path_factory.mktemp("trained") / "runs", data)


@pytest.fixture
def here(trained: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a copy of the study in `runs`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    shutil.copytree(trained.path.parent.parent, tmp_path / "runs")
    return tmp_path
