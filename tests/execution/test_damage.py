"""Damage that a dying machine leaves behind: checkpoints and journals cut short, altered or gone, and two drivers at once."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from css_ray.events import Event, RunEvaluated, RunEvent, RunFinished, RunRewound, StudyFinished
from css_ray.execution import rank_reporter
from css_ray.execution.checkpoints import COMPLETE, Checkpoints
from css_ray.execution.handover import News
from css_ray.execution.rank_reporter import SlotReporter
from css_ray.execution.runner import Runner
from css_ray.execution.trial_file import TRIAL_FILE, write_trial
from css_ray.execution.worker import Opened, open_checkpoint, train_splits
from css_ray.study.driver import Driver
from css_ray.study.job import Job
from css_ray.study.journal import Journal, StudyLockedError
from css_ray.training.checkpoint import (
    STATE_FILE,
    DamagedError,
    newest_readable,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from tests.journals import Telling
from tests.places import Place, check_same, evaluations
from tests.ranks import run_ranks
from tests.trials import job_of, one_thread, state_at, told, write

# --------------------------------------------------------------------------------------------------------------- one file


@pytest.fixture
def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {"method": {"weight": torch.randn(40, 50, generator=generator), "count": torch.arange(9)}, "step": 20}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    pairs = ((left["method"][name], right["method"][name]) for name in ("weight", "count"))
    return left["step"] == right["step"] and all(torch.equal(*pair) for pair in pairs)


def test_a_file_that_is_cut_short_is_never_read(tmp_path: Path, state: dict[str, Any]) -> None:
    path, draw = tmp_path / "state.pt", random.Random(0)
    write_tensors(path, state)
    whole = path.read_bytes()
    assert same(read_tensors(path), state)
    for length in [0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(30))]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"checkpoint .*state.pt cannot be read .*; remove its folder"):
            read_tensors(path)


def test_a_file_with_other_bytes_is_refused_or_means_the_same(tmp_path: Path, state: dict[str, Any]) -> None:
    """Blocks that were never written are zeros. Some bytes of the file mean nothing: those between two tensors."""
    path, draw = tmp_path / "state.pt", random.Random(0)
    write_tensors(path, state)
    whole = path.read_bytes()
    refused = 0
    for number in range(60):
        start, length = draw.randrange(len(whole)), 512 if number % 2 else 1
        block = bytes(length) if number % 2 else bytes([whole[start] ^ 0x10])
        path.write_bytes(whole[:start] + block[: len(whole) - start] + whole[start + length :])
        try:
            assert same(read_tensors(path), state), f"bytes {start} to {start + length} were other"
        except DamagedError:
            refused += 1
    assert refused > 40
    # torch by itself would have taken other weights for ours.
    place = whole.index(state["method"]["weight"].numpy().tobytes())
    path.write_bytes(whole[:place] + bytes(512) + whole[place + 512 :])
    assert not torch.equal(torch.load(path)["method"]["weight"], state["method"]["weight"])
    with pytest.raises(DamagedError, match=r"the checksum of .* is wrong"):
        read_tensors(path)


# ------------------------------------------------------------------------------------------------------------ two checkpoints


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Job:
    return job_of(data, tmp_path)


@pytest.fixture
def newest_first(job: Job) -> list[Path]:
    place = Path(job.checkpoints)
    return [
        write(place / "000002", job, told(job, 0, 10, 20), state_at(job, 20)),
        write(place / "000001", job, told(job, 0, 10), state_at(job, 10)),
    ]


def newest(job: Job, scratch: Path) -> tuple[Opened | None, list[str]]:
    scratch.mkdir(exist_ok=True)
    kept = Checkpoints(job.checkpoints)
    return newest_readable(kept.newest_first(), lambda name: open_checkpoint(kept, name, scratch, job))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


DAMAGE = [
    (STATE_FILE, cut), (STATE_FILE, empty), (STATE_FILE, Path.unlink), ("random_rank0.pt", cut),
    ("random_rank0.pt", Path.unlink), (TRIAL_FILE, cut), (TRIAL_FILE, empty), (TRIAL_FILE, Path.unlink), (TRIAL_FILE, deep),
]  # fmt: skip


def test_the_newest_is_taken_where_it_is_whole(newest_first: list[Path], job: Job, tmp_path: Path) -> None:
    opened, damages = newest(job, tmp_path / "scratch")
    assert opened is not None and opened.events == told(job, 0, 10, 20) and damages == []
    assert read_tensors(opened.folder / STATE_FILE)["progress"]["step"] == 20
    assert Checkpoints(job.checkpoints).newest_first() == [folder.name for folder in newest_first]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_the_one_before_is_taken_where_the_newest_is_damaged(
    name: str, damage: Callable[[Path], None], newest_first: list[Path], job: Job, tmp_path: Path
) -> None:
    damage(newest_first[0] / name)
    opened, (reason,) = newest(job, tmp_path / "scratch")
    assert opened is not None and opened.events == told(job, 0, 10)
    assert read_tensors(opened.folder / STATE_FILE)["progress"]["step"] == 10
    assert reason.startswith(f"000002/{name}: ")
    assert ("it is missing" in reason) == (damage is Path.unlink)


def test_the_run_starts_anew_where_none_is_whole(newest_first: list[Path], job: Job, tmp_path: Path) -> None:
    cut(newest_first[0] / STATE_FILE)
    (newest_first[1] / TRIAL_FILE).unlink()
    opened, reasons = newest(job, tmp_path / "scratch")
    assert opened is None
    assert [reason.partition(":")[0] for reason in reasons] == ["000002/state.pt", "000001/trial.json"]


def test_between_two_splits_a_checkpoint_needs_no_weights(job: Job, tmp_path: Path) -> None:
    folder = write(Path(job.checkpoints) / "000003", job, told(job, 0, 10, 20, ended=True), None)
    opened, damages = newest(job, tmp_path / "scratch")
    assert opened is not None and damages == []
    write_trial(folder, told(job, 0, 10, 20, ended=True) + told(job, 1, 10), job.runs[0].settings)
    assert newest(job, tmp_path / "scratch") == (None, ["000003/state.pt: it is missing"])


def test_storage_that_is_away_is_no_damage(newest_first: list[Path]) -> None:
    def away(folder: Path) -> None:
        raise TimeoutError("no answer from the object store")

    with pytest.raises(TimeoutError):
        newest_readable(newest_first, away)


def on_rank(rank: int, directory: str, data: str) -> None:
    """Writes two checkpoints with the other rank; of the newer one rank 1's file is cut short."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    job = job_of(Path(data), directory)
    for number in (1, 2):
        folder = Path(job.checkpoints) / f"{number:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(folder, state_at(job, 10 * number))
        if rank == 0:
            write_trial(folder, told(job, 0, 10 * number), job.runs[0].settings)
            (folder / COMPLETE).touch()
        elif number == 2:
            cut(folder / "random_rank1.pt")
    dist.barrier()
    opened, reasons = newest(job, Path(directory) / f"scratch{rank}")
    assert opened is not None
    found = {"step": read_tensors(opened.folder / STATE_FILE)["progress"]["step"], "reasons": reasons}
    (Path(directory) / f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_all_ranks_take_the_same_checkpoint(data: Path, tmp_path: Path) -> None:
    run_ranks(on_rank, str(tmp_path), str(data))
    first, second = (json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2))
    assert first["step"] == second["step"] == 10
    assert first["reasons"] == ["another rank cannot read its part"]
    assert second["reasons"][0].startswith("000002/random_rank1.pt: ")


