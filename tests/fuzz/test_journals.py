"""Hostile journals: read, and read right, or refused in one message that names the file and the line; and always repaired."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from css_ray.api import Study
from css_ray.config import ConfigError
from css_ray.study.definition import TrialSpec, parse
from css_ray.study.driver import Driver
from css_ray.study.journal import JournalError, StudyMissingError
from css_ray_cli.main import main
from tests.fuzz.outcomes import Outcomes
from tests.journals import PRUNED, SPEC, FakeRunner, mixed

NAME = "small"


def eventful(path: Path) -> list[str]:
    """The lines of a study that has had an event of every kind, and was given more of everything."""
    telling = mixed(path)
    telling.tell("study_paused", reason="runs has 0.10 GB free")
    telling.tell("study_continued")
    telling.tell("trial_retried", 5, reason="rank 1: its process died")
    telling.tell("run_rewound", 5, 1, step=20, reason="damaged checkpoints")
    telling.tell("run_resized", 5, 1, step=20, workers=1, before=2, reason="a node went")
    telling.tell("stage_finished", 5, 1, step=40, number=0, name="warm_up")
    telling.tell("stage_started", 5, 1, step=40, number=1, name="main")
    telling.tell("run_logged", 5, 1, step=60, metrics={"train/loss": 0.5, "train/lr": 0.1})
    telling.tell("study_interrupted", reason="interrupted by the user")
    telling.tell("event_lost", reason="some bytes are not text")
    telling.tell("study_resumed")
    telling.run(5, 2, 30.0, 35.0, end="failed", reason="the loss became nan")
    telling.tell(
        "trial_started",
        6,
        row="CSS (mix)",
        source="search",
        params={"method.temperature": 0.6},
        config={"train.iterations": 100},
    )
    telling.run(6, 0, 5.0, 6.0, end="running")
    telling.tell("trial_pruned", 6, 0, step=20, reason=PRUNED)
    telling.tell("run_pruned", 6, 0, step=20, reason=PRUNED)
    telling.end(6, "pruned", PRUNED)
    more = parse({**SPEC, "splits": [0, 1, 2, 3], "search": {**SPEC["search"], "trials": 9}})
    telling.tell("study_extended", spec=more.resolved(), num_splits=4)
    telling.tell("study_finished", status="budget", best_trial=1)
    return path.read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------- the mutations

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 99, 1.5, -0.0, 1e308, 1e-320, 10**12, 10**30, -(10**25), float("nan"), float("inf"), "", "0", "1",
    "running", "x" * 5000, "../../etc/passwd", "\x1b]52;c;aGk=\x07", "\ud800", "\u202egnp", "é" * 20, "a\nb", [], [[]], [1], ["a"], {},
    {"a": 1}, {"0": 1.0}, {"val/miou": 50.0}, {"": {}}, [None] * 50,
]  # fmt: skip
"""What a value is replaced by."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _changed(line: str, draw: random.Random, change: Callable[[Any, Any, random.Random], None], deep: bool = True) -> str:
    """The line with one of its values changed; one right in the event, or if `deep` any inside of it as well."""
    event = json.loads(line)
    places = list(_places(event))
    if not deep or draw.random() < 0.6:
        places = [path for path in places if len(path) == 1]
    *above, key = draw.choice(places)
    change(_at(event, tuple(above)), key, draw)
    return json.dumps(event)


def other_value(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = copy.deepcopy(draw.choice(VALUES))


def shifted(holder: Any, key: Any, draw: random.Random) -> None:
    """A number a little beside; other values are replaced."""
    if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] += draw.choice([-1, 1, 2, 10, -100])
    else:
        other_value(holder, key, draw)


def without(holder: Any, key: Any, draw: random.Random) -> None:
    del holder[key]


def renamed(holder: Any, key: Any, draw: random.Random) -> None:
    if isinstance(holder, dict):
        holder[draw.choice([f"{key}s", str(key).upper(), "", "trial", "colour"])] = holder.pop(key)
    else:
        holder.append(holder[key])


def wrapped(holder: Any, key: Any, draw: random.Random) -> None:
    holder[key] = draw.choice([[holder[key]], {"value": holder[key]}, json.dumps(holder[key])])


