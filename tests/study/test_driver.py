"""The driver without Ray: a grid and a search to their end, interrupted and resumed, pruned, failing, and with ties."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from css_ray.api import Study
from css_ray.events import Event, RunStarted, StudyFinished, StudyInterrupted, StudyResumed, TrialPruned, TrialStarted
from css_ray.records import mean_std
from css_ray.study.budget import spent
from css_ray.study.definition import parse
from css_ray.study.driver import Driver, StudyExistsError
from css_ray.study.job import RunSpec
from css_ray.study.journal import Journal
from tests.rayless import Listening, Rayless, Told

TEMPERATURES = (0.45, 0.35, 0.15, 0.44)
"""What the search tries first."""


def score(spec: RunSpec) -> float:
    """Of the grid's row 40 and 42; of the search 100 times the temperature, and 2 more on the second split."""
    return (100 * spec.settings["method"]["temperature"] if spec.trial else 40.0) + 2.0 * spec.split


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Rayless.install(monkeypatch, score)
    return tmp_path


@pytest.fixture
def spec(data: Path) -> dict[str, Any]:
    """A grid of one trial and a search of four, on two splits."""
    return {
        "study": "small",
        "data": {
            "dataset": "digits", "root": str(data), "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4
        },
        "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
        "train": {"iterations": 100, "evaluate_every": 25},
        "splits": [0, 1],
        "grid": {"method": [{"name": "supervised", "row": "Sup."}]},
        "search": {
            "method": {"name": "css", "row": "CSS (mix)"},
            "trials": 4,
            "first": [{"method.temperature": temperature} for temperature in TEMPERATURES],
            "space": {"method.temperature": {"uniform": [0.1, 0.5]}},
        },
    }  # fmt: skip


def study(spec: dict[str, Any], storage: str = "runs") -> Study:
    return Study(parse(spec), storage)


def journal(of: Study) -> list[Event]:
    return Journal(of.folder).events


def what_happened(events: list[Event]) -> list[dict[str, Any]]:
    """Events without what differs between two studies: times, ids, and how often they were interrupted. Each once."""
    told = []
    for event in events:
        if not isinstance(event, StudyInterrupted | StudyResumed):
            plain = event.to_json()
            told.append({name: value for name, value in plain.items() if name not in ("time", "worked", "study_id")})
    return [event for event, _ in itertools.groupby(told)]


def test_a_grid_and_a_search_come_to_their_end(spec: dict[str, Any]) -> None:
    small, audience = study(spec), Listening()
    outcome = small.run(audience=audience)
    assert (outcome.status, outcome.reason, outcome.confirmation, outcome.unsent) == ("finished", "", None, 0)
    # By hand: 40 and 42, and for a temperature t of the search 100 t and 100 t + 2.
    expected = [40.0, *(100 * temperature for temperature in TEMPERATURES)]
    assert [record.last["val/miou"] for record in outcome.records] == [
        pytest.approx(each + more) for each in expected for more in (0.0, 2.0)
    ]
    trials = small.standing.trials
    assert [(trial.row, trial.source, trial.status) for trial in trials.values()] == [
        ("Sup.", "grid", "finished"), *[("CSS (mix)", "search", "finished")] * 4
    ]  # fmt: skip
    assert [trial.mean for trial in trials.values()] == [pytest.approx(each + 1) for each in expected]
    assert [trial.std for trial in trials.values()] == [pytest.approx(2**0.5)] * 5
    assert small.best is not None and small.best.index == 1
    # Journal, audience and MLflow are told the same, each event once.
    events = journal(small)
    assert audience.heard == Told.events[0] == events and len(set(map(id, events))) == len(events)
    assert isinstance(events[-1], StudyFinished) and (events[-1].status, events[-1].best_trial) == ("finished", 1)
    # Split for split a run of each trial sees the same images.
    hashes = {(event.trial, event.split): event.split_hash for event in events if isinstance(event, RunStarted)}
    assert len(hashes) == 10 and all(hashes[trial, split] == hashes[0, split] for trial, split in hashes)
    assert {path.stem for path in Path("runs/small/splits").iterdir()} == set(hashes.values())


