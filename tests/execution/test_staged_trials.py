"""A trial of a method with stages, as its rank trains it: what is reported, and how it continues after a death at any report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from css_ray.events import RunEvaluated, RunEvent, RunFinished, RunLogged, StageFinished, StageStarted
from css_ray.execution import rank_reporter
from css_ray.execution.handover import News
from css_ray.execution.rank_reporter import SlotReporter
from css_ray.execution.worker import train_splits
from css_ray.study.definition import parse
from css_ray.study.driver import make_job
from css_ray.study.job import Job
from css_ray.study.run import run_spec
from tests.places import SPEC
from tests.trials import one_thread


class Killed(Exception):
    pass


METHODS: dict[str, dict[str, Any]] = {
    "PS-MT": {"name": "psmt", "warm_up": 0.4, "top_k": 3, "unsup_threshold": 0.3},
    "PCR": {"name": "pcr", "warm_up": 0.4, "unsup_threshold": 0.3},
}


def job_of(data: Path, folder: Path, row: str) -> Job:
    """A method on one split of the digits: 8 steps of warm-up, 12 of the rest, evaluated at 6, 8, 12, 18 and 20."""
    sections: dict[str, Any] = {
        "data": SPEC["data"] | {"root": str(data), "num_classes": 6},
        "train": SPEC["train"] | {"iterations": 20, "evaluate_every": 6, "log_every": 2, "diagnose_images": 4},
        "grid": {"method": [METHODS[row] | {"row": row}]},
    }
    study = parse(SPEC | sections | {"search": None, "resources": {}, "splits": [0]})
    (trial,) = study.grid_trials()
    job = make_job(study, 0, [run_spec(study, trial, 0)], str(folder), None)
    return dataclasses.replace(job, min_free=0.0)


def train(job: Job, monkeypatch: pytest.MonkeyPatch, messages: int | None = None) -> list[RunEvent]:
    """The events that are sent in the first `messages` messages; with the next one the process dies."""
    sent: list[News] = []

    def put(queue: object, news: News) -> None:
        if len(sent) == messages:
            raise Killed
        sent.append(news)

    monkeypatch.setattr(rank_reporter, "put_without_waiting", put)
    reporter = SlotReporter(job, 1, None, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    with one_thread():
        try:
            train_splits(job, reporter, torch.device("cpu"), lambda: None)
        except Killed:
            assert messages is not None
    return [event for news in sent for event in news.events]  # type: ignore[misc]


def known(events: list[RunEvent]) -> dict[Any, Any]:
    """What a journal keeps of them: the first of each, without what is of a clock."""
    kept: dict[Any, Any] = {}
    for event in events:
        plain = {key: value for key, value in event.to_json().items() if key not in ("time", "seconds")}
        kept.setdefault(event.identity, plain)
    return kept


@pytest.mark.parametrize("row", METHODS)
def test_a_trial_that_dies_at_any_report_continues_as_if_it_had_not(
    row: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(job_of(data, tmp_path / "whole", row), monkeypatch)
    stages = [event for event in undisturbed if isinstance(event, StageStarted | StageFinished)]
    assert [(event.kind, event.step, event.number, event.name) for event in stages] == [
        ("stage_started", 0, 0, "warm_up"), ("stage_finished", 8, 0, "warm_up"),
        ("stage_started", 8, 1, "main"), ("stage_finished", 20, 1, "main"),
    ]  # fmt: skip
    assert [event.step for event in undisturbed if isinstance(event, RunEvaluated)] == [6, 8, 12, 18, 20]
    assert isinstance([event for event in undisturbed if not isinstance(event, StageFinished)][-1], RunFinished)

    dies_after = [2, 5, 7, 8, 9, 10, 12]  # messages: in the warm-up, around the border, and in the rest
    borders = set()
    for messages in dies_after:
        job = job_of(data, tmp_path / str(messages), row)
        before = train(job, monkeypatch, messages)
        after = train(job, monkeypatch)
        assert known(before + after) == known(undisturbed), messages
        borders.add((before[-1].kind, getattr(before[-1], "step", 0)))
        again = [event.step for event in after if isinstance(event, RunLogged)]
        assert again == sorted(set(again))
    assert {("run_evaluated", 8), ("stage_finished", 8), ("stage_started", 8)} <= borders
