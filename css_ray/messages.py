"""Small parts of messages that every layer writes in the same way. Nothing here needs more than the standard library."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_STORAGE = "runs"
"""The storage of a command that names none."""

_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""What a terminal obeys or cannot show: controls but line feed and tab, marks that reverse text, halves of characters."""

_NOT_PRINTABLE = re.compile(f"[{_COMMANDS}]")
_NOT_IN_A_WORD = re.compile(f"[{_COMMANDS}\\n\\t]")
_ESCAPED_IN_A_WORD = re.compile(f"[{_COMMANDS}\\n\\t'\\\\]")

_GOOGLE = re.compile(r"google::cloud::Status\((?:\w+: )?(.*?)(?: error_info=\{.*)?\)", re.DOTALL)
"""An error of Google's library, which repeats itself in what follows its words."""

_LONGEST_WORD = 200  # of which a close one is looked for: the time grows with its square

_MAKE_ROOM = "make room, or choose a path on another disk"
_REASONS: dict[int, tuple[str, str]] = {
    errno.EACCES: ("permission denied", "change its permissions, or choose another path"),
    errno.EPERM: ("permission denied", "change its permissions, or choose another path"),
    errno.EROFS: ("its file system is read-only", "choose a path on another disk"),
    errno.ENOSPC: ("the disk is full", _MAKE_ROOM),
    errno.EDQUOT: ("your disk quota is used up", _MAKE_ROOM),
    errno.EISDIR: ("it is a folder, not a file", "give the path of a file"),
    errno.ENAMETOOLONG: ("a name in it is too long", "choose a shorter one"),
    errno.EMFILE: ("too many files are open", "raise the limit with ulimit -n"),
    errno.ENFILE: ("too many files are open", "close other programs"),
    errno.ENOLCK: ("its file system has no file locks", "choose a path on a local disk"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, or choose a path on another one"),
    errno.ESTALE: ("the network share was replaced", "mount it again"),
}
"""Why, and what to do, for errors of which neither depends on the path."""


def os_error_text(error: OSError, action: str = "open", path: str | Path | None = None) -> str:
    """An error of the operating system as one sentence: what failed, why, and what to do; no `[Errno 2]`.

    Args:
        error: One without an errno holds a sentence already, which is returned as it is.
        action: What was tried: "read", "write", "open".
        path: What it was tried with, as the user knows it; the error's own file if not given.
    """
    if error.errno is None:
        return _GOOGLE.sub(r"Google Cloud Storage: \1", str(error))
    # pyarrow appends the system's words to its own, and gives no file name.
    said, _, detail = (error.strerror or os.strerror(error.errno)).partition(". Detail: [errno")
    place = path if path is not None else error.filename
    if isinstance(place, str | bytes | Path):
        place = os.fsdecode(place)
        what = f"cannot {action} {quoted(place)}"
    else:
        place, what = "", said if detail else f"cannot {action} a file"
    reason, remedy = _reason(error.errno, action, place) or (said[:1].lower() + said[1:], "")
    return f"{what}: {reason}" + (f"; {remedy}" if remedy else "")


def _reason(number: int, action: str, path: str) -> tuple[str, str] | None:
    if number == errno.ENOENT:
        return ("its folder does not exist", "create it") if action == "write" else ("it does not exist", "check the path")
    if number in (errno.ENOTDIR, errno.EEXIST):
        file = next((str(part) for part in (Path(path), *Path(path).parents) if os.path.isfile(part)), None)
        if file is not None:
            name = "it" if file == path else quoted(file)
            return f"{name} is a file, not a folder", "choose another path"
        return ("a part of its path is not a folder" if number == errno.ENOTDIR else "it exists already"), "choose another path"
    return _REASONS.get(number)


@contextmanager
def os_errors_in_words(action: str, path: str | Path) -> Iterator[None]:
    """What the operating system refuses within the block is raised again, of the same type, as `os_error_text` puts it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(os_error_text(error, action, path)) from None


def printable(text: str) -> str:
    """Text of somebody else as a terminal shows it: what would command the terminal appears as its escape, such as `\\x1b`."""
    return _NOT_PRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


_MARKUP = re.compile(r"[\\|*`~\[]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])|<(?=[a-zA-Z/!?])|&(?=#?\w+;)")
_ENTITIES = {"&": "&amp;", "<": "&lt;"}


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no link, no HTML, no table's border; see `printable`."""
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))


def clipped(text: str, limit: int) -> str:
    """Its beginning and its end, which often names the remedy, if a text has more than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]} … {text[-limit // 3 :]}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """What follows an unknown word: ` (did you mean X?)`, or `; known: a, b, c` if nothing is close."""
    known, word = list(known), str(word)
    near = difflib.get_close_matches(word, known, n=1) if len(word) <= _LONGEST_WORD else []
    if near:
        return f" (did you mean {near[0]}?)"
    return f"; known: {', '.join(known)}" if known else ""


def last_line(error: object, limit: int = 1000) -> str:
    """The last line of an error's text, which names the exception if the text is a traceback; at most `limit` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:limit] if lines else f"{type(error).__name__} (no message)"


def command(*words: str) -> str:
    """A command of css-ray as it can be pasted into a shell: each word quoted if the shell would split or expand it."""
    return " ".join(map(quoted, ("css-ray", *words)))


def quoted(word: str | Path) -> str:
    """A word of a command as it can be shown in one line, and pasted into a shell."""
    text = str(word)
    if not _NOT_IN_A_WORD.search(text):
        return shlex.quote(text)
    # As bash, zsh and POSIX since 2024 have it: between these quotes a backslash begins an escape.
    return f"$'{_ESCAPED_IN_A_WORD.sub(_shell_escape, text)}'"


def _shell_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a path that is not UTF-8
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def file_argument(path: str) -> str:
    """A path as an argument of a command, in which a leading `-` would begin an option."""
    return f"./{path}" if path.startswith("-") else path


def study_command(verb: str, name: str, storage: str = DEFAULT_STORAGE, *more: str) -> str:
    """The command `css-ray study VERB NAME`, with the words `more` after it, and with --storage unless it is the default."""
    return command("study", verb, name, *at_storage(storage), *more)


def at_storage(storage: str) -> tuple[str, ...]:
    """The words that name a storage in a command: none if it is the default."""
    return () if storage == DEFAULT_STORAGE else ("--storage", storage)
