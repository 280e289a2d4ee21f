"""`css-ray ui`: a folder without studies is refused, and nothing is made in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.made_up import Journal, call, refused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tracking URIs that a server was started for; none is."""
    uris: list[str] = []

    def start(uri: str, *arguments: object) -> None:
        uris.append(uri)
        raise RuntimeError("no server in this test")

    monkeypatch.setattr("css_ray.tracking.start_server", start)
    return uris


def test_a_misspelt_storage_makes_no_empty_store(tmp_path: Path, started: list[str]) -> None:
    Journal("my runs")
    Path("empty").mkdir()
    assert "--storage: my run holds no study and no mlflow.db (did you mean my runs?)" in refused("ui", "--storage", "my run")
    assert "--storage: empty holds no study and no mlflow.db; known: my runs" in refused("ui", "--storage", "empty")
    assert "lost/deep holds no study" in refused("ui", "--storage", "lost/deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "my runs"] and not started


def test_a_storage_with_studies_or_mlflows_file_is_shown(tmp_path: Path, started: list[str]) -> None:
    Journal("my runs")
    assert "no server in this test" in refused("ui", "--storage", "my runs")
    Path("old").mkdir()
    Path("old/mlflow.db").touch()
    assert "no server in this test" in refused("ui", "--storage", "old")
    # Who names MLflow's address need not have a storage.
    assert "no server in this test" in call("ui", "--uri", "sqlite:///elsewhere.db").output
    assert started == [
        f"sqlite:///{tmp_path}/my runs/mlflow.db",
        f"sqlite:///{tmp_path}/old/mlflow.db",
        "sqlite:///elsewhere.db",
    ]
