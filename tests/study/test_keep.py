"""What stays on a study's disk, and what happens when that is full; the driver without Ray, with trials that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from css_ray.data.catalogue import ensure_dataset
from css_ray.execution.runner import Runner
from css_ray.records import Event
from css_ray.study import preflight
from css_ray.study import runner as module
from css_ray.study.definition import StudyDefinition, StudyError, parse
from css_ray.study.preflight import check, needed_bytes
from css_ray.study.run import execute, prepare, run_spec
from css_ray.training.checkpoint import write_tensors
from css_ray.training.reporter import SilentReporter


class _NoMLflow:
    def record(self, event: Event) -> None: ...


def small(tmp_path: Path, **changes: Any) -> StudyDefinition:
    ensure_dataset("digits", str(tmp_path / "digits"))
    return parse(
        {
            "study": "small",
            "data": {
                "dataset": "digits",
                "root": str(tmp_path / "digits"),
                "labelled": 12,
                "crop": 32,
                "labelled_batch": 4,
                "unlabelled_batch": 4,
            },
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
            "train": {"iterations": 10, "evaluate_every": 10},
            "splits": [0, 1],
            "grid": {"method": [{"name": "supervised"}]},
            "search": {
                "method": {"name": "supervised"},
                "trials": 5,
                "sampler": "random",
                "space": {"train.lr": {"uniform": [0.01, 0.1]}},
            },
            "keep": {"top": 2},
            **changes,
        }
    )


def driver(study: StudyDefinition, tmp_path: Path) -> Runner:
    runner = Runner(study, str(tmp_path / "runs"))
    runner.tracker = _NoMLflow()  # type: ignore[assignment]
    return runner


def train(runner: Runner, score: float, *, error: str | None = None) -> int:
    """Take the next trial to its end, with files as its ranks would leave."""
    trial = runner.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    job = runner.begin(trial)["job"]
    for kind in ("checkpoints", "models"):
        folder = Path(job[kind])
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(trial.index))
    if error is None:
        for split in (0, 1):
            about: dict[str, Any] = {"time": 1.0, "trial": trial.index, "split": split}
            runner.take(
                {
                    "event": "run_started", **about, "seed": 0, "dataset": "digits", "split_hash": "", "num_labelled": 12,
                    "num_unlabelled": 4, "class_names": ["a"],
                }
            )  # fmt: skip
            metrics = {"val/miou": score + split}
            ended = {"last": metrics, "best": metrics, "best_step": 10, "seconds": 1.0}
            runner.take({"event": "run_finished", **about, "step": 10, **ended})
    runner.end(trial.index, error)
    return trial.index


def kept(runner: Runner, kind: str) -> list[int]:
    return sorted(int(path.name.removeprefix("trial_")) for path in (Path(runner.folder) / kind).iterdir())


def test_the_grid_the_best_and_what_a_resume_needs_stay(tmp_path: Path) -> None:
    runner = driver(small(tmp_path), tmp_path)
    runner.emit("study_started", study="small", study_id="id", spec=runner.study.resolved(), versions={})
    assert train(runner, 5.0) == 0  # of the grid, and the worst
    for score in (60.0, 50.0, 70.0):
        train(runner, score)
    assert kept(runner, "models") == kept(runner, "checkpoints") == [0, 1, 3]
    train(runner, 0.0, error="its machine burnt")
    assert kept(runner, "models") == [0, 1, 3, 4]
    train(runner, 65.0)
    assert kept(runner, "models") == kept(runner, "checkpoints") == [0, 3, 4, 5]


def test_what_a_killed_driver_left_is_removed_by_the_next(tmp_path: Path) -> None:
    runner = driver(small(tmp_path, keep={"top": None}), tmp_path)
    runner.emit("study_started", study="small", study_id="id", spec=runner.study.resolved(), versions={})
    for score in (5.0, 60.0, 50.0, 70.0):
        train(runner, score)
    assert kept(runner, "models") == [0, 1, 2, 3]
    again = driver(small(tmp_path, keep={"top": 1}), tmp_path)
    again.collect()
    assert kept(again, "models") == kept(again, "checkpoints") == [0, 3]


def test_a_study_that_was_moved_goes_on_where_it_is_now(tmp_path: Path) -> None:
    runner = driver(small(tmp_path), tmp_path)
    runner.emit("study_started", study="small", study_id="id", spec=runner.study.resolved(), versions={})
    trial = runner.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    runner.begin(trial)
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    moved = Runner(small(tmp_path), str(tmp_path / "elsewhere"))
    moved.tracker = _NoMLflow()  # type: ignore[assignment]
    assert moved.next_trial(set()) == trial
    config = moved.begin(trial)
    places = [config["place"], config["job"]["checkpoints"], config["job"]["models"]]
    assert all(Path(place).is_relative_to(tmp_path / "elsewhere" / "small") for place in places)


def test_a_full_disk_pauses_the_study_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = driver(small(tmp_path, keep={"min_free_gb": 2}), tmp_path)
    runner.emit("study_started", study="small", study_id="id", spec=runner.study.resolved(), versions={})
    monkeypatch.setattr(module, "DISK_SECONDS", 0.0)
    for free, paused in ((3e9, False), (1.5e9, True), (1.9e9, True), (2e9, False)):
        monkeypatch.setattr(module, "free_bytes", lambda place, free=free: int(free))
        runner.watch_disk()
        assert (runner.next_trial(set()) is None) is paused
    told = [event for event in runner.journal.events if event["event"] in ("study_paused", "study_continued")]
    assert [event["event"] for event in told] == ["study_paused", "study_continued"]
    assert "1.50 GB free, less than the 2 GB of keep.min_free_gb" in told[0]["reason"]


def test_a_full_disk_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda place: 10**8)
    runner = driver(small(tmp_path), tmp_path)
    with pytest.raises(RuntimeError, match=r"has 0\.10 GB free, less than the 1 GB .* make room"):
        runner.run(resume=False)
    assert runner.journal.events == []


def test_a_url_has_no_bound(tmp_path: Path) -> None:
    assert module.free_bytes("s3://bucket/studies") is None
    free = module.free_bytes(tmp_path / "not" / "there" / "yet")
    assert free is not None and free > 0


def test_its_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"keep\.top"):
        small(tmp_path, keep={"top": 0})


@pytest.mark.parametrize("method", ["supervised", "css"])
def test_a_study_says_what_its_disk_must_hold(method: str, tmp_path: Path) -> None:
    """Against the files that one run writes: best weights, and a checkpoint."""
    study = small(tmp_path, grid={"method": [{"name": method}]}, search=None, splits=[0])
    prepared = prepare(run_spec(study, study.grid_trials()[0], 0))
    weights = tmp_path / "best.pt"

    class Keeper(SilentReporter):
        def evaluated(self, step: int, metrics: Any, write_checkpoint: Any) -> None:
            (tmp_path / "checkpoint").mkdir()
            write_checkpoint(tmp_path / "checkpoint")

    execute(prepared, Keeper(), keep_best=lambda state: write_tensors(weights, state))
    checkpoint = sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir())
    # One kept, and three of the trial that runs.
    written = weights.stat().st_size + 4 * checkpoint
    needed = needed_bytes(study)
    # What torch adds is some kilobytes a file, and this network has few more: the smallest of all.
    assert 0.5 * written < needed < written
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
