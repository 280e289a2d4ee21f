"""What became of a command with hostile words or files, called in this process."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from click.testing import CliRunner

CPU_SECONDS = 60.0
"""The processor time after which a command counts as one that would not end, on the slowest machine, imports included."""

MEMORY = 4 * 2**30
"""How much address space all commands of a test may take beside what the process had before, in bytes."""

_COMMANDS_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def outcome_of_command(arguments: Sequence[str], codes: Sequence[int] = (2,)) -> str:
    """`accepted` if it ended with 0, `refused: MESSAGE` if with one of `codes` and one message, else `failed: WHY`."""
    from css_ray_cli.main import main

    began = time.process_time()
    result = CliRunner().invoke(main, list(arguments))
    spent = time.process_time() - began
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"failed: it raised {result.exception!r:.300}"
    if spent > CPU_SECONDS:
        return f"failed: it took {spent:.1f} s"
    if _COMMANDS_TERMINAL.search(result.output):
        return f"failed: it printed control characters: {result.output!r:.300}"
    if result.exit_code == 0:
        return "accepted"
    if result.exit_code not in codes:
        return f"failed: it ended with {result.exit_code}: {result.output:.300}"
    messages = re.split(r"^Error: ", result.output, flags=re.MULTILINE)[1:]
    if not messages and "\nCommands:\n" in result.output:  # a group of commands without one of them
        return f"refused: {result.output}"
    return f"refused: {messages[0]}" if len(messages) == 1 else f"failed: it printed no single message: {result.output:.300}"


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within the block what takes too much memory raises MemoryError, instead of taking it from the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
