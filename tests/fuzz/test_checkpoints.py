"""Hostile checkpoints: refused, or passed over for the one before, by name; never trained on unnoticed; no code is run."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from css_ray.events import RunEvaluated, RunEvent, RunFinished, RunRewound
from css_ray.execution import rank_reporter
from css_ray.execution.checkpoints import COMPLETE, Checkpoints
from css_ray.execution.handover import News
from css_ray.execution.rank_reporter import SlotReporter
from css_ray.execution.trial_file import TRIAL_FILE
from css_ray.execution.worker import open_checkpoint, train_splits
from css_ray.study.inputs import prepare
from css_ray.study.job import Job
from css_ray.study.run import build_method
from css_ray.training.checkpoint import (
    STATE_FILE,
    DamagedError,
    check_state,
    fingerprint,
    newest_readable,
    read_state,
    read_tensors,
    write_tensors,
)
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from tests.fuzz.outcomes import Outcomes
from tests.trials import job_of, one_thread, state_at, told, write

RANDOM_FILE = "random_rank0.pt"
CANARY = "code-was-run"
"""A file that appears in the working directory if a checkpoint runs code."""


# ----------------------------------------------------------------------------------------------------------- bytes of any file


def flipped(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 5])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.choice([0, 1, draw.randrange(path.stat().st_size)]))


def overwritten(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    start, length = draw.randrange(len(data)), draw.choice([1, 64, 4096])
    path.write_bytes(data[:start] + draw.choice([bytes(length), draw.randbytes(length), b""]) + data[start + length :])


def grown(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(draw.choice([data + bytes(100), b"#" + data, data + data]))


def of_another_file(path: Path, draw: random.Random) -> None:
    others = [other for other in path.parent.iterdir() if other != path]
    path.write_bytes(draw.choice(others).read_bytes())


def no_file(path: Path, draw: random.Random) -> None:
    path.unlink()
    make: list[Callable[[], Any]] = [
        lambda: None, path.mkdir, functools.partial(os.mkfifo, path), functools.partial(path.symlink_to, path.name),
        functools.partial(path.symlink_to, "/dev/zero"),
    ]  # fmt: skip
    draw.choice(make)()


# -------------------------------------------------------------------------------------------------------------- what torch reads


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, draw: random.Random) -> None:
        self.call: tuple[Any, ...] = draw.choice([
            (os.system, (f"touch {CANARY}",)), (exec, (f"open({CANARY!r}, 'w')",)), (eval, (f"open({CANARY!r}, 'w')",)),
            (os.mkdir, (CANARY,)), (open, (CANARY, "w")), (torch.save, ({}, CANARY)),
        ])  # fmt: skip

    def __reduce__(self) -> Any:
        return self.call


def code(path: Path, draw: random.Random) -> None:
    """A pickle that runs code: in the archive that torch writes, in its older format, by itself, and deep in a state."""
    runs = Runs(draw)
    state = read_tensors(path)
    payload = draw.choice([runs, {"method": runs}, state | {"more": runs}, state | {"progress": [runs]}])
    kind = draw.choice(["save", "older", "pickle", "archive"])
    if kind == "archive":
        _rewritten(path, lambda name, data: pickle.dumps(payload, protocol=2) if name.endswith("data.pkl") else data)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind == "save")


def _rewritten(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with other members, whose checksums are right; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in members:
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)
    path.write_bytes(target.getvalue())


def archive(path: Path, draw: random.Random) -> None:
    """An archive that is whole, and not what torch wrote: members gone, cut, larger, compressed, of a script."""
    with zipfile.ZipFile(path) as opened:
        names = opened.namelist()
    victim = draw.choice(names)
    kind = draw.choice(["gone", "cut", "larger", "compressed", "script", "empty", "nested"])
    if kind == "empty":
        with zipfile.ZipFile(path, "w"):
            return
    if kind == "script":
        with zipfile.ZipFile(path, "a") as opened:
            opened.writestr(f"{names[0].partition('/')[0]}/constants.pkl", pickle.dumps((), protocol=2))
        return
    changes: dict[str, Callable[[str, bytes], bytes | None]] = {
        "gone": lambda name, data: None if name == victim else data,
        "cut": lambda name, data: data[: len(data) // 2] if name == victim else data,
        "larger": lambda name, data: data + bytes(64) if name == victim else data,
        "compressed": lambda name, data: data,
        "nested": lambda name, data: b"\x80\x02" + b"(" * 50_000 if name.endswith("data.pkl") else data,
    }
    _rewritten(path, changes[kind], zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED)


STATES: list[Any] = [None, 0, -1, True, 10**30, 1.5, float("nan"), "x", [], {}, [1], {"a": 1}, torch.zeros(3), torch.zeros(0)]


def other_state(path: Path, draw: random.Random) -> None:
    """A whole file with a state of other types, names and shapes."""
    state = copy.deepcopy(read_tensors(path))
    write_tensors(path, _another(state, state, draw))


def other_state_of_its_own(path: Path, draw: random.Random) -> None:
    """The same, as if it had been written so, with the events beside it."""
    state = copy.deepcopy(read_tensors(path))
    part = state["optimizer"]["param_groups"][0] if draw.random() < 0.1 else state[draw.choice(["method", "progress"])]
    write_tensors(path, _another(state, part, draw))
    content = json.loads((path.parent / TRIAL_FILE).read_text())
    content["files"][STATE_FILE] = fingerprint(path)
    _sign(path.parent / TRIAL_FILE, content)


def _another(state: Any, holder: Any, draw: random.Random) -> Any:
    """The state, of which something in `holder` is other."""
    key = draw.choice(sorted(holder))
    while isinstance(holder[key], dict) and holder[key] and draw.random() < 0.7:
        holder = holder[key]
        key = draw.choice(sorted(holder))
    kind = draw.choice(["value", "gone", "more", "shape", "type", "sparse"])
    tensor = isinstance(holder[key], torch.Tensor)
    if kind == "gone":
        del holder[key]
    elif kind == "more":
        holder["more" if isinstance(key, str) else 10**6] = draw.choice(STATES)
    elif kind == "shape" and tensor:
        holder[key] = draw.choice([holder[key].reshape(-1)[:1], holder[key][None], torch.zeros(2, 3, 5, 7, 11)])
    elif kind == "type" and tensor:
        holder[key] = holder[key].to(draw.choice([torch.float64, torch.float16, torch.bool, torch.complex64]))
    elif kind == "sparse" and tensor and holder[key].dim():
        holder[key] = holder[key].to_sparse()
    else:
        holder[key] = copy.deepcopy(draw.choice(STATES))
    return state


# ------------------------------------------------------------------------------------------------------------------- trial.json


VALUES: list[Any] = [None, True, -1, 1.5, 10**30, float("nan"), float("inf"), "", "0", "\ud800", [], {}, [1], {"a": None}]


def altered_events(path: Path, draw: random.Random) -> None:
    """Events or settings that were changed, and a checksum that was not."""
    content = json.loads(path.read_text())
    event = draw.choice(content["events"])
    change = draw.choice(["value", "gone", "twice", "order", "settings", "metrics"])
    if change == "value":
        event[draw.choice(sorted(event))] = draw.choice([*VALUES, 30, 0, "run_logged"])
    elif change == "gone":
        content["events"].remove(event)
    elif change == "twice":
        content["events"].append(event)
    elif change == "order":
        content["events"].reverse()
    elif change == "settings":
        section = content["settings"][draw.choice(sorted(content["settings"]))]
        section[draw.choice(sorted(section))] = draw.choice(VALUES)
    else:
        content["events"][-1]["metrics"]["val/miou"] += 1.0
    path.write_text(json.dumps(content))


def impossible_events(path: Path, draw: random.Random) -> None:
    """Events that none can be, or not of this trial, with a checksum that is right; or without one, as of an earlier version."""
    content = json.loads(path.read_text())
    del content["checksum"]
    event, settings = draw.choice(content["events"]), copy.deepcopy(content["settings"])
    changes: list[Callable[[], Any]] = [
        lambda: event.update({draw.choice(["trial", "split", "time", "event"]): draw.choice(VALUES)}),
        lambda: event.pop(draw.choice(["trial", "split", "time", "event"])),
        lambda: event.update(event=draw.choice(["study_resumed", "trial_retried", "no_event"])),
        lambda: event.update(colour="red"),
        lambda: event.update(trial=draw.choice([1, 7, 10**9])),
        lambda: content["events"].append(event),
        lambda: content["events"].pop(0),
        lambda: content["events"][-1].update(step=draw.choice([5, 15, 30, 31, 10**15])),
        lambda: content["events"][-1].update(metrics={"val/miou": draw.choice([None, "1", [], float("nan"), 10**400])}),
        lambda: content["events"][0].update(seed=draw.choice([1, -5])),
        lambda: content["events"][0].update(split_hash="of other images"),
        lambda: content.update(events=draw.choice([None, 5, "x", {}, [[]], [None], ["x"]])),
        lambda: content.update(settings=draw.choice([None, 5, [], "x"])),
        lambda: content.update(
            files=draw.choice([None, 5, [], "x", {"../000001/state.pt": "x"}, {STATE_FILE: "x"}, {STATE_FILE: None}])
        ),
        lambda: content["settings"]["train"].update(lr=0.7),
        lambda: content["settings"]["model"].update(encoder="another"),
    ]
    draw.choice(changes)()
    if draw.random() < 0.3 and content["settings"] == settings:
        path.write_text(json.dumps(content["events"]))
        return
    _sign(path, content)


def _sign(path: Path, content: dict[str, Any]) -> None:
    """Write `trial.json` with a checksum that is right."""
    content.pop("checksum", None)
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content | {"checksum": checksum}))


def no_events(path: Path, draw: random.Random) -> None:
    """JSON that is something else, without an end, or no JSON."""
    deep = draw.choice(["[" * 100_000, '{"events":' * 100_000, "[" * 100_000 + "]" * 100_000])
    other = draw.choice(
        ["", "null", "5", '"x"', "{}", "[[]]", "{'events': []}", "NaN", "9" * 5000, '{"checksum":{}}', "\x00", "é"]
    )
    path.write_bytes(draw.choice([deep, other]).encode(draw.choice(["utf-8", "utf-16", "latin-1"])))


BYTES = [flipped, cut, overwritten, grown, of_another_file, no_file]
MUTATIONS: list[tuple[str, Callable[[Path, random.Random], None]]] = [
    *((file, mutate) for file in (STATE_FILE, RANDOM_FILE, TRIAL_FILE) for mutate in BYTES),
    *((file, mutate) for file in (STATE_FILE, RANDOM_FILE) for mutate in (code, archive, other_state)),
    (STATE_FILE, other_state_of_its_own),
    *((TRIAL_FILE, mutate) for mutate in (altered_events, impossible_events, no_events)),
    *((COMPLETE, mutate) for mutate in (flipped, cut, no_file)),
]


# ------------------------------------------------------------------------------------------------------------- what must hold


class WrongError(Exception):
    """A hostile checkpoint was neither passed over by name nor meant the same."""


@dataclasses.dataclass
class Trial:
    """A trial with two checkpoints, at steps 10 and 20, and what is in them, read before anything was done to them."""

    job: Job
    kept: Checkpoints
    sound: Path
    states: dict[str, dict[str, Any]]
    noise: dict[str, dict[str, Any]]
    events: dict[str, list[RunEvent]]

    @classmethod
    def make(cls, data: Path, folder: Path) -> Trial:
        job = job_of(data, folder)
        for name, steps in (("000001", [10]), ("000002", [10, 20])):
            write(Path(job.checkpoints) / name, job, told(job, 0, *steps), state_at(job, steps[-1]))
        sound = folder / "sound"
        shutil.copytree(job.checkpoints, sound)
        states = {name: read_tensors(sound / name / STATE_FILE) for name in ("000001", "000002")}
        noise = {name: read_tensors(sound / name / RANDOM_FILE) for name in ("000001", "000002")}
        events = {"000001": told(job, 0, 10), "000002": told(job, 0, 10, 20)}
        return cls(job, Checkpoints(job.checkpoints), sound, states, noise, events)

    def restore(self) -> Path:
        """Put both back as they were; returns the folder of the newest."""
        shutil.rmtree(self.job.checkpoints)
        shutil.copytree(self.sound, self.job.checkpoints)
        return Path(self.job.checkpoints) / "000002"


@functools.cache
def _fresh(settings: str, num_classes: int) -> tuple[Any, Any]:
    plain = json.loads(settings)
    method = build_method(plain, num_classes)
    return method, make_optimizer(method, TrainConfig(**plain["train"]))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def loaded(trial: Trial, scratch: Path) -> tuple[str, list[str]]:
    """The checkpoint that a run would continue from, as `train_splits` finds it, and why not from a newer one.

    Raises WrongError if what it would continue from is not what was written.
    """
    names, reasons = trial.kept.newest_first(), list[str]()
    spec = trial.job.runs[0]
    method, optimizer = _fresh(json.dumps(spec.settings), prepare(spec).dataset.info.num_classes)
    while True:
        opened, more = newest_readable(names, lambda name: open_checkpoint(trial.kept, name, scratch, trial.job))
        reasons += more
        if opened is None:
            return "", reasons
        try:
            state = read_state(opened.folder, [30])
            check_state(opened.folder, state, method, optimizer)
        except DamagedError as error:
            reasons.append(f"{opened.name}/{error.reason}")
            names = names[names.index(opened.name) + 1 :]
            continue
        written = trial.states[opened.name]
        optimizer_state = (state["optimizer"]["state"], written["optimizer"]["state"])
        if not same(state["method"], written["method"]) or not same(*optimizer_state):
            raise WrongError("it would train other weights")
        if not same(state["progress"], written["progress"]) or not same(
            read_tensors(opened.folder / RANDOM_FILE), trial.noise[opened.name]
        ):
            raise WrongError("it would train from another step, or with other random numbers")
        if opened.events != trial.events[opened.name]:
            raise WrongError(f"it would report other events: {opened.events!r:.300}")
        return opened.name, reasons


def check(trial: Trial, file: str, scratch: Path) -> bool:
    """True if the newest is taken, which then means the same; False if it is passed over, by name. Raises WrongError."""
    name, reasons = loaded(trial, scratch)
    if Path(CANARY).exists():
        raise WrongError("code was run")
    if name == "000002":
        return True
    # Without the mark that it is whole it does not count, as one that was interrupted.
    if name != "000001" or len(reasons) != (file != COMPLETE):
        raise WrongError(f"{name or 'none'} was taken: {reasons}")
    # Of a step that the events and the state do not agree on, either is named.
    named = (
        f"000002/{file}: ",
        f"000002/{STATE_FILE}: it was written at step ",
        f"000002/{STATE_FILE}: it is not the one that",
    )
    for reason in reasons:
        if not reason.startswith(named) or len(reason) > 600 or "\n" in reason:
            raise WrongError(f"it is not named in one line: {reason!r:.300}")
    return False


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield tmp_path


def attack(trial: Trial, count: int, seed: int, scratch: Path) -> Outcomes:
    """Try `count` hostile checkpoints of each kind."""
    outcomes = Outcomes()
    for file, mutate in MUTATIONS:
        kind, draw = f"{file}: {mutate.__name__.replace('_', ' ')}", random.Random(f"{file} {mutate.__name__} {seed}")
        for _ in range(count):
            mutate(trial.restore() / file, draw)
            try:
                outcomes.add(kind, "accepted" if check(trial, file, scratch) else "refused")
            except WrongError as error:
                outcomes.add(kind, "failed", str(error))
            except Exception as error:
                outcomes.add(kind, "failed", f"{type(error).__name__}: {error!s:.300}")
    return outcomes


def test_hostile_checkpoints(data: Path, place: Path) -> None:
    outcomes = attack(Trial.make(data, place), 1, seed=0, scratch=place / "scratch")
    outcomes.check("checkpoints")
    assert outcomes.count("refused") > 2 * outcomes.count("accepted")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_hostile_checkpoints(data: Path, place: Path) -> None:
    outcomes = attack(Trial.make(data, place), 60, seed=1, scratch=place / "scratch")
    outcomes.check("checkpoints")


def test_the_payloads_run_where_they_are_trusted(place: Path) -> None:
    """The mutation would be found: what it writes does run code where somebody lets it."""
    write_tensors(place / STATE_FILE, {"progress": {}})
    for seed in range(12):
        path = Path(shutil.copy(place / STATE_FILE, place / "copy"))
        code(path, random.Random(seed))
        if zipfile.is_zipfile(path) or seed % 2:
            with pytest.raises(DamagedError):
                read_tensors(path)
            assert not Path(CANARY).exists()
            torch.load(path, weights_only=False) if zipfile.is_zipfile(path) else None
            if Path(CANARY).exists():
                return
    pytest.fail("no payload ran")


# --------------------------------------------------------------------------------------------------- trained on from a hostile one


def trained(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[RunEvent]:
    """Train what is left of the first run, as a rank does; the events that it sends."""
    news: list[News] = []
    monkeypatch.setattr(rank_reporter, "put_without_waiting", lambda queue, item: news.append(item))
    reporter = SlotReporter(job, 1, None, torch.device("cpu"), lambda: None)  # type: ignore[arg-type]
    train_splits(job, reporter, torch.device("cpu"), lambda: None)
    assert news[-1].over
    return [event for each in news for event in each.events]  # type: ignore[misc]


def continued(data: Path, place: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[int], seed: int) -> None:
    """A run that continues from whatever is sound comes to the numbers of the undisturbed one, digit for digit."""
    job = job_of(data, place)
    job = dataclasses.replace(job, runs=job.runs[:1])
    stopped = Checkpoints.save
    saves = [0]

    def save(kept: Checkpoints, write: Callable[[Path], None]) -> None:
        stopped(kept, write)
        saves[0] += 1
        if saves[0] == 2:
            shutil.copytree(job.checkpoints, place / "sound")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save)
        *_, undisturbed = trained(job, patched)
    assert isinstance(undisturbed, RunFinished)
    outcomes = Outcomes()
    for number in kinds:
        file, mutate = MUTATIONS[number]
        shutil.rmtree(job.checkpoints)
        shutil.copytree(place / "sound", job.checkpoints)
        mutate(Path(job.checkpoints) / "000002" / file, random.Random(f"{number} {seed}"))
        *events, end = trained(job, monkeypatch)
        rewound = [event.reason for event in events if isinstance(event, RunRewound)]
        kind = f"{file}: {mutate.__name__.replace('_', ' ')}"
        if not isinstance(end, RunFinished) or (end.last, end.best) != (undisturbed.last, undisturbed.best):
            outcomes.add(kind, "failed", f"it ended with {end!r:.200}")
        elif any("000002/" not in reason for reason in rewound) or Path(CANARY).exists():
            outcomes.add(kind, "failed", f"{rewound}")
        else:
            steps = [event.step for event in events if isinstance(event, RunEvaluated)]
            assert steps == [10, 20, 30]
            outcomes.add(kind, "refused" if rewound or (file == COMPLETE and mutate is no_file) else "accepted")
    outcomes.check("trained from hostile checkpoints")


def test_a_run_comes_to_the_same_numbers(data: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    continued(data, place, monkeypatch, [MUTATIONS.index((STATE_FILE, other_state))], seed=3)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_run_comes_to_the_same_numbers(data: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    continued(data, place, monkeypatch, [*range(len(MUTATIONS))] * 2, seed=4)
