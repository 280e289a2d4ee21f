"""What the times of events add up to: the time of drivers and of runs, and the workers that train them."""

from __future__ import annotations

from typing import Any

import pytest

from css_ray.clocks import RunSizes, RunTimes, WallTime
from css_ray.events import Event, from_json

FIELDS: dict[str, dict[str, Any]] = {
    "study_started": {"study": "s", "study_id": "x", "spec": {}, "versions": {}},
    "study_resumed": {},
    "trial_started": {"row": "a", "source": "grid", "params": {}, "config": {}},
    "trial_finished": {"status": "finished", "reason": "", "values": {}, "mean": None, "std": None, "n": 0, "num_splits": 1},
    "run_started": {"seed": 0, "dataset": "d", "split_hash": "h", "num_labelled": 1, "num_unlabelled": 1, "class_names": ["a"]},
    "run_logged": {"step": 1, "metrics": {}},
    "run_evaluated": {"step": 1, "metrics": {}},
    "run_finished": {"step": 1, "last": {}, "best": {}, "best_step": 1, "seconds": 1.0},
    "run_resized": {"step": 1, "reason": "a node came"},
}  # fmt: skip
"""What an event of a kind needs besides its time, trial and split."""


def event(kind: str, time: float, trial: int | None = None, split: int = 0, **more: object) -> Event:
    place = {} if trial is None else {"trial": trial} | ({"split": split} if kind.startswith("run_") else {})
    return from_json({"event": kind, "time": time, **place, **FIELDS[kind], **more})


def wall_seconds(*events: tuple[str, int | None, float]) -> float:
    """Of (kind, trial, time): what WallTime makes of them, which never falls on the way."""
    clock, before = WallTime(), 0.0
    for kind, trial, time in events:
        clock.event(event(kind, time, trial))
        assert clock.seconds >= before
        before = clock.seconds
    return clock.seconds


def test_a_clock_that_jumps_back_costs_one_gap() -> None:
    steady = [("study_started", None, 0.0), ("trial_started", 0, 1.0), ("run_started", 0, 10.0)]
    run = [("run_logged", 0, 10.0 + 20 * count) for count in range(1, 400)]
    assert wall_seconds(*steady, *run) == 10 + 20 * 399
    # An hour back in the middle of a run: all but the 20 s in which it happened are counted.
    jumped = [(kind, trial, time if count < 250 else time - 3600) for count, (kind, trial, time) in enumerate(run)]
    assert wall_seconds(*steady, *jumped) == 10 + 20 * 398
    # Between the driver's own words, too; and between the driver and a worker.
    words = [("trial_finished", 0, 8000.0), ("trial_started", 1, 4401.0), ("run_started", 1, 4410.0)]
    assert wall_seconds(*steady, *run, *words) == 10 + 20 * 399 + 10 + 9
    late = [("trial_finished", 0, 4401.0), ("trial_started", 1, 4402.0), ("run_started", 1, 4410.0)]
    assert wall_seconds(*steady, *run, *late) == 10 + 20 * 399 + 1 + 8


def test_what_a_worker_told_before_a_jump_and_came_after_it_adds_no_hour() -> None:
    before = [("study_started", None, 0.0), ("run_started", 0, 5000.0), ("run_started", 1, 5000.0), ("run_logged", 0, 5010.0)]
    told = [
        ("run_logged", 0, 1411.0),
        ("run_logged", 1, 5010.5),
        ("run_logged", 0, 1421.0),
        ("run_logged", 1, 1420.0),
        ("run_logged", 0, 1431.0),
    ]
    assert 5010 + 10 <= wall_seconds(*before, *told) <= 5010 + 31


def test_clocks_of_nodes_that_differ_add_nothing() -> None:
    """Two runs side by side for 1,000 s, on a node whose clock is 300 s ahead and on one whose clock is 300 s behind."""
    events = [("study_started", None, 0.0), ("run_started", 0, 10.0 + 300), ("run_started", 1, 10.0 - 300)]
    for time in range(20, 1000, 10):
        events += [("run_logged", 0, time + 300.0), ("run_logged", 1, time - 300.0)]
    assert 900 <= wall_seconds(*events, ("trial_finished", 0, 1000.0)) <= 1000 + 300


def test_the_workers_of_a_run_count_from_when_they_train_it() -> None:
    sizes = RunSizes()
    told = [
        (event("study_started", 0.0), 4),
        (event("run_started", 1.0, 0, 1, workers=2), 4),  # up to here nobody trained it
        (event("run_logged", 2.0, 0, 1), 2),
        (event("run_logged", 3.0, 3, 0), 4),  # of an older journal
        (event("run_resized", 4.0, 0, 1, workers=1, before=2), 2),
        (event("run_evaluated", 5.0, 0, 1), 1),
    ]
    assert [sizes.event(each, 4) for each, _ in told] == [count for _, count in told]
    assert sizes.latest == 1


def times(*events: tuple[str, float]) -> float:
    clock = RunTimes()
    seconds = sum(clock.event(event(kind, time, *(() if kind.startswith("study") else (3, 1)))) for kind, time in events)
    assert sum(clock.by_trial.values()) == pytest.approx(seconds)
    return seconds


def test_a_run_is_counted_from_its_start_to_its_latest_event() -> None:
    assert times(("run_started", 100), ("run_logged", 110), ("run_finished", 160)) == 60


def test_the_time_between_an_interruption_and_the_resume_is_not_counted() -> None:
    # 60 s to the checkpoint, 20 s after it; of the 5,000 s to the next event, the 20 s trained again.
    before = [("run_started", 100.0), ("run_evaluated", 160.0), ("run_logged", 180.0)]
    assert times(*before, ("study_resumed", 5000.0), ("run_logged", 5200.0), ("run_logged", 5210.0)) == 60 + 20 + 20 + 10
    # Straight on from a checkpoint nothing is trained twice.
    assert times(*before[:2], ("study_resumed", 5000.0), ("run_logged", 5200.0), ("run_logged", 5210.0)) == 60 + 10
    # Two resumes without an event between them are one gap.
    resumes = [("study_resumed", 5000.0), ("study_resumed", 9000.0)]
    assert times(*before[:2], *resumes, ("run_logged", 9200.0), ("run_logged", 9210.0)) == 60 + 10


def test_what_a_worker_told_before_the_kill_counts_though_it_was_written_after_the_resume() -> None:
    told = [
        ("run_started", 100.0),
        ("run_evaluated", 160.0),
        ("study_resumed", 5000.0),
        ("run_evaluated", 190.0),
        ("run_logged", 5100.0),
    ]
    assert times(*told) == 60 + 30


def test_a_clock_that_is_set_back_takes_nothing_back() -> None:
    assert times(("run_started", 100), ("run_logged", 110), ("run_logged", 50), ("run_logged", 65)) == 10 + 15
