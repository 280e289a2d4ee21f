"""What is wrong with a study, all of it together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from css_ray.config import Problem
from css_ray.messages import clipped, did_you_mean
from css_ray.secrets import shown, without_secrets

if TYPE_CHECKING:
    from css_ray.study.definition.study import StudyDefinition


class StudyError(ValueError):
    """A study file, or what it asks for, is wrong.

    Args:
        problems: What is wrong. A problem that is given twice is listed once.
        source: The name of the study or of its file.
        rest: The study without what is wrong, if enough of it is left to look for more.

    Attributes:
        problems: Everything that is wrong, each with its path in the file, and without secrets.
        source: As given.
        rest: As given.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "the study", rest: StudyDefinition | None = None) -> None:
        super().__init__(problems, source, rest)  # what an exception is unpickled from
        # A problem quotes the value that is wrong, which may be long, or a URL with a secret.
        plain = [Problem(_plain(each.path), _plain(each.sentence), each.joint) for each in problems]
        self.problems, self.source, self.rest = tuple(dict.fromkeys(plain)), source, rest

    def __str__(self) -> str:
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  and {len(self.problems) - _SHOWN} more")
        return f"{count} in {shown(self.source)}:\n" + "\n".join(lines)


_SHOWN, _LENGTH = 50, 1000


def _plain(text: str) -> str:
    return without_secrets(clipped(text, _LENGTH))


def unknown_key(path: str, key: object, known: Iterable[str]) -> Problem:
    """A key that nobody reads, at `path`, which ends with it."""
    return Problem(path, f"is unknown{did_you_mean(key, known)}", joint=" ")


_PLACE = re.compile(r"^(?:--set )?(?:(?:grid|trials\[\d+\]|search\.space|search\.first\[\d+\])\.)?")
"""What a path begins with if a study overrides or varies a setting."""


def intact(problems: Iterable[Problem], *paths: str) -> bool:
    """True if none of `problems` is about one of the settings or sections `paths`, wherever it is set."""
    wrong = [_PLACE.sub("", problem.path) for problem in problems]
    return not any(within(each, path) or within(path, each) for each in wrong for path in paths)


def within(path: str, above: str) -> bool:
    """True if `path` is `above`, or a part of it."""
    return path == above or path.startswith((f"{above}.", f"{above}["))
