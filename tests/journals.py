"""Made-up studies, for tests of what reads a journal: the events that a driver would write."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Literal

import pytest

from css_ray.audience import Audience
from css_ray.events import Event, from_json
from css_ray.study.definition import parse

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "d", "labelled": 8, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
    "train": {"iterations": 100, "lr": 0.1},
    "splits": [0, 1, 2],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}]},
    "search": {
        "method": {"name": "css", "row": "CSS (mix)"},
        "trials": 7,
        "space": {"method.temperature": {"uniform": [0.1, 1.0]}},
    },
}


FORMULA = "=cmd|' /C calc'!A0"
"""A name that a spreadsheet would run."""


class Telling:
    """A study's events, a second apart; each method adds some more. path: a journal to write them to as well."""

    def __init__(self, path: Path | None = None, start: float = 1000.0, **sections: Any) -> None:
        self.spec = {**SPEC, **sections}
        self.study = parse(self.spec)
        self.path = path
        self.events: list[Event] = []
        self.time = start

    def tell(self, kind: str, trial: int | None = None, split: int | None = None, **content: Any) -> Event:
        self.time += 1.0
        place = {key: value for key, value in (("trial", trial), ("split", split)) if value is not None}
        event = from_json({"event": kind, "time": self.time, **place, **content})
        self.events.append(event)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(event.to_json()) + "\n")
        return event

    def start(self) -> None:
        self.tell("study_started", study=self.study.name, study_id="x", spec=self.study.resolved(), versions={})

    def trial(self, index: int) -> None:
        row, source, params = (
            ("Sup.", "grid", {}) if index == 0 else ("CSS (mix)", "search", {"method.temperature": 0.1 * index})
        )
        config = {"train.iterations": 100}
        self.tell("trial_started", index, row=row, source=source, params=params, config=config)

    def run(self, trial: int, split: int, *scores: float, end: str = "finished", reason: str = "") -> None:
        """A run with evaluations every ten steps. end: finished, failed, pruned, or running."""
        self.tell(
            "run_started",
            trial,
            split,
            seed=0,
            split_hash="h",
            dataset="d",
            num_labelled=8,
            num_unlabelled=8,
            class_names=["a"],
        )
        for number, score in enumerate(scores, 1):
            self.tell("run_evaluated", trial, split, step=10 * number, metrics={"val/miou": score})
        step = 10 * len(scores)
        if end == "finished":
            last, best = {"val/miou": scores[-1]}, {"val/miou": max(scores)}
            self.tell("run_finished", trial, split, step=100, last=last, best=best, best_step=step, seconds=12.5)
        elif end != "running":
            self.tell(f"run_{end}", trial, split, step=step, reason=reason)

    def end(self, trial: int, status: str = "finished", reason: str = "", scores: dict[int, float] | None = None) -> None:
        """A trial that ends. scores: by split, of the runs that finished."""
        numbers = list((scores or {}).values())
        mean = statistics.fmean(numbers) if numbers else None
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
        by_split = {str(split): value for split, value in (scores or {}).items()}
        num_splits = len(self.study.splits)
        self.tell(
            "trial_finished", trial, status=status, reason=reason, mean=mean, std=std, n=len(numbers), num_splits=num_splits,
            values=by_split,
        )  # fmt: skip

    def whole(self, trial: int, *scores: float) -> None:
        """A trial that finishes with `scores` on its splits."""
        self.trial(trial)
        for split, score in enumerate(scores):
            self.run(trial, split, score / 4, score / 2, score)
        self.end(trial, scores=dict(enumerate(scores)))


def mixed(path: Path | None = None, **sections: Any) -> Telling:
    """Six of eight trials: two finished, one pruned, one whose machinery failed, one with a split that failed, one running."""
    telling = Telling(path, **sections)
    telling.start()
    telling.whole(0, 40.0, 44.0, 48.0)
    telling.whole(1, 50.0, 52.0, 60.0)
    telling.trial(2)
    telling.run(2, 0, 10.0, 30.0)
    telling.run(2, 1, 12.0, 20.0, end="pruned", reason=PRUNED)
    telling.end(2, "pruned", PRUNED, scores={0: 30.0})
    telling.trial(3)
    telling.run(3, 0, 15.0, end="failed", reason="RayActorError: the worker died")
    telling.end(3, "failed", "RayActorError: the worker died")
    telling.trial(4)
    telling.run(4, 0, 20.0, 41.0)
    telling.run(4, 1, 9.0, end="failed", reason="the loss became nan at step 14")
    telling.run(4, 2, 20.0, 43.0)
    telling.end(4, "partial", "split 1: the loss became nan at step 14", scores={0: 41.0, 2: 43.0})
    telling.trial(5)
    telling.run(5, 0, 20.0, 45.0)
    telling.run(5, 1, 8.0, 16.0, 24.0, 32.0, 40.0, end="running")
    return telling


PRUNED = "split 1, step 20: 6.2 below the best trial (1) on the splits that both have, at a false-prune rate of 0.05"


class FakeRunner:
    """In place of css_ray.execution.runner.Runner: writes the journal of `mixed`, keeps how it was called, ends as `status` says."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012
    unsent = 7
    status: Literal["finished", "failed", "budget", "interrupted"] = "failed"
    error: Exception | None = None

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> None:
        from css_ray.execution import runner
        from css_ray.study import preflight

        monkeypatch.setattr(runner, "Runner", cls)
        monkeypatch.setattr(preflight, "_changed", lambda *arguments: [])  # the made-up journal has made-up splits
        for name, value in {"calls": [], "unsent": 7, "status": "failed", "error": None}.items():
            monkeypatch.setattr(cls, name, value)

    def __init__(self, definition: Any, storage: str, *, address: str | None = None, observer: Audience | None = None) -> None:
        self.definition, self.storage, self.observer = definition, storage, observer
        self.call = {"definition": definition, "storage": storage, "address": address}

    def run(self, *, resume: bool) -> Any:
        from css_ray.study.driver import Outcome

        self.calls.append(self.call | {"resume": resume})
        path = Path(self.storage) / self.definition.name / "journal.jsonl"
        if not resume:
            telling = mixed(path, data=self.definition.spec["data"])
            if self.observer is not None:
                for event in telling.events:
                    self.observer.event(event)
        if self.error is not None:
            raise self.error
        return Outcome(self.status, self.definition, [], self.unsent)


def begun(**sections: Any) -> Telling:
    """A study in the storage of the current folder, which no event has reached yet."""
    return Telling(Path("runs/small/journal.jsonl"), **sections)
