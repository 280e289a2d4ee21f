"""How far a study is, folded from events."""

from __future__ import annotations

from typing import Any

import pytest

from css_ray.records import RunTimes
from css_ray.study.definition import parse
from css_ray.study.progress import Progress, fold

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "d", "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 100, "lr": 0.1},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS"}]},
}


def event(kind: str, time: float, trial: int | None = None, split: int | None = None, **content: Any) -> dict[str, Any]:
    place = {key: value for key, value in (("trial", trial), ("split", split)) if value is not None}
    return {"event": kind, "time": time, **place, **content}


def finished(time: float, trial: int, split: int, miou: float) -> dict[str, Any]:
    scores = {"val/miou": miou}
    return event("run_finished", time, trial, split, step=100, last=scores, best=scores, best_step=100, seconds=10.0)


def ended(time: float, trial: int, status: str, *scores: float, reason: str = "", std: float | None = None) -> dict[str, Any]:
    mean = sum(scores) / len(scores) if scores else None
    values = {str(split): score for split, score in enumerate(scores)}
    return event(
        "trial_finished",
        time,
        trial,
        status=status,
        reason=reason,
        mean=mean,
        std=std,
        n=len(scores),
        num_splits=2,
        values=values,
    )


def evaluated(time: float, trial: int, split: int, step: int, miou: float) -> dict[str, Any]:
    return event("run_evaluated", time, trial, split, step=step, metrics={"val/miou": miou})


EVENTS = [
    event("study_started", 0.0),
    event("trial_started", 1.0, 0, row="Sup.", source="grid", params={}, config={"train.iterations": 100}),
    event("run_started", 10.0, 0, 0),
    event("run_logged", 15.0, 0, 0, step=50, metrics={}),
    finished(20.0, 0, 0, 40.0),
    event("run_started", 20.0, 0, 1),
    finished(30.0, 0, 1, 50.0),
    ended(30.0, 0, "finished", 40.0, 50.0, std=7.07),
    event("trial_started", 31.0, 1, row="CSS", source="grid", params={}, config={"train.iterations": 100}),
    event("run_started", 32.0, 1, 0),
    evaluated(36.0, 1, 0, 50, 44.0),
]


def folded(*more: dict[str, Any], **sections: Any) -> Progress:
    return fold(parse({**SPEC, **sections}), [*EVENTS, *more])


def test_counts() -> None:
    progress = folded()
    assert (progress.trials_ended, progress.num_trials) == (1, 2)
    assert (progress.runs_ended, progress.num_runs) == (2, 4)
    assert (progress.steps_done, progress.num_steps) == (250, 400)
    assert progress.best is not None and progress.best.index == 0
    assert progress.partial(progress.trials[1]) == (None, None)
    assert (progress.lowest, progress.highest, progress.latest) == (44.0, 44.0, 36.0)


def test_time_left_is_the_pace_since_the_first_run() -> None:
    # 250 steps from second 10 to second 40; 150 are left.
    assert folded().seconds_left(40.0) == pytest.approx(150 * 30 / 250)
    # After an interruption the pace is the new start's own: 20 steps in 10 s, 130 are left.
    resumed = folded(
        event("study_interrupted", 40.0, reason="-"), event("study_resumed", 1000.0),
        event("run_started", 1010.0, 1, 1), event("run_logged", 1015.0, 1, 1, step=20, metrics={}),
    )  # fmt: skip
    assert resumed.seconds_left(1020.0) == pytest.approx(130 * 10 / 20)
    assert folded(event("study_interrupted", 40.0, reason="-")).seconds_left(50.0) is None


