"""Seeded damage to bytes and to JSON values, and the count of what became of it.

A fuzzer makes case `number` with `case_random(kind, number)`, so that a case that failed is made again by its number alone.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import pytest

from css_ray.messages import os_error_text

FIGURES = "hostile inputs"
"""The property of a test's report that has its figures; tests/conftest.py prints them after the last test."""

CASE_SECONDS = 60.0
"""How long a case may take before it counts as a hang; one takes milliseconds, and the machine may be busy."""

CASE_BYTES = 2**31
"""How much address space a case that runs apart may take beside what its process had before."""

EXTREMES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    256,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "0",
    "nan",
    "\0",
    "\n",
    "\x1b]52;c;AAAA\x07",
    "../../outside",
    "/etc/passwd",
    "s3://user:hidden@host/x",
    "x" * 5000,
    "ü日本🦊",
    "\ud800",  # half of a surrogate pair, which JSON can hold and UTF-8 cannot
    [],
    [None],
    [[]],
    [0, "0", None],
    {},
    {"": None},
    {"name": {"name": {"name": 0}}},
)
"""Values of other types, and those at which programs stumble."""


def share_and_whole(share: int, whole: int) -> pytest.MarkDecorator:
    """Parametrizes `count`: a small share of the cases in each run, the whole of them in `make test-long`."""
    marks = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]
    return pytest.mark.parametrize("count", [pytest.param(share, id="share"), pytest.param(whole, id="whole", marks=marks)])


def case_random(kind: str, number: int) -> Random:
    """The generator of one case."""
    return Random(f"{kind}/{number}")


# Bytes


def damage(content: bytes, random: Random) -> tuple[str, bytes]:
    """The content with one damage, or a few, and what they were."""
    words = []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        word, content = random.choice(_DAMAGES)(content, random)
        words.append(word)
    return ", ".join(words), content


def _flip(content: bytes, random: Random) -> tuple[str, bytes]:
    if not content:
        return "nothing to flip", content
    changed, count = bytearray(content), random.choice((1, 1, 2, 8, 64))
    positions = [random.randrange(len(content)) for _ in range(count)]
    for position in positions:
        changed[position] ^= 1 << random.randrange(8)
    return f"flip a bit at {', '.join(map(str, positions[:8]))}", bytes(changed)


def _set(content: bytes, random: Random) -> tuple[str, bytes]:
    """Lengths and offsets meet their extremes so."""
    if not content:
        return "nothing to set", content
    start = random.randrange(len(content))
    value = random.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\0\0\0\1", b"\xff", b"\0"))
    return f"set {value.hex()} at {start}", content[:start] + value + content[start + len(value) :]


def _cut_end(content: bytes, random: Random) -> tuple[str, bytes]:
    length = random.randrange(len(content) + 1)
    return f"cut to {length} bytes", content[:length]


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 4, 16, 100, 1000)))


def _cut_out(content: bytes, random: Random) -> tuple[str, bytes]:
    start, end = _span(content, random)
    return f"cut out {start}..{end}", content[:start] + content[end:]


def _insert(content: bytes, random: Random) -> tuple[str, bytes]:
    start, more = random.randrange(len(content) + 1), random.randbytes(random.choice((1, 4, 16, 1000)))
    return f"insert {len(more)} bytes at {start}", content[:start] + more + content[start:]


def _zero(content: bytes, random: Random) -> tuple[str, bytes]:
    start, end = _span(content, random)
    return f"zero {start}..{end}", content[:start] + bytes(end - start) + content[end:]


def _duplicate(content: bytes, random: Random) -> tuple[str, bytes]:
    start, end = _span(content, random)
    return f"duplicate {start}..{end}", content[:end] + content[start:end] + content[end:]


def _append(content: bytes, random: Random) -> tuple[str, bytes]:
    more = random.choice((b"\0", b"\n", b"\xff" * 100, content[:1000]))
    return f"append {len(more)} bytes", content + more


def _replace(content: bytes, random: Random) -> tuple[str, bytes]:
    other = random.choice(
        (b"", b"\n", b"{}", b"<html>", b"\x1f\x8b", b"\xef\xbb\xbf", b"\xff\xfe", bytes(1000), random.randbytes(500))
    )
    return f"replace all by {other[:8]!r}", other


_DAMAGES = (_flip, _flip, _flip, _set, _set, _cut_end, _cut_out, _insert, _zero, _duplicate, _append, _replace)


# JSON


def alter(value: Any, random: Random) -> tuple[str, Any]:
    """A copy of a JSON value with one change, or a few, at random depths, and what they were."""
    words, changed = [], copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        word, changed = _alter_once(changed, random)
        words.append(word)
    return "; ".join(words), changed


