"""A disk that fills at any moment: whatever a study writes waits for room, and nothing half-written is left or taken for whole.

On a real small disk, at many fill levels; the figures are printed (`-rP` shows them).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from css_ray import room
from css_ray.api import Study
from css_ray.events import Event, RunEvaluated, StudyContinued, StudyInterrupted, StudyPaused
from css_ray.execution import rank_reporter
from css_ray.execution.checkpoints import COMPLETE, Checkpoints
from css_ray.execution.handover import Message, News
from css_ray.execution.rank_reporter import SlotReporter
from css_ray.execution.trial_file import TRIAL_FILE
from css_ray.execution.worker import keeper
from css_ray.room import has_no_room
from css_ray.study.definition import parse
from css_ray.study.journal import Journal
from css_ray.training.best import BEST_FILES, BestDescription
from css_ray.training.checkpoint import STATE_FILE, check_checkpoint, read_tensors, write_checkpoint
from css_ray.training.reporter import FolderReporter
from tests.disks import PAGE, SmallDisk, small_disk
from tests.drivers import new_driver, small
from tests.ranks import run_ranks
from tests.rayless import Listening, Rayless

LEVELS = range(0, 80 * PAGE, PAGE)
"""Bytes that are left free when something of about 60 pages is written."""

WEIGHTS = {"weight": torch.arange(55_000, dtype=torch.float32)}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(room, "RETRY_SECONDS", 60.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "size=3m") as disk:
        yield disk


class Waiting:
    """Gives room after it was asked three times, and looks at the disk before. reasons: of the latest wait."""

    def __init__(self, disk: SmallDisk, look: Callable[[], None]) -> None:
        self.disk, self.look = disk, look
        self.reasons: list[str] = []
        self.waited = 0

    def __call__(self, reason: str) -> None:
        self.look()
        self.reasons.append(reason)
        if len(self.reasons) % 3 == 0:
            self.waited += 1
            self.disk.clear()


# -------------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_waits_for_room_at_every_fill_level(disk: SmallDisk) -> None:
    trial = disk.path / "trial"

    def look() -> None:
        assert kept.newest_first() == expected and not [name for name in disk.names() if name.endswith(".partial")]

    waiting = Waiting(disk, look)
    kept = Checkpoints(str(trial), waiting=waiting)
    expected: list[str] = []

    def write(folder: Path) -> None:
        write_checkpoint(folder, {"method": WEIGHTS, "level": level})
        (folder / TRIAL_FILE).write_text("[]")

    for level in LEVELS:
        disk.fill(leave=level)
        kept.save(write)
        disk.clear()
        expected = kept.newest_first()
        newest = trial / expected[0]
        check_checkpoint(newest, step=1)
        assert read_tensors(newest / STATE_FILE)["level"] == level
        assert sorted(path.name for path in newest.iterdir()) == [COMPLETE, "random_rank0.pt", STATE_FILE, TRIAL_FILE]
        assert len(list(trial.iterdir())) == len(expected) <= 2
    assert {reason.partition(", where")[0] for reason in waiting.reasons} == {f"no room for a checkpoint in {trial}"}
    assert 50 < waiting.waited < len(LEVELS)
    print(f"checkpoints: {len(LEVELS)} fill levels tried, {waiting.waited} waited for room, 0 failed")


def test_only_the_mark_of_a_whole_checkpoint_has_no_room(disk: SmallDisk) -> None:
    """Not counted, and not thrown away: it waits for its mark."""
    trial = disk.path / "trial"

    def look() -> None:
        assert kept.newest_first() == [] and (trial / "000001" / STATE_FILE).exists()
        assert disk.names() == ["trial", "trial/000001", "trial/000001/state.pt"]

    def write(folder: Path) -> None:
        (folder / STATE_FILE).write_bytes(bytes(100))
        disk.fill()

    waiting = Waiting(disk, look)
    kept = Checkpoints(str(trial), waiting=waiting)
    kept.save(write)
    assert waiting.waited == 1 and kept.newest_first() == ["000001"]
    assert json.loads((trial / "000001" / COMPLETE).read_text()) == {"ranks": 1}


def test_a_disk_without_room_for_another_file_is_full_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows no more room when there is some: the writer tries again now and then."""
    monkeypatch.setattr(room, "RETRY_SECONDS", 0.05)
    with small_disk(tmp_path / "disk", "size=3m,nr_inodes=30") as disk:
        others: list[Path] = []

        def waiting(reason: str) -> None:
            waits.append(reason)
            while others:
                others.pop().unlink()

        kept, waits = Checkpoints(str(disk.path / "trial"), waiting=waiting), list[str]()
        for left in range(6):
            try:
                while True:
                    others.append(disk.path / f"other{len(others)}")
                    others[-1].touch()
            except OSError as error:
                assert has_no_room(error)
            del others[-1]
            for _ in range(left):
                others.pop().unlink()
            kept.save(lambda folder: write_checkpoint(folder, {"step": 1}))
            check_checkpoint(disk.path / "trial" / kept.newest_first()[0], step=1)
            while others:
                others.pop().unlink()
        assert len(waits) >= 4


