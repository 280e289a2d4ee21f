"""What a study shows: in eighty columns, in plain lines, and with a thousand trials."""

from __future__ import annotations

import dataclasses
import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from css_ray.standing import Standing
from css_ray.study.definition import StudyDefinition, parse
from css_ray_cli.view import View, Watcher, fitting, sparkline
from tests.journals import PRUNED, SPEC, Telling, mixed


def standing_of(telling: Telling) -> Standing[StudyDefinition]:
    return Standing(parse).fold(telling.events)


def shown(standing: Standing[StudyDefinition], width: int = 80, encoding: str = "utf-8", **settings: Any) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, width=width, height=50, force_terminal=False)
    console.print(View(standing, **settings))
    file.flush()
    return raw.getvalue().decode(encoding)


def words(text: str) -> str:
    """The text without its line breaks and columns."""
    return " ".join(text.split())


def test_a_sparkline_by_hand() -> None:
    assert sparkline([0, 10, 20, 30, 40, 50, 60, 70, 80], 0, 80, width=9) == "▁▂▃▄▅▆▇██"
    # Of six values on three blocks the second, fourth and sixth are seen, so that the line ends at the latest.
    assert sparkline([80, 0, 80, 40, 80, 79], 0, 80, width=3) == "▁▅█"
    assert sparkline([5.0], 5.0, 5.0) == "▁"


def test_eighty_columns_hold_all_that_matters() -> None:
    text = shown(standing_of(mixed()))
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "small: running",
        "trials 5/8 (1 pruned, 1 failed, 1 partial)",
        "best 54.00 ± 5.29 (trial 1, CSS (mix))",
        "44.00 ± 4.00",
        "✂ 20",
        "✗ 10",
        "50 % 40.0",
        "CPU-hours",
    ):
        assert part in text, text
    # The reasons are whole, over as many lines as they need, the latest first.
    reasons = words(text[text.index("✗ trial 4") :])
    assert "✗ trial 4 split 1 failed step 10: the loss became nan at step 14" in reasons
    assert "✗ trial 3 split 0 failed step 10: RayActorError: the worker died" in reasons
    assert all(word in reasons for word in PRUNED.split())
    assert reasons.index("trial 4") < reasons.index("trial 3") < reasons.index("trial 2")
    # All curves share one scale, from 8 to 60: trial 5's, of 8, 16, 24, 32 and 40, climbs over five of its eight steps.
    assert "▁▂▃▄▅" in text


@pytest.mark.parametrize("count", [1, 5, 12])
def test_any_number_of_splits_fits(count: int) -> None:
    telling = Telling(splits=list(range(count)))
    telling.start()
    telling.whole(0, *(40.0 + split for split in range(count)))
    telling.trial(1)
    for split in range(count):
        telling.run(1, split, 30.0, 50.0, end="finished" if split < count - 1 else "running")
    text = shown(standing_of(telling))
    assert max(map(len, text.splitlines())) <= 80
    assert "20 % 50.0" in text and "…\n" not in text.replace(" …\n", "\n")
    assert (f"{count - 1}/{count} {count - 1}: 20 % 50.0" in text) == (count > 4)


