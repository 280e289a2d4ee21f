"""A study that a version with other folders and untyped events began, and was killed in, is finished by this one."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest

from css_ray.execution.checkpoints import Checkpoints
from css_ray.execution.trial_file import progress_of
from css_ray.execution.worker import open_checkpoint
from css_ray.standing import records_from_events
from css_ray.study.begun import begun_definition
from css_ray.study.driver import Driver
from css_ray.study.inputs import prepare
from css_ray.study.journal import Journal
from css_ray.study.run import build_method
from css_ray.training.checkpoint import check_state, read_state
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from tests.places import Place

BEFORE = Path(__file__).parents[1] / "fixtures" / "begun_before"
"""journal.jsonl and checkpoints of css-ray 0.1.0 at commit 5869cbf, killed at step 20 of trial 1 on split 1; the weights in the
checkpoint have two bits of mantissa, so that they are small compressed. ended.json: the evaluations of the whole study, finished
from these files by that same version. No colours are changed in it, whose last bits differ between versions.
"""


def evaluations(events: list[dict[str, Any]]) -> dict[tuple[int, int, int], float]:
    return {
        (event["trial"], event["split"], event["step"]): event["metrics"]["val/miou"]
        for event in events
        if event["event"] == "run_evaluated"
    }


def ended(events: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return sorted((event["trial"], event["split"]) for event in events if event["event"] == "run_finished")


def unpacked(study: Path, data: Path) -> Path:
    """The journal of that study, put into the folder `study` with its checkpoint."""
    shutil.copytree(BEFORE, study, ignore=shutil.ignore_patterns("ended.json"))
    (packed,) = study.glob("checkpoints/*/*/state.pt.xz")
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    journal = study / "journal.jsonl"
    journal.write_text(journal.read_text().replace("@DATA@", str(data)))
    return journal


def test_its_checkpoint_is_known_for_its_own(tmp_path: Path, data: Path) -> None:
    """It has no checksum and no settings: what it holds is of the trial, and fits its network and optimizer."""
    unpacked(tmp_path / "begun-before", data)
    driver = Driver(begun_definition("begun-before", str(tmp_path)), str(tmp_path))
    trial = driver.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    job = driver.begin(trial)
    kept = Checkpoints(job.checkpoints)
    (name,) = kept.newest_first()
    opened = open_checkpoint(kept, name, tmp_path, job)
    assert progress_of(opened.events) == (set(), {1: 20})
    settings = job.runs[0].settings
    method = build_method(settings, prepare(job.runs[0]).dataset.info.num_classes)
    train = TrainConfig(**settings["train"])
    state = read_state(opened.folder, [train.iterations])
    check_state(opened.folder, state, method, make_optimizer(method, train))
    assert (state["progress"]["step"], state["progress"]["stage"]) == (20, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_begun_before_ends_as_the_version_that_began_it_ended_it(place: Place, data: Path) -> None:
    study = place.folder / "runs" / "begun-before"
    journal = unpacked(study, data)
    *lines, last = journal.read_text().splitlines()
    # Its last event is in a checkpoint, too: without its line in the journal it can come from there alone.
    saved = json.loads(last)
    assert (saved["event"], saved["trial"], saved["split"], saved["step"]) == ("run_evaluated", 1, 1, 20)
    journal.write_text("".join(f"{line}\n" for line in lines))
    finished = [record for record in records_from_events(Journal(str(study)).events) if record.status == "finished"]
    assert ended([json.loads(line) for line in lines]) == [(record.trial, record.split) for record in finished]
    assert finished and len(finished) < 6

    code, output = place.call("study", "resume", "begun-before")
    assert code == 0, output

    after = journal.read_text().splitlines()
    assert after[: len(lines)] == lines
    before, added = ([json.loads(line) for line in part] for part in (lines, after[len(lines) :]))
    # What had finished is as it was, and is not trained again.
    records = {(record.trial, record.split): record for record in records_from_events(Journal(str(study)).events)}
    assert [records[record.trial, record.split] for record in finished] == finished
    trained = {(event["trial"], event["split"]) for event in added if event["event"].startswith("run_")}
    assert trained == {(1, 1), (2, 0), (2, 1)}
    # The checkpoint is of step 20 of a run: that continues from there, and nothing is said again.
    first, *more = (event for event in added if (event.get("trial"), event.get("split")) == (1, 1))
    worked = first.pop("worked")  # that version did not record it
    assert first == saved and worked > 0
    assert [event["step"] for event in more if event["event"] == "run_evaluated"] == [30, 40, 50, 60]
    assert min(event["step"] for event in more) > 20
    # All runs end, with the numbers that the version before came to.
    assert ended(before + added) == [(trial, split) for trial in range(3) for split in range(2)]
    assert [event["status"] for event in added if event["event"] == "study_finished"] == ["finished"]
    theirs = {
        (each["trial"], each["split"], each["step"]): each["miou"] for each in json.loads((BEFORE / "ended.json").read_text())
    }
    assert evaluations([*before, saved]).items() <= theirs.items()
    measured = evaluations(before + added)
    assert measured.keys() == theirs.keys()
    # Not to the last digit: it may be another processor, and another torch.
    assert measured == pytest.approx(theirs, abs=0.5)
