"""What the live view and `status` show, folded from events."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from css_ray.study.progress import Progress
from css_ray.study.schema import parse

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


EVENTS = [
    event("study_started", 0.0),
    event("trial_started", 1.0, 0, row="Sup.", source="grid", params={}, config={"train.iterations": 100}),
    event("run_started", 10.0, 0, 0),
    event("run_logged", 15.0, 0, 0, step=50, metrics={}),
    finished(20.0, 0, 0, 40.0),
    event("run_started", 20.0, 0, 1),
    finished(30.0, 0, 1, 50.0),
    event(
        "trial_finished",
        30.0,
        0,
        status="finished",
        reason="",
        mean=45.0,
        std=7.07,
        n=2,
        num_splits=2,
        values={"0": 40.0, "1": 50.0},
    ),
    event("trial_started", 31.0, 1, row="CSS", source="grid", params={}, config={"train.iterations": 100}),
    event("run_started", 32.0, 1, 0),
    event("run_evaluated", 36.0, 1, 0, step=50, metrics={"val/miou": 44.0}),
]


def folded(*more: dict[str, Any]) -> Progress:
    progress = Progress(parse(SPEC))
    for each in [*EVENTS, *more]:
        progress.event(each)
    return progress


def test_counts() -> None:
    progress = folded()
    assert (progress.trials_ended, progress.num_trials) == (1, 2)
    assert (progress.runs_ended, progress.num_runs) == (2, 4)
    assert (progress.steps_done, progress.num_steps) == (250, 400)
    assert progress.best is not None and progress.best.index == 0
    assert progress.partial(progress.trials[1]) == (None, None)


def test_time_left_is_the_pace_since_the_first_run() -> None:
    # 250 steps from second 10 to second 40; 150 are left.
    assert folded().seconds_left(40.0) == pytest.approx(150 * 30 / 250)
    # After an interruption the pace is the new start's own: 20 steps in 10 s, 130 are left.
    resumed = folded(
        event("study_interrupted", 40.0, reason="-"), event("study_resumed", 1000.0),
        event("run_started", 1010.0, 1, 1), event("run_logged", 1015.0, 1, 1, step=20, metrics={}),
    )  # fmt: skip
    assert resumed.seconds_left(1020.0) == pytest.approx(130 * 10 / 20)


def test_a_failed_run_takes_no_more_steps_and_a_failed_trial_is_opened_by_resume() -> None:
    failed = [
        event("run_failed", 40.0, 1, 0, step=50, reason="worker died"),
        event(
            "trial_finished", 41.0, 1, status="failed", reason="worker died", mean=None, std=None, n=0, num_splits=2, values={}
        ),
    ]
    assert folded(*failed).steps_done == 300
    assert folded(*failed).trials[1].status == "failed"
    assert folded(*failed, event("study_resumed", 50.0)).trials[1].status == "running"


def test_the_view_fits_eighty_columns_and_names_what_matters() -> None:
    from css_ray_cli.view import Watcher

    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(Watcher(folded(), console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "Sup.",
        "CSS",
        "40.00",
        "50.00",
        "45.00 ± 7.07",
        "50 % 44.0",
        "trials 1/2",
        "runs 2/4",
        "steps 250/400",
        "best 45.00",
    ):
        assert word in text, text


def test_without_a_terminal_a_line_tells_how_a_trial_ended() -> None:
    from css_ray_cli.view import Watcher

    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    watcher = Watcher(Progress(parse(SPEC)), console)
    for each in EVENTS:
        watcher.event(each)
    assert "trial 0 (Sup.) finished: 45.00 ± 7.07 (n=2 of 2)" in console.file.getvalue()  # type: ignore[attr-defined]