def test_a_long_row_label_takes_a_second_line_and_a_bracket_is_no_markup() -> None:
    label = "[bold]CSS with everything that the authors thought of[/bold]"
    telling = Telling(grid={"method": [{"name": "supervised", "row": label}]})
    telling.start()
    telling.whole(0, 40.0, 44.0, 48.0)
    telling.events[1] = dataclasses.replace(telling.events[1], row=label)  # type: ignore[call-arg]
    text = shown(standing_of(telling))
    assert max(map(len, text.splitlines())) <= 80
    table = text[text.index("trial  row") :]
    assert all(word in words(table) for word in ("[bold]CSS", "authors", "44.00 ± 4.00", "of[/bold]"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_signs_gets_others(encoding: str) -> None:
    text = shown(standing_of(mixed()), encoding=encoding)
    assert max(map(len, text.splitlines())) <= 80
    assert "54.00 +- 5.29" in text if encoding == "ascii" else "54.00 ± 5.29" in text
    assert "x trial 4 split 1 failed" in text and "% trial 2 pruned" in text and "_.:-=" in text
    assert "x 10" in text and "ok" in text
    assert fitting("Sup. α", encoding) == "Sup. ?"


def test_of_a_thousand_trials_those_that_run_the_best_and_the_latest() -> None:
    telling = Telling(search={**SPEC["search"], "trials": 999})
    telling.start()
    for index in range(990):
        telling.whole(index, *([90.0] * 3 if index == 17 else [40.0 + index / 100] * 3))
    for index in (990, 991):
        telling.trial(index)
        telling.run(index, 0, 5.0, end="running")
    standing = standing_of(telling)

    class Unwalkable(dict[int, Any]):
        def _walked(self, *arguments: Any) -> Any:
            raise AssertionError("all trials were walked over")

        __iter__ = keys = values = items = _walked

    standing.trials = Unwalkable(standing.trials)
    text = shown(standing, rows=10)
    assert [int(line.split()[0]) for line in text.splitlines() if re.match(r" *\d+ +CSS", line)] == [17, *range(983, 992)]
    assert "trials 990/1000" in text and "982 more trials not shown" in text
    assert "best 90.00 ± 0.00 (trial 17, CSS (mix))" in text


def test_a_study_of_which_nothing_is_heard_says_so() -> None:
    quiet = words(shown(standing_of(mixed())))
    assert "nothing new for" in quiet and "left" not in quiet
    fresh = mixed()
    fresh.events = [dataclasses.replace(event, time=event.time + time.time() - fresh.time) for event in fresh.events]
    assert "left" in shown(standing_of(fresh)) and "nothing new" not in shown(standing_of(fresh))


def test_a_budget_stands_beside_what_was_spent() -> None:
    assert "of 2 CPU-hours" in words(shown(standing_of(mixed(budget={"cpu_hours": 2}))))


def test_the_score_is_explained_where_it_is_not_the_mean() -> None:
    text = shown(standing_of(mixed(objective={"aggregate": "mean_minus_std"})))
    assert "best 48.71 = mean - 1 std of 54.00 ± 5.29 (trial 1, CSS (mix))" in words(text)


def test_without_a_terminal_a_line_tells_how_a_trial_ended() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    telling = mixed()
    watcher = Watcher(Standing(parse, telling.study), console)
    with watcher.live():
        for event in telling.events:
            watcher.event(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "trial 0 (Sup.) finished: 44.00 ± 4.00 (n=3 of 3)" in lines
    assert f"trial 2 (CSS (mix)) pruned: 30.00 (n=1 of 3); {PRUNED}" in lines
    assert lines[0].startswith("trials 0/8 · runs 0/24")
    assert len(lines) == 6  # the start and five ends


def test_what_was_lost_and_made_good_is_said() -> None:
    telling = mixed()
    for reason in ("rank 1: its process died", "rank 0 made no progress for more than 900 s"):
        telling.tell("trial_retried", 3, reason=reason)
    text = words(shown(standing_of(telling)))
    assert "↻ trial 3 retried 2 times, lastly: rank 0 made no progress for more than 900 s" in text
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    watcher = Watcher(Standing(parse, telling.study), console)
    for event in telling.events:
        watcher.event(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "trial 3 continues from its last checkpoint: rank 1: its process died" in lines


def test_a_pause_is_explained_while_it_lasts() -> None:
    telling = mixed()
    telling.tell("study_paused", reason="runs has 0.10 GB free")
    assert "small: paused, runs has 0.10 GB free" in words(shown(standing_of(telling)))
    telling.tell("study_continued")
    assert "small: running" in shown(standing_of(telling)) and "GB free" not in shown(standing_of(telling))


def test_on_a_terminal_the_table_follows_the_study() -> None:
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True, _environ={"TERM": "xterm"})
    telling = mixed()
    watcher = Watcher(Standing(parse, telling.study), console)
    with watcher.live():
        for event in telling.events:
            watcher.event(event)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert "trials 5/8" in text and "✂ 20" in text
