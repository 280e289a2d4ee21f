"""How a study stands: events folded into records, counts, a ranking, the time left and what was spent."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from css_ray.events import Event, from_json
from css_ray.records import Record
from css_ray.standing import Standing, records_from_events
from css_ray.study.definition import StudyDefinition, parse

# -------------------------------------------------------------------------------------------- what needs no definition: records

PARAMS = {"data.labelled": 92, "method.name": "css"}


def event(kind: str, time: float = 0.0, trial: int | None = None, split: int | None = None, **content: Any) -> Event:
    place = {key: value for key, value in (("trial", trial), ("split", split)) if value is not None}
    return from_json({"event": kind, "time": time, **place, **content})


def begun(trial: int, split: int, time: float = 0.0) -> Event:
    return event("run_started", time, trial, split, seed=10 + split, dataset="voc", split_hash=f"hash{split}",
                 num_labelled=92, num_unlabelled=10, class_names=["a"])  # fmt: skip


def done(trial: int, split: int, miou: float, time: float = 0.0) -> Event:
    return event("run_finished", time, trial, split, step=40, last={"val/miou": miou}, best={"val/miou": miou + 1},
                 best_step=30, seconds=5.5)  # fmt: skip


def trial_begun(trial: int, time: float = 0.0, row: str = "CSS", source: str = "grid") -> Event:
    return event("trial_started", time, trial, row=row, source=source, params={}, config={"train.iterations": 100})


START = [
    event("study_started", study="toy", study_id="id", spec={}, versions={}),
    event("trial_started", trial=0, row="CSS (mix)", source="search", params=PARAMS, config=PARAMS | {"train.lr": 0.1}),
]


def test_finished_run_holds_all_that_its_events_say() -> None:
    journal = [*START, begun(0, 1), event("run_logged", trial=0, split=1, step=10, metrics={}), done(0, 1, 60.0)]
    # A journal is read from a file: what JSON does to an event must not matter.
    records = records_from_events(from_json(json.loads(json.dumps(each.to_json()))) for each in journal)
    assert records == [
        Record(
            study="toy", trial=0, split=1, row="CSS (mix)", source="search", params=PARAMS, status="finished", seed=11,
            split_hash="hash1", step=40, last={"val/miou": 60.0}, best={"val/miou": 61.0}, best_step=30, seconds=5.5,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["run_logged", "run_evaluated"])
def test_running_run_knows_its_step_and_has_no_score(kind: str) -> None:
    (record,) = records_from_events([*START, begun(0, 0), event(kind, trial=0, split=0, step=7, metrics={"val/miou": 50.0})])
    assert (record.status, record.step, record.last, record.best) == ("running", 7, {}, {})


def test_records_are_ordered_by_trial_and_split_not_by_time() -> None:
    second = trial_begun(1, row="Sup.")
    journal = [*START, second, begun(1, 0), begun(0, 1), done(1, 0, 1.0), begun(0, 0)]
    assert [(r.trial, r.split, r.row) for r in records_from_events(journal)] == [
        (0, 0, "CSS (mix)"),
        (0, 1, "CSS (mix)"),
        (1, 0, "Sup."),
    ]


def test_failed_run_keeps_its_reason_until_it_starts_again() -> None:
    failed = [*START, begun(0, 0), event("run_failed", trial=0, split=0, step=9, reason="worker lost")]
    (record,) = records_from_events(failed)
    assert (record.status, record.reason, record.step) == ("failed", "worker lost", 9)
    (again,) = records_from_events([*failed, begun(0, 0)])
    # It continues: nine of its steps are behind it.
    assert (again.status, again.reason, again.step) == ("running", "", 9)
    (whole,) = records_from_events([*failed, begun(0, 0), done(0, 0, 60.0)])
    assert (whole.status, whole.reason, whole.last) == ("finished", "", {"val/miou": 60.0})


def test_events_of_trials_and_studies_make_no_record() -> None:
    journal = [
        *START,
        event("study_interrupted", reason="Ctrl-C"),
        event("study_resumed"),
        event("trial_finished", trial=0, status="failed", reason="", values={}, mean=None, std=None, n=0, num_splits=2),
        event("study_finished", status="finished", best_trial=None),
    ]
    assert records_from_events(journal) == [] == records_from_events([])


def test_a_failed_run_that_goes_on_is_running_and_then_finished_without_a_reason() -> None:
    scores = {"val/miou": 50.0}
    events = [
        *START, begun(0, 0), event("run_failed", 1.0, 0, 0, step=5, reason="worker died"),
        event("run_logged", 1.0, 0, 0, step=10, metrics={}),
        event("run_finished", 1.0, 0, 0, step=20, last=scores, best=scores, best_step=20, seconds=1.0),
    ]  # fmt: skip
    folded = [records_from_events(events[:count])[0] for count in (4, 5, 6)]
    assert [(record.status, record.reason) for record in folded] == [
        ("failed", "worker died"),
        ("running", ""),
        ("finished", ""),
    ]


def test_a_pruned_trial_keeps_its_runs_and_its_curve() -> None:
    standing = Standing[Any]().fold(START)
    for each in (
        begun(0, 0),
        event("run_evaluated", trial=0, split=0, step=20, metrics={"val/miou": 30.0, "val/pixel_accuracy": 80.0}),
        done(0, 0, 40.0),
        begun(0, 1),
        event("run_evaluated", trial=0, split=1, step=20, metrics={"val/miou": 10.0}),
        event("trial_pruned", trial=0, split=1, step=20, reason="far below the best"),
        event("run_pruned", trial=0, split=1, step=25, reason="far below the best"),
    ):
        standing.add(each)
    first, second = standing.records_of(0)
    assert (first.status, second.status, second.step, second.reason) == ("finished", "pruned", 25, "far below the best")
    assert standing.trials[0].curves == {0: {20: 30.0}, 1: {20: 10.0}} == standing.compared.curves[0]
    assert standing.pruned[0].reason == "far below the best"


def test_time_that_nothing_trained_is_not_counted() -> None:
    standing = Standing[Any]()
    for time, each in (
        (0, START[0]), (2, START[1]), (10, begun(0, 0)), (20, event("run_logged", trial=0, split=0, step=5, metrics={})),
        (25, event("study_interrupted", reason="by the user")), (1000, event("study_resumed")),
        (1030, event("run_logged", trial=0, split=0, step=10, metrics={})), (1042, done(0, 0, 50.0)),
    ):  # fmt: skip
        standing.add(dataclasses.replace(each, time=float(time)))
    assert standing.wall_seconds == 25.0 + 42.0


def test_a_study_with_more_splits_has_trials_that_lack_them() -> None:
    def end(trial: int, status: str) -> Event:
        return event("trial_finished", trial=trial, status=status, reason="", values={}, mean=1.0, std=None, n=2, num_splits=2)

    others = [trial_begun(1), trial_begun(2)]
    standing = Standing[Any]().fold([*START, *others, end(0, "finished"), end(1, "pruned"), end(2, "failed")])
    standing.add(event("study_extended", spec={"splits": [0, 1, 2]}, num_splits=3))
    assert standing.ended.keys() == {1} and standing.spec == {"splits": [0, 1, 2]}
    extended = event("study_extended", spec={"more": "trials"}, num_splits=2)
    assert Standing[Any]().fold([*START, end(0, "finished"), extended]).ended.keys() == {0}


# -------------------------------------------------------------------------- with a definition: counts, ranking, time and hours

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "d", "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 100, "lr": 0.1},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS"}]},
}


def finished(time: float, trial: int, split: int, miou: float) -> Event:
    scores = {"val/miou": miou}
    return event("run_finished", time, trial, split, step=100, last=scores, best=scores, best_step=100, seconds=10.0)


def ended(time: float, trial: int, status: str, *scores: float, reason: str = "", std: float | None = None) -> Event:
    mean = sum(scores) / len(scores) if scores else None
    values = {str(split): score for split, score in enumerate(scores)}
    return event(
        "trial_finished", time, trial, status=status, reason=reason, values=values, mean=mean, std=std, n=len(scores),
        num_splits=2,
    )  # fmt: skip


def evaluated(time: float, trial: int, split: int, step: int, miou: float) -> Event:
    return event("run_evaluated", time, trial, split, step=step, metrics={"val/miou": miou})


def study_begun(spec: dict[str, Any], time: float = 0.0) -> Event:
    return event("study_started", time, study=spec["study"], study_id="id", spec=spec, versions={})


EVENTS = [
    study_begun(SPEC),
    trial_begun(0, 1.0, row="Sup."),
    begun(0, 0, 10.0),
    event("run_logged", 15.0, 0, 0, step=50, metrics={}),
    finished(20.0, 0, 0, 40.0),
    begun(0, 1, 20.0),
    finished(30.0, 0, 1, 50.0),
    ended(30.0, 0, "finished", 40.0, 50.0, std=7.07),
    trial_begun(1, 31.0),
    begun(1, 0, 32.0),
    evaluated(36.0, 1, 0, 50, 44.0),
]


def folded(*more: Event, **sections: Any) -> Standing[StudyDefinition]:
    return Standing(parse).fold([study_begun({**SPEC, **sections}), *EVENTS[1:], *more])


def test_counts() -> None:
    standing = folded()
    assert (standing.trials_ended, standing.num_trials) == (1, 2)
    assert (standing.runs_ended, standing.num_runs) == (2, 4)
    assert (standing.steps_done, standing.num_steps) == (250, 400)
    assert standing.best is not None and standing.best.index == 0
    assert standing.trials[1].partial == (None, None)
    assert (standing.lowest, standing.highest, standing.latest) == (44.0, 44.0, 36.0)


def test_time_left_is_the_pace_since_the_first_run() -> None:
    # 250 steps from second 10 to second 40; 150 are left.
    assert folded().seconds_left(40.0) == pytest.approx(150 * 30 / 250)
    # After an interruption the pace is the new start's own: 20 steps in 10 s, 130 are left.
    resumed = folded(
        event("study_interrupted", 40.0, reason="-"), event("study_resumed", 1000.0),
        begun(1, 1, 1010.0), event("run_logged", 1015.0, 1, 1, step=20, metrics={}),
    )  # fmt: skip
    assert resumed.seconds_left(1020.0) == pytest.approx(130 * 10 / 20)
    assert folded(event("study_interrupted", 40.0, reason="-")).seconds_left(50.0) is None


def test_a_failed_run_takes_no_more_steps_and_a_failed_trial_is_opened_by_resume() -> None:
    failed = event("run_failed", 40.0, 1, 0, step=50, reason="worker died")
    assert folded(failed).steps_done == 300
    assert [trouble.reason for trouble in folded(failed).latest_troubles(5)] == ["worker died"]
    over = (failed, ended(41.0, 1, "failed", reason="worker died"))
    standing = folded(*over)
    # The split that was never begun is spared, and told about once: the run has said it.
    assert (standing.steps_done, standing.num_runs, standing.runs_ended) == (400, 3, 3)
    assert standing.trials[1].status == "failed" and len(standing.troubles) == 1
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
    standing = folded(*pruned)
    assert standing.trials[1].runs[0].status == "pruned" and standing.trials[1].status == "pruned"
    assert standing.best is not None and standing.best.index == 0
    assert (standing.steps_done, standing.num_steps, standing.runs_ended, standing.num_runs) == (400, 400, 3, 3)
    (trouble,) = standing.latest_troubles(5)
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
    more = [evaluated(37.0, 1, 0, 60, 46.0), finished(38.0, 1, 0, 46.0), begun(1, 1, 39.0)]
    assert folded(*more).trials[1].curve == [44.0, 46.0]
    assert folded(*more, evaluated(40.0, 1, 1, 10, 5.0)).trials[1].curve == [5.0]


def test_a_study_that_got_more_splits_opens_what_lacks_them() -> None:
    study = parse({**SPEC, "splits": [0, 1, 2]})
    standing = folded(event("study_extended", 40.0, spec=study.resolved(), num_splits=3), event("study_resumed", 41.0))
    assert standing.best is None and sorted(standing.running) == [0, 1]
    assert (standing.num_runs, standing.num_steps, standing.steps_done) == (6, 600, 250)


def test_a_run_set_back_by_a_damaged_checkpoint_is_still_the_same_run() -> None:
    standing = folded(event("run_rewound", 40.0, 1, 0, step=20, reason="a damaged checkpoint"))
    run = standing.trials[1].runs[0]
    assert (run.status, run.step, standing.steps_done) == ("running", 50, 250)
    (trouble,) = standing.troubles.values()
    assert (trouble.trial, trouble.status, trouble.reason) == (1, "retried", "a damaged checkpoint")


def test_what_is_reported_once_more_after_a_run_has_finished_opens_nothing() -> None:
    """A damaged journal was repaired, and a checkpoint reports again what was lost."""
    late = folded(finished(38.0, 1, 0, 46.0), evaluated(39.0, 1, 0, 20, 30.0))
    assert (late.trials[1].runs[0].status, late.trials[1].runs[0].score) == ("finished", 46.0)
    assert late.trials[1].curve == [30.0, 44.0] and late.runs_ended == folded(finished(38.0, 1, 0, 46.0)).runs_ended


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
    standing = Standing(parse, parse(spec))
    standing.trials, standing.ended = Untouchable(), Untouchable()
    for trial in range(40):
        time = 100.0 * trial
        standing.add(trial_begun(trial, time, source="search"))
        for split in (0, 1):
            standing.add(begun(trial, split, time))
            standing.add(evaluated(time + 5, trial, split, 50, 10.0 + trial))
            standing.add(finished(time + 10, trial, split, 20.0 + trial % 7))
        standing.add(ended(time + 20, trial, "finished", 20.0 + trial % 7))
        assert standing.best is not None and standing.num_runs == 100
        standing.seconds_left(time + 30)
    assert [trial.index for trial in standing.best_trials(3)] == [6, 13, 20]
    assert [trial.index for trial in [standing.best_drawn] if trial] == [6]


def test_a_clock_that_is_set_back_by_an_hour_spoils_neither_the_time_left_nor_the_hours() -> None:
    """Told twice: as it was, and with the clock an hour back from the 50th event on; `now` is by the same clock."""

    def told(back: float) -> Standing[StudyDefinition]:
        events = [study_begun(SPEC, 7000.0), trial_begun(0, 7001.0, row="Sup."), begun(0, 0, 7010.0)]
        for step in range(1, 91):
            events.append(event("run_logged", 7010.0 + 10 * step - (back if step >= 50 else 0), 0, 0, step=step, metrics={}))
        return Standing(parse).fold(events)

    steady, jumped = told(0.0), told(3600.0)
    # 90 steps in 900 s, 310 to go; of the jumped one all but one gap is known.
    assert steady.seconds_left(7910.0) == pytest.approx(310 * 900 / 90)
    assert jumped.seconds_left(7910.0 - 3600) == pytest.approx(310 * 890 / 90)
    assert (jumped.latest, steady.latest) == (7910.0 - 3600, 7910.0)
    assert steady.hours["CPU"] == pytest.approx(900 / 3600) and jumped.hours["CPU"] == pytest.approx(890 / 3600)
    # A reader's clock that is behind tells nothing negative.
    assert steady.seconds_left(0.0) == pytest.approx(310 * 900 / 90)


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
    events = [study_begun(spec)]
    # By hand: 0 has the highest mean; 3 is steadier; 4 steadier still; 1 and 2 are beaten, 5 ties with 3 and is not better.
    for trial, (mean, std) in enumerate([(60.0, 5.0), (58.0, 5.5), (50.0, 3.0), (55.0, 3.0), (40.0, 1.0), (55.0, 3.0)]):
        events += [trial_begun(trial, 1.0, source="search"), ended(2.0, trial, "finished", mean, mean, std=std)]
    assert [trial.index for trial in Standing(parse).fold(events).front] == [0, 3, 4]


def of_search(*ends: Event, **sections: Any) -> Standing[StudyDefinition]:
    """A search whose trials end as `ends` say, in that order."""
    search = {"method": {"name": "css"}, "trials": 6, "space": {"method.temperature": {"uniform": [0.1, 1.0]}}}
    starts = [trial_begun(trial, 1.0, source="search") for trial in range(6)]
    return Standing(parse).fold([study_begun({**SPEC, "grid": None, "search": search, **sections}), *starts, *ends])


def test_of_equal_trials_the_first_is_the_best_whichever_ended_first() -> None:
    ends = [ended(2.0, trial, "finished", mean, mean, std=0.0) for trial, mean in [(4, 50.0), (2, 55.0), (5, 55.0), (1, 55.0)]]
    standing = of_search(*ends)
    assert standing.best is not None and standing.best.index == 1
    assert [trial.index for trial in standing.best_trials()] == [1, 2, 5, 4]
    assert standing.best_drawn is standing.best
    assert [leader for _, leader in standing.compared.by_mean] == [1, 2, 5, 4]


def test_another_objective_ranks_the_trials_again() -> None:
    """58 ± 4 has the higher mean, 56 ± 1 the higher mean less its std."""
    ends = [ended(2.0, 0, "finished", 58.0, 58.0, std=4.0), ended(2.0, 1, "finished", 56.0, 56.0, std=1.0)]
    before = of_search(*ends)
    assert [trial.index for trial in before.best_trials()] == [0, 1] and before.compared.scores == {0: 58.0, 1: 56.0}
    study = {**before.spec, "objective": {"aggregate": "mean_minus_std"}}
    after = of_search(*ends, event("study_extended", 3.0, spec=study, num_splits=2))
    assert [(trial.index, trial.score) for trial in after.best_trials()] == [(1, 55.0), (0, 54.0)]
    assert after.compared.scores == {0: 54.0, 1: 55.0}


def test_a_run_that_failed_for_a_reason_of_its_own_is_not_trained_again() -> None:
    nan = "the loss became nan at step 50"
    partial = (
        event("run_failed", 40.0, 1, 0, step=50, reason=nan), begun(1, 1, 41.0), finished(50.0, 1, 1, 30.0),
        ended(51.0, 1, "partial", 30.0, reason=f"split 0: {nan}"),
    )  # fmt: skip
    more = event("study_extended", 60.0, spec=parse({**SPEC, "splits": [0, 1, 2]}).resolved(), num_splits=3)
    standing = folded(*partial, more, event("study_resumed", 61.0))
    assert standing.trials[1].status == "running"
    assert {split: run.status for split, run in standing.trials[1].runs.items()} == {0: "failed", 1: "finished"}
    assert [trouble.reason for trouble in standing.latest_troubles(5)] == [nan]


def test_a_run_of_a_failed_trial_that_said_nothing_failed_with_it() -> None:
    """The driver writes an event once: of a second failure at the same step only the trial's end is written."""
    failed = event("run_failed", 40.0, 1, 0, step=50, reason="worker died")
    over = ended(41.0, 1, "failed", reason="worker died")
    standing = folded(failed, over, event("study_resumed", 50.0), ended(60.0, 1, "failed", reason="worker died"))
    assert (standing.trials[1].runs[0].status, standing.runs_ended, standing.num_runs) == ("failed", 3, 3)
    assert standing.records_of(1)[0].reason == "worker died"


