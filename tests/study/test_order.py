"""What may follow what in a journal: all that a study can have had, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from css_ray.events import Event, EventError, EventLost, from_json
from css_ray.study.definition import parse
from css_ray.study.journal import JournalError, in_order
from css_ray.study.order import Order, WrongStudyError
from tests.journals import PRUNED, Telling, mixed

BEFORE = Path(__file__).parents[1] / "fixtures" / "begun_before" / "journal.jsonl"


def taken(events: list[Event]) -> Order:
    order = Order()
    for event in events:
        order.take(event)
    return order


def at(events: list[Event], **fields: Any) -> int:
    """The place of the first event with these fields in its JSON; `kind` is its kind."""
    kind = fields.pop("kind")
    places = (place for place, event in enumerate(events) if event.kind == kind)
    return next(place for place in places if fields.items() <= events[place].to_json().items())


def more(telling: Telling, *kinds: dict[str, Any]) -> list[Event]:
    """The events told, and after them these, each as JSON but for its time."""
    return telling.events + [from_json({"time": telling.time, **kind}) for kind in kinds]


# --------------------------------------------------------------------------------------------------------- what studies have


def test_what_a_study_can_have_had_is_taken() -> None:
    telling = mixed()
    order = taken(telling.events)
    assert order.count == len(telling.events)
    assert order.definition is not None and order.definition.resolved() == telling.study.resolved()


def test_a_journal_of_the_version_before_is_taken() -> None:
    events = [from_json(json.loads(line)) for line in BEFORE.read_text().splitlines()]
    assert taken(events).count == len(events) > 20


def test_a_study_that_got_more_has_more() -> None:
    telling = Telling(search=None)
    telling.start()
    telling.whole(0, 40.0, 44.0, 48.0)
    telling.tell("study_finished", status="finished", best_trial=0)
    spec = parse({**telling.spec, "splits": [0, 1, 2, 3]}).resolved()
    extended: dict[str, Any] = {"event": "study_extended", "spec": spec, "num_splits": 4}
    done = {"event": "study_finished", "status": "finished", "best_trial": 0}
    again: dict[str, Any] = {
        "event": "run_started", "trial": 0, "split": 3, "seed": 3, "split_hash": "h", "dataset": "d", "num_labelled": 8,
        "num_unlabelled": 8, "class_names": ["a"],
    }  # fmt: skip
    assert taken(more(telling, extended, {"event": "study_resumed"}, again)).count == len(telling.events) + 3
    with pytest.raises(EventError, match="1 of its 1 trials have not ended"):
        taken(more(telling, extended, done))
    for wrong in (
        {**extended, "num_splits": 3},
        {**extended, "spec": parse({**telling.spec, "splits": [1, 0, 2, 3]}).resolved()},
        {**extended, "spec": parse({**telling.spec, "study": "other", "splits": [0, 1, 2, 3]}).resolved()},
        {**extended, "spec": parse(mixed().spec | {"splits": [0, 1, 2, 3]}).resolved()},
    ):
        with pytest.raises(EventError, match=r"num_splits is 3|not those of the study with more of it"):
            taken(more(telling, wrong))


def test_in_place_of_what_was_lost_anything_may_follow() -> None:
    telling = mixed()
    place = at(telling.events, kind="run_evaluated", trial=5, split=1)
    lost = EventLost(time=telling.events[place - 1].time, reason="some bytes are not text")
    events = [*telling.events[:place], lost, *telling.events[place + 1 :]]
    assert taken(events).count == len(events)
    with pytest.raises(EventError, match="the study has not started"):
        taken([lost, *telling.events])


# ------------------------------------------------------------------------------------------------------- what none can have had


@pytest.mark.parametrize(
    "kind", ["study_started", "trial_started", "run_started", "run_evaluated", "run_finished", "run_failed"]
)
def test_twice_is_once_too_often(kind: str) -> None:
    telling = mixed()
    again = telling.events[at(telling.events, kind=kind)]
    with pytest.raises(EventError, match=f"^{kind} is there already$"):
        taken([*telling.events, replace(again, time=again.time + 1)])


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ({"kind": "study_started"}, "the study has not started"),
        ({"kind": "trial_started", "trial": 1}, "trial 1 has not begun"),
        ({"kind": "run_started", "trial": 4, "split": 2}, "split 2 of trial 4 has not begun"),
        ({"kind": "run_finished", "trial": 1, "split": 2}, "a value of split '2', which has not finished"),
    ],
)
def test_nothing_comes_before_what_it_needs(kind: dict[str, Any], found: str) -> None:
    events = mixed().events
    place = at(events, **kind)
    order = taken(events[:place])
    with pytest.raises(EventError, match=found):
        for event in events[place + 1 :]:
            order.take(event)


RUN = {"trial": 5, "split": 1}


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ({"event": "trial_started", "trial": 8, "row": "a", "source": "search", "params": {}, "config": {}}, "trial 8 is not one of the study's trials, 0 to 7"),
        ({"event": "trial_started", "trial": 7, "row": "a", "source": "grid", "params": {}, "config": {}}, "trial 7 is one of the search, not of the grid"),
        ({"event": "trial_started", "trial": 7, "row": "a", "source": "search", "params": {}, "config": {}}, "train.iterations of trial 7 must be a whole number >= 1, got None"),
        ({"event": "trial_started", "trial": 7, "row": "a", "source": "search", "params": {}, "config": {"train.iterations": True}}, "got True"),
        ({"event": "trial_started", "trial": 7, "row": "a", "source": "search", "params": {}, "config": {"train.iterations": 5}}, "method.temperature of trial 7 must be drawn"),
        ({"event": "trial_started", "trial": 7, "row": "a", "source": "search", "params": {"method.temperature": "warm"}, "config": {"train.iterations": 5}}, "method.temperature of trial 7 must be drawn"),
        ({"event": "trial_retried", "trial": 7, "reason": ""}, "trial 7 has not begun"),
        ({"event": "trial_pruned", "trial": 5, "split": 2, "step": 3, "reason": PRUNED}, "split 2 of trial 5 has not begun"),
        ({"event": "run_started", "trial": 5, "split": 3, "seed": 0, "split_hash": "h", "dataset": "d", "num_labelled": 8, "num_unlabelled": 8, "class_names": []}, "split 3 is not one of the study's splits: 0, 1, 2"),
        ({"event": "run_logged", **RUN, "step": 101, "metrics": {}}, "step 101 of trial 5 is beyond its last, 100"),
        ({"event": "run_finished", **RUN, "step": 100, "last": {}, "best": {"val/miou": 1.0}, "best_step": 1, "seconds": 1.0}, "'val/miou' is missing"),
        ({"event": "study_finished", "status": "finished", "best_trial": 1}, "3 of its 8 trials have not ended"),
        ({"event": "study_finished", "status": "budget", "best_trial": 6}, "trial 6 has not begun"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_study_is_named_and_not_taken(event: dict[str, Any], found: str) -> None:
    telling = mixed()
    order = taken(telling.events)
    with pytest.raises(EventError) as raised:
        order.take(from_json({"time": 1.0, **event}))
    assert found in str(raised.value) and order.count == len(telling.events)
    # It is as if it had not come: the study ends with what it has.
    order.take(from_json({"event": "study_finished", "time": 1.0, "status": "budget", "best_trial": 1}))


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"values": {"0": 45.0, "1": 41.0}}, "a value of split .1., which has not finished"),
        ({"values": {"0": 45.5}}, "the value of trial 5 on split 0 is not what its run finished with"),
        ({"values": {"-1": 45.0}}, "a value of split '-1'"),
        ({"mean": 44.0}, "n, mean and std of trial 5 are not those of its values"),
        ({"mean": None}, "n, mean and std of trial 5 are not those of its values"),
        ({"std": 0.0}, "n, mean and std of trial 5 are not those of its values"),
        ({"n": 2}, "n, mean and std of trial 5 are not those of its values"),
        ({"num_splits": 2}, "num_splits is 2, and the study has 3"),
        ({"status": "finished"}, "trial 5 has not finished: 1 of its 3 splits have"),
    ],
)
def test_a_trial_ends_with_what_its_runs_did(fields: dict[str, Any], found: str) -> None:
    telling = mixed()
    whole = {
        "event": "trial_finished", "trial": 5, "status": "partial", "reason": "", "values": {"0": 45.0}, "mean": 45.0,
        "std": None, "n": 1, "num_splits": 3,
    }  # fmt: skip
    assert taken(more(telling, whole)).count == len(telling.events) + 1
    with pytest.raises(EventError, match=found):
        taken(more(telling, whole | fields))


def test_a_study_that_is_none_here_is_told_from_damage() -> None:
    telling = Telling()
    telling.start()
    (start,) = telling.events
    wrong = from_json({**start.to_json(), "spec": telling.study.resolved() | {"splits": "all"}})
    with pytest.raises(WrongStudyError, match="splits"):
        Order().take(wrong)
    remedy = "install the packages that it was begun with, or restore the journal from a copy"
    with pytest.raises(
        JournalError, match=f"^line 1 of /runs/small/journal.jsonl holds a study that is wrong here .*; {remedy}"
    ):
        list(in_order([wrong], Order(), "/runs/small"))
    with pytest.raises(EventError, match="it is of the study 'other'"):
        Order().take(from_json({**start.to_json(), "study": "other"}))


def test_the_line_is_named_with_the_command_that_repairs() -> None:
    events = mixed().events
    del events[at(events, kind="run_started", trial=1, split=0)]
    with pytest.raises(JournalError) as raised:
        list(in_order(events, Order(), "/a b/small"))
    assert str(raised.value) == (
        "line 20 of /a b/small/journal.jsonl cannot have followed what is before it (split 0 of trial 1 has not begun); keep "
        "what is sound with: css-ray study repair small --storage '/a b'; or restore the journal from a copy"
    )