def nested(holder: Any, key: Any, draw: random.Random) -> None:
    value: Any = 1
    for _ in range(draw.choice([50, 200])):
        value = [value]
    holder[key] = value


def _of_values(change: Callable[[Any, Any, random.Random], None]) -> Callable[[list[str], random.Random], bytes]:
    def mutate(lines: list[str], draw: random.Random) -> bytes:
        for _ in range(draw.choice([1, 1, 1, 3])):
            at = draw.randrange(len(lines))
            lines[at] = _changed(lines[at], draw, change)
        return _text(lines)

    return mutate


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def other_kind(lines: list[str], draw: random.Random) -> bytes:
    """An event is given the name of another kind, or of none."""
    at = draw.randrange(len(lines))
    kinds = [json.loads(line)["event"] for line in lines]
    lines[at] = json.dumps(json.loads(lines[at]) | {"event": draw.choice([*kinds, "study_moved", "", "Event"])})
    return _text(lines)


def other_event(lines: list[str], draw: random.Random) -> bytes:
    """A line is something else that is JSON."""
    lines[draw.randrange(len(lines))] = json.dumps(draw.choice(VALUES))
    return _text(lines)


def deleted(lines: list[str], draw: random.Random) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 10])):
        del lines[draw.randrange(len(lines))]
    return _text(lines)


def repeated(lines: list[str], draw: random.Random) -> bytes:
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return _text(lines)


def moved(lines: list[str], draw: random.Random) -> bytes:
    line = lines.pop(draw.randrange(len(lines)))
    lines.insert(draw.randrange(len(lines)), line)
    return _text(lines)


def reordered(lines: list[str], draw: random.Random) -> bytes:
    shuffled = draw.sample(lines, len(lines))
    return _text(draw.choice([lines[::-1], sorted(lines), shuffled]))


def joined(lines: list[str], draw: random.Random) -> bytes:
    """Two copies, or parts of them, one after the other."""
    return _text(lines[: draw.randrange(len(lines))] + lines[draw.randrange(len(lines)) :])


def two_in_a_line(lines: list[str], draw: random.Random) -> bytes:
    at = draw.randrange(len(lines) - 1)
    lines[at : at + 2] = [draw.choice(["", " ", "\r", ","]).join(lines[at : at + 2])]
    return _text(lines)


def written_otherwise(lines: list[str], draw: random.Random) -> bytes:
    """The same in other words: line ends, spaces, an encoding, a byte order mark, a last line without its end."""
    text = _text(lines)
    return draw.choice([
        text.replace(b"\n", b"\r\n"), text[:-1], b"\xef\xbb\xbf" + text, text + b"\n", b"\n" + text, text.replace(b":", b" : "),
        text.decode().encode("utf-16"), text.replace(b"\n", b"\n\n"), b"[" + text + b"]", text + b"\0" * 300, b"", b"\n", b"\0" * 64,
    ])  # fmt: skip