def _alter_once(value: Any, random: Random) -> tuple[str, Any]:
    parents = list(_parents(value, ""))
    if not parents or random.random() < 0.03:
        other = copy.deepcopy(random.choice(EXTREMES))
        return f"all = {_brief(other)}", other
    where, parent, key = random.choice(parents)
    kind = random.choice(("replace", "replace", "replace", "nudge", "remove", "twice", "rename", "wrap", "nest", "elsewhere"))
    if kind == "remove":
        del parent[key]
    elif kind == "twice" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == "rename" and isinstance(parent, dict):
        parent[random.choice((f"{key}s", str(key).upper(), "", "unknown", "__class__"))] = parent.pop(key)
    elif kind == "wrap":
        parent[key] = random.choice(([parent[key]], {str(key): parent[key]}))
    elif kind == "nest":
        for _ in range(random.choice((5, 100, 400))):
            parent[key] = [parent[key]]
    elif kind == "elsewhere":  # a sound value in a wrong place
        other, other_key = random.choice(parents)[1:]
        parent[key] = copy.deepcopy(other[other_key])
    elif kind == "nudge" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = random.choice((parent[key] + 1, parent[key] - 1, -parent[key], str(parent[key]), float(parent[key])))
    else:
        kind, parent[key] = "replace", copy.deepcopy(random.choice(EXTREMES))
        return f"{where} = {_brief(parent[key])}", value
    return f"{kind} {where}", value


def _parents(value: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Each place below a value: its path, and the container and the key that lead to it."""
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        path = f"{where}.{key}" if isinstance(value, dict) else f"{where}[{key}]"
        yield path, value, key
        if path.count(".") + path.count("[") < 20:
            yield from _parents(value[key], path)


def _brief(value: Any) -> str:
    return ascii(value)[:40]


def as_json(value: Any) -> bytes:
    """JSON as a program writes it that keeps no rules: NaN, and half surrogate pairs, as they are."""
    return json.dumps(value, ensure_ascii=True).encode()


# What became of it


@dataclass(slots=True)
class Tally:
    """How the cases of a kind of input ended. failed: each with what went wrong."""

    kind: str
    refused: int = 0
    accepted: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """The number of cases."""
        return self.refused + self.accepted + len(self.failed)

    def count(self, case: str, outcome: str, named: str | Sequence[str] = ()) -> None:
        """Count a case by its outcome as `outcome_of` gives it.

        named: words of which a refusal must contain one, such as the name of the damaged file.
        """
        how, _, message = outcome.partition(": ")
        words = [named] if isinstance(named, str) else list(named)
        if how == "accepted":
            self.accepted += 1
        elif how != "refused":
            self.failed.append(f"{case}: {outcome}")
        elif problem := wrong_with_message(message, words):
            self.failed.append(f"{case}: its message {problem}: {message!r}")
        else:
            self.refused += 1

    def check(self, record_property: Callable[[str, object], None]) -> None:
        """Hand the figures to the summary of the session, and fail the test if a case failed, or if there was none."""
        record_property(FIGURES, [self.kind, self.tried, self.refused, self.accepted, len(self.failed)])
        if self.failed:
            shown = "\n  ".join(self.failed[:20])
            pytest.fail(f"{len(self.failed)} of {self.tried} cases of {self.kind} failed:\n  {shown}", pytrace=False)
        assert self.tried, f"no case of {self.kind} was tried"


def wrong_with_message(message: str, named: Sequence[str]) -> str:
    """What is wrong with the message of a refusal; empty if nothing is."""
    if not message.strip():
        return "is empty"
    if named and not any(word in message for word in named):
        return f"names none of {', '.join(named)}"
    if "Traceback" in message or re.search(r"object at 0x|\[Errno|<class '", message):
        return "speaks of Python"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message):
        return "has control characters"
    if len(message) > 10_000:
        return f"has {len(message)} characters"
    return ""


def outcome_of(act: Callable[[], object], refusals: tuple[type[Exception], ...] = (OSError, ValueError)) -> str:
    """`accepted`, `refused: MESSAGE`, or `failed: WHERE` for an exception that no caller expects."""
    try:
        act()
    except MemoryError:
        return "failed: it took more memory than it may"
    except refusals as error:
        if isinstance(error, UnicodeError):
            return f"failed: {_place(error)}"  # a user reads no codecs
        return f"refused: {os_error_text(error, 'read') if isinstance(error, OSError) else error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"failed: {_place(error)}"
    return "accepted"


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({last.filename}:{last.lineno})"


# In a process of its own, which may die


def apart(judge: Callable[[Any], str], cases: Sequence[Any], preload: Sequence[str] = ("css_ray.data.catalogue",)) -> list[str]:
    """What `judge` returns for each case, run one after another in a process of their own.

    If it dies or hangs, `failed: ...` is the outcome of the case that it was at, and a new process continues with the next one.
    judge: a function of a module, given a case that can be pickled. preload: what the processes import, once for all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.mutate", *preload])
    outcomes: list[str] = []
    while len(outcomes) < len(cases):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(judge, cases[len(outcomes) :], there), daemon=True)
        process.start()
        there.close()
        try:
            while len(outcomes) < len(cases):
                if not here.poll(CASE_SECONDS):
                    process.kill()
                    outcomes.append(f"failed: it took more than {CASE_SECONDS:g} s")
                    break
                outcomes.append(here.recv())
        except EOFError:
            process.join()
            code = process.exitcode or 0
            outcomes.append(f"failed: the process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
        finally:
            process.join(timeout=CASE_SECONDS)
            here.close()
    return outcomes


def _serve(judge: Callable[[Any], str], cases: Sequence[Any], connection: Connection) -> None:
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + CASE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in cases:
        try:
            outcome = judge(case)
        except MemoryError:
            outcome = "failed: it took more memory than it may"
        connection.send(outcome)
