"""What published scores are: the number, and how it was measured, which is rarely as ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Published(NamedTuple):
    """A printed score in percent: the mean over runs and its standard deviation, None if none is printed."""

    mean: float
    std: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How a score was measured. What is None is not known, or is not of its network.

    splits: which images are labelled: the lists of a published family, or `drawn` at random by a seed. output_stride: of a
    convolutional encoder; a ViT has none. crop: side of the training crops in pixels. at: which evaluation the score is of;
    `best` is chosen on the images that it is measured on. n: over how many splits the mean is.
    """

    splits: str | None = None
    encoder: str | None = None
    output_stride: int | None = None
    crop: int | None = None
    evaluation: Literal["whole_image", "sliding_window", "centre_crop", "random_crop"] | None = None
    at: Literal["last", "best"] = "best"
    n: int = 1

    @classmethod
    def of_settings(
        cls, settings: Mapping[str, Mapping[str, Any]], output_stride: int | None, at: Literal["last", "best"], n: int
    ) -> Protocol:
        """That of a trial, from its settings by section and key. output_stride: of its network, None if it has none."""
        data, model = settings["data"], settings["model"]
        return cls(
            splits=data["labelled_list"] or "drawn",
            encoder=model["encoder"].partition(".")[0],
            output_stride=output_stride,
            crop=data["crop"],
            evaluation=settings["train"]["evaluation"],
            at=at,
            n=n,
        )

    def differences(self, ours: Protocol) -> list[str]:
        """What differs from ours, as `crop 513 (here 321)`; nothing of what is None in one of both."""
        found = []
        for each in dataclasses.fields(self):
            theirs, here = getattr(self, each.name), getattr(ours, each.name)
            if theirs is not None and here is not None and theirs != here:
                found.append(f"{each.name.replace('_', ' ')} {theirs} (here {here})")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Whose a row is, empty if it is the table's own, and how its scores were measured."""

    whose: str
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of published scores. rows: label of the row -> column -> score. sources: label of the row -> where it is from.

    beside: what its columns are called beside ours.
    """

    name: str
    title: str
    columns: tuple[int | str, ...]
    rows: Mapping[str, Mapping[int | str, Published]]
    sources: Mapping[str, Source] = field(default_factory=dict)
    note: str = ""
    beside: str = "published"

    def find(self, row: str, column: object) -> Published | None:
        """The score of a cell, or None. Spaces, case and dots in a row's label do not matter; columns compare as text."""
        cells = self.rows.get(self._label(row), {})
        return next((score for key, score in cells.items() if str(key) == str(column)), None)

    def source(self, row: str) -> Source | None:
        """Where a row is from, or None if the table does not have it; found as `find` does."""
        return self.sources.get(self._label(row))

    def _label(self, row: str) -> str:
        return next((label for label in self.rows if _plain(label) == _plain(row)), "")


def _plain(label: str) -> str:
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def in_print(columns: Sequence[int | str], rows: Mapping[str, str]) -> dict[str, dict[int | str, Published]]:
    """Rows written as in print: scores apart by spaces, `mean±std` or `mean`, `-` for an empty cell."""
    parsed: dict[str, dict[int | str, Published]] = {}
    for label, line in rows.items():
        parsed[label] = {
            column: Published(*map(float, text.split("±")))
            for column, text in zip(columns, line.split(), strict=True)
            if text != "-"
        }
    return parsed
