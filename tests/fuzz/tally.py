"""What became of hostile inputs: how many were tried, refused well, accepted, and which failed."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

CPU_SECONDS = 5.0
"""What one input may cost, by this process's own clock: the machine may be busy with others."""

MEMORY = 4 * 2**30
"""What all inputs of a test may take beyond what the process has at its start, in bytes."""

_LONGEST_MESSAGE = 100_000
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass
class Tally:
    """kind: of the inputs, as the figures name it."""

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def accepted(self) -> None:
        self.counts["accepted"] += 1

    def refused(self) -> None:
        self.counts["refused well"] += 1

    def fail(self, what: str) -> None:
        self.counts["failed"] += 1
        self.failed.append(what)

    def check(self) -> None:
        """Print the figures, and fail with the first inputs that did."""
        figures = ", ".join(f"{self.counts[name]} {name}" for name in ("refused well", "accepted", "failed"))
        print(f"{self.kind}: {self.counts.total()} tried: {figures}")
        assert not self.failed, "\n".join([f"{len(self.failed)} of {self.counts.total()} failed", *self.failed[:10]])


def command(tally: Tally, arguments: Sequence[str], codes: Sequence[int] = (2,), what: str = "") -> bool:
    """Call css-ray in this process; True if it accepted the input. It must end with 0, or with one of `codes` and one message.

    what: the input, as a failure names it; the arguments if not given.
    """
    from css_ray_cli.main import main

    began = time.process_time()
    result = CliRunner().invoke(main, list(arguments))
    spent = time.process_time() - began
    problem = ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        problem = f"raised {result.exception!r:.300}"
    elif result.exit_code not in (0, *codes):
        problem = f"ended with {result.exit_code}: {result.output[:300]}"
    elif spent > CPU_SECONDS:
        problem = f"took {spent:.1f} s"
    elif _NOT_PRINTABLE.search(result.output):
        problem = f"printed control characters: {result.output[:300]!r}"
    elif "Traceback" in result.output or "[Errno" in result.output:
        problem = f"printed a traceback or an error's number: {result.output[:300]}"
    elif len(result.output) > _LONGEST_MESSAGE:
        problem = f"printed {len(result.output)} characters"
    elif result.exit_code and len(re.findall(r"^(?:Error: |WRONG )", result.output, re.MULTILINE)) != 1:
        problem = f"printed no single message: {result.output[:300]}"
    if problem:
        tally.fail(f"{what or ' '.join(arguments)!r} {problem}")
        return False
    if result.exit_code:
        tally.refused()
    else:
        tally.accepted()
    return result.exit_code == 0


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within the block an input that takes too much memory raises MemoryError, instead of taking it from the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
