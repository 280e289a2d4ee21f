"""A study's files on S3 while the store fails: asked again, or refused in one sentence; and what is half there never counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import torch
import yaml

from css_ray import storage
from css_ray.data import remote
from css_ray.data.catalogue import ensure_dataset
from css_ray.data.digits import digits_source
from css_ray.data.remote import local_copy
from css_ray.data.writing import write_dataset
from css_ray.events import RunEvaluated, RunFinished, RunLogged, StudyFinished, StudyStarted, TrialRetried
from css_ray.execution.checkpoints import Checkpoints
from css_ray.functional.metrics import mean_iou
from css_ray.matrices import read_matrices
from css_ray.storage import below
from css_ray.study import journal as journal_module
from css_ray.study.journal import Follower, Journal, JournalError, StudyLockedError, studies_in, study_folder
from css_ray.training.best import BestDescription
from css_ray.training.checkpoint import read_tensors
from tests.faults import CREDENTIALS, Fault, FaultyStore, faulty_s3
from tests.places import Place

STARTED = StudyStarted(time=1.0, study="s", study_id="x", spec={}, versions={})

PASSING = [
    Fault("busy", times=2),
    Fault("slow", seconds=0.2, times=3),
    Fault("slow", seconds=2.5),  # longer than a request may take, see `store`
    Fault("cut_request", "PUT", bytes=10),
    Fault("cut_request", "PUT"),
    Fault("cut_response", "PUT"),
    Fault("cut_response", "GET", bytes=10),
    Fault("cut_response"),
]
"""Faults that pass: what meets them must succeed all the same."""


def named(fault: Fault) -> str:
    return "-".join(str(part) for part in (fault.kind, fault.method, fault.bytes, fault.seconds, fault.times) if part)


def logged(step: int) -> RunLogged:
    return RunLogged(time=2.0, trial=0, split=0, step=step, metrics={"train/loss": 0.5})


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with faulty_s3() as store:
        yield store


@pytest.fixture
def store(server: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store with the empty bucket `kept`, and clients that are sooner at their wits' end than they are by default."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "ATTEMPTS", 3)
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    for name, seconds in (("HEARTBEAT", 0.2), ("STALE", 1.5), ("SETTLE", 0.3)):
        monkeypatch.setattr(journal_module, f"{name}_SECONDS", seconds)
    server.files.create_dir("kept")
    yield server
    server.heal()
    server.files.delete_dir_contents("kept")


def write(store: FaultyStore, path: str, content: bytes) -> None:
    with store.files.open_output_stream(path) as file:
        file.write(content)


def read(store: FaultyStore, path: str) -> bytes:
    with store.files.open_input_stream(path) as file:
        content: bytes = file.read()
    return content


def each(fault: Fault) -> Fault:
    """A fault of one's own: a store counts down the one that it is given."""
    return Fault(**vars(fault))


# -------------------------------------------------------------------------------------------------------------------- places


def test_a_study_lies_below_its_storage_whatever_the_query(store: FaultyStore) -> None:
    place = store.url("kept/studies")
    assert studies_in(place) == []
    for name in ("two", "one"):
        Journal(study_folder(place, name)).append(STARTED)
    write(store, "kept/studies/notes/readme.txt", b"no study")
    assert studies_in(place) == ["one", "two"] == studies_in(store.url("kept/studies/"))
    assert store.names("kept/studies/one") == ["journal/000000000.json"]


def test_the_bounds_keep_what_the_url_says() -> None:
    # Before the store of a secret key, with what a URL must write in other signs.
    url = "s3://me:a%2Fsecret@kept/x?region=eu-west-3&scheme=http&endpoint_override=127.0.0.1:9&allow_bucket_creation=true"
    given, found = pyarrow.fs.FileSystem.from_uri(url)[0], storage.locate(url)[0]
    theirs, ours = given.__reduce__()[1][0], found.__reduce__()[1][0]
    changed = {name for name in theirs if theirs[name] != ours[name]}
    assert changed == {"connect_timeout", "request_timeout", "allow_delayed_open"}
    assert (ours["access_key"], ours["secret_key"]) == ("me", "a/secret")