# --------------------------------------------------------------------------------------------- what is whole, and not the run's


Content = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda content: content["events"].pop(), "its checksum is wrong"),
        (lambda content: content["events"][1].update(step=30), "its checksum is wrong"),
        (lambda content: content["events"][1]["metrics"].update({"val/miou": 99.0}), "its checksum is wrong"),
        (lambda content: content["settings"]["train"].update(lr=0.5), "its checksum is wrong"),
        (lambda content: content.pop("checksum"), "its checksum is wrong"),
    ],
)
def test_events_that_were_altered_are_refused(
    change: Callable[[Content], Any], found: str, newest_first: list[Path], job: Job, tmp_path: Path
) -> None:
    path = newest_first[0] / TRIAL_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    opened, reasons = newest(job, tmp_path / "scratch")
    assert opened is not None and opened.name == "000001" and reasons == [f"000002/{TRIAL_FILE}: {found}"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"trial": 1}, "it is of trial 0, not of trial 1"),
        ({"new": True}, ""),
        ({"lr": 0.5}, "it is of other settings: train.lr is 0.05, not 0.5"),
        ({"seed": 7}, "it is of another run: seed of split 0 was 0, not 7"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any], found: str, newest_first: list[Path], job: Job, tmp_path: Path
) -> None:
    """The job has changed: it is as if the checkpoint had been copied from elsewhere, or the trial drawn again."""
    seed, rate = changes.pop("seed", None), changes.pop("lr", None)
    runs = job.runs
    if seed is not None:
        runs = [dataclasses.replace(run, seed=seed + run.split) for run in runs]
    if rate is not None:
        runs = [
            dataclasses.replace(run, settings={**run.settings, "train": {**run.settings["train"], "lr": rate}}) for run in runs
        ]
    opened, reasons = newest(dataclasses.replace(job, runs=runs, **changes), tmp_path / "scratch")
    assert (opened is not None) == (not found)
    assert reasons == ([f"{name}/{TRIAL_FILE}: {found}" for name in ("000002", "000001")] if found else [])