def on_rank(rank: int, directory: str, disk_path: str, levels: list[int]) -> None:
    """Writes a checkpoint per level with the other rank, each its own part; rank 1 fills the disk, rank 0 gives room."""
    torch.set_num_threads(1)
    room.POLL_SECONDS = 0.01
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    disk = SmallDisk(Path(disk_path))
    waits = 0

    def waiting(reason: str) -> None:
        nonlocal waits
        waits += 1
        if rank == 0 and waits % 3 == 0:
            disk.clear()

    kept = Checkpoints(f"{disk_path}/trial", waiting=waiting)
    for level in levels:
        if rank == 1:
            disk.fill(leave=level)
        dist.barrier()
        kept.save(lambda folder, level=level: write_checkpoint(folder, {"method": WEIGHTS, "level": level}))  # type: ignore[misc]
        newest = Path(disk_path, "trial", kept.newest_first()[0])
        assert read_tensors(newest / STATE_FILE)["level"] == level
        check_checkpoint(newest, step=1)
        dist.barrier()
        disk.clear()
        dist.barrier()
    Path(directory, f"waits{rank}").write_text(str(waits))
    dist.destroy_process_group()


def test_all_ranks_wait_while_one_has_no_room(disk: SmallDisk, tmp_path: Path) -> None:
    levels = [0, PAGE, 20 * PAGE, 56 * PAGE, 58 * PAGE, 60 * PAGE, 62 * PAGE]
    run_ranks(on_rank, str(tmp_path), str(disk.path), levels)
    waits = [int((tmp_path / f"waits{rank}").read_text()) for rank in range(2)]
    assert waits[0] == waits[1] >= 12


# -------------------------------------------------------------------------------------------------------------- best weights


def best(step: int) -> BestDescription:
    about: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(BestDescription))
    return BestDescription(**about | {"step": step})


def kept_step(folder: Path) -> int:
    """The step of the best weights in a folder, whose two files belong together."""
    described: dict[str, Any] = json.loads((folder / "best.json").read_text())
    assert described["weights_sha256"] == hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest()
    step: int = described["step"]
    return step


def test_the_best_weights_wait_for_room_and_are_the_old_ones_until_then(disk: SmallDisk) -> None:
    folder = disk.path / "models" / "split_0"
    before = 0

    def look() -> None:
        assert sorted(path.name for path in folder.iterdir()) == sorted(BEST_FILES)
        assert kept_step(folder) == before

    waiting = Waiting(disk, look)
    trial = Checkpoints(str(disk.path / "trial"), waiting=waiting)
    keep = keeper(str(folder), lambda write, place: trial.together(write, place, "the best weights"))
    keep(WEIGHTS, best(0))
    for number, level in enumerate(LEVELS, 1):
        disk.fill(leave=level)
        keep({"weight": WEIGHTS["weight"] + number}, best(number))
        disk.clear()
        before = number
        look()
    assert 50 < waiting.waited < len(LEVELS)
    print(f"best weights: {len(LEVELS)} fill levels tried, {waiting.waited} waited for room, 0 failed")