def flipped(lines: list[str], draw: random.Random) -> bytes:
    data = bytearray(_text(lines))
    for _ in range(draw.choice([1, 1, 4])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def overwritten(lines: list[str], draw: random.Random) -> bytes:
    data = bytearray(_text(lines))
    start, length = draw.randrange(len(data)), draw.choice([1, 30, 512])
    data[start : start + length] = draw.choice([bytes(length), draw.randbytes(length), b"9" * length, b""])
    return bytes(data)


def huge(lines: list[str], draw: random.Random) -> bytes:
    """Text that is JSON for other programs: numbers of thousands of digits, nesting without an end."""
    at = draw.randrange(len(lines))
    value = draw.choice(["9" * 5000, "-1e999999", "[" * 100_000, '{"a":' * 100_000, "1" + "0" * 400, '"' + "\\u0000" * 3 + '"'])
    lines[at] = f'{lines[at][:-1]},"time":{value}}}'
    return _text(lines)


MUTATIONS: dict[str, Callable[[list[str], random.Random], bytes]] = {
    "a value of another type": _of_values(other_value),
    "a number beside": _of_values(shifted),
    "a field that is gone": _of_values(without),
    "a field of another name": _of_values(renamed),
    "a value that is wrapped": _of_values(wrapped),
    "a value that is nested": _of_values(nested),
    "an event of another kind": other_kind,
    "a line that is not an event": other_event,
    "lines that are gone": deleted,
    "a line that is repeated": repeated,
    "a line that has moved": moved,
    "lines in another order": reordered,
    "two copies": joined,
    "two events in a line": two_in_a_line,
    "other line ends and encodings": written_otherwise,
    "flipped bits": flipped,
    "overwritten bytes": overwritten,
    "numbers and nesting without an end": huge,
}


# ------------------------------------------------------------------------------------------------------------- what must hold


class WrongError(Exception):
    """A hostile journal was neither refused well nor read right."""


def run(*arguments: str) -> tuple[int, str]:
    """The exit code of a command and what it printed. Raises WrongError if it ended with a traceback."""
    result = CliRunner().invoke(main, ["study", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise WrongError(f"{arguments[0]} ended with {result.exception!r:.300}")
    return result.exit_code, result.output


def check_refused(output: str, command: str) -> None:
    """One message, in one line of a terminal, that names the file and the line, with what to do."""
    lines = output.splitlines()
    if len(lines) != 1 or not lines[0].startswith("Error: "):
        raise WrongError(f"{command} printed {len(lines)} lines: {output:.300}")
    place = f"{Path.cwd()}/runs/{NAME}/journal.jsonl"
    named = f"line {lines[0].partition(': line ')[2].partition(' ')[0]} of {place}" in lines[0]
    remedies = ("css-ray study repair small", "restore the journal", "a later one", "the name of its study", "begin it with")
    if not (named or "never began" in lines[0]) or not any(remedy in lines[0] for remedy in remedies):
        raise WrongError(f"{command} printed {output:.300}")
    if len(output) > 2000 or any(ord(sign) < 32 for sign in lines[0]):
        raise WrongError(f"{command} printed {output!r:.300}")


def check_right(study: Study, data: bytes) -> None:
    """What was read is what the lines hold, by a count of our own."""
    whole = data.decode().rpartition("\n")[0]
    events = [json.loads(line) for line in whole.split("\n")]
    finished = {(each["trial"], each["split"]): each for each in events if each["event"] == "run_finished"}
    begun = {(each["trial"], each["split"]) for each in events if each["event"] == "run_started"}
    records = {(record.trial, record.split): record for record in study.standing.records}
    if records.keys() != begun:
        raise WrongError(f"{len(begun)} runs began, {len(records)} were read")
    for run_, record in records.items():
        if (record.status == "finished") != (run_ in finished):
            raise WrongError(f"{run_} is {record.status}")
        if run_ in finished and (record.last, record.best) != (finished[run_]["last"], finished[run_]["best"]):
            raise WrongError(f"{run_} has {record.last}")
    ends = {each["trial"]: each for each in events if each["event"] == "trial_finished"}
    for trial, end in ends.items():
        if study.standing.trials[trial].mean != end["mean"]:
            raise WrongError(f"trial {trial} has the mean {study.standing.trials[trial].mean}")


def check_driven(study: Study) -> None:
    """A driver can take the study up: it finds what to start next, or refuses the settings of a trial."""
    driver = Driver(study.definition, study.storage)
    running = set(driver.standing.running)
    for taken in (set(), running):
        try:
            following = driver.next_trial(taken)
        except ConfigError:
            continue
        if isinstance(following, TrialSpec) and following.index in taken:
            raise WrongError(f"trial {following.index} is handed out twice")
    for trial in driver.standing.ended:
        driver.result_of(trial)
    driver.outcome(), driver.has_work


COMMANDS = [["status"], ["table"], ["table", "--trials", "--format", "csv"], ["compare"], ["pseudo-labels"], ["resume"]]


def check_read(path: Path, data: bytes) -> bool:
    """Read a hostile journal by the commands and in Python; True if it is accepted. Raises WrongError."""
    try:
        study = Study.open(NAME)
        standing = study.standing
        study.trials(), study.records(), study.summary()
    except (JournalError, StudyMissingError) as error:
        accepted, refusal = False, str(error)
    else:
        accepted, refusal = True, ""
        check_right(study, data)
        check_driven(study)
        if standing.study != NAME:
            raise WrongError(f"the study is {standing.study}")
    code, output = run("list")
    if code != 0 or "other " not in output:
        raise WrongError(f"list ended with {code} and hid another study: {output:.300}")
    for command, *options in COMMANDS:
        code, output = run(command, NAME, *options)
        if not accepted:
            check_refused(output, command)
            if code != 2:
                raise WrongError(f"{command} ended with {code}: {output:.300}")
        elif code not in (0, 1, 2) or "Traceback" in output:
            raise WrongError(f"{command} ended with {code}: {output:.300}")
        if accepted and command == "status" and code != 0:
            raise WrongError(f"{command} refused what was read: {output:.300}")
    if path.read_bytes() != data:
        raise WrongError("reading changed the journal")
    check_repaired(path, data, refusal)
    return accepted


def check_repaired(path: Path, data: bytes, refusal: str) -> None:
    """A repair keeps a copy and leaves a journal that can be read, or changes nothing and says why."""
    code, output = run("repair", NAME, "--drop-unknown")
    copies = list(path.parent.glob("*before-repair*"))
    if code == 2:
        if path.read_bytes() != data or copies:
            raise WrongError("a repair that was refused changed something")
        check_refused(output, "repair")
        if not refusal:
            raise WrongError(f"what was read cannot be repaired: {output:.300}")
        return
    if code != 0:
        raise WrongError(f"repair ended with {code}: {output:.300}")
    if not refusal and (copies or path.read_bytes() != data):
        raise WrongError(f"a repair changed what was read: {output:.300}")
    if refusal and ([copy_.read_bytes() for copy_ in copies] != [data] or "given up:" not in output):
        raise WrongError(f"a repair kept no copy: {output:.300}")
    if (
        Study.open(NAME).standing.study != NAME
        or run("repair", NAME)[1] != f"the journal of {NAME} is sound: nothing was changed\n"
    ):
        raise WrongError("what a repair left is not sound")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("css_ray.study.preflight.check", lambda *arguments, **settings: [])  # a made-up study has no data
    monkeypatch.setattr("css_ray.api.Study._log_tables", lambda study: None)
    monkeypatch.setattr(Driver, "_num_classes", lambda driver, dataset, root: 6)
    FakeRunner.install(monkeypatch)
    mixed(Path("runs/other/journal.jsonl"), study="other")
    return tmp_path


def attack(count: int, seed: int) -> Outcomes:
    """Try `count` hostile journals of each kind."""
    path = Path(f"runs/{NAME}/journal.jsonl")
    lines, outcomes = eventful(path), Outcomes()
    assert check_read(path, _text(lines))
    for kind, mutate in MUTATIONS.items():
        draw = random.Random(f"{kind} {seed}")
        for _ in range(count):
            for left in path.parent.iterdir():
                left.unlink()
            data = mutate(list(lines), draw)
            path.write_bytes(data)
            try:
                outcomes.add(kind, "accepted" if check_read(path, data) else "refused")
            except WrongError as error:
                outcomes.add(kind, "failed", str(error))
            except Exception as error:
                outcomes.add(kind, "failed", f"{type(error).__name__}: {error!s:.300}")
    return outcomes


def test_hostile_journals(place: Path) -> None:
    outcomes = attack(1, seed=0)
    outcomes.check("journals")
    assert outcomes.count("refused") > 9


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_hostile_journals(place: Path) -> None:
    outcomes = attack(60, seed=1)
    outcomes.check("journals")


def test_what_is_no_file_at_all(place: Path) -> None:
    """A pipe in place of a journal would be waited for, for ever."""
    path = Path(f"runs/{NAME}/journal.jsonl")
    path.parent.mkdir()
    outcomes = Outcomes()
    makes: dict[str, Callable[[], None]] = {
        "a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a loop of links": lambda: path.symlink_to(path)
    }  # fmt: skip
    for kind, make in makes.items():
        make()
        for command in ("status", "table", "repair"):
            code, output = run(command, NAME)
            if code != 2 or len(output.splitlines()) != 1 or not output.startswith("Error: "):
                outcomes.add(kind, "failed", f"{command} ended with {code}: {output:.300}")
            else:
                outcomes.add(kind, "refused")
        code, output = run("list")
        assert code == 0 and "other " in output
        path.rmdir() if path.is_dir() else path.unlink()
    outcomes.check("in place of a journal")
