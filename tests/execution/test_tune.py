"""What Tune is given of a study, and what is looked at before there is any Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from css_ray.execution.runner import Runner
from css_ray.execution.tune import _Hand, _Link, _Searcher
from css_ray.study import upkeep
from css_ray.study.driver import Driver
from tests.drivers import new_driver, small


def test_a_study_that_was_moved_goes_on_where_it_is_now(tmp_path: Path) -> None:
    driver = new_driver(small(tmp_path), tmp_path)
    trial = driver.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    driver.begin(trial)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    moved = Driver(small(tmp_path), str(tmp_path / "elsewhere"))
    assert moved.next_trial(set()) == trial
    config = _Searcher(_Hand(_Link(moved, None, None))).suggest("a")
    assert isinstance(config, dict) and config["trial"] == trial.index
    places = [config["place"], *(config["job"][kind] for kind in ("checkpoints", "models", "matrices"))]
    assert all(Path(place).is_relative_to(tmp_path / "elsewhere" / "small") for place in places)


def test_a_full_disk_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "free_bytes", lambda place: 10**8)
    runner = Runner(small(tmp_path), str(tmp_path / "runs"))
    with pytest.raises(RuntimeError, match=r"has 0\.10 GB free, less than the 1 GB .* make room"):
        runner.run(resume=False)
    assert runner.driver.journal.events == []
    assert not (tmp_path / "runs" / "small" / "journal.jsonl").exists()
