"""Folding a journal into records, and the mean and standard deviation of a trial."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from css_ray.records import Event, Ledger, Record, RunSizes, WallTime, mean_std, records_from_events, score_text

PARAMS = {"data.labelled": 92, "method.name": "css"}


def event(kind: str, **fields: Any) -> Event:
    return {"event": kind, "time": 0.0, **fields}


def started(trial: int, split: int) -> Event:
    return event("run_started", trial=trial, split=split, seed=10 + split, dataset="voc", split_hash=f"hash{split}",
                 num_labelled=92, num_unlabelled=10, class_names=["a"])  # fmt: skip


def finished(trial: int, split: int, miou: float) -> Event:
    return event("run_finished", trial=trial, split=split, step=40, last={"val/miou": miou}, best={"val/miou": miou + 1},
                 best_step=30, seconds=5.5)  # fmt: skip


START = [
    event("study_started", study="toy", study_id="id", spec={}, versions={}),
    event("trial_started", trial=0, row="CSS (mix)", source="search", params=PARAMS, config=PARAMS | {"train.lr": 0.1}),
]


def test_finished_run_holds_all_that_its_events_say() -> None:
    journal = [*START, started(0, 1), event("run_logged", trial=0, split=1, step=10, metrics={}), finished(0, 1, 60.0)]
    # A journal is read from a file: what JSON does to an event must not matter.
    records = records_from_events(json.loads(json.dumps(journal)))
    assert records == [
        Record(
            study="toy", trial=0, split=1, row="CSS (mix)", source="search", params=PARAMS, status="finished", seed=11,
            split_hash="hash1", step=40, last={"val/miou": 60.0}, best={"val/miou": 61.0}, best_step=30, seconds=5.5,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["run_logged", "run_evaluated"])
def test_running_run_knows_its_step_and_has_no_score(kind: str) -> None:
    (record,) = records_from_events([*START, started(0, 0), event(kind, trial=0, split=0, step=7, metrics={"val/miou": 50.0})])
    assert (record.status, record.step, record.last, record.best) == ("running", 7, {}, {})


def test_records_are_ordered_by_trial_and_split_not_by_time() -> None:
    second = event("trial_started", trial=1, row="Sup.", source="grid", params={}, config={})
    journal = [*START, second, started(1, 0), started(0, 1), finished(1, 0, 1.0), started(0, 0)]
    assert [(r.trial, r.split, r.row) for r in records_from_events(journal)] == [
        (0, 0, "CSS (mix)"),
        (0, 1, "CSS (mix)"),
        (1, 0, "Sup."),
    ]


def test_failed_run_keeps_its_reason_until_it_starts_again() -> None:
    failed = [*START, started(0, 0), event("run_failed", trial=0, split=0, step=9, reason="worker lost")]
    (record,) = records_from_events(failed)
    assert (record.status, record.reason, record.step) == ("failed", "worker lost", 9)
    (again,) = records_from_events([*failed, started(0, 0)])
    assert (again.status, again.reason, again.step) == ("running", "", 0)
    (done,) = records_from_events([*failed, started(0, 0), finished(0, 0, 60.0)])
    assert (done.status, done.reason, done.last) == ("finished", "", {"val/miou": 60.0})


def test_events_of_trials_and_studies_make_no_record() -> None:
    journal = [
        *START,
        event("study_interrupted", reason="Ctrl-C"),
        event("study_resumed"),
        event("trial_finished", trial=0, status="failed", reason="", values={}, mean=None, std=None, n=0, num_splits=2),
        event("study_finished", status="finished", best_trial=None),
    ]
    assert records_from_events(journal) == [] == records_from_events([])


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_mean_std_is_numpys(n: int, ddof: int) -> None:
    values = np.random.default_rng(n).normal(70, 4, n).tolist()
    assert mean_std(values, ddof) == pytest.approx((np.mean(values), np.std(values, ddof=ddof)), rel=1e-12)


def test_mean_std_of_too_few_values() -> None:
    assert mean_std([]) == (None, None)
    assert mean_std([5.0]) == (5.0, None)
    assert mean_std([5.0], ddof=0) == (5.0, 0.0)


def test_score_text_never_hides_a_missing_split() -> None:
    assert score_text(68.094, 4.886, 3, 3) == "68.09 ± 4.89"
    assert score_text(66.0, None, 1, 1) == "66.00"
    assert score_text(66.0, 1.0, 2, 3) == "66.00 ± 1.00 (n=2 of 3)"
    assert score_text(None, None, 0, 3) == "– (n=0 of 3)"


def test_a_failed_run_that_goes_on_is_running_and_then_finished_without_a_reason() -> None:
    place = {"trial": 0, "split": 0, "time": 1.0}
    scores = {"val/miou": 50.0}
    events = [
        {"event": "study_started", "time": 0.0, "study": "s", "study_id": "x", "spec": {}, "versions": {}},
        {"event": "trial_started", "time": 0.0, "trial": 0, "row": "a", "source": "grid", "params": {}, "config": {}},
        {"event": "run_started", **place, "seed": 0, "split_hash": "h"},
        {"event": "run_failed", **place, "step": 5, "reason": "worker died"},
        {"event": "run_logged", **place, "step": 10, "metrics": {}},
        {"event": "run_finished", **place, "step": 20, "last": scores, "best": scores, "best_step": 20, "seconds": 1.0},
    ]
    folded = [records_from_events(events[:count])[0] for count in (4, 5, 6)]
    assert [(record.status, record.reason) for record in folded] == [
        ("failed", "worker died"),
        ("running", ""),
        ("finished", ""),
    ]


def test_a_pruned_trial_keeps_its_runs_and_its_curve() -> None:
    ledger = Ledger(START)
    for each in (
        started(0, 0),
        event("run_evaluated", trial=0, split=0, step=20, metrics={"val/miou": 30.0, "val/pixel_accuracy": 80.0}),
        finished(0, 0, 40.0),
        started(0, 1),
        event("run_evaluated", trial=0, split=1, step=20, metrics={"val/miou": 10.0}),
        event("trial_pruned", trial=0, split=1, step=20, reason="far below the best"),
        event("run_pruned", trial=0, split=1, step=25, reason="far below the best"),
    ):
        ledger.add(each)
    first, second = ledger.runs_of(0)
    assert (first.status, second.status, second.step, second.reason) == ("finished", "pruned", 25, "far below the best")
    assert ledger.curves == {0: {0: {20: 30.0}, 1: {20: 10.0}}}
    assert ledger.pruned[0]["reason"] == "far below the best"


def test_time_that_nothing_trained_is_not_counted() -> None:
    ledger = Ledger()
    for time, each in (
        (0, START[0]), (2, START[1]), (10, started(0, 0)), (20, event("run_logged", trial=0, split=0, step=5, metrics={})),
        (25, event("study_interrupted", reason="by the user")), (1000, event("study_resumed")),
        (1030, event("run_logged", trial=0, split=0, step=10, metrics={})), (1042, finished(0, 0, 50.0)),
    ):  # fmt: skip
        ledger.add(each | {"time": float(time)})
    assert ledger.wall_seconds == 25.0 + 42.0


def test_a_study_with_more_splits_has_trials_that_lack_them() -> None:
    def end(trial: int, status: str) -> Event:
        return event("trial_finished", trial=trial, status=status, reason="", values={}, mean=1.0, std=None, n=2, num_splits=2)

    ledger = Ledger([*START, end(0, "finished"), end(1, "pruned"), end(2, "failed")])
    ledger.add(event("study_extended", spec={"splits": [0, 1, 2]}, num_splits=3))
    assert (ledger.ends.keys(), ledger.spec) == ({1}, {"splits": [0, 1, 2]})
    again = Ledger([*START, end(0, "finished"), event("study_extended", spec={"more": "trials"}, num_splits=2)])
    assert again.ends.keys() == {0}


def wall_seconds(*events: tuple[str, int | None, float]) -> float:
    """Of (kind, trial, time): what WallTime makes of them, which never falls on the way."""
    clock, before = WallTime(), 0.0
    for kind, trial, time in events:
        clock.event({"event": kind, "time": time} | ({} if trial is None else {"trial": trial, "split": 0}))
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
    words = [("trial_finished", None, 8000.0), ("trial_started", None, 4401.0), ("run_started", 1, 4410.0)]
    assert wall_seconds(*steady, *run, *words) == 10 + 20 * 399 + 10 + 9
    late = [("trial_finished", None, 4401.0), ("trial_started", None, 4402.0), ("run_started", 1, 4410.0)]
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
    assert 900 <= wall_seconds(*events, ("trial_finished", None, 1000.0)) <= 1000 + 300


def test_the_workers_of_a_run_count_from_when_they_train_it() -> None:
    sizes = RunSizes()
    run = {"trial": 0, "split": 1}
    told = [
        ({"event": "study_started"}, 4),
        ({"event": "run_started", **run, "workers": 2}, 4),  # up to here nobody trained it
        ({"event": "run_logged", **run}, 2),
        ({"event": "run_logged", "trial": 3, "split": 0}, 4),  # of an older journal
        ({"event": "run_resized", **run, "workers": 1, "before": 2}, 2),
        ({"event": "run_evaluated", **run}, 1),
    ]
    assert [sizes.event(event, 4) for event, _ in told] == [count for _, count in told]
    assert sizes.latest == 1
