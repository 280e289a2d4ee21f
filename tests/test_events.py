"""The events of a journal: JSON in and out, and everything that is no event refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from css_ray.events import (
    KINDS,
    Event,
    EventError,
    NewerEventError,
    RunLogged,
    RunStarted,
    StudyInterrupted,
    TrialFinished,
    TrialPruned,
    from_json,
)

BEFORE = Path(__file__).parent / "fixtures" / "begun_before" / "journal.jsonl"
"""What the version wrote whose events were plain mappings."""

SPLIT: dict[str, Any] = {"trial": 3, "split": 1}
STEP: dict[str, Any] = {**SPLIT, "step": 40}
SCORES = {"val/miou": 61.5, "val/iou/sky": 80}

CONTENT: dict[str, dict[str, Any]] = {
    "study_started": {"study": "s", "study_id": "x", "spec": {"splits": [0, 1]}, "versions": {"torch": "2.11"}},
    "study_extended": {"spec": {"splits": [0, 1, 2]}, "num_splits": 3},
    "study_paused": {"reason": "the disk is full"},
    "study_continued": {},
    "study_interrupted": {"reason": "by the user"},
    "study_resumed": {},
    "study_finished": {"status": "budget", "best_trial": 3},
    "event_lost": {"reason": "some bytes are not text"},
    "trial_started": {"trial": 3, "row": "CSS (mix)", "source": "search", "params": {"method.temperature": 0.5}, "config": {"train.lr": 0.1}},
    "trial_pruned": {**STEP, "reason": "far below the best"},
    "trial_retried": {"trial": 3, "reason": "rank 1: its process died"},
    "trial_finished": {"trial": 3, "status": "partial", "reason": "", "values": {"0": 61.5}, "mean": 61.5, "std": None, "n": 1, "num_splits": 2},
    "run_started": {**SPLIT, "seed": 7, "dataset": "voc", "split_hash": "h", "num_labelled": 92, "num_unlabelled": 10490, "class_names": ["sky"], "workers": 2},
    "run_logged": {**STEP, "metrics": {"train/loss": 0.5}},
    "run_evaluated": {**STEP, "metrics": SCORES},
    "run_finished": {**STEP, "last": SCORES, "best": SCORES, "best_step": 30, "seconds": 12.5},
    "run_failed": {**STEP, "reason": "the loss became nan"},
    "run_pruned": {**STEP, "reason": "far below the best"},
    "run_rewound": {**STEP, "reason": "a damaged checkpoint"},
    "stage_started": {**STEP, "number": 1, "name": "main"},
    "stage_finished": {**STEP, "number": 1, "name": "main"},
    "run_resized": {**STEP, "workers": 1, "before": 2, "reason": "a node went"},
}  # fmt: skip
"""One of each kind, as the journals of the version before have them."""


COUNT = "a whole number from 0 to 9223372036854775807"
WORKERS = "a whole number from 1 to 9223372036854775807"
SECONDS = "a number from 0 to 253402300799"


def plain(kind: str) -> dict[str, Any]:
    return {"event": kind, "time": 1795704549.948, **CONTENT[kind]}


def test_each_kind_is_tried_here() -> None:
    assert CONTENT.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", CONTENT)
def test_json_and_back(kind: str) -> None:
    line = json.dumps(plain(kind))
    event = from_json(json.loads(line))
    assert type(event) is KINDS[kind] and event.time == 1795704549.948
    assert {field.name for field in dataclasses.fields(event)} == plain(kind).keys() - {"event"} | {"time", "worked"}
    assert json.dumps(event.to_json()) == line
    assert from_json(event.to_json()) == event


def test_a_journal_of_the_version_before_survives_byte_for_byte() -> None:
    lines = BEFORE.read_text().splitlines()
    assert len(lines) > 20
    for line in lines:
        assert json.dumps(from_json(json.loads(line)).to_json(), separators=(",", ":")) == line


def test_a_field_that_older_journals_lack_has_its_default_and_is_not_written() -> None:
    older = {name: value for name, value in plain("run_started").items() if name != "workers"}
    event = from_json(older)
    assert isinstance(event, RunStarted) and event.workers is None
    assert event.to_json() == older


# ----------------------------------------------------------------------------------------------------------- what is no event


@pytest.mark.parametrize("kind", ["study_moved", "run_", "", "Event", 7, None, ["run_logged"]])
def test_a_kind_that_is_not_known_is_of_a_newer_version(kind: object) -> None:
    with pytest.raises(NewerEventError) as raised:
        from_json({"event": kind, "time": 1.0})
    assert str(raised.value) == f"this version of css-ray does not know events of the kind {kind!r}"


@pytest.mark.parametrize("kind", CONTENT)
def test_a_field_that_is_not_known_is_of_a_newer_version(kind: str) -> None:
    with pytest.raises(NewerEventError) as raised:
        from_json(plain(kind) | {"colour": "red"})
    assert str(raised.value) == f"this version of css-ray does not know the field 'colour' of {kind}"


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in CONTENT for name in CONTENT[kind] if (kind, name) != ("run_started", "workers")]
)
def test_a_field_that_is_missing_is_named(kind: str, name: str) -> None:
    event = plain(kind)
    del event[name]
    with pytest.raises(EventError) as raised:
        from_json(event)
    assert str(raised.value) == f"{kind} lacks {name!r}" and not isinstance(raised.value, NewerEventError)


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        ("study_resumed", "time", "1.0", SECONDS),
        ("study_resumed", "time", True, SECONDS),
        ("study_resumed", "time", None, SECONDS),
        ("study_resumed", "time", -1.0, SECONDS),
        ("study_resumed", "time", 1e12, SECONDS),
        ("study_resumed", "time", 10**400, SECONDS),
        ("study_resumed", "worked", "1", f"{SECONDS} or null"),
        ("study_started", "study", 5, "text"),
        ("study_started", "study", "\ud800", "text"),
        ("study_started", "spec", ["splits"], "a mapping"),
        ("study_started", "spec", None, "a mapping"),
        ("study_started", "spec", {"train": {"lr": [math.inf]}}, "a mapping"),
        ("study_started", "spec", {"train": {"\udfff": 1}}, "a mapping"),
        ("study_started", "versions", {"torch": -(10**400)}, "a mapping"),
        ("study_extended", "num_splits", 3.0, COUNT),
        ("study_extended", "num_splits", True, COUNT),
        ("study_extended", "num_splits", None, COUNT),
        ("study_finished", "status", "won", "one of finished, failed, budget"),
        ("study_finished", "status", None, "one of finished, failed, budget"),
        ("study_finished", "status", ["finished"], "one of finished, failed, budget"),
        ("study_finished", "best_trial", "3", f"{COUNT} or null"),
        ("trial_started", "source", "Grid", "one of grid, search"),
        ("trial_finished", "values", {"0": "61.5"}, "a mapping to a number"),
        ("trial_finished", "values", {"0": math.nan}, "a mapping to a number"),
        ("trial_finished", "values", [61.5], "a mapping to a number"),
        ("trial_finished", "mean", "61.5", "a number or null"),
        ("trial_finished", "mean", math.inf, "a number or null"),
        ("trial_finished", "std", False, "a number or null"),
        ("run_started", "class_names", ["sky", 5], "a list of text"),
        ("run_started", "class_names", "sky", "a list of text"),
        ("run_started", "seed", 2**63, "a whole number"),
        ("run_started", "workers", 1.5, f"{WORKERS} or null"),
        ("run_started", "workers", 0, f"{WORKERS} or null"),
        ("run_evaluated", "metrics", {"val/miou": None}, "a mapping to a number"),
        ("run_evaluated", "metrics", {"val/miou": -math.inf}, "a mapping to a number"),
        ("run_failed", "reason", None, "text"),
        ("run_failed", "trial", "3", COUNT),
        ("run_failed", "trial", -1, COUNT),
        ("run_failed", "split", 1.0, COUNT),
        ("run_failed", "step", 2**63, COUNT),
    ],
)
def test_a_wrong_type_is_named_with_what_it_must_be(kind: str, name: str, value: object, words: str) -> None:
    with pytest.raises(EventError) as raised:
        from_json(plain(kind) | {name: value})
    assert str(raised.value) == f"{name!r} of {kind} must be {words}, got {value!r:.80}"
    assert not isinstance(raised.value, NewerEventError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "an event is a mapping, got int"),
        (None, "an event is a mapping, got NoneType"),
        ([plain("study_resumed")], "an event is a mapping, got list"),
        ({}, "it has no kind or no time"),
        ({"event": "study_resumed"}, "it has no kind or no time"),
        ({"time": 1.0, "step": 3}, "it has no kind or no time"),
    ],
)
def test_what_is_no_event_at_all_says_so(value: object, message: str) -> None:
    with pytest.raises(EventError) as raised:
        from_json(value)
    assert str(raised.value) == message


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(EventError) as raised:
        from_json(plain("run_failed") | {"reason": ["x" * 10_000]})
    assert len(str(raised.value)) < 200


# ------------------------------------------------------------------------------------------------------------------ identities


def test_what_a_resumed_run_reports_again_has_the_identity_it_had() -> None:
    def logged(**other: Any) -> Event:
        return from_json(plain("run_logged") | other)

    assert logged(time=5.0, metrics={"train/loss": 0.7}).identity == logged().identity is not None
    changed = [logged(**{name: 9}).identity for name in ("trial", "split", "step")]
    other_kind = from_json(plain("run_evaluated")).identity
    assert len({logged().identity, other_kind, *changed}) == 5


@pytest.mark.parametrize("kind", CONTENT)
def test_what_may_happen_again_has_no_identity(kind: str) -> None:
    repeats = {
        "study_extended", "study_paused", "study_continued", "study_interrupted", "study_resumed", "study_finished",
        "event_lost", "trial_retried", "trial_finished",
    }  # fmt: skip
    first, later = from_json(plain(kind)), from_json(plain(kind) | {"time": 2.0})
    assert (first.identity is None) == (kind in repeats) and first.identity == later.identity


def test_a_trial_is_pruned_once_wherever_it_was_judged() -> None:
    once = TrialPruned(time=1.0, trial=3, split=0, step=10, reason="a")
    assert once.identity == TrialPruned(time=2.0, trial=3, split=1, step=40, reason="b").identity


def test_now_is_the_time_of_an_event_that_happens_here() -> None:
    before = time.time()
    event = StudyInterrupted.now(reason="by the user")
    assert before - 0.001 <= event.time <= time.time() + 0.001 and event.reason == "by the user"
    with pytest.raises(TypeError):
        StudyInterrupted.now(cause="by the user")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.time = 0.0  # type: ignore[misc]


def test_a_whole_number_is_a_number_and_stays_one() -> None:
    """JSON has one kind of numbers: a mean of 61 may be written as 61."""
    event = from_json(plain("trial_finished") | {"mean": 61})
    assert isinstance(event, TrialFinished) and json.dumps(event.to_json()["mean"]) == "61"
    metrics = from_json(plain("run_logged") | {"metrics": {"train/loss": 1}})
    assert isinstance(metrics, RunLogged) and metrics.metrics == {"train/loss": 1}