def test_a_failed_run_takes_no_more_steps_and_a_failed_trial_is_opened_by_resume() -> None:
    failed = event("run_failed", 40.0, 1, 0, step=50, reason="worker died")
    assert folded(failed).steps_done == 300
    assert [trouble.reason for trouble in folded(failed).latest_troubles(5)] == ["worker died"]
    over = (failed, ended(41.0, 1, "failed", reason="worker died"))
    progress = folded(*over)
    # The split that was never begun is spared, and told about once: the run has said it.
    assert (progress.steps_done, progress.num_runs, progress.runs_ended) == (400, 3, 3)
    assert progress.trials[1].status == "failed" and len(progress.troubles) == 1
    resumed = folded(*over, event("study_resumed", 50.0))
    assert resumed.trials[1].status == "running" and list(resumed.running) == [1]
    assert (resumed.steps_done, resumed.num_runs, resumed.runs_ended, resumed.troubles) == (250, 4, 2, {})
    assert resumed.ended_as("failed") == 0


def test_a_pruned_trial_is_no_incumbent_and_spares_what_it_never_trained() -> None:
    reason = "split 0, step 50: 6.2 below the best trial"
    pruned = (
        event("trial_pruned", 37.0, 1, 0, step=50, reason=reason), event("run_pruned", 37.0, 1, 0, step=50, reason=reason),
        ended(38.0, 1, "pruned", 99.0, reason=reason),
    )  # fmt: skip
    progress = folded(*pruned)
    assert progress.trials[1].runs[0].status == "pruned" and progress.trials[1].status == "pruned"
    assert progress.best is not None and progress.best.index == 0
    assert (progress.steps_done, progress.num_steps, progress.runs_ended, progress.num_runs) == (400, 400, 3, 3)
    (trouble,) = progress.latest_troubles(5)
    assert (trouble.trial, trouble.split, trouble.status, trouble.reason) == (1, None, "pruned", reason)
    # What its run tells late opens nothing.
    late = folded(*pruned, event("run_logged", 39.0, 1, 0, step=60, metrics={}))
    assert late.trials[1].status == "pruned" and late.trials[1].runs[0].status == "pruned" and not late.running


def test_the_incumbent_is_the_best_by_the_objective() -> None:
    steady = ended(60.0, 1, "finished", 44.0, 44.0, std=0.0)
    assert folded(steady).best.index == 0  # type: ignore[union-attr]
    objective = {"aggregate": "mean_minus_std"}
    assert folded(steady, objective=objective).best.index == 1  # type: ignore[union-attr]


def test_the_curve_is_that_of_the_split_evaluated_last() -> None:
    more = [evaluated(37.0, 1, 0, 60, 46.0), finished(38.0, 1, 0, 46.0), event("run_started", 39.0, 1, 1)]
    assert folded(*more).trials[1].curve == [44.0, 46.0]
    assert folded(*more, evaluated(40.0, 1, 1, 10, 5.0)).trials[1].curve == [5.0]


def test_a_study_that_got_more_splits_opens_what_lacks_them() -> None:
    study = parse({**SPEC, "splits": [0, 1, 2]})
    progress = folded(event("study_extended", 40.0, spec=study.resolved(), num_splits=3), event("study_resumed", 41.0))
    assert progress.best is None and sorted(progress.running) == [0, 1]
    assert (progress.num_runs, progress.num_steps, progress.steps_done) == (6, 600, 250)


def test_a_run_set_back_by_a_damaged_checkpoint_is_still_the_same_run() -> None:
    progress = folded(event("run_rewound", 40.0, 1, 0, step=20, reason="a damaged checkpoint"))
    run = progress.trials[1].runs[0]
    assert (run.status, run.step, progress.steps_done) == ("running", 50, 250)
    (trouble,) = progress.troubles.values()
    assert (trouble.trial, trouble.status, trouble.reason) == (1, "retried", "a damaged checkpoint")


def test_kinds_of_events_that_are_not_known_are_passed_over() -> None:
    progress = folded(event("study_moved", 40.0, reason="to the country"), event("trial_moved", 41.0, 7))
    assert (progress.status, progress.latest) == ("running", 41.0)


class Untouchable(dict):  # type: ignore[type-arg]
    """A mapping that may be asked for one entry, but not walked."""

    def _walked(self, *arguments: Any) -> Any:
        raise AssertionError("all trials were walked over")

    __iter__ = keys = values = items = _walked