def test_the_first_best_weights_are_not_there_before_they_are_whole(disk: SmallDisk) -> None:
    folder = disk.path / "models" / "split_0"

    def interrupted(reason: str) -> None:
        assert not [path for path in folder.glob("*") if path.is_file()]
        raise KeyboardInterrupt

    keep = keeper(str(folder), lambda write, place: room.write_with_room(write, place, "the best weights", waiting=interrupted))
    for level in range(0, 50 * PAGE, 7 * PAGE):
        disk.fill(leave=level)
        with pytest.raises(KeyboardInterrupt):
            keep(WEIGHTS, best(1))
        disk.clear()
    assert not [path for path in folder.glob("*") if path.is_file()]


def test_one_run_by_itself_waits_and_says_so_once(disk: SmallDisk) -> None:
    said: list[str] = []
    levels = list(LEVELS[::8])

    def echo(line: str) -> None:
        if "waiting for room" in line:
            said.append(line)
            disk.clear()

    reporter = FolderReporter(disk.path / "out", echo)
    for step, level in enumerate(levels, 1):
        disk.fill(leave=level)
        reporter.evaluated(step, {"val/miou": 1.0}, lambda folder: write_checkpoint(folder, {"method": WEIGHTS, "step": step}))  # noqa: B023
        disk.clear()
        assert reporter.checkpoint is not None and read_tensors(reporter.checkpoint / STATE_FILE)["step"] == step
        assert len(list((disk.path / "out").glob("step-*"))) == 1
    assert 5 <= len(said) < len(levels) and f"no room for the checkpoint in {disk.path}/out" in said[0]


# ------------------------------------------------------------------------------------------------------------------- journal


def test_an_event_without_room_leaves_no_part_of_its_line(disk: SmallDisk) -> None:
    journal, written = Journal(str(disk.path / "small")), list[Event]()
    for event in range(60):
        disk.clear()
        disk.fill(leave=(event % 3) * PAGE)
        evaluated = RunEvaluated(
            time=1.0, trial=0, split=0, step=event, metrics={f"val/{number}": 1.5 for number in range(200)}
        )
        try:
            journal.append(evaluated)
        except OSError as error:
            assert has_no_room(error) and Journal(str(disk.path / "small")).events == written
            disk.clear()
            assert journal.append(evaluated)
        written.append(evaluated)
    assert Journal(str(disk.path / "small")).events == written
    lines = (disk.path / "small" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(60))


class Filling(Listening):
    """Fills the disk at an event; gives room once it is told that the study waits, or presses Ctrl-C."""

    def __init__(self, disk: SmallDisk, at: int, *, impatient: bool) -> None:
        super().__init__()
        self.disk, self.at, self.impatient = disk, at, impatient

    def event(self, event: Event) -> None:
        super().event(event)
        if len(self.heard) == self.at:
            self.disk.fill()

    def warn(self, text: str) -> None:
        super().warn(text)
        if "the study pauses" in text:
            if self.impatient:
                raise KeyboardInterrupt
            self.disk.clear()


