"""What is wrong with the images of a data set, all of it in one message."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_SHOWN = 5  # ids that are named if many share a problem
_MOST_CHARACTERS = 200


def brief(text: str) -> str:
    """What a file holds, as a message shows it: on one line, without what a terminal would obey, and cut if it is long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def quoted(value: object) -> str:
    """The same of a value of any type, with quotation marks if it is a text."""
    # reprlib stops at a depth: some values hold themselves, or each other a thousand times.
    return brief(_VALUES.repr(value))


_VALUES = reprlib.Repr()
_VALUES.maxlevel, _VALUES.maxlist, _VALUES.maxstring = 3, 10, _MOST_CHARACTERS


@dataclass(slots=True)
class Problems:
    """What is wrong, and with which images; the same words appear once."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, problem: str, id: str) -> None:
        """Note that the image `id` has a problem."""
        self.found.setdefault(problem, []).append(id)

    def update(self, other: Mapping[str, Sequence[str]]) -> None:
        """Note all of `other`: ids by problem."""
        for problem, ids in other.items():
            self.found.setdefault(problem, []).extend(ids)

    @property
    def count(self) -> int:
        """How many there are, over all images."""
        return sum(map(len, self.found.values()))

    def lines(self) -> list[str]:
        """One line per problem, with the ids that have it, or the first of them."""
        lines = []
        for problem, ids in self.found.items():
            more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
            lines.append(f"{', '.join(map(brief, ids[:_SHOWN]))}{more}: {problem}")
        return lines

    def raise_any(self, place: object, outcome: str = "nothing was written") -> None:
        """Raise ValueError with all of them, if there are any."""
        if self.found:
            title = f"{place} has {self.count} problem{'s' * (self.count > 1)}, {outcome}"
            raise ValueError(joined(title, self.lines()))


def find_twins(images: Mapping[str, Sequence[tuple[str, bytes]]], problems: Problems) -> None:
    """Find validation images that are trained on under another id.

    images: of train and val, the id of each and the hash of its encoded image.
    """
    trained = {digest: id for id, digest in images["train"]}
    known = {id for id, _ in images["train"]}
    for id, digest in images["val"]:
        if id not in known and (twin := trained.get(digest)) is not None:
            problems.add(f"is in val, and byte for byte the training image {twin}", id)


def joined(title: str, lines: Iterable[str]) -> str:
    """A message of several lines."""
    return "\n  ".join([f"{title}:", *lines])