def test_an_event_costs_the_same_however_many_came_before() -> None:
    spec = {
        **SPEC,
        "grid": None,
        "search": {"method": {"name": "css"}, "trials": 50, "space": {"method.temperature": {"uniform": [0.1, 1.0]}}},
    }
    progress = Progress(parse(spec))
    progress.trials, progress._ended = Untouchable(), Untouchable()
    for trial in range(40):
        time = 100.0 * trial
        progress.event(
            event("trial_started", time, trial, row="CSS", source="search", params={}, config={"train.iterations": 100})
        )
        for split in (0, 1):
            progress.event(event("run_started", time, trial, split))
            progress.event(evaluated(time + 5, trial, split, 50, 10.0 + trial))
            progress.event(finished(time + 10, trial, split, 20.0 + trial % 7))
        progress.event(ended(time + 20, trial, "finished", 20.0 + trial % 7))
        assert progress.best is not None and progress.num_runs == 100
        progress.seconds_left(time + 30)
    assert [trial.index for trial in progress.best_trials(3)] == [6, 13, 20]
    assert [trial.index for trial in [progress.best_drawn] if trial] == [6]


def times(*events: tuple[str, float]) -> float:
    clock = RunTimes()
    seconds = sum(
        clock.event(event(kind, time, *(() if kind.startswith("study") else (3, 1)), step=1)) for kind, time in events
    )
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


def test_a_clock_that_is_set_back_by_an_hour_spoils_neither_the_time_left_nor_the_hours() -> None:
    """Told twice: as it was, and with the clock an hour back from the 50th event on; `now` is by the same clock."""

    def told(back: float) -> Progress:
        events = [event("study_started", 7000.0), EVENTS[1] | {"time": 7001.0}, event("run_started", 7010.0, 0, 0)]
        for step in range(1, 91):
            events.append(event("run_logged", 7010.0 + 10 * step - (back if step >= 50 else 0), 0, 0, step=step, metrics={}))
        return folded_from(events)

    steady, jumped = told(0.0), told(3600.0)
    # 90 steps in 900 s, 310 to go; of the jumped one all but one gap is known.
    assert steady.seconds_left(7910.0) == pytest.approx(310 * 900 / 90)
    assert jumped.seconds_left(7910.0 - 3600) == pytest.approx(310 * 890 / 90)
    assert (jumped.latest, steady.latest) == (7910.0 - 3600, 7910.0)
    assert steady.hours["CPU"] == pytest.approx(900 / 3600) and jumped.hours["CPU"] == pytest.approx(890 / 3600)
    # A reader's clock that is behind tells nothing negative.
    assert steady.seconds_left(0.0) == pytest.approx(310 * 900 / 90)


def folded_from(events: list[dict[str, Any]]) -> Progress:
    return fold(parse(SPEC), events)


def test_hours_are_those_of_all_workers_and_their_devices() -> None:
    assert folded().hours == {"CPU": pytest.approx((10 + 10 + 4) / 3600)}
    many = folded(resources={"workers": 4, "gpus_per_worker": 0.5, "cpus_per_worker": 3})
    assert many.hours == {"GPU": pytest.approx(24 * 4 * 0.5 / 3600)}


def test_the_front_is_what_no_other_trial_beats_in_both() -> None:
    spec = {
        **SPEC,
        "grid": None,
        "search": {"method": {"name": "css"}, "trials": 6, "space": {"method.temperature": {"uniform": [0.1, 1.0]}}},
    }
    events = []
    # By hand: 0 has the highest mean; 3 is steadier; 4 steadier still; 1 and 2 are beaten, 5 ties with 3 and is not better.
    for trial, (mean, std) in enumerate([(60.0, 5.0), (58.0, 5.5), (50.0, 3.0), (55.0, 3.0), (40.0, 1.0), (55.0, 3.0)]):
        events += [
            event("trial_started", 1.0, trial, row="CSS", source="search", params={}, config={"train.iterations": 100}),
            ended(2.0, trial, "finished", mean, mean, std=std),
        ]  # fmt: skip
    assert [trial.index for trial in fold(parse(spec), events).front] == [0, 3, 4]