@pytest.fixture
def spec(data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Rayless.install(monkeypatch, lambda spec: 40.0 + spec.split)
    section = {"dataset": "digits", "root": str(data), "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4}
    return {
        "study": "small", "data": section, "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
        "train": {"iterations": 10, "evaluate_every": 2}, "splits": [0, 1], "keep": {"min_free_gb": 0},
        "grid": {"method": [{"name": "supervised"}, {"name": "supervised", "row": "again"}]},
    }  # fmt: skip


@pytest.mark.parametrize("impatient", [False, True], ids=["room comes", "ctrl-c"])
def test_a_study_pauses_while_its_journal_has_no_room(disk: SmallDisk, spec: dict[str, Any], impatient: bool) -> None:
    undisturbed = Study(parse(spec), str(disk.path / "undisturbed"))
    assert undisturbed.run(audience=Listening()).status == "finished"
    paused, unwritten, expected = 0, 0, undisturbed.table()
    # At each event but the last; a page of the journal has room for some more, of which those are none here.
    for at in range(1, len(Journal(undisturbed.folder).events)):
        study = Study(parse({**spec, "description": "x" * (37 * at)}), str(disk.path / str(at)))
        audience = Filling(disk, at, impatient=impatient)
        outcome = study.run(audience=audience)
        disk.clear()
        waited = [text for text in audience.warnings if "the study pauses, and continues when there is room" in text]
        assert len(waited) <= 1
        if waited:
            paused += 1
            # Of the journal, or of the ids of a split, which are written before the first trial begins.
            assert waited[0].startswith("no room for the ") and f" in {study.folder}" in waited[0]
        if waited and impatient:
            assert outcome.status == "interrupted"
            # It is written down if there is room for as short an event as that.
            unwritten += not isinstance(Journal(study.folder).events[-1], StudyInterrupted)
            outcome = study.resume(audience=Listening())
        elif waited:
            assert audience.warnings[-1] == "there is room again: the study continues"
        assert outcome.status == "finished" and study.table() == expected
        assert not [name for name in disk.names() if name.endswith(".partial")]
    assert paused > 8 and (unwritten > 0) == impatient
    print(f"journal: {at} moments tried, {paused} paused{', interrupted and resumed' if impatient else ''}, 0 failed")


def test_a_repair_without_room_changes_nothing(disk: SmallDisk, spec: dict[str, Any]) -> None:
    study = Study(parse(spec), str(disk.path / "runs"))
    study.run(audience=Listening())
    journal = Path(study.folder) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b"{}\n")
    before, names = journal.read_bytes(), disk.names()
    for level in range(0, 2 * len(before), PAGE):
        disk.fill(leave=level)
        try:
            assert Study.repair("small", study.storage).lost
            break
        except OSError as error:
            assert has_no_room(error)
            assert journal.read_bytes() == before and disk.names() == names
        disk.clear()
    assert level >= len(before)


# ------------------------------------------------------------------------------------------- what a rank says while it waits


def test_the_study_is_paused_while_the_ranks_of_a_trial_wait(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank tells its slot, the slot Tune, and Tune the driver, who writes it down; and that it does not wait any more."""
    driver = new_driver(small(tmp_path), tmp_path)
    trial = driver.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    job = dataclasses.replace(driver.begin(trial), checkpoints=str(disk.path / "trial"), min_free=0.0)
    news: list[News] = []
    monkeypatch.setattr(rank_reporter, "put_without_waiting", lambda queue, item: news.append(item))
    monkeypatch.setattr("css_ray.study.driver.DISK_SECONDS", 0.0)
    beats: list[str] = []

    def alive() -> None:
        beats.append("alive")
        if len(beats) == 3:
            tell(news)
            disk.clear()

    def tell(told: list[News]) -> None:
        for each in told:
            message = Message.from_json(Message(events=each.events, waits=each.waits).to_json())
            driver.waits(job.trial, message.waits)
        told.clear()
        driver.watch_disk()

    reporter = SlotReporter(job, 1, None, torch.device("cpu"), alive)  # type: ignore[arg-type]
    disk.fill(leave=10 * PAGE)
    reporter.evaluated(5, {"val/miou": 1.0}, lambda folder: write_checkpoint(folder, {"method": WEIGHTS}))
    assert reporter.checkpoints.newest_first() == ["000001"] and len(beats) == 3
    assert [each.waits for each in news] == [""] and isinstance(news[0].events[-1], RunEvaluated)
    assert driver.next_trial({job.trial}) is None  # no other one starts
    tell(news)
    paused, continued = driver.journal.events[-2:]
    assert isinstance(paused, StudyPaused) and isinstance(continued, StudyContinued)
    assert paused.reason.startswith(f"trial 0: no room for a checkpoint in {disk.path}/trial, where 0 MB are free")
    assert driver.next_trial({job.trial}) is not None
