"""What is handed from the driver to the ranks that train: plain values, as dataclasses on both sides of the border."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Lists:
    """The ids of a listed split. unlabelled: None for all other training images."""

    labelled: list[str]
    unlabelled: list[str] | None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: a trial on a split.

    settings: as in `TrialSpec`, with absolute paths. lists: the ids of its split if files name them, once these were read.
    """

    trial: int
    split: int
    seed: int
    settings: Mapping[str, Mapping[str, Any]]
    lists: Lists | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes an equal spec."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> RunSpec:
        """The spec that `to_json` wrote."""
        lists = plain["lists"]
        return cls(plain["trial"], plain["split"], plain["seed"], plain["settings"], None if lists is None else Lists(**lists))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the ranks of a slot need to train a trial.

    new: whether nothing of the trial is in the journal. runs: one per split that is left, in their order. sizes: the numbers of
    workers that may train it, lowest first. checkpoints, models, matrices: folders or URLs, of what it continues from, of the
    best weights of each run, and of its validation images' confusion matrices. verdicts: whose they are, None if nothing prunes
    it. hang_seconds: how long a step may take. min_free: bytes that must stay free on the disk.
    """

    trial: int
    new: bool
    runs: list[RunSpec]
    sizes: list[int]
    checkpoints: str
    models: str
    matrices: str
    verdicts: str | None
    hang_seconds: float
    min_free: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes an equal job."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        return cls(**{**plain, "runs": [RunSpec.from_json(run) for run in plain["runs"]]})
