"""What stays on a study's disk, and what happens when that is full; the driver without Ray, with trials that are made up."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from css_ray.events import StudyContinued, StudyPaused
from css_ray.storage import free_bytes
from css_ray.study import driver as driver_module
from css_ray.study import preflight, upkeep
from css_ray.study.cost import least_memory, needed_bytes, needs
from css_ray.study.definition import StudyError
from css_ray.study.driver import Driver
from css_ray.study.inputs import prepare
from css_ray.study.preflight import check
from css_ray.study.run import execute, run_spec
from css_ray.training.best import write_best
from css_ray.training.reporter import SilentReporter
from tests.drivers import new_driver, small, train
from tests.places import SPEC


def kept(driver: Driver, kind: str) -> list[int]:
    return sorted(int(path.name.removeprefix("trial_")) for path in (Path(driver.folder) / kind).iterdir())


def test_the_grid_the_best_and_what_a_resume_needs_stay(tmp_path: Path) -> None:
    driver = new_driver(small(tmp_path), tmp_path)
    assert train(driver, 5.0) == 0  # of the grid, and the worst
    for score in (60.0, 50.0, 70.0):
        train(driver, score)
    assert kept(driver, "models") == kept(driver, "checkpoints") == [0, 1, 3]
    train(driver, 0.0, error="its machine burnt")
    assert kept(driver, "models") == [0, 1, 3, 4]
    train(driver, 65.0)
    assert kept(driver, "models") == kept(driver, "checkpoints") == [0, 3, 4, 5]
    assert kept(driver, "matrices") == [0, 1, 2, 3, 4, 5]  # a table that is made later needs them


def test_what_a_killed_driver_left_is_removed_by_the_next(tmp_path: Path) -> None:
    driver = new_driver(small(tmp_path, keep={"top": None}), tmp_path)
    for score in (5.0, 60.0, 50.0, 70.0):
        train(driver, score)
    assert kept(driver, "models") == [0, 1, 2, 3]
    again = new_driver(small(tmp_path, keep={"top": 1}), tmp_path)
    assert kept(again, "models") == kept(again, "checkpoints") == [0, 3]


def test_a_full_disk_pauses_the_study_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = new_driver(small(tmp_path, keep={"min_free_gb": 2}), tmp_path)
    monkeypatch.setattr(driver_module, "DISK_SECONDS", 0.0)
    for free, pauses in ((3e9, False), (1.5e9, True), (1.9e9, True), (2e9, False)):
        monkeypatch.setattr(upkeep, "free_bytes", lambda place, free=free: int(free))
        driver.watch_disk()
        assert (driver.next_trial(set()) is None) is pauses
    paused, continued = (event for event in driver.journal.events if isinstance(event, StudyPaused | StudyContinued))
    assert isinstance(paused, StudyPaused) and isinstance(continued, StudyContinued)
    assert "1.50 GB free, less than the 2 GB of keep.min_free_gb" in paused.reason


def test_a_url_has_no_bound(tmp_path: Path) -> None:
    assert free_bytes("s3://bucket/studies") is None
    free = free_bytes(tmp_path / "not" / "there" / "yet")
    assert free is not None and free > 0


def test_its_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"keep\.top"):
        small(tmp_path, keep={"top": 0})


@pytest.mark.parametrize(("method", "most"), [("supervised", 1), ("css", 1), ("cps", 1), ("u2pl", 1), ("psmt", 1.5)])
def test_a_study_says_what_its_disk_must_hold(method: str, most: float, tmp_path: Path) -> None:
    """Against the files that one run writes: best weights, and a checkpoint."""
    study = small(tmp_path, grid={"method": [{"name": method}]}, search=None, splits=[0])
    prepared = prepare(run_spec(study, study.grid_trials()[0], 0))
    weights = tmp_path / "best.pt"  # best.json has two kilobytes, whatever the network

    class Keeper(SilentReporter):
        def evaluated(self, step: int, metrics: Any, write_checkpoint: Any) -> None:
            (tmp_path / "checkpoint").mkdir()
            write_checkpoint(tmp_path / "checkpoint")

    execute(prepared, Keeper(), keep_best=partial(write_best, tmp_path))
    checkpoint = sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir())
    # One kept, and three of the trial that runs.
    written = weights.stat().st_size + 4 * checkpoint
    needed = needed_bytes(study)
    (row,) = needs(study).values()
    assert needed == row.weights + 4 * row.checkpoint and row.step > row.checkpoint
    # What torch adds is some kilobytes a file, and this network has few more: the smallest of all.
    # A checkpoint of PS-MT's first stage has the momentum of three networks, this one of its last that of one.
    assert 0.5 * written < needed < most * written
    # Twice the splits: twice the weights; nothing else.
    more = small(tmp_path, grid={"method": [{"name": method}]}, search=None, splits=[0, 1])
    assert 0 < needed_bytes(more) - needed < weights.stat().st_size


def test_a_search_keeps_the_files_of_its_best(tmp_path: Path) -> None:
    def of(top: int | None) -> int:
        return needed_bytes(small(tmp_path, keep={"top": top}))

    assert of(None) == of(5) == of(50)
    assert of(5) - of(4) == of(4) - of(3) > 0


def test_a_disk_that_hardly_holds_the_study_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small(tmp_path)
    runs = str(tmp_path / "runs")
    assert not [warning for warning in check(study, local=True, folder=runs) if warning.startswith("keep")]
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 10**9 + 1000)
    (warning,) = [warning for warning in check(study, local=True, folder=runs) if warning.startswith("keep")]
    assert "1.0 GB are free" in warning and "keep.top" in warning and "--storage" in warning
    # A URL has no disk to look at.
    monkeypatch.setattr(preflight, "free_bytes", lambda place: None)
    assert not [warning for warning in check(study, local=True, folder="s3://bucket/runs") if warning.startswith("keep")]


def test_adamw_keeps_two_numbers_of_each_parameter_and_momentum_one(tmp_path: Path) -> None:
    train = {"iterations": 4, "evaluate_every": 2}
    plain, adamw = (needed_bytes(small(tmp_path, train=train | more)) for more in ({}, {"optimizer": "adamw"}))
    assert 0 < plain < adamw


def test_pseudo_labels_of_trials_that_run_are_counted(tmp_path: Path, data: Path) -> None:
    """ST++ has two borders with labels, plain self-training one; each file takes a quarter of the training images at most."""

    def of(root: Path, **method: Any) -> int:
        sections = {
            "data": SPEC["data"] | {"root": str(root), "num_classes": 6},
            "grid": {"method": [{"name": "stpp"} | method]},
        }
        return needed_bytes(small(tmp_path, **sections, search=None, splits=[0]))

    images = sum(file.stat().st_size for file in data.glob("train-*"))
    assert of(data) - of(tmp_path / "nowhere") == 2 * images // 4
    assert of(data, reliable=1.0) - of(tmp_path / "nowhere", reliable=1.0) == images // 4


def test_a_frozen_encoder_has_no_momentum_and_keeps_no_features(tmp_path: Path) -> None:
    train = {"iterations": 4, "evaluate_every": 2}
    frozen, trained = (small(tmp_path, train=train | {"encoder_lr_factor": factor}) for factor in (0.0, 1.0))
    assert 0 < needed_bytes(frozen) < needed_bytes(trained)
    of_step = [least_memory(study.grid_trials()[0], 1) for study in (frozen, trained)]
    assert 0 < of_step[0] < of_step[1]
