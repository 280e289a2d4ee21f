"""Hostile study files end with one message and exit code 2, or are studies that can be run: by a seed, many kinds at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyDefinition, StudyError, parse, read, to_yaml
from css_ray.study.sampling import Sampling
from tests.fuzz.hostile_yaml import a_study, hostile_spec, hostile_text
from tests.fuzz.tally import Tally, bounded_memory, command

FEW, MANY = 20, 4000


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    (tmp_path / "digits").symlink_to(data)
    return tmp_path


def runs(study: StudyDefinition) -> None:
    """What a driver does first with a study, which must not fail: the journal's first event, its trials, the first draw."""
    json.dumps(study.resolved(), allow_nan=False).encode()
    assert parse(study.resolved()).grid_trials() == parse(study.resolved()).grid_trials()
    study.pruners()
    if study.search is not None:
        drawn = Sampling(study.search, study.space, study.objective).suggest([], [])
        assert drawn.keys() == study.space.keys()


def plan(tally: Tally, content: bytes, seed: int) -> None:
    Path("study.yaml").write_bytes(content)
    what = f"seed {seed}"
    if command(tally, ["study", "plan", "study.yaml", "--no-measure"], what=what):
        try:
            study = read("study.yaml")
            runs(study)
            Path("again.yaml").write_text(to_yaml(study))
            assert read("again.yaml").resolved() == study.resolved(), "the study as it is sent to a cluster is another one"
        except Exception as error:
            tally.fail(f"{what} was accepted, and then raised {error!r:.300}")


def structures(count: int) -> None:
    tally = Tally("studies of other structure")
    with bounded_memory():
        for seed in range(count):
            plan(tally, yaml.safe_dump(hostile_spec(Random(seed)), sort_keys=False).encode(), seed)
    tally.check()


def texts(count: int) -> None:
    tally = Tally("study files of other text")
    with bounded_memory():
        for seed in range(count):
            plan(tally, hostile_text(Random(seed)), seed)
    assert not Path("PAYLOAD").exists()
    tally.check()


def mappings(count: int) -> None:
    """The same in Python, where also values come that YAML has not, and in a journal."""
    tally = Tally("studies in Python")
    with bounded_memory():
        for seed in range(count):
            random = Random(seed)
            spec: Any = hostile_spec(random)
            if random.random() < 0.3:
                spec[random.choice([*spec])] = random.choice([b"x", object(), {1, 2}, (1, 2), 1j, Path("x"), spec, [spec]])
            try:
                runs(parse(spec))
                tally.accepted()
            except StudyError as error:
                if len(str(error)) > 100_000:
                    tally.fail(f"seed {seed}: the message has {len(str(error))} characters")
                else:
                    tally.refused()
            except Exception as error:
                tally.fail(f"seed {seed} raised {error!r:.300}")
    tally.check()


def test_some_studies_of_other_structure(folder: Path) -> None:
    structures(FEW)


def test_some_study_files_of_other_text(folder: Path) -> None:
    texts(FEW)


def test_some_studies_in_python(folder: Path) -> None:
    mappings(5 * FEW)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", [structures, texts, mappings])
def test_many_studies(kind: Any, folder: Path) -> None:
    kind(MANY)


def test_the_studies_that_are_changed_are_right(folder: Path) -> None:
    """Or a fuzzer would look at one message again and again."""
    tally = Tally("studies that are right")
    for seed in range(8):
        Path("study.yaml").write_text(yaml.safe_dump(a_study(Random(seed))))
        assert command(tally, ["study", "plan", "study.yaml", "--no-measure"])
    tally.check()


def test_what_is_no_file_of_a_study(folder: Path) -> None:
    tally = Tally("places that are no study file")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for place in (".", "pipe", "loop", "/dev/zero", "/dev/null", "/proc/self/mem", "nowhere", "x" * 5000, "digits/x"):
        assert not command(tally, ["study", "plan", place, "--no-measure"])
    tally.check()
