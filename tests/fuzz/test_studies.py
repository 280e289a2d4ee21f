"""Hostile study files end with one message and exit code 2, or are studies that can be run: by a seed, many kinds at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyDefinition, StudyError, parse, read, to_yaml
from css_ray.study.sampling import Sampling
from tests.fuzz.commands import bounded_memory, outcome_of_command
from tests.fuzz.hostile_yaml import a_study, hostile_spec, hostile_text
from tests.fuzz.mutate import Tally, case_random, outcome_of, share_and_whole

Record = Callable[[str, object], None]


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    (tmp_path / "digits").symlink_to(data)
    return tmp_path


def runs(study: StudyDefinition) -> None:
    """What a driver does first with a study: the journal's first event, its trials, the first draw. None of it may fail."""
    json.dumps(study.resolved(), allow_nan=False).encode()
    again = parse(study.resolved())
    assert [trial.settings for trial in again.grid_trials()] == [trial.settings for trial in parse(again.spec).grid_trials()]
    study.pruners()
    if study.search is not None:
        drawn = Sampling(study.search, study.space, study.objective).suggest([], [])
        assert drawn.keys() == study.space.keys()


def parsed(spec: Any) -> None:
    runs(parse(spec))


def planned(content: bytes) -> str:
    """What became of the plan of a study file; of one that is accepted, whether it can be run, and sent to a cluster."""
    Path("study.yaml").write_bytes(content)
    outcome = outcome_of_command(["study", "plan", "study.yaml", "--no-measure"])
    if outcome != "accepted":
        return outcome

    def use() -> None:
        study = read("study.yaml")
        runs(study)
        Path("again.yaml").write_text(to_yaml(study))
        assert read("again.yaml").resolved() == study.resolved()

    return outcome_of(use, ())


@share_and_whole(20, 1500)
def test_studies_of_other_structure(count: int, folder: Path, record_property: Record) -> None:
    tally = Tally("studies, other structure")
    with bounded_memory():
        for number in range(count):
            spec = hostile_spec(case_random(tally.kind, number))
            tally.count(f"case {number}", planned(yaml.safe_dump(spec, sort_keys=False).encode()))
    tally.check(record_property)


@share_and_whole(20, 1500)
def test_study_files_of_other_text(count: int, folder: Path, record_property: Record) -> None:
    tally = Tally("studies, other text")
    with bounded_memory():
        for number in range(count):
            tally.count(f"case {number}", planned(hostile_text(case_random(tally.kind, number))))
    assert not Path("PAYLOAD").exists()
    tally.check(record_property)


@share_and_whole(60, 3000)
def test_studies_in_python(count: int, folder: Path, record_property: Record) -> None:
    """Here values come that YAML has not."""
    tally = Tally("studies, in Python")
    with bounded_memory():
        for number in range(count):
            random = case_random(tally.kind, number)
            spec: Any = hostile_spec(random)
            if random.random() < 0.3:
                spec[random.choice([*spec])] = random.choice([b"x", object, {1, 2}, (1, 2), 1j, Path("x"), spec, [spec]])
            tally.count(f"case {number}", outcome_of(partial(parsed, spec), (StudyError,)))
    tally.check(record_property)


def test_the_studies_that_are_changed_are_right(folder: Path) -> None:
    """Or a fuzzer would look at one message again and again."""
    for number in range(8):
        assert planned(yaml.safe_dump(a_study(case_random("right", number))).encode()) == "accepted"


def test_what_is_no_file_of_a_study(folder: Path, record_property: Record) -> None:
    tally = Tally("studies, no file")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for place in (".", "pipe", "loop", "/dev/zero", "/dev/null", "/proc/self/mem", "nowhere", "x" * 300, "digits/x"):
        tally.count(place, outcome_of_command(["study", "plan", place, "--no-measure"]), place)
    assert tally.accepted == 0
    tally.check(record_property)