def test_a_pause_ends_with_a_resume() -> None:
    """A driver that was killed while its disk was full could not say that it continued."""
    paused = (event("study_paused", 40.0, reason="runs has 0.10 GB free"),)
    assert (folded(*paused).status, folded(*paused).pause) == ("paused", "runs has 0.10 GB free")
    resumed = folded(*paused, event("study_resumed", 50.0))
    assert (resumed.status, resumed.pause) == ("running", "")


def test_hours_go_on_where_the_study_is_given_another_device() -> None:
    gpu = {**SPEC, "resources": {"workers": 2, "gpus_per_worker": 1}}
    more = event("study_extended", 40.0, spec=gpu, num_splits=2)
    standing = folded(more, event("study_resumed", 41.0), event("run_logged", 50.0, 1, 0, step=60, metrics={}))
    # 24 s on one CPU before; since the checkpoint at second 36 nothing was trained twice: 50 - 41 s less what came after it, 0.
    assert standing.hours == {"CPU": pytest.approx(24 / 3600), "GPU": 0.0}
    later = standing.fold([event("run_logged", 60.0, 1, 0, step=70, metrics={})])
    assert later.hours == {"CPU": pytest.approx(24 / 3600), "GPU": pytest.approx(10 * 2 / 3600)}
    assert later.gpu_hours == pytest.approx(20 / 3600) and later.cpu_hours == pytest.approx((24 + 20) / 3600)


def test_a_standing_without_a_definition_has_records_and_no_ranking() -> None:
    standing = Standing[Any]().fold(EVENTS)
    assert [record.last for record in standing.records] == [{"val/miou": 40.0}, {"val/miou": 50.0}, {}]
    assert standing.best is None and standing.best_trials() == [] and standing.hours == {}
    with pytest.raises(AssertionError, match="no definition"):
        _ = standing.num_trials
