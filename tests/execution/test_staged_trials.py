"""A trial of a method with stages, as its rank trains it: what is reported, and how it continues after a death at any report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from css_ray.events import RunEvaluated, RunEvent, RunFinished, RunLogged, RunRewound, StageFinished, StageStarted
from css_ray.execution import rank_reporter
from css_ray.execution.handover import News
from css_ray.execution.rank_reporter import SlotReporter
from css_ray.execution.worker import train_splits
from css_ray.study.definition import parse
from css_ray.study.driver import make_job
from css_ray.study.job import Job
from css_ray.study.label_store import LabelStore
from css_ray.study.run import run_spec
from tests.places import SPEC
from tests.trials import one_thread


class Killed(Exception):
    pass


PSMT: dict[str, Any] = {"name": "psmt", "row": "PS-MT", "warm_up": 0.4, "top_k": 3, "unsup_threshold": 0.3}
PCR: dict[str, Any] = {"name": "pcr", "row": "PCR", "warm_up": 0.4, "unsup_threshold": 0.3}
STPP: dict[str, Any] = {"name": "stpp", "row": "ST++", "shares": [0.3, 0.3, 0.4], "tta_scales": [1.0], "tta_flip": False}


def job_of(data: Path, folder: Path, method: dict[str, Any] = PSMT) -> Job:
    """One split of the digits. PS-MT and PCR: 8 steps of warm-up, 12 of the rest, evaluated at 6, 8, 12, 18 and 20."""
    sections: dict[str, Any] = {
        "data": SPEC["data"] | {"root": str(data), "num_classes": 6},
        "train": SPEC["train"] | {"iterations": 20, "evaluate_every": 6, "log_every": 2, "diagnose_images": 4},
        "grid": {"method": [method]},
    }
    study = parse(SPEC | sections | {"search": None, "resources": {}, "splits": [0]})
    (trial,) = study.grid_trials()
    job = make_job(study, 0, [run_spec(study, trial, 0)], str(folder), None)
    return dataclasses.replace(job, min_free=0.0)


def train(
    job: Job, monkeypatch: pytest.MonkeyPatch, messages: int | None = None, last: tuple[str, int] | None = None
) -> list[RunEvent]:
    """The events that are sent in the first `messages` messages, or up to the one with the event of the kind and step `last`;
    with the next message the process dies.
    """
    sent: list[News] = []

    def put(queue: object, news: News) -> None:
        before = [(event.kind, getattr(event, "step", None)) for event in sent[-1].events] if sent else []
        if len(sent) == messages or last in before:
            raise Killed
        sent.append(news)

    monkeypatch.setattr(rank_reporter, "put_without_waiting", put)
    reporter = SlotReporter(job, 1, None, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    with one_thread():
        try:
            train_splits(job, reporter, torch.device("cpu"), lambda: None)
        except Killed:
            assert messages is not None or last is not None
    return [event for news in sent for event in news.events]  # type: ignore[misc]


def known(events: list[RunEvent]) -> dict[Any, Any]:
    """What a journal keeps of them: the first of each, without what is of a clock."""
    kept: dict[Any, Any] = {}
    for event in events:
        plain = {key: value for key, value in event.to_json().items() if key not in ("time", "seconds")}
        kept.setdefault(event.identity, plain)
    return kept


def label_files(folder: Path) -> list[Path]:
    """The files of pseudo-labels of the trial."""
    return list((folder / "checkpoints" / "trial_0000" / "labels").glob("split_0/*"))


@pytest.mark.parametrize("method", [PSMT, PCR], ids=lambda method: method["row"])
def test_a_trial_that_dies_at_any_report_continues_as_if_it_had_not(
    method: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(job_of(data, tmp_path / "whole", method), monkeypatch)
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
        job = job_of(data, tmp_path / str(messages), method)
        before = train(job, monkeypatch, messages)
        after = train(job, monkeypatch)
        assert known(before + after) == known(undisturbed), messages
        borders.add((before[-1].kind, getattr(before[-1], "step", 0)))
        again = [event.step for event in after if isinstance(event, RunLogged)]
        assert again == sorted(set(again))
    assert {("run_evaluated", 8), ("stage_finished", 8), ("stage_started", 8)} <= borders


@pytest.mark.slow
def test_self_training_that_dies_at_any_report_labels_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ST++: 6, 6 and 8 steps; killed in each stage, before its last report, and before and after each border's checkpoint."""
    puts: list[str] = []
    put = LabelStore.put

    def watched(self: LabelStore, labels: Any) -> None:
        put(self, labels)
        puts.append(self.digest)

    monkeypatch.setattr(LabelStore, "put", watched)
    undisturbed = train(job_of(data, tmp_path / "whole", STPP), monkeypatch)
    digests = list(puts)
    stages = [event for event in undisturbed if isinstance(event, StageStarted | StageFinished)]
    assert [(event.kind, event.step, event.name) for event in stages] == [
        ("stage_started", 0, "supervised"), ("stage_finished", 6, "supervised"),
        ("stage_started", 6, "reliable"), ("stage_finished", 12, "reliable"),
        ("stage_started", 12, "all"), ("stage_finished", 20, "all"),
    ]  # fmt: skip
    assert len(digests) == 2 and label_files(tmp_path / "whole") == []  # a run that is over keeps no labels

    moments = [
        ("run_logged", 4), ("run_evaluated", 6), ("stage_finished", 6), ("stage_started", 6), ("run_logged", 10),
        ("stage_finished", 12), ("stage_started", 12), ("run_evaluated", 18),
    ]  # fmt: skip
    for number, moment in enumerate(moments):
        puts.clear()
        job = job_of(data, tmp_path / str(number), STPP)
        before = train(job, monkeypatch, last=moment)
        labelled = list(puts)
        after = train(job, monkeypatch)
        assert known(before + after) == known(undisturbed), moment
        # A border whose checkpoint was written is not passed again; one whose was not labels as it did.
        passed = sum(isinstance(event, StageStarted) and event.step > 0 for event in before)
        assert labelled == digests[: len(labelled)] and puts[len(labelled) :] == digests[max(passed, len(labelled)) :], moment
        assert not any(isinstance(event, RunRewound) for event in after)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_trial_whose_labels_are_gone_begins_again_and_reports_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    undisturbed = train(job_of(data, tmp_path / "whole", STPP), monkeypatch)
    job = job_of(data, tmp_path / "damaged", STPP)
    train(job, monkeypatch, last=("run_evaluated", 18))
    (_, last) = sorted(label_files(tmp_path / "damaged"), key=lambda path: path.stat().st_mtime_ns)
    if damage == "missing":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-1] + b"\0")
    after = train(job, monkeypatch)
    (rewound,) = (event for event in after if isinstance(event, RunRewound))
    found = "are missing" if damage == "missing" else "were altered"
    assert f"{last.name} of its stage {found}" in rewound.reason and "the run starts from its first step" in rewound.reason
    without = {key: value for key, value in known(after).items() if value["event"] != "run_rewound"}
    assert without == known(undisturbed)