def test_a_study_that_exists_is_not_begun_again(spec: dict[str, Any]) -> None:
    study(spec).run()
    before = Path("runs/small/journal.jsonl").read_bytes()
    with pytest.raises(StudyExistsError, match="it continues with: css-ray study resume small"):
        study(spec).run()
    assert Path("runs/small/journal.jsonl").read_bytes() == before


def test_a_finished_study_is_finished_at_once(spec: dict[str, Any]) -> None:
    study(spec).run()
    before = Path("runs/small/journal.jsonl").read_bytes()
    assert Study.open("small").resume().status == "finished"
    assert Path("runs/small/journal.jsonl").read_bytes() == before


def test_interrupted_at_any_event_and_resumed_it_is_the_same_study(spec: dict[str, Any]) -> None:
    """One trial at a time, the last one pruned: the same events in the same order."""
    spec["search"] |= {
        "pruners": [{"name": "median", "startup": 2, "grace": 0.5}],
        "trials": 3,
        "first": spec["search"]["first"][:3],
    }
    undisturbed = study(spec, "undisturbed")
    assert undisturbed.run().status == "finished"
    expected = what_happened(journal(undisturbed))
    assert sum(event["event"] == "trial_pruned" for event in expected) == 1
    whole = len(journal(undisturbed))
    # At the start, and at each event of the last trial that finishes (14 of them), of the one that is pruned, and of the end.
    for event in (1, 2, *range(whole - 21, whole + 1)):
        small = study(spec, f"interrupted_at_{event}")
        assert small.run(audience=Listening(interrupt_at=event)).status == "interrupted"
        assert small.status == "interrupted"
        assert small.resume().status == "finished"
        assert what_happened(journal(small)) == expected, event
        # MLflow is sent all of the journal again, and what is new.
        assert Told.events[-1] == journal(small)


