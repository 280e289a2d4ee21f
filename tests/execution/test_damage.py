"""Damage that a dying machine leaves behind: checkpoints and journals cut short, altered or gone, and two drivers at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from css_ray.events import Event, RunEvaluated, RunEvent, RunFinished, RunStarted, StudyFinished
from css_ray.execution.checkpoints import COMPLETE, Checkpoints
from css_ray.execution.rank_reporter import TRIAL_FILE
from css_ray.execution.runner import Runner
from css_ray.execution.worker import open_checkpoint
from css_ray.study.driver import Driver
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


def told(split: int, *steps: int, ended: bool = False) -> list[RunEvent]:
    of: dict[str, Any] = {"time": 1.0, "trial": 0, "split": split}
    data: dict[str, Any] = {"dataset": "digits", "split_hash": "h", "num_labelled": 8, "num_unlabelled": 8}
    events: list[RunEvent] = [RunStarted(**of, seed=0, **data, class_names=["a"])]
    events += [RunEvaluated(**of, step=step, metrics={}) for step in steps]
    if ended:
        events.append(RunFinished(**of, step=steps[-1], last={}, best={}, best_step=steps[-1], seconds=1.0))
    return events


def as_text(events: list[RunEvent]) -> str:
    return json.dumps([event.to_json() for event in events])


def write(folder: Path, events: list[RunEvent], state: dict[str, Any] | None) -> Path:
    """A checkpoint as a worker writes it; without `state` the one at the end of a split."""
    folder.mkdir()
    if state is not None:
        write_checkpoint(folder, state)
    (folder / TRIAL_FILE).write_text(as_text(events))
    (folder / COMPLETE).touch()
    return folder


@pytest.fixture
def newest_first(tmp_path: Path, state: dict[str, Any]) -> list[Path]:
    return [
        write(tmp_path / "000002", told(0, 10, 20), state),
        write(tmp_path / "000001", told(0, 10), state | {"step": 10}),
    ]


def newest(folders: list[Path], scratch: Path) -> tuple[tuple[Path, list[RunEvent]] | None, list[str]]:
    scratch.mkdir(exist_ok=True)
    kept = Checkpoints(str(folders[0].parent))
    return newest_readable([folder.name for folder in folders], lambda name: open_checkpoint(kept, name, scratch))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGE = [
    (STATE_FILE, cut), (STATE_FILE, empty), (STATE_FILE, Path.unlink), ("random_rank0.pt", cut),
    ("random_rank0.pt", Path.unlink), (TRIAL_FILE, cut), (TRIAL_FILE, empty), (TRIAL_FILE, Path.unlink),
]  # fmt: skip


def test_the_newest_is_taken_where_it_is_whole(newest_first: list[Path], tmp_path: Path) -> None:
    opened, damages = newest(newest_first, tmp_path / "scratch")
    assert opened is not None and opened[1] == told(0, 10, 20) and damages == []
    assert read_tensors(opened[0] / STATE_FILE)["step"] == 20
    assert Checkpoints(str(newest_first[0].parent)).newest_first() == [folder.name for folder in newest_first]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_the_one_before_is_taken_where_the_newest_is_damaged(
    name: str, damage: Callable[[Path], None], newest_first: list[Path], tmp_path: Path
) -> None:
    damage(newest_first[0] / name)
    opened, (reason,) = newest(newest_first, tmp_path / "scratch")
    assert opened is not None and opened[1] == told(0, 10)
    assert read_tensors(opened[0] / STATE_FILE)["step"] == 10
    assert reason.startswith(f"000002/{name}: ")
    assert ("it is missing" in reason) == (damage is Path.unlink)


def test_the_run_starts_anew_where_none_is_whole(newest_first: list[Path], tmp_path: Path) -> None:
    cut(newest_first[0] / STATE_FILE)
    shutil.rmtree(newest_first[1])
    opened, reasons = newest(newest_first, tmp_path / "scratch")
    assert opened is None
    assert [reason.partition(":")[0] for reason in reasons] == ["000002/state.pt", "000001/trial.json"]


def test_between_two_splits_a_checkpoint_needs_no_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "000003", told(0, 10, 20, ended=True), None)
    opened, damages = newest([folder], tmp_path / "scratch")
    assert opened is not None and damages == []
    (folder / TRIAL_FILE).write_text(as_text(told(0, 10, 20, ended=True) + told(1, 10)))
    assert newest([folder], tmp_path / "scratch") == (None, ["000003/state.pt: it is missing"])


def test_storage_that_is_away_is_no_damage(newest_first: list[Path]) -> None:
    def away(folder: Path) -> None:
        raise TimeoutError("no answer from the object store")

    with pytest.raises(TimeoutError):
        newest_readable(newest_first, away)


def on_rank(rank: int, directory: str) -> None:
    """Writes two checkpoints with the other rank; of the newer one rank 1's file is cut short."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    folders = [Path(directory) / f"{number:06d}" for number in (2, 1)]
    for number, folder in zip((2, 1), folders, strict=True):
        folder.mkdir(exist_ok=True)
        write_checkpoint(folder, {"step": 10 * number})
        if rank == 0:
            (folder / TRIAL_FILE).write_text(as_text(told(0, 10)))
        elif number == 2:
            cut(folder / "random_rank1.pt")
    dist.barrier()
    opened, reasons = newest(folders, Path(directory) / f"scratch{rank}")
    assert opened is not None
    found = {"step": read_tensors(opened[0] / STATE_FILE)["step"], "reasons": reasons}
    (Path(directory) / f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_all_ranks_take_the_same_checkpoint(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    first, second = (json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2))
    assert first["step"] == second["step"] == 10
    assert first["reasons"] == ["another rank cannot read its part"]
    assert second["reasons"][0].startswith("000002/random_rank1.pt: ")


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