@pytest.mark.parametrize("kind", ["refused", "busy", "hung"])
def test_an_endpoint_that_is_dead_is_given_up(
    kind: str, store: FaultyStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-known-key")
    began = time.monotonic()
    with pytest.raises(OSError, match="kept") as caught:
        if kind == "refused":
            with store.away():
                Checkpoints(store.url("kept/trial")).fetch("000001", tmp_path)
        else:
            store.fail(Fault("busy" if kind == "busy" else "slow", seconds=4.0, times=99))
            Checkpoints(store.url("kept/trial")).fetch("000001", tmp_path)
    # Three attempts, and up to 1 + 2 s between them.
    assert time.monotonic() - began < 15
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value) and "a-known-key" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------- journal


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_events_are_written_once_and_whole_under_faults(fault: Fault, store: FaultyStore) -> None:
    journal = Journal(store.url("kept/s"))
    assert journal.append(STARTED)
    for step in range(3):
        store.fail(each(fault))
        assert journal.append(logged(step))
        store.heal()
    store.fail(each(fault))
    assert Journal(store.url("kept/s")).events == [STARTED, *map(logged, range(3))]
    assert len(store.names("kept/s/journal")) == 4


@pytest.mark.parametrize("fault", [Fault("busy"), Fault("cut_request", bytes=10), Fault("cut_response", "PUT")], ids=named)
def test_a_journal_that_cannot_be_written_ends_and_a_resume_reads_it(fault: Fault, store: FaultyStore) -> None:
    url = store.url("kept/s")
    journal = Journal(url)
    journal.append(STARTED)
    store.fail(Fault(**vars(fault) | {"times": 99}))
    with pytest.raises(OSError, match=r"event 2 of the journal in s3://kept/s could not be written: .*kept") as caught:
        journal.append(logged(1))
    assert "endpoint_override" not in str(caught.value) and "secret" not in str(caught.value)
    store.heal()
    # The store is there again, but whether event 2 is, this driver cannot know.
    with pytest.raises(OSError, match="event 2"):
        journal.append(logged(2))
    again = Journal(url)
    arrived = [logged(1)] if fault.kind == "cut_response" else []
    assert again.events == [STARTED, *arrived]
    again.append(logged(1))
    again.append(logged(3))
    assert Journal(url).events == [STARTED, logged(1), logged(3)]


def test_reading_a_store_that_is_away_is_no_empty_journal(store: FaultyStore) -> None:
    Journal(store.url("kept/s")).append(STARTED)
    with store.away(), pytest.raises(OSError, match="kept"):
        Journal(store.url("kept/s"))
    store.fail(Fault("busy", "GET", "journal/", times=99))
    with pytest.raises(OSError):
        Follower(store.url("kept/s")).new()


@pytest.mark.slow
@pytest.mark.long
def test_many_events_are_read_in_order(store: FaultyStore) -> None:
    for step in range(100):
        write(store, f"kept/s/journal/{step:09d}.json", json.dumps(logged(step).to_json()).encode())
    store.requests.clear()
    assert Journal(store.url("kept/s")).events == list(map(logged, range(100)))
    follower = Follower(store.url("kept/s"))
    assert len(follower.new()) == 100
    write(store, "kept/s/journal/000000100.json", b'{"event":"run_lo')
    assert follower.new() == []
    write(store, "kept/s/journal/000000100.json", json.dumps(logged(100).to_json()).encode())
    assert follower.new() == [logged(100)] and follower.new() == []
    store.files.delete_file("kept/s/journal/000000042.json")
    with pytest.raises(JournalError, match=r"event 43 of the journal in s3://kept/s is missing"):
        Journal(store.url("kept/s"))


# ---------------------------------------------------------------------------------------------------------------------- lock


def test_of_drivers_that_start_in_the_same_moment_one_goes_on(store: FaultyStore) -> None:
    together, ended, locked = threading.Barrier(4), threading.Barrier(4), []

    def drive() -> None:
        journal = Journal(store.url("kept/s"))
        together.wait()
        try:
            with journal.driving():
                ended.wait(30)
        except StudyLockedError as error:
            locked.append(str(error))
            ended.wait(30)

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(locked) == 3 and not ended.broken, locked
    assert all("another driver is at work on s3://kept/s (process" in each for each in locked)
    assert store.names("kept/s") == []