def test_a_checkpoint_of_an_earlier_version_is_read_but_for_a_trial_that_is_new(
    newest_first: list[Path], job: Job, tmp_path: Path
) -> None:
    for folder in newest_first:
        content = json.loads((folder / TRIAL_FILE).read_text())
        (folder / TRIAL_FILE).write_text(json.dumps(content["events"]))
    opened, reasons = newest(job, tmp_path / "scratch")
    assert opened is not None and opened.name == "000002" and reasons == []
    opened, reasons = newest(dataclasses.replace(job, new=True), tmp_path / "scratch")
    assert opened is None and len(reasons) == 2
    assert reasons[0] == f"000002/{TRIAL_FILE}: it does not record its settings, and the trial is new"


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ({"events": []}, "it has no list of events"),
        ("events", "it has no list of events"),
        ([5], "event 1: an event is a mapping, got int"),
        ([{"event": "study_resumed", "time": 1.0}], "event 1: study_resumed is not of a run"),
        ([{"event": "run_evaluated", "time": 1.0, "trial": 0, "split": 0, "step": "10", "metrics": {}}], "event 1: 'step' of run_evaluated must be"),
        ([{"event": "run_evaluated", "time": 1.0, "trial": 0, "split": 0, "step": 10, "metrics": {}}], "run_evaluated of split 0 comes before its start"),
    ],
)  # fmt: skip
def test_what_an_earlier_version_cannot_have_written_is_refused(
    events: Any, found: str, newest_first: list[Path], job: Job, tmp_path: Path
) -> None:
    (newest_first[0] / TRIAL_FILE).write_text(json.dumps(events))
    opened, (reason,) = newest(job, tmp_path / "scratch")
    assert opened is not None and opened.name == "000001"
    assert found in reason or (isinstance(events, dict) and "its checksum is wrong" in reason)


