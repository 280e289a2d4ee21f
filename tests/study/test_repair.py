"""A damaged journal is repaired: what is sound stays, what is lost is named, and the study comes to the same numbers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from css_ray.api import Study
from css_ray.events import Event, EventLost, StudyStarted
from css_ray.study.definition import parse
from css_ray.study.job import RunSpec
from css_ray.study.journal import Journal, JournalError, StudyLockedError, StudyMissingError
from css_ray.study.repair import Repaired, repair
from css_ray_cli.main import main
from tests.journals import mixed
from tests.rayless import Rayless

JOURNAL = Path("runs/small/journal.jsonl")


def score(spec: RunSpec) -> float:
    """Of the grid's row 40 and 42; of the search 100 times the temperature, and 2 more on the second split."""
    return (100 * spec.settings["method"]["temperature"] if spec.trial else 40.0) + 2.0 * spec.split


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Rayless.install(monkeypatch, score)


@pytest.fixture
def finished(data: Path) -> Study:
    """A grid of one trial and a search of three that learns, on two splits, to their end: 53 events."""
    section = {"dataset": "digits", "root": str(data), "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4}
    spec = {
        "study": "small",
        "data": section,
        "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
        "train": {"iterations": 100, "evaluate_every": 25},
        "splits": [0, 1],
        "grid": {"method": [{"name": "supervised", "row": "Sup."}]},
        "search": {
            "method": {"name": "css", "row": "CSS (mix)"},
            "trials": 3,
            "startup_trials": 1,
            "space": {"method.temperature": {"uniform": [0.1, 0.5]}},
        },
    }
    study = Study(parse(spec))
    study.run()
    return study


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["study", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def lines() -> list[str]:
    return JOURNAL.read_text().splitlines()


def write(changed: list[str]) -> None:
    JOURNAL.write_text("".join(f"{line}\n" for line in changed))


def numbers(study: Study) -> Any:
    """All that came of a study."""
    standing = study.standing
    best = None if standing.best is None else standing.best.index
    return standing.status, best, {
        (record.trial, record.split): (record.params, record.status, record.last, record.best) for record in standing.records
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- any one line


def zeros(all_: list[str], at: int) -> None:
    all_[at] = "\0" * 40


def cut(all_: list[str], at: int) -> None:
    all_[at] = all_[at][: len(all_[at]) // 2]


def emptied(all_: list[str], at: int) -> None:
    all_[at] = ""


def deleted(all_: list[str], at: int) -> None:
    del all_[at]


def twice(all_: list[str], at: int) -> None:
    all_.insert(at, all_[at])


def moved_down(all_: list[str], at: int) -> None:
    all_.insert(at + 1, all_.pop(at))


def two_in_one(all_: list[str], at: int) -> None:
    all_[at : at + 2] = ["".join(all_[at : at + 2])]


def of_another_type(all_: list[str], at: int) -> None:
    all_[at] = json.dumps(json.loads(all_[at]) | {"time": "noon"})


DAMAGES = [cut, zeros, emptied, deleted, twice, moved_down, two_in_one, of_another_type]


def check_repaired(study: Study, damage: Callable[[list[str], int], None], at: int) -> None:
    """Damage a line, repair, resume: the same numbers, and all that was sound is there."""
    before, expected = lines(), numbers(study)
    changed = list(before)
    damage(changed, at)
    write(changed)
    sound = set(changed) & set(before)
    try:
        Study.open("small")
    except JournalError as error:
        assert str(error).startswith("line ") and "css-ray study repair small" in str(error)
    repaired = repair("small", "runs")
    after = lines()
    assert len(after) == len(changed) and repaired.kept + len(repaired.lost) == len(changed)
    lost = {each.line for each in repaired.lost}
    assert all(line == after[number] for number, line in enumerate(changed) if number + 1 not in lost)
    assert len(sound - set(after)) <= len(lost)
    if repaired.lost:
        assert Path(repaired.copy).read_text().splitlines() == changed
    else:
        assert after == changed and repaired.copy == ""
    again = Study.open("small")
    assert again.resume().status == "finished"
    assert numbers(again) == expected, (damage, at)
    # What a repair said is left is what was trained, and nothing else.
    trained = {
        (event["trial"], event["split"])
        for event in map(json.loads, lines()[len(changed) :])
        if event["event"] == "run_finished"
    }
    assert trained == {(trial, split) for trial, splits in repaired.left.items() for split in splits}, (damage, at)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_costs_what_it_reported_and_nothing_else(
    damage: Callable[[list[str], int], None], finished: Study
) -> None:
    whole, draw = lines(), random.Random(damage.__name__)
    for at in sorted(draw.sample(range(1, len(whole) - 1), 3)):
        write(whole)
        check_repaired(finished, damage, at)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_line_costs_what_it_reported_and_nothing_else(
    damage: Callable[[list[str], int], None], finished: Study
) -> None:
    whole = lines()
    for at in range(1, len(whole) - 1):
        write(whole)
        check_repaired(finished, damage, at)


def test_a_trial_whose_start_is_lost_is_drawn_again(finished: Study) -> None:
    expected, whole = numbers(finished), lines()
    (at,) = (number for number, line in enumerate(whole) if '"trial_started"' in line and '"trial":2,' in line)
    write([*whole[:at], whole[at].replace("trial_started", "trial_stolen"), *whole[at + 1 :]])
    with pytest.raises(
        JournalError, match=rf"^line {at + 1} of .* is of a newer version: .*; repair the study with that version"
    ):
        repair("small", "runs")
    assert len(list(JOURNAL.parent.glob("journal*"))) == 1
    repaired = repair("small", "runs", drop_unknown=True)
    assert repaired.left == {2: (0, 1)}
    assert [each.what for each in repaired.lost[:3]] == [
        "trial_stolen of trial 2", "run_started of trial 2, split 0", "run_evaluated of trial 2, split 0, step 25"
    ]  # fmt: skip
    # The study had finished, with this trial: that is not so any more. Trials 1 and 3 keep what was drawn.
    assert repaired.lost[-1].what == "study_finished" and Study.open("small").status == "running"
    again = Study.open("small")
    assert again.resume().status == "finished" and numbers(again) == expected


# --------------------------------------------------------------------------------------------------------------- what it says


def test_the_command_says_what_is_given_up_and_what_is_trained_again(finished: Study) -> None:
    whole = lines()
    at = {
        name: next(number for number, line in enumerate(whole) if name in line and '"trial":1,"split":0' in line)
        for name in ("run_started", "run_finished")
    }
    changed = list(whole)
    changed[at["run_finished"]] = changed[at["run_finished"]][:50]
    write(changed)
    refused = call("status", "small")
    assert refused.exit_code == 2 and len(refused.output.splitlines()) == 1
    line, end = (
        at["run_finished"] + 1,
        next(number for number, text in enumerate(whole) if "trial_finished" in text and '"trial":1,' in text),
    )
    assert f"line {line} of {Path.cwd()}/{JOURNAL} is damaged (it is not JSON: " in refused.output
    assert f"keep what is sound with: css-ray study repair small --storage {Path.cwd()}/runs; or restore" in refused.output
    result = call("repair", "small")
    assert result.exit_code == 0
    *said, last = result.output.splitlines()
    assert said[:3] == [
        f"kept {len(whole) - 3} of {len(whole)} events of small; as it was: {Path.cwd()}/runs/small/journal.jsonl.before-repair-1",
        "given up:",
        f"  line {line}: run_finished (it is not JSON: {said[2].partition('it is not JSON: ')[2]}",
    ]
    assert said[3] == f"  line {end + 1}: trial_finished of trial 1 (trial 1 has a value of split '0', which has not finished)"
    assert said[4].startswith(f"  line {len(whole)}: study_finished (the study has not finished: 1 of its 4 trials")
    assert said[5:] == [
        "a resume trains these to their end, from their checkpoints where they have any:",
        "  trial 1: split 0",
        "",
    ]
    assert last == "next: css-ray study resume small"
    assert [type(event) for event in Journal("runs/small").events].count(EventLost) == 3
    assert call("status", "small").exit_code == 0
    # Once more there is nothing to do; other damage has a copy of its own.
    before = JOURNAL.read_bytes()
    assert call("repair", "small").output == "the journal of small is sound: nothing was changed\n"
    assert JOURNAL.read_bytes() == before
    write([*lines()[:-1], "{}"])
    assert call("repair", "small").exit_code == 0
    assert sorted(path.name for path in JOURNAL.parent.glob("journal*")) == [
        "journal.jsonl", "journal.jsonl.before-repair-1", "journal.jsonl.before-repair-2"
    ]  # fmt: skip


def test_a_study_that_is_driven_is_not_touched(finished: Study) -> None:
    write([*lines()[:-1], "{}"])
    before = {path: path.read_bytes() for path in JOURNAL.parent.rglob("*") if path.is_file() and path.name != "driver.lock"}
    shutil.copytree("runs/small", "runs/other")  # the driver is at work: its journal could be read when it began
    Path("runs/other/journal.jsonl").write_text("")
    Path("runs/other").rename("runs/empty")
    store = Journal("runs/empty")
    store.folder = "runs/small"
    store._store = type(store._store)(Path("runs/small"))  # type: ignore[call-arg]
    with store.driving():
        with pytest.raises(StudyLockedError, match="another driver is at work"):
            repair("small", "runs")
        result = call("repair", "small")
        assert result.exit_code == 2 and "another driver is at work on" in result.output
    assert before == {
        path: path.read_bytes() for path in JOURNAL.parent.rglob("*") if path.is_file() and path.name != "driver.lock"
    }
    assert repair("small", "runs").lost


def test_what_a_study_began_with_cannot_be_given_up(finished: Study) -> None:
    whole = lines()
    wrong = json.loads(whole[0])
    wrong["spec"]["grid"] = {"method": [{"name": "of_a_package_that_is_gone"}]}
    for first in ("no event", whole[1], json.dumps(wrong)):
        write([first, *whole[1:]])
        before = JOURNAL.read_bytes()
        result = call("repair", "small")
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1
        assert f"line 1 of {Path.cwd()}/{JOURNAL} should hold the study's settings" in result.output
        assert JOURNAL.read_bytes() == before and len(list(JOURNAL.parent.glob("journal*"))) == 1
    # What stands before the start is no event of the study.
    write(["no event", *whole])
    assert [each.line for each in repair("small", "runs").lost] == [1]
    assert lines() == whole


def test_a_study_that_is_not_there_is_not_made() -> None:
    mixed(JOURNAL)
    with pytest.raises(StudyMissingError, match="no study other in runs; there are: small"):
        repair("other", "runs")
    result = call("repair", "other")
    assert result.exit_code == 2 and not Path("runs/other").exists()
    Path("runs/empty").mkdir()
    Path("runs/empty/journal.jsonl").write_text('{"event":"study_sta')
    assert "empty in runs never began, its journal is empty" in call("repair", "empty").output


def test_one_damaged_study_does_not_hide_the_others() -> None:
    for name in ("first", "last"):
        mixed(Path(f"runs/{name}/journal.jsonl"), study=name)
    for name, text in {"broken": "{}\n", "empty": "", "torn": '{"event":', "zeros": "\0" * 512, "binary": "\udcff\n"}.items():
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/journal.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    mixed(Path("runs/renamed/journal.jsonl"), study="another")
    Path("runs/folder/journal.jsonl").mkdir(parents=True)
    whole = Path("runs/first/journal.jsonl").read_text().splitlines()
    for name, changed in {"gap": [*whole[:1], *whole[2:]], "order": whole[::-1]}.items():
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/journal.jsonl").write_text("\n".join(changed).replace('"first"', f'"{name}"') + "\n")
    result = CliRunner().invoke(main, ["study", "list"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["first", "last"]
    found = dict(line.removeprefix("warning: ").split(" is not listed: ") for line in result.stderr.splitlines())
    assert found.keys() == {"binary", "broken", "empty", "folder", "gap", "order", "renamed", "torn", "zeros"}
    assert "line 1 of" in found["broken"] and "line 2 of" in found["gap"] and "never began" in found["torn"]
    assert "is of the study another, in the folder of renamed; give the folder the name of its study" in found["renamed"]


# ---------------------------------------------------------------------------------------------------------------- elsewhere


def test_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.study import journal as module

    for name in ("HEARTBEAT", "STALE", "SETTLE"):
        monkeypatch.setattr(module, f"{name}_SECONDS", 0.05)
    storage = f"file://{tmp_path}/objects"
    journal, events = Journal(f"{storage}/small"), mixed().events
    for event in events:
        journal.append(event)
    folder = tmp_path / "objects" / "small"
    objects = sorted((folder / "journal").iterdir())
    (folder / "journal" / "notes.txt").write_text("no event")
    objects[10].unlink()
    objects[20].write_text("[]")
    whole = {path.name: path.read_bytes() for path in sorted((folder / "journal").glob("*.json"))}
    with pytest.raises(
        JournalError, match=rf"^event 11 of the journal in {storage}/small is missing; keep what is sound with: "
    ):
        Study.open("small", storage)
    repaired = repair("small", storage)
    assert repaired.copy == f"{storage}/small/journal.before-repair-1"
    assert {path.name: path.read_bytes() for path in (folder / "journal.before-repair-1").iterdir()} == whole
    found = Journal(f"{storage}/small").events
    lost = {each.line for each in repaired.lost}
    assert {11, 21} <= lost and len(found) == len(events)
    assert [event for number, event in enumerate(found, 1) if number not in lost] == [
        event for number, event in enumerate(events, 1) if number not in lost
    ]
    assert Study.open("small", storage).status == "running"


def test_mlflow_has_each_run_once_and_the_numbers_of_the_repaired_journal(tmp_path: Path) -> None:
    from dataclasses import replace

    from css_ray import tracking
    from css_ray.standing import records_from_events

    telling = mixed(JOURNAL)
    uri = tracking.default_uri(tmp_path)
    tracking.sync(telling.events, uri)
    at = next(place for place, event in enumerate(telling.events) if event.kind == "run_finished" and event.trial == 1)  # type: ignore[attr-defined]
    write([*lines()[:at], "{}", *lines()[at + 1 :]])
    assert repair("small", "runs").left[1] == (0,)
    # Reported again by the checkpoint, with the time that it happened at; then the trial ends.
    end = next(event for event in telling.events if event.kind == "trial_finished" and event.trial == 1)  # type: ignore[attr-defined]
    more: list[Event] = [telling.events[at], replace(end, time=telling.time + 1)]
    events = [*Journal("runs/small").events, *more]
    tracking.sync(events, uri)
    records = [replace(record, run_id=None) for record in tracking.read_records(uri, "small")]
    assert records == records_from_events(events) and len(records) == len({(each.trial, each.split) for each in records})


def test_what_a_repair_returns_is_the_same_in_python(finished: Study) -> None:
    assert Study.repair("small") == Repaired("small", len(lines()), (), "", {})
    assert isinstance(Journal("runs/small").events[0], StudyStarted)
