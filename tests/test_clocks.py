"""What the times of events add up to: the time of drivers and of runs, and the workers that train them."""

from __future__ import annotations

from typing import Any

import pytest

from css_ray.clocks import RunSizes, RunTimes, Stopwatch, WallTime
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
    events.append(("trial_finished", 0, 1000.0))
    assert 900 <= wall_seconds(*((kind, trial, 5000.0 + time) for kind, trial, time in events)) <= 1000 + 300


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


# ------------------------------------------------------------------------------------------- events that their driver has stamped

NIGHT = 8 * 3600.0
"""A laptop sleeps, or its clock jumps."""


def stamped(*told: tuple[str, float, float]) -> tuple[float, float]:
    """Of (kind, time, worked): the seconds of the drivers, and those of the run."""
    wall, run = WallTime(), RunTimes()
    for kind, time, worked in told:
        each = event(kind, time, *(() if kind.startswith("study") else (3, 1)), worked=worked)
        wall.event(each)
        run.event(each)
    return wall.seconds, run.by_trial.get(3, 0.0)


def test_a_clock_that_jumps_forward_adds_nothing() -> None:
    told = [("study_started", 0.0, 0.0), ("run_started", 5.0, 5.0), ("run_logged", 10.0 + NIGHT, 10.0)]
    assert stamped(*told) == (10.0, 5.0)
    assert stamped(*told, ("run_evaluated", 20.0 + NIGHT, 20.0), ("run_finished", 25.0, 25.0)) == (25.0, 20.0)
    # Without stamps it is all counted.
    assert wall_seconds(("study_started", None, 0.0), ("run_started", 3, 5.0), ("run_logged", 3, 10.0 + NIGHT)) == 10 + NIGHT


def test_drivers_before_count_and_the_time_between_two_does_not() -> None:
    first = [
        ("study_started", 0.0, 0.0),
        ("run_started", 10.0, 10.0),
        ("run_evaluated", 70.0, 70.0),
        ("run_logged", 90.0, 90.0),
    ]
    # 20 s are trained again, and 10 s more, of the 45 s since the resume.
    second = [("study_resumed", NIGHT, 90.0), ("run_logged", NIGHT + 45, 135.0), ("run_logged", NIGHT + 55, 145.0)]
    assert stamped(*first, *second) == (145.0, 80 + 20 + 10)
    # A night that falls into the repetition is none of it.
    jumped = [("study_resumed", NIGHT, 90.0), ("run_logged", 2 * NIGHT, 105.0), ("run_logged", 2 * NIGHT + 10, 115.0)]
    assert stamped(*first, *jumped) == (115.0, 80 + 15 + 10)


def test_what_was_written_after_the_resume_counts_as_far_as_its_driver_lived() -> None:
    first = [("study_started", 0.0, 0.0), ("run_started", 10.0, 10.0), ("run_evaluated", 70.0, 70.0)]
    late = [("study_resumed", NIGHT, 95.0), ("run_evaluated", 90.0, 96.0), ("run_logged", NIGHT + 30, 125.0)]
    assert stamped(*first, *late) == (125.0, 60 + 20 + 29)
    # The clock was set back after the resume: not a night of training, but what the driver before can have seen.
    back = [("study_resumed", NIGHT, 95.0), ("run_evaluated", NIGHT - 60, 120.0)]
    assert stamped(*first, *back) == (120.0, 60 + 25)


def test_a_study_of_an_earlier_version_goes_on_with_stamps() -> None:
    """The events before have none: what they add up to is where the stamps begin."""
    wall, run = WallTime(), RunTimes()
    before = [event("study_started", 0.0), event("run_started", 10.0, 3, 1), event("run_evaluated", 70.0, 3, 1),
              event("run_logged", 90.0, 3, 1)]  # fmt: skip
    for each in before:
        wall.event(each)
        run.event(each)
    assert (wall.seconds, run.by_trial) == (90.0, {3: 80.0})
    for each in (event("study_resumed", NIGHT, worked=90.0), event("run_logged", 2 * NIGHT, 3, 1, worked=130.0)):
        wall.event(each)
        run.event(each)
    assert (wall.seconds, run.by_trial) == (130.0, {3: 80.0 + 20.0})


def test_a_stopwatch_counts_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("css_ray.clocks.time.monotonic", lambda: now[0])
    watch = Stopwatch(50.0)
    now[0] += 10
    assert watch.seconds == 50.0
    watch.start()
    now[0] += 5
    watch.start()
    assert watch.seconds == 55.0