def test_events_that_one_trial_cannot_have_had_are_refused(newest_first: list[Path], job: Job, tmp_path: Path) -> None:
    first, second = told(job, 0, 10, 20), told(job, 1, 10)
    beyond = RunEvaluated(time=1.0, trial=0, split=0, step=50, metrics={})
    for events, found in (
        ([*first, first[-1]], "run_evaluated of split 0 is in it twice"),
        ([*first, beyond], "step 50 of split 0 is beyond its last, 30"),
        ([*first, *second], "the splits 0, 1 are in progress, of which one can be"),
        (told(job, 0, 10), "state.pt: it was written at step 20, not at step 10"),
    ):
        write_trial(newest_first[0], events, job.runs[0].settings)
        opened, (reason,) = newest(job, tmp_path / "scratch")
        assert opened is not None and opened.name == "000001" and found in reason


class Sent:
    """In place of Ray's queue: what a rank has sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.news: list[News] = []
        monkeypatch.setattr(rank_reporter, "put_without_waiting", lambda queue, item: self.news.append(item))

    @property
    def events(self) -> list[RunEvent]:
        return [event for news in self.news for event in news.events]  # type: ignore[misc]


def shape(state: dict[str, Any]) -> None:
    name = next(iter(state["method"]))
    state["method"][name] = torch.zeros(3, 3)


def missing(state: dict[str, Any]) -> None:
    del state["method"][next(iter(state["method"]))]


def momentum(state: dict[str, Any]) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(2)


def groups(state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"][0]["params"].reverse()


def nothing(state: dict[str, Any]) -> None:
    del state["progress"]


def unscored(state: dict[str, Any]) -> None:
    state["progress"]["best"] = {}


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (shape, "its weights are of another network"), (missing, "its weights are of another network: 1 differ, such as"),
        (momentum, "the optimizer's state of parameter 0 is not of its shape"),
        (groups, "its optimizer has other groups of parameters"),
        (nothing, "it does not hold what the run has reached"), (unscored, "what the run has reached cannot be: "),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_passed_over_before_anything_is_reported(
    damage: Callable[[dict[str, Any]], None],
    found: str,
    newest_first: list[Path],
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole files, and a state that is not of this network: the run continues from the checkpoint before, and says so."""
    state = read_tensors(newest_first[0] / STATE_FILE)
    damage(state)
    write_tensors(newest_first[0] / STATE_FILE, state)
    _, (reason,) = newest(job, newest_first[0])
    assert reason == f"000002/{STATE_FILE}: it is not the one that was written with {TRIAL_FILE}"
    write_trial(newest_first[0], told(job, 0, 10, 20), job.runs[0].settings)  # as if it had been written so
    sent = Sent(monkeypatch)
    job = dataclasses.replace(job, runs=job.runs[:1])
    reporter = SlotReporter(job, 1, None, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    with one_thread():
        train_splits(job, reporter, torch.device("cpu"), lambda: None)
    rewound = [event for event in sent.events if isinstance(event, RunRewound)]
    assert [event.step for event in rewound] == [10]
    assert rewound[0].reason.startswith(f"damaged checkpoints (000002/{STATE_FILE}: {found}")
    assert rewound[0].reason.endswith("): the run continues from the one before, at step 10")
    # Of the one that was passed over nothing was reported: its evaluation at step 20 is the new one's.
    evaluated = {event.step: event.metrics["val/miou"] for event in sent.events if isinstance(event, RunEvaluated)}
    assert list(evaluated) == [10, 20, 30] and evaluated[10] == 10.0 != evaluated[20] != 20.0
    assert isinstance(sent.events[-1], RunFinished) and sent.news[-1].over


def test_a_trial_whose_runs_had_all_ended_is_over_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver was stopped between the last run's end and the trial's: no run is left in the job."""
    sent = Sent(monkeypatch)
    job = dataclasses.replace(job, runs=[])
    reporter = SlotReporter(job, 1, None, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    train_splits(job, reporter, torch.device("cpu"), lambda: None)
    assert sent.events == [] and [news.over for news in sent.news] == [True]


# ---------------------------------------------------------------------------------------------------------- the driver's journal


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Telling, Path]:
    """A study of one trial that ended, all but the last word told, and no MLflow."""
    monkeypatch.setattr("css_ray.study.driver.Tracker", Silent)
    path = tmp_path / "runs" / "small" / "journal.jsonl"
    telling = Telling(path, search=None)
    telling.start()
    telling.whole(0, 40.0, 44.0, 48.0)
    return telling, path


class Silent:
    """In place of a Tracker."""

    def __init__(self, uri: str) -> None: ...

    def record(self, event: Event) -> None: ...

    def close(self, timeout: float = 0.0) -> int:
        return 0


def test_a_study_goes_on_from_a_journal_whose_last_line_is_torn(begun: tuple[Telling, Path], tmp_path: Path) -> None:
    telling, path = begun
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    for length in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole[: -len(line)] + line[:length])
        driver = Driver(telling.study, str(tmp_path / "runs"))
        assert driver.journal.events == telling.events[:-1]
        assert driver.next_trial(set()) == driver.grid[0]  # the trial has not ended: it is handed out again
    for torn in (b'{"event":"study_fin', bytes(300)):
        path.write_bytes(whole + torn)
        outcome = Runner(telling.study, str(tmp_path / "runs")).run(resume=True)
        assert outcome.status == "finished" and outcome.records[0].last == {"val/miou": 40.0}
        events = Journal(str(path.parent)).events
        assert events[:-1] == telling.events and isinstance(events[-1], StudyFinished)


def test_a_second_driver_is_refused_and_writes_nothing(begun: tuple[Telling, Path], tmp_path: Path) -> None:
    telling, path = begun
    before = path.read_bytes()
    with Journal(str(path.parent)).driving():
        for resume in (True, False):
            with pytest.raises(StudyLockedError, match=r"another driver is at work on .*small"):
                Runner(telling.study, str(tmp_path / "runs")).run(resume=resume)
    assert path.read_bytes() == before


def test_sync_waits_for_no_driver_and_does_not_write_beside_one(begun: tuple[Telling, Path], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from css_ray_cli.main import main

    _, path = begun
    with Journal(str(path.parent)).driving():
        result = CliRunner().invoke(main, ["study", "sync", "small", "--storage", str(tmp_path / "runs")])
    assert result.exit_code == 2 and "another driver is at work" in result.output
    assert not (tmp_path / "runs" / "mlflow.db").exists()


# -------------------------------------------------------------------------------------------------------------- whole studies


def kept_with_weights(place: Place) -> dict[Path, list[Path]]:
    """By trial, its checkpoints that hold weights, oldest first."""
    found: dict[Path, list[Path]] = {}
    for path in sorted((place.folder / "runs" / "small" / "checkpoints").glob("trial_*/*/state.pt")):
        found.setdefault(path.parent.parent, []).append(path.parent)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(place: Place, undisturbed: Place) -> None:
    driver = place.start("study", "run", str(place.file))
    # Two evaluations of one run: two checkpoints of it are kept, also if it gets to the third.
    place.wait_for(lambda events: any(event["event"] == "run_evaluated" and event["step"] == 20 for event in events), driver)
    for process in place.processes("RayTrainWorker"):  # they would go on for seconds after their driver's death
        os.kill(process, signal.SIGKILL)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    place.wait_until_empty()
    assert evaluations(place.events()) < 24
    damaged = [trial for trial, kept in kept_with_weights(place).items() if len(kept) == 2]
    assert damaged
    for trial in damaged:
        cut(kept_with_weights(place)[trial][-1] / STATE_FILE)
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    check_same(place, undisturbed)
    events = [event for event in place.events() if event["event"] == "run_rewound"]
    assert {event["trial"] for event in events} == {int(trial.name.partition("_")[2]) for trial in damaged}
    assert all(event["reason"].count("/state.pt: ") == 1 and event["step"] > 0 for event in events)