@pytest.mark.parametrize("number", [3, 8])
def test_an_interrupt_between_the_writing_and_the_noting_of_an_event_costs_mlflow_nothing(
    number: int, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    append, count = Journal.append, itertools.count()

    def interrupted(self: Journal, event: Event) -> bool:
        append(self, event)
        if next(count) == number:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(Journal, "append", interrupted)
    assert study(spec, "runs").run().status == "interrupted"
    events = Journal("runs/small").events
    assert len(events) == number + 2 and isinstance(events[-1], StudyInterrupted)
    assert Told.events[-1] == events  # MLflow's bookmarks are numbers of events: one that is missing would shift the next ones


def test_a_study_of_two_trials_side_by_side_draws_the_same_ones_after_an_interruption(spec: dict[str, Any]) -> None:
    spec["resources"] = {"concurrent_trials": 2}
    spec["search"] |= {"first": [], "startup_trials": 1, "trials": 5}

    def drawn(of: Study) -> dict[int, tuple[float, float | None]]:
        return {
            trial.index: (trial.params["method.temperature"], trial.mean)
            for trial in of.standing.trials.values()
            if trial.index
        }

    undisturbed = study(spec, "undisturbed")
    undisturbed.run()
    assert len(drawn(undisturbed)) == 5 and len({temperature for temperature, _ in drawn(undisturbed).values()}) == 5
    for event in range(5, len(journal(undisturbed)), 17):
        small = study(spec, f"interrupted_at_{event}")
        small.run(audience=Listening(interrupt_at=event))
        small.resume()
        assert drawn(small) == drawn(undisturbed)


def test_a_verdict_ends_a_trial_and_spares_its_splits(spec: dict[str, Any]) -> None:
    spec["search"]["pruners"] = [{"name": "median", "startup": 2, "grace": 0.5}]
    small = study(spec)
    outcome = small.run()
    assert outcome.status == "finished"
    trials = small.standing.trials
    assert [trial.status for trial in trials.values()] == ["finished", "finished", "finished", "pruned", "finished"]
    # Halfway trial 3 has 7.5; those that finished split 0 before it had 22.5 and 17.5 there. The grid's is not asked.
    reason = "median: at step 50 of 100 on split 0 its best is 7.50, below the median 20.00 of 2 finished runs"
    assert [event.reason for event in journal(small) if isinstance(event, TrialPruned)] == [reason]
    assert [(split, run.status, run.step, run.reason) for split, run in trials[3].runs.items()] == [(0, "pruned", 50, reason)]
    assert (small.standing.num_runs, small.standing.runs_ended, small.standing.steps_done) == (9, 9, 1000)
    assert small.best is not None and small.best.index == 1


def test_of_equal_trials_the_first_is_the_best_everywhere(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials 2 and 4 tie, and trial 4 ends first."""
    spec["resources"] = {"concurrent_trials": 5}
    monkeypatch.setattr(Rayless, "score", staticmethod(lambda spec: {2: 60.0, 4: 60.0}.get(spec.trial, 50.0) + spec.split))
    small = study(spec)
    small.run()
    assert list(small.standing.ended).index(4) < list(small.standing.ended).index(2)
    finished = journal(small)[-1]
    assert isinstance(finished, StudyFinished) and finished.best_trial == 2
    assert small.best is not None and small.best.index == 2 and small.summary()["best_trial"] == 2
    assert small.standing.best_drawn is small.standing.best
    assert small.confirmation(top=1).definition.grid_trials()[0].row == "CSS (mix), trial 2"
    # In the tables, too.
    first = next(csv.DictReader(io.StringIO(small.table("csv", kind="trials"))))
    assert (first["row"], first["trial"]) == ("CSS (mix)", "2")


def test_a_run_that_fails_leaves_the_others_and_a_fault_of_the_machinery_is_made_good(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(spec: RunSpec) -> float:
        if (spec.trial, spec.split) == (2, 0):
            return math.nan
        if (spec.trial, spec.split) == (3, 1):
            raise RuntimeError("rank 0: its process died")
        return score(spec)

    monkeypatch.setattr(Rayless, "score", staticmethod(failing))
    small = study(spec)
    outcome = small.run()
    assert outcome.status == "failed"
    ends = {trial.index: (trial.status, trial.reason, trial.n) for trial in small.standing.trials.values()}
    assert ends[2] == ("partial", "split 0: the loss became nan at step 25", 1)
    assert ends[3] == ("failed", "rank 0: its process died", 1)
    assert {ends[index] for index in (0, 1, 4)} == {("finished", "", 2)}
    finished = journal(small)[-1]
    assert isinstance(finished, StudyFinished) and (finished.status, finished.best_trial) == ("failed", 1)
    # The machine is whole again: what it broke is trained, what failed for reasons of its own is not.
    monkeypatch.setattr(Rayless, "score", staticmethod(score))
    audience = Listening()
    assert small.resume(audience=audience).status == "failed"
    assert {event.trial for event in audience.heard if isinstance(event, RunStarted)} == set()  # known: it began before
    again = {trial.index: (trial.status, trial.n) for trial in small.standing.trials.values()}
    assert again == {0: ("finished", 2), 1: ("finished", 2), 2: ("partial", 1), 3: ("finished", 2), 4: ("finished", 2)}
    assert small.standing.trials[3].mean == pytest.approx(16.0)


def test_no_more_trials_start_once_most_have_failed(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rayless, "score", staticmethod(lambda spec: math.nan))
    spec["search"] |= {"trials": 20}
    small, audience = study(spec), Listening()
    outcome = small.run(audience=audience)
    assert outcome.status == "failed" and len(small.standing.trials) == 4
    assert outcome.reason == audience.warnings[-1] and outcome.reason.startswith(
        "more than 50% of the 4 trials that ended have failed, so no more were started; "
    )


def test_a_study_that_was_given_more_trains_what_is_missing(spec: dict[str, Any]) -> None:
    small = study(spec)
    small.run()
    audience = Listening()
    assert small.resume(set={"splits": [0, 1, 2], "search.trials": 5}, audience=audience).status == "finished"
    begun = [(event.trial, event.split) for event in audience.heard if isinstance(event, RunStarted)]
    assert begun == [*[(trial, 2) for trial in range(5)], (5, 0), (5, 1), (5, 2)]
    assert [event.trial for event in audience.heard if isinstance(event, TrialStarted)] == [5]
    assert {trial.n for trial in small.standing.trials.values()} == {3}
    assert small.standing.trials[0].mean == pytest.approx(42.0)


def test_a_budget_ends_a_study_that_goes_on_with_a_larger_one(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec["budget"] = {"hours": 1.0}
    clock = iter(range(10**9, 2 * 10**9, 60))  # a minute between two looks at it
    monkeypatch.setattr("css_ray.clocks.time.monotonic", lambda: float(next(clock)))
    small, audience = study(spec), Listening()
    outcome = small.run(audience=audience)
    assert audience.warnings == [outcome.reason]
    assert outcome.status == "budget" and "css-ray study resume small --set budget.KEY=MORE" in outcome.reason
    finished = journal(small)[-1]
    assert isinstance(finished, StudyFinished) and finished.status == "budget"
    assert 0.5 < spent(small.standing)["hours"] < 1.1 and 0 < len(small.standing.ended) < 5
    assert small.resume(set={"budget.hours": 100}).status == "finished"
    assert len(small.standing.ended) == 5 and small.best is not None and small.best.index == 1


def test_hours_in_which_the_machine_slept_or_that_its_clock_jumped_over_are_not_spent(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours pass on the machine's clock between any two events, none by the clock that stands still meanwhile."""
    spec["budget"] = {"hours": 8.0, "cpu_hours": 8.0}
    clock = iter(range(10**9, 2 * 10**9, 7200))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    small = study(spec)
    assert small.run(audience=Listening(interrupt_at=20)).status == "interrupted"
    assert small.resume().status == "finished"
    events = journal(small)
    assert events[-1].time - events[0].time > 100 * 3600
    assert all(hours < 0.02 for hours in spent(small.standing).values())
    assert 0 < spent(small.standing)["hours"] == small.standing.wall_seconds / 3600


def test_what_was_worked_is_counted_over_all_drivers_and_not_while_one_waits_for_a_cluster(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by 100 s whenever it is read after the start, and by an hour before each start."""
    now = [0.0]

    def tick() -> float:
        now[0] += 100.0
        return now[0]

    monkeypatch.setattr("css_ray.clocks.time.monotonic", tick)
    waits = Driver.begin_or_resume

    def begin_or_resume(driver: Driver) -> None:
        now[0] += 3600.0
        waits(driver)

    monkeypatch.setattr(Driver, "begin_or_resume", begin_or_resume)
    small = study(spec)
    assert small.run(audience=Listening(interrupt_at=20)).status == "interrupted"
    assert small.resume().status == "finished"
    events = journal(small)
    worked = [-1.0 if event.worked is None else event.worked for event in events]
    # An event that a resumed run tells again costs a look at the clock, and is not written.
    assert worked[0] == 100.0 and worked == sorted(worked)
    assert len(events) * 100 <= small.standing.wall_seconds == worked[-1] < 2 * len(events) * 100


def test_what_the_pruners_and_the_sampler_are_shown(spec: dict[str, Any]) -> None:
    spec["search"]["pruners"] = [{"name": "median", "startup": 2, "grace": 0.5}]
    study(spec).run()
    driver = Driver(parse(spec), "runs")
    compared = driver.standing.compared
    assert sorted(compared.curves) == sorted([1, 2, 3, 4])  # the grid's trial is not compared
    assert compared.values[1] == {0: pytest.approx(45.0), 1: pytest.approx(47.0)}
    assert [trial for _, trial in compared.by_mean] == [1, 4, 2]
    assert driver.result_of(1).values == (mean_std(list(compared.values[1].values()))[0],)
    pruned = driver.result_of(3)
    assert pruned.status == "pruned" and pruned.curve == {25: pytest.approx(3.75), 50: pytest.approx(7.5)}
    # Steps count on over the splits.
    assert list(driver.curve_of(1)) == [25, 50, 75, 100, 125, 150, 175, 200]