def test_a_living_driver_is_seen_by_its_heartbeat_whatever_the_clocks_say(store: FaultyStore) -> None:
    with Journal(store.url("kept/s")).driving():
        time.sleep(2 * journal_module.STALE_SECONDS)
        with pytest.raises(StudyLockedError, match="another driver is at work"), Journal(store.url("kept/s")).driving():
            pass


@pytest.mark.parametrize("clock", [-1e9, 0.0, 1e9])
def test_a_dead_driver_is_dead_whatever_the_clocks_say(
    clock: float, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = (
        "import sys, time; from css_ray.study import journal\n"
        "journal.SETTLE_SECONDS = 0.1\n"
        f"with journal.Journal({store.url('kept/s')!r}).driving():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.kill()
    assert store.names("kept/s") == ["driver.json"]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock)
    began = time.monotonic()
    with Journal(store.url("kept/s")).driving():
        assert time.monotonic() - began >= journal_module.STALE_SECONDS


def test_a_driver_whose_lock_was_taken_stops_itself(store: FaultyStore) -> None:
    journal = Journal(store.url("kept/s"))
    with journal.driving():
        journal.append(STARTED)
        other = json.dumps({"who": "process 7 on elsewhere", "token": "another", "beat": 0}).encode()
        limit = time.monotonic() + 10
        while True:
            write(store, "kept/s/driver.json", other)
            time.sleep(5 * journal_module.HEARTBEAT_SECONDS)
            # A heartbeat that was on its way may have come after the other's, which writes again and again.
            if read(store, "kept/s/driver.json") == other or time.monotonic() > limit:
                break
        with pytest.raises(StudyLockedError, match=r"another driver is at work on s3://kept/s \(process 7 on elsewhere\)"):
            journal.append(logged(1))
    # The other's lock is not taken from it.
    assert read(store, "kept/s/driver.json") == other
    assert Journal(store.url("kept/s")).events == [STARTED]


def test_an_event_never_takes_the_place_of_another_drivers(store: FaultyStore) -> None:
    mine, other = Journal(store.url("kept/s")), Journal(store.url("kept/s"))
    mine.append(STARTED)
    with pytest.raises(StudyLockedError, match="it wrote event 1"):
        other.append(replace(STARTED, time=5.0))
    mine.append(logged(1))
    assert Journal(store.url("kept/s")).events == [STARTED, logged(1)]


def test_a_driver_keeps_its_lock_through_an_outage(store: FaultyStore) -> None:
    journal = Journal(store.url("kept/s"))
    with journal.driving():
        with store.away():
            time.sleep(1.0)
        journal.append(STARTED)
        with pytest.raises(StudyLockedError), Journal(store.url("kept/s")).driving():
            pass


# -------------------------------------------------------------------------------------------------- checkpoints and weights


def saving(content: bytes) -> Callable[[Path], None]:
    def write_files(folder: Path) -> None:
        (folder / "weights").write_bytes(content)
        (folder / "state").write_bytes(content[::-1])
        (folder / "nothing").touch()

    return write_files


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_checkpoints_survive_faults_that_pass(fault: Fault, store: FaultyStore, tmp_path: Path) -> None:
    contents = [bytes([number]) * 300_000 for number in (1, 2, 3)]
    kept = Checkpoints(store.url("kept/trial"))
    for content in contents:
        store.fail(each(fault))
        kept.save(saving(content))
    store.fail(each(fault))
    assert kept.newest_first() == ["000003", "000002"]
    store.fail(each(fault))
    folder = kept.fetch("000003", tmp_path)
    assert (folder / "weights").read_bytes() == contents[2] == (folder / "state").read_bytes()
    store.heal()
    assert {name.split("/")[0] for name in store.names("kept/trial")} == {"000002", "000003"}


@pytest.mark.parametrize("path", ["weights", "state", "complete.json"])
def test_a_checkpoint_that_cannot_be_written_does_not_count(path: str, store: FaultyStore, tmp_path: Path) -> None:
    kept = Checkpoints(store.url("kept/trial"))
    kept.save(saving(b"one"))
    store.fail(Fault("cut_request", "PUT", path, bytes=1, times=99))
    with pytest.raises(OSError, match=path):
        kept.save(saving(b"two"))
    store.heal()
    again = Checkpoints(store.url("kept/trial"))
    assert again.newest_first() == ["000001"]
    assert (again.fetch("000001", tmp_path) / "weights").read_bytes() == b"one"
    again.save(saving(b"three"))
    assert again.newest_first() == ["000003", "000001"]
    assert {name.split("/")[0] for name in store.names("kept/trial")} == {"000001", "000003"}


def test_a_checkpoint_that_is_written_counts_though_an_old_one_cannot_be_removed(store: FaultyStore) -> None:
    kept = Checkpoints(store.url("kept/trial"))
    for content in (b"one", b"two"):
        kept.save(saving(content))
    store.fail(Fault("busy", "POST", "delete", times=99))
    kept.save(saving(b"three"))
    assert store.heal() < 99
    assert kept.newest_first() == ["000003", "000002", "000001"]
    kept.save(saving(b"four"))
    assert kept.newest_first() == ["000004", "000003"]


def test_a_checkpoint_that_cannot_be_fetched_is_not_taken_for_damaged(store: FaultyStore, tmp_path: Path) -> None:
    kept = Checkpoints(store.url("kept/trial"))
    kept.save(saving(bytes(300_000)))
    store.fail(Fault("cut_response", "GET", "weights", bytes=1000, times=99))
    with pytest.raises(OSError, match="weights") as caught:
        kept.fetch("000001", tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)
    store.heal()
    assert (kept.fetch("000001", tmp_path) / "weights").read_bytes() == bytes(300_000)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("values", [10, 6_000_000], ids=["one request", "parts"])
def test_the_best_weights_are_the_old_or_the_new(values: int, store: FaultyStore, tmp_path: Path) -> None:
    from css_ray.execution.worker import keeper

    keep = keeper(below(store.url("kept/s"), "models", "split_0"))
    about: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(BestDescription))
    keep({"weight": torch.zeros(values)}, BestDescription(**about | {"step": 1}))
    store.fail(Fault("busy", times=2), Fault("cut_response", "PUT"))
    keep({"weight": torch.ones(values)}, BestDescription(**about | {"step": 2}))
    store.fail(Fault("cut_request", "PUT", "best.pt", bytes=100, times=99))
    with pytest.raises(OSError, match=r"best\.pt.*kept"):
        keep({"weight": torch.full((values,), 2.0)}, BestDescription(**about | {"step": 3}))
    store.heal()
    assert store.names("kept/s") == ["models/split_0/best.json", "models/split_0/best.pt"]
    described = json.loads(read(store, "kept/s/models/split_0/best.json"))
    weights = read(store, "kept/s/models/split_0/best.pt")
    assert described["step"] == 2 and described["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    (tmp_path / "best.pt").write_bytes(weights)
    assert torch.equal(read_tensors(tmp_path / "best.pt")["weight"], torch.ones(values))


# -------------------------------------------------------------------------------------------------------------------- shards


@pytest.fixture
def digits(store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a small data set, of which this machine has no copy."""
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache"))
    url = store.url("kept/digits")
    write_dataset(url, digits_source(num_train=12, num_val=4))
    return url


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_shards_are_fetched_whole_under_faults_that_pass(fault: Fault, store: FaultyStore, digits: str, tmp_path: Path) -> None:
    for path in ("dataset.json", "train-", "val-"):
        store.fail(Fault(**vars(fault) | {"path": path}))
    assert len(ensure_dataset("digits", digits).train) == 12
    folder = local_copy(digits)
    for name in store.names("kept/digits"):
        if name != "dataset.json":
            assert (folder / name).read_bytes() == read(store, f"kept/digits/{name}")


@pytest.mark.parametrize("fault", [Fault("busy"), Fault("cut_response", "GET", bytes=100)], ids=named)
def test_shards_that_cannot_be_fetched_leave_no_copy(fault: Fault, store: FaultyStore, digits: str, tmp_path: Path) -> None:
    store.fail(Fault(**vars(fault) | {"path": "train-", "times": 99}))
    with pytest.raises(OSError, match=r"kept.*train-|train-.*kept"):
        local_copy(digits)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    store.heal()
    assert len(ensure_dataset("digits", digits).train) == 12


def test_a_data_set_that_cannot_be_written_whole_is_none(store: FaultyStore, tmp_path: Path) -> None:
    url, source = store.url("kept/digits"), digits_source(num_train=12, num_val=4)
    for path in ("train-", "dataset.json"):
        store.fail(Fault("cut_request", "PUT", path, bytes=50, times=99))
        with pytest.raises(OSError, match=path):
            write_dataset(url, source)
        store.heal()
        with pytest.raises(FileNotFoundError, match="s3://kept/digits holds no prepared data set"):
            local_copy(url)
    assert write_dataset(url, source)


# --------------------------------------------------------------------------------------------------------------- whole study


@pytest.fixture
def place(store: FaultyStore, digits: str, tmp_path: Path) -> Place:
    """A study of one trial on two splits, with storage and data at URLs with a query."""
    place = Place(tmp_path, tmp_path)
    place.environment |= {"CSS_RAY_STORAGE": store.url("kept/studies")}
    spec = yaml.safe_load(place.file.read_text())
    spec["data"] |= {"root": digits, "labelled": 4}
    del spec["search"]
    place.file.write_text(yaml.safe_dump(spec))
    return place


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_study_on_s3_under_faults(store: FaultyStore, place: Place, tmp_path: Path) -> None:
    """The store is busy, cuts connections and loses answers while the study runs."""
    for path in ("journal/", "checkpoints/", "best.pt", "splits/", "driver.json", "train-"):
        store.fail(
            Fault("busy", path=path, times=2), Fault("cut_response", path=path), Fault("cut_request", "PUT", path, bytes=9)
        )
    code, output = place.run()
    assert code == 0, output
    assert store.heal() == 1  # nobody writes a shard
    url = study_folder(store.url("kept/studies"), "small")
    events = Journal(url).events
    assert isinstance(events[-1], StudyFinished) and events[-1].status == "finished"
    steps = [(event.split, event.step) for event in events if isinstance(event, RunEvaluated)]
    assert steps == [(split, step) for split in (0, 1) for step in (10, 20, 30, 40)]
    assert not [event for event in events if isinstance(event, TrialRetried)]
    assert len(Checkpoints(below(url, "checkpoints", "trial_0000")).newest_first()) == 2
    for split in (0, 1):
        weights = tmp_path / f"{split}.pt"
        weights.write_bytes(read(store, f"kept/studies/small/models/trial_0000/split_{split}/best.pt"))
        assert read_tensors(weights)
    left = {name.split("/")[1] for name in store.names("kept/studies")}
    assert left == {"journal", "checkpoints", "models", "matrices", "splits"}
    for split in (0, 1):
        (finished,) = [event for event in events if isinstance(event, RunFinished) and event.split == split]
        matrices = read_matrices(below(url, "matrices", "trial_0000", f"split_{split}"), "last")
        assert matrices is not None
        assert 100 * mean_iou(torch.from_numpy(matrices.dense().sum(axis=0)))[0] == finished.last["val/miou"]
    place.wait_until_empty()


@pytest.mark.slow
@pytest.mark.long
def test_a_study_whose_journal_cannot_be_written_ends_and_goes_on_later(store: FaultyStore, place: Place) -> None:
    process = place.start("study", "run", str(place.file))
    limit = time.monotonic() + 240
    while len(store.names("kept/studies/small/journal")) < 8:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    store.fail(Fault("busy", "PUT", "journal/", times=10**6))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "of the journal in s3://kept/studies/small could not be written" in output
    assert "continue with: css-ray study resume small" in output
    place.wait_until_empty()
    store.heal()
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    events = Journal(study_folder(store.url("kept/studies"), "small")).events
    assert isinstance(events[-1], StudyFinished) and events[-1].status == "finished"
    steps = [(event.split, event.step) for event in events if isinstance(event, RunEvaluated)]
    assert steps == [(split, step) for split in (0, 1) for step in (10, 20, 30, 40)]
    place.wait_until_empty()
